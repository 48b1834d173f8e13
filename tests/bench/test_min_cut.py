"""What `bench.min_cut` counts, on a small model."""

import pytest

from bench import min_cut
from bench.models.zoo import ZOO
from bench.step_graphs import trace_bf16


def test_fewer_bytes_by_width_and_the_loss_stands_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(min_cut, "MODELS", {"small": lambda: trace_bf16(ZOO["bytegpt"])})
    monkeypatch.setattr(min_cut, "WORDS", {"small": 256})
    plain, default, four, two = min_cut.compare("small", ["default", "4 bit", "2 bit"])
    assert [row.variant for row in (plain, default, four, two)] == ["min-cut", "default", "4 bit", "2 bit"]
    assert plain.saved_bytes > default.saved_bytes > four.saved_bytes > two.saved_bytes
    assert plain.peak_bytes > max(row.peak_bytes for row in (default, four, two))
    tokens, words = 4 * 128, 256
    assert plain.loss_bytes in (tokens * words * 2, tokens * words * 4), "logits in bf16, or their softmax in fp32"
    assert plain.rest_bytes + plain.loss_bytes == plain.saved_bytes


def test_a_share_in_a_variants_name_is_its_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(min_cut, "MODELS", {"small": lambda: trace_bf16(ZOO["bytegpt"])})
    plain, free, tight = min_cut.compare("small", ["4 bit", "4 bit 40%", "4 bit 1%"])
    assert tight.peak_bytes <= 0.4 * plain.peak_bytes < free.peak_bytes
    assert tight.again_share > free.again_share
    assert "4 bit 1%: budget of" in capsys.readouterr().out
