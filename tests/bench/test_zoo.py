"""The zoo's table: failures are rows, and the reference stands first."""

from collections.abc import Callable

import pytest
import torch
from rich.console import Console
from torch import Tensor, fx

from bench import variants
from bench.variants import REFERENCE, Variant, chosen
from bench.zoo import table
from bench.zoo_worker import measure_model


def broken(_gm: fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Tensor]:
    """A backend that fails."""
    raise RuntimeError("no such luck")


def test_a_failing_variant_is_a_row_with_its_error() -> None:
    torch._dynamo.reset()
    compared = [Variant(REFERENCE, "aot_eager"), Variant("broken", broken)]  # type: ignore[arg-type]
    rows = measure_model("bnn", compared, inner="aot_eager", bf16=False, rounds=1)
    assert [row.variant for row in rows] == [REFERENCE, "broken"]
    good, bad = rows
    assert good.error is None and good.grad_error == 0 and good.grad_equal and good.step_ratio == 1
    assert bad.error is not None and "no such luck" in bad.error and bad.saved_bytes is None
    console = Console(width=112)
    with console.capture() as capture:
        console.print(table("bnn", rows))
    assert "failed" in capture.get()


def test_a_failing_reference_leaves_the_others_without_ratios() -> None:
    torch._dynamo.reset()
    compared = [Variant(REFERENCE, broken), Variant("other", "aot_eager")]  # type: ignore[arg-type]
    failed, other = measure_model("bnn", compared, inner="aot_eager", bf16=False, rounds=1)
    assert failed.error and other.error is None
    assert other.saved_bytes and other.grad_error is None and other.step_ratio is None


def test_choice_puts_the_reference_first_and_refuses_unknown_names() -> None:
    assert [v.name for v in chosen("actcomp,plain", "aot_eager")] == [REFERENCE, "actcomp"]
    assert [v.name for v in chosen("all")] == list(variants.variants())
    with pytest.raises(ValueError, match="unknown variant"):
        chosen("budget-0.7")
