"""One graph, one fingerprint: equal under renaming and in other processes, another after any change."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from fxcompress.passes.find_saved import outputs
from fxcompress.passes.fingerprint import fingerprint
from fxcompress.passes.splice import set_outputs
from fxcompress.testing_graphs import Pair, capture
from fxcompress.testing_programs import Program, programs

SEARCH = settings(deadline=None, max_examples=8, derandomize=True)
OTHER_OP = {1: torch.ops.aten.asinh.default, 2: torch.ops.aten.hypot.default}


def of(pair: Pair) -> str:
    return fingerprint(pair.fw, pair.bw)


def calls(gm: fx.GraphModule) -> list[fx.Node]:
    return [node for node in gm.graph.nodes if node.op == "call_function"]


def change_op(gm: fx.GraphModule, at: int) -> None:
    node = calls(gm)[at]
    node.target = torch.ops.aten.asinh.default


def change_constant(gm: fx.GraphModule, at: int) -> None:
    node = calls(gm)[at]
    node.args = (*node.args, 12345)


def change_keyword(gm: fx.GraphModule, at: int) -> None:
    node = calls(gm)[at]
    node.kwargs = {**node.kwargs, "another": 1.5}


def change_value(edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[fx.GraphModule, int], None]:
    def change(gm: fx.GraphModule, at: int) -> None:
        tensors = [node for node in gm.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
        node = tensors[at % len(tensors)]
        val = node.meta["val"]
        node.meta["val"] = edit(torch.empty_strided(val.shape, val.stride(), dtype=val.dtype, device="meta"))

    return change


def change_source(gm: fx.GraphModule, at: int) -> None:
    node = calls(gm)[at]
    earlier = [other for other in gm.graph.nodes if other < node and other not in node.all_input_nodes]
    old = node.all_input_nodes
    if not earlier or not old:
        return change_constant(gm, at)
    return node.replace_input_with(old[0], earlier[-1])


def change_output(gm: fx.GraphModule, at: int) -> None:
    set_outputs(gm, [*outputs(gm), None])


CHANGES: dict[str, Callable[[fx.GraphModule, int], None]] = {
    "operator": change_op,
    "constant": change_constant,
    "keyword": change_keyword,
    "dtype": change_value(lambda x: x.to(torch.complex64)),
    "shape": change_value(lambda x: x.unsqueeze(0)),
    "stride": change_value(lambda x: torch.empty_strided(x.shape, [s + 3 for s in x.stride()], device="meta")),
    "source": change_source,
    "output": change_output,
}


@SEARCH
@given(programs(), st.integers(0, 10**6), st.booleans())
def test_any_change_changes_it(program: Program, number: int, backward: bool) -> None:
    pair = capture(program, program.inputs(), program.partition)
    before = of(pair)
    for name, change in CHANGES.items():
        copy = pair.copy()
        side = copy.bw if backward else copy.fw
        change(side, number % len(calls(side)))
        assert of(copy) != before, name


@SEARCH
@given(programs())
def test_names_do_not_matter_and_reading_edits_nothing(program: Program) -> None:
    pair = capture(program, program.inputs(), program.partition)
    text, before = str(pair.fw.graph) + str(pair.bw.graph), of(pair)
    assert of(pair) == before == of(capture(program, program.inputs(), program.partition))
    assert str(pair.fw.graph) + str(pair.bw.graph) == text
    copy = pair.copy()
    for gm in (copy.fw, copy.bw):
        for i, node in enumerate(gm.graph.nodes):
            if node.op != "output":
                node._rename(f"other_{i}")
    assert of(copy) == before


def test_the_order_of_graphs_matters() -> None:
    pair = capture(torch.tanh, (torch.randn(4, 4, requires_grad=True),))
    assert fingerprint(pair.bw, pair.fw) != of(pair) != fingerprint(pair.fw)


def attended(size: int = 8, dtype: torch.dtype = torch.float32, causal: bool = True) -> str:
    """The fingerprint of a program whose nodes have tuples, keywords, dtypes and floats among their arguments."""

    def function(x: torch.Tensor) -> torch.Tensor:
        heads = (x * 0.5).view(2, 4, size, 8)
        y = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=causal)
        return y.split(2, 1)[0].to(torch.float64).sum((0, 2), dtype=torch.float32).max(1).values

    return of(capture(function, (torch.randn(2, 4, size * 8, dtype=dtype, requires_grad=True),)))


def test_other_processes_and_hash_seeds_agree() -> None:
    here = Path(__file__)
    script = f"import sys; sys.path.insert(0, {str(here.parent)!r}); import test_fingerprint as t; print(t.attended())"
    environment = {"PYTHONHASHSEED": "77", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    other = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=here.parents[2], check=True
    )
    assert other.stdout.strip() == attended()


@pytest.mark.parametrize("changed", [{"size": 9}, {"dtype": torch.bfloat16}, {"causal": False}], ids=str)
def test_arguments_of_a_program_change_it(changed) -> None:
    assert attended(**changed) != attended()


def test_the_numbers_of_symbols_do_not_matter_but_their_places_do() -> None:
    def dynamic(function, rows: int) -> str:
        x = torch.randn(rows, rows + 2, requires_grad=True)
        return of(capture(function, (x,), dynamic=True))

    assert dynamic(torch.tanh, 5) == dynamic(torch.tanh, 9)
    assert dynamic(lambda x: x.sin().expand(2, -1, -1), 5) != dynamic(lambda x: x.sin().t().expand(2, -1, -1), 5)
    square = torch.randn(5, 5, requires_grad=True)
    assert of(capture(torch.tanh, (square,), dynamic=True)) != dynamic(torch.tanh, 5)
