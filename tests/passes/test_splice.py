"""Surgery on pairs: what is added, dropped and copied keeps the partition contract and every bit."""

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import compat
from fxcompress.passes import splice
from fxcompress.passes.alias import storage_key
from fxcompress.passes.check import check
from fxcompress.passes.find_saved import find_saved, outputs, placeholders
from fxcompress.testing_graphs import Pair, Ran, capture, run, same
from fxcompress.testing_programs import Program, programs

SEARCH = settings(deadline=None, max_examples=8, derandomize=True)


def captured(dynamic: bool = False) -> Pair:
    x, w = torch.randn(8, 6, requires_grad=True), torch.randn(6, 6, requires_grad=True)
    return capture(lambda x, w: [F.gelu(x @ w).tanh(), x.sum(0)], (x, w), "default", dynamic=dynamic)


def equal(pair: Pair, before: Ran) -> Ran:
    """Run generated code; the contract must hold and no bit may differ."""
    check(pair.fw, pair.bw, pair.num_fwd_outputs, outputs(pair.fw)[: pair.num_fwd_outputs])
    after = run(pair, compiled=True)
    assert same(after.outputs, before.outputs) and same(after.gradients, before.gradients)
    return after


def saved_names(pair: Pair) -> list[str]:
    return [p.bw.name for p in find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)]


@SEARCH
@given(programs(), st.integers(0, 10**6))
def test_any_value_can_be_saved_too(program: Program, number: int) -> None:
    pair = capture(program, program.inputs(), program.partition)
    before, names = run(pair), saved_names(pair)
    free = [n for n in pair.fw.graph.nodes if n.op == "call_function" and isinstance(n.meta["val"], torch.Tensor)]
    free = [node for node in free if node.name not in {other.name for other in pair.bw.graph.nodes}]
    if free:
        node = free[number % len(free)]
        partner = splice.add_saved(pair.fw, pair.bw, node, pair.num_fwd_outputs)
        assert partner.target == partner.name == node.name and partner.meta["val"] is node.meta["val"]
        assert saved_names(pair) == [node.name, *names]
        equal(pair, before)
        gone = splice.drop_unused(pair.fw, pair.bw, find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs))
        assert node.name in [p.bw.name for p in gone]
    equal(pair, before)


def test_a_first_saved_value_stands_behind_the_sizes() -> None:
    pair = capture(lambda x: x * 2, (torch.randn(4, 5, requires_grad=True),), dynamic=True)
    assert saved_names(pair) == []
    before = run(pair)
    (node,) = [node for node in pair.fw.graph.nodes if node.op == "call_function"][:1]
    splice.add_saved(pair.fw, pair.bw, node, 1)
    assert saved_names(pair) == [node.name]
    equal(pair, before)


def test_a_taken_name_is_no_placeholders_name() -> None:
    pair = captured()
    node = next(node for node in pair.fw.graph.nodes if node.name == "gelu")
    other = next(node for node in pair.bw.graph.nodes if node.op == "call_function")
    other._rename("gelu")
    with pytest.raises(AssertionError, match="'gelu' is taken"):
        splice.add_saved(pair.fw, pair.bw, node, pair.num_fwd_outputs)


def test_a_symbolic_size_is_saved_once_and_last() -> None:
    pair = captured(dynamic=True)
    before = run(pair)
    sizes = [node for node in pair.fw.graph.nodes if isinstance(node.meta.get("val"), torch.SymInt)]
    known = {node.name for node in placeholders(pair.bw)}
    for size in sizes:
        partner = splice.add_saved_size(pair.fw, pair.bw, size)
        assert splice.add_saved_size(pair.fw, pair.bw, size) is partner
        assert partner.meta["val"].node.expr == size.meta["val"].node.expr
    added = [node for node in placeholders(pair.bw) if node.name not in known]
    assert len({str(node.meta["val"]) for node in added}) == len(added)
    equal(pair, before)


def test_a_size_whose_name_is_taken_in_the_backward_has_another() -> None:
    pair = captured(dynamic=True)
    before = run(pair)
    tensor = next(
        node for node in pair.fw.graph.nodes if not isinstance(getattr(node.meta.get("val"), "shape", [0])[0], int)
    )
    with pair.fw.graph.inserting_before(splice.place_behind(tensor)):
        size = pair.fw.graph.call_function(torch.ops.aten.sym_size.int, (tensor, 0))
        size.meta["val"] = tensor.meta["val"].shape[0]
        size = pair.fw.graph.call_function(operator.mul, (size, 7))
    size.meta["val"] = tensor.meta["val"].shape[0] * 7
    taken = next(node for node in pair.bw.graph.nodes if node.op == "call_function")
    taken._rename(size.name)
    partner = splice.add_saved_size(pair.fw, pair.bw, size)
    assert partner.name == size.name != taken.name and partner.op == "placeholder"
    equal(pair, before)


def test_new_outputs_have_one_descriptor_each() -> None:
    pair = captured()
    (end,) = pair.fw.graph.find_nodes(op="output")
    end.meta["desc"] = ["user", "user"]
    kind = type(end.args[0])
    for count in (1, 2, len(outputs(pair.fw))):
        splice.set_outputs(pair.fw, outputs(pair.fw)[:count])
        assert type(end.args[0]) is kind and len(end.meta["desc"]) == len(outputs(pair.fw))


