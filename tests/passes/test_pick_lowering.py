"""Which encodes become Triton kernels, and what the graphs and plans then hold."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

pytest.importorskip("triton")

from fxcompress import compat, pipeline, plan_io
from fxcompress.codecs import lowering, planes
from fxcompress.ledger import make_plan
from fxcompress.options import Options
from fxcompress.passes.alias import storage_key
from fxcompress.passes.rewrite import tensor_salt
from fxcompress.plan import ATEN, KEEP, TRITON
from fxcompress.testing_graphs import Pair, capture

STOCHASTIC: dict[str, Any] = {"bits": 4, "operand_bits": 4, "rounding": "stochastic"}


def layers() -> Pair:
    """Equal layers, so that what each saves has one shape."""

    def function(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        for weight in weights:
            x = F.dropout(F.gelu(x @ weight), 0.1)
        return x

    torch.manual_seed(0)
    return capture(function, [torch.randn(64, 64, requires_grad=True) for _ in range(4)])


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decide as for a GPU, on tensors of the CPU."""
    monkeypatch.setattr(lowering, "wanted", lambda _: True)
    monkeypatch.setattr(planes, "wanted", lambda _: True)


def rewritten(**options: Any) -> tuple[Pair, pipeline.Result]:
    copy = layers().copy()
    # What a CPU outlines, a GPU does not.
    disabled = ["outline", *options.pop("disable_passes", ())]
    chosen = {"inner": "inductor", "min_bytes": 64, "disable_passes": disabled, **STOCHASTIC, **options}
    return copy, pipeline.run(copy.fw, copy.bw, Options(**chosen))


def lowerings(result: pipeline.Result) -> list[str]:
    return [decision.lowering for decision in result.plan.decisions]


@pytest.mark.usefixtures("on_gpu")
def test_stochastic_encodes_are_one_kernel_node_each_and_decodes_are_not() -> None:
    pair, result = rewritten()
    nodes = compat.triton_nodes(pair.fw.graph)
    stochastic = [d for d in result.plan.decisions if dict(d.params).get("rounding") == "stochastic"]
    assert len(nodes) == len(stochastic) > 1
    assert {d.lowering for d in stochastic} == {TRITON}
    assert not compat.triton_nodes(pair.bw.graph)
    assert all(d.lowering == ATEN for d in result.plan.decisions if d.codec == "valueset")
    assert all(d.lowering == "" for d in result.plan.decisions if d.codec in (KEEP, "shared"))


@pytest.mark.usefixtures("on_gpu")
def test_each_kernel_has_the_salt_of_its_tensor_and_fills_its_own_buffers() -> None:
    pair, _ = rewritten(seed=3)
    nodes = compat.triton_nodes(pair.fw.graph)
    assert len(nodes) > 1
    salts = [number_of(node, "salt") for node in nodes]
    numbers = [int(str(next(iter(node.users)).name).split("_")[1]) for node in nodes]
    assert salts == [lowering.signed(tensor_salt(3, number)) for number in numbers]
    assert len(set(salts)) == len(salts)
    stored = [storage_key(user) for node in nodes for user in node.users]
    given = [storage_key(buffer) for node in nodes for buffer in node.all_input_nodes[1:]]
    assert len(set(stored)) == len(stored) == 2 * len(nodes) and sorted(stored) == sorted(given)


def number_of(node: fx.Node, name: str) -> object:
    arguments: Any = node.kwargs["kwargs"]
    return arguments[name]


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    "options", [{"rounding": "nearest"}, {"inner": "aot_eager"}, {"disable_passes": ["pick_lowering"]}], ids=str
)
def test_everything_else_is_aten(options: dict[str, Any]) -> None:
    pair, result = rewritten(**options)
    assert not compat.triton_nodes(pair.fw.graph)
    assert ATEN in lowerings(result) and TRITON not in lowerings(result)


@pytest.mark.usefixtures("on_gpu")
def test_the_lowering_changes_neither_bytes_nor_representation_and_replays() -> None:
    _, kernels = rewritten()
    _, aten = rewritten(disable_passes=["pick_lowering"])
    assert [(d.codec, d.params, d.nbytes) for d in kernels.plan.decisions] == [
        (d.codec, d.params, d.nbytes) for d in aten.plan.decisions
    ]
    # A kernel's node needs its buffers and no temporaries, as the fused ATen form does.
    assert kernels.plan.peak_after.peak_bytes <= aten.plan.peak_after.peak_bytes
    stored = plan_io.loads(plan_io.dumps(make_plan([aten.plan], Options())))
    again = layers().copy()
    replayed = pipeline.run(again.fw, again.bw, Options(inner="inductor", min_bytes=64), plan=stored)
    assert lowerings(replayed) == lowerings(kernels)


@pytest.mark.usefixtures("on_gpu")
def test_a_mask_is_a_kernel_only_where_random_numbers_would_be_stored_for_it() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        kept = torch.rand_like(x).to(torch.bfloat16) > 0.1
        y = x.exp() * kept
        return y.sin() * (y.cos() > 0)

    copy = capture(function, [torch.randn(64, 64, requires_grad=True)], "default").copy()
    result = pipeline.run(copy.fw, copy.bw, Options(min_bytes=64, lossy=False, disable_passes=("outline",)))
    masks = [d.lowering for d in result.plan.decisions if d.codec == "valueset"]
    assert sorted(masks) == [ATEN, TRITON]
    (node,) = compat.triton_nodes(copy.fw.graph)
    names = [str(node.target)]
    while "rand" not in names[-1]:
        node = node.all_input_nodes[0]
        names.append(str(node.target))
    assert "gt" in "".join(names) and "cos" not in "".join(names)


def test_a_cpu_gets_aten_and_imports_no_triton() -> None:
    pair, result = rewritten()
    assert not compat.triton_nodes(pair.fw.graph) and TRITON not in lowerings(result)
    code = (
        "import sys, torch, fxcompress.passes.pick_lowering, fxcompress.codecs.lowering as lowering\n"
        "assert not lowering.wanted(torch.ones(2)); assert 'fxcompress.codecs.affine.launch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
