"""Where nothing fits, the lowest peak is looked for one value away from the best cut."""

import re

import pytest

import fxcompress
from bench.models import zoo
from fxcompress.options import Options
from fxcompress.passes import cut_within


def lowest_peak() -> int:
    """What a budget of one byte says is reachable."""
    with pytest.raises(Exception, match="lowest predicted peak found is") as caught:
        fxcompress.explain(zoo.cnn, options=Options(inner="aot_eager", budget=1))
    found = re.search(r"found is (\d+) bytes", str(caught.value))
    assert found is not None
    return int(found[1])


def test_a_descent_lowers_the_peak_that_a_refusal_states(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lowest_peak()
    monkeypatch.setattr(cut_within._Search, "descend", lambda *args: None)
    assert found < lowest_peak()