@SEARCH
@given(programs())
def test_only_what_nothing_reads_is_dropped(program: Program) -> None:
    pair = capture(program, program.inputs(), program.partition)
    before = run(pair)

    def drop() -> list[str]:
        pairs = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
        return [p.bw.name for p in splice.drop_unused(pair.fw, pair.bw, pairs)]

    unread = [p.bw.name for p in find_saved(pair.fw, pair.bw) if not p.bw.users]
    assert drop() == unread and drop() == []
    equal(pair, before)


def traced(function: Callable[..., tuple[torch.Tensor, ...]], like: torch.Tensor) -> fx.GraphModule:
    """`function` as a graph of fake values that belong to the same mode as `like`."""
    with compat.fake_mode_of([like]):
        return make_fx(function)(like)


def insert_twice(pair: Pair, fresh: bool) -> list[fx.Node]:
    """Compute `(-x + x, -x)` of the forward's first product in two places and add what is zero to the user's output."""
    node = next(node for node in pair.fw.graph.nodes if node.name == "mm")
    template = traced(lambda x: (torch.neg(x) + x, torch.neg(x)), node.meta["val"])
    made = []
    for number in (0, 1):
        with pair.fw.graph.inserting_before(node.next):
            found = splice.inline(
                pair.fw.graph, template, [node], [f"actcomp_{number}_zero", None], fresh=fresh and not number
            )
        made += found
    return made


def test_inlined_templates_compute_what_they_were_traced_from() -> None:
    pair = captured()
    before = run(pair)
    made = insert_twice(pair, fresh=True)
    assert [node.name for node in made[::2]] == ["actcomp_0_zero", "actcomp_1_zero"]
    assert all(node.name.startswith("actcomp_") for node in made)
    splice.set_outputs(pair.fw, [*outputs(pair.fw), *made])
    pair.fw.graph.lint()
    values = list(fx.Interpreter(pair.fw).run(*pair.inputs))[-4:]
    product = pair.inputs[0] @ pair.inputs[1]
    assert all(torch.equal(value, product * sign) for value, sign in zip(values, (0, -1, 0, -1), strict=True))
    splice.set_outputs(pair.fw, outputs(pair.fw)[:-4])
    equal(pair, before)


@pytest.mark.parametrize("fresh", [True, False])
def test_copies_have_storages_of_their_own(fresh: bool) -> None:
    """Equal fake storages would be taken for one buffer; a first copy may keep the template's."""
    made = insert_twice(captured(), fresh)
    assert len({storage_key(node) for node in made}) == len(made)


@SEARCH
@given(programs(), st.integers(0, 10**6))
def test_a_copied_chain_computes_the_same(program: Program, number: int) -> None:
    pair = capture(program, program.inputs(), program.partition)
    nodes = [n for n in pair.fw.graph.nodes if n.op == "call_function" and isinstance(n.meta["val"], torch.Tensor)]
    end = nodes[number % len(nodes)]
    chain = [node for node in pair.fw.graph.nodes if node.op == "call_function" and node <= end]
    env = {node: node for node in placeholders(pair.fw)}
    with pair.fw.graph.inserting_before(next(iter(pair.fw.graph.find_nodes(op="output")))):
        splice.copy_chain(pair.fw.graph, chain, env)
    splice.set_outputs(pair.fw, [end, env[end]])
    pair.fw.graph.lint()
    original, copy = fx.Interpreter(pair.fw).run(*pair.inputs)
    assert same([original], [copy]) and original.stride() == copy.stride()
    assert (env[end] is not end and storage_key(env[end]) != storage_key(end)) or storage_key(end) in inputs_of(pair)


def inputs_of(pair: Pair) -> set[int | None]:
    return {storage_key(node) for node in placeholders(pair.fw)}


@SEARCH
@given(programs(), st.lists(st.integers(0, 10**6), min_size=1, max_size=4))
def test_nodes_compare_by_their_place_in_the_graph(program: Program, numbers: list[int]) -> None:
    graph = capture(program, program.inputs(), program.partition).fw.graph
    nodes = list(graph.nodes)
    places = [number % len(nodes) for number in numbers]
    with graph.inserting_before(nodes[-1]):
        nodes.insert(-1, graph.call_function(torch.ops.aten.alias.default, (nodes[0],)))
    assert max(nodes[at] for at in places) is nodes[max(places)]
    assert sorted(reversed(nodes)) == nodes


def test_copies_of_operators_with_several_results_have_storages_of_their_own() -> None:
    with FakeTensorMode() as mode:
        val = mode.from_tensor(torch.zeros(4, 2))
        template = make_fx(lambda x: [part + 1 for part in torch.unbind(x * 2, 1)])(val)
        graph = fx.Graph()
        x = graph.placeholder("x")
        x.meta["val"] = val
        first = splice.inline(graph, template, [x], [None, None], fresh=True)
        second = splice.inline(graph, template, [x], [None, None], fresh=False)
    assert len({storage_key(node) for node in (*first, *second)}) == 4
    unbinds = [node for node in graph.nodes if isinstance(node.meta["val"], (tuple, list))]
    keys = [{part.untyped_storage()._cdata for part in node.meta["val"]} for node in unbinds]
    assert [len(found) for found in keys] == [1, 1] and keys[0] != keys[1]
