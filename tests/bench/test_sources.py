"""The comparison of published systems: its tasks, and the claims of docs/sources.md that need no training."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench import data
from bench.models.digits_nets import ViT
from bench.models.gcn import club
from bench.source_table import markdown
from bench.source_tasks import TASKS
from bench.source_variants import CURVE, Match, make, match_of, named
from bench.sources import Setting, bits_per_element, run, stored
from fxcompress.codecs.affine import Affine
from fxcompress.options import from_mapping
from fxcompress.presets import PRESETS


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_batches_of_one_shape_and_a_quality(name: str) -> None:
    task = TASKS[name]
    torch.manual_seed(0)
    module = task.build()
    batches = task.batches(3, 2)
    assert len(batches) == 2 and [part.shape for part in batches[0]] == [part.shape for part in batches[1]]
    assert module(*batches[0]).dim() == 0
    module.eval()
    with torch.no_grad():
        assert 0 <= task.quality(module, 3) < 10


def test_the_club_is_networkxs_own() -> None:
    adjacency, labels = club()
    assert adjacency.shape == (34, 34) and torch.equal(adjacency, adjacency.t()) and int(labels.sum()) == 17


def test_variants_by_name(tmp_path: Path) -> None:
    assert {"default", "division", "gact-l2"} <= set(named("all"))
    assert named("plain,comet,curve") == ["comet", *CURVE] and "ours@comet" in named("matched")
    assert named("ours@0.05,ours:64@comet") == ["ours@0.05", "ours:64@comet"]
    assert match_of("ours:64@0.05") == Match("0.05", 64) and Match("0.05", 64).limit == 0.05
    assert match_of("ours@gact-l1") == Match("gact-l1", 256) and match_of("comet-4b-0.5") is None
    for wrong in ("divison", "ours@divison", "ours:x@comet", "ours@"):
        with pytest.raises(ValueError, match=f"'{wrong}'"):
            named(wrong)
    for name in (*CURVE, *(name for name, preset in PRESETS.items() if not preset.made_by)):
        from_mapping(make(name, TASKS["cnn"], "aot_eager", tmp_path, lambda _: 0.0).options)
    assert bits_per_element(None) is None


def test_a_row_is_measured_once_and_paired_with_the_reference(tmp_path: Path) -> None:
    setting, path = Setting("gcn", "aot_eager", steps=2, seeds=2, noise_seeds=1), tmp_path / "rows.jsonl"
    rows = run(setting, ["comet"], path, time.monotonic() + 1e6)
    assert [row["variant"] for row in rows] == ["plain", "comet"] and rows[0]["difference"] == 0
    assert rows[1]["saved_bytes"] < rows[0]["saved_bytes"] and 0 < rows[1]["grad_error"] < 1
    written = path.read_text()
    assert run(setting, ["comet"], path, 0.0) == [json.loads(line) for line in written.splitlines()]
    assert path.read_text() == written and "| comet | 4.98 |" in markdown(rows)
    beside = markdown([*rows, {**rows[1], "variant": "ours@comet", "saved_bytes": 12345}])
    assert beside.splitlines()[-1].startswith("| comet | 0.014 | 0.15 | 0.1") and "| 0.012 | 0.15 |" in beside
    assert stored(path, replace(setting, steps=3)) == {}
    assert run(replace(setting, steps=3), ["comet"], path, 0.0) == []


def projections(network: nn.Module, images: Tensor) -> list[Tensor]:
    """What the attention layers read: q, k and v of all heads, [tokens of the batch, 3 · heads · dim]."""
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, result: found.append(result.detach().flatten(0, -2)))
        for name, module in network.named_modules()
        if name.endswith("qkv")
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return found


def test_a_range_per_head_is_nearer_than_one_per_tensor_in_every_attention_layer() -> None:
    """Mesa's claim, on a ViT after a few steps of training, at 8 bits."""
    torch.manual_seed(0)
    network, (images, labels) = ViT(), data.digits(16).train
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for step in range(10):
        batch = slice(64 * step, 64 * (step + 1))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    for x in projections(network, images[:64]):
        errors = []
        for codec in (Affine(bits=8, heads=12, dim=16), Affine(bits=8, heads=1, dim=192)):
            rows = x.reshape(-1)
            errors.append(float((codec.decode(codec.encode(rows, 1), rows.numel(), rows.dtype) - rows).square().mean()))
        assert errors[0] <= errors[1]
