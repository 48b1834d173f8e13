"""PyTorch's partitioner cuts with our shortcuts as without."""

import collections
import concurrent.futures
import operator
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch._functorch import compile_utils, config, partitioners
from torch._functorch.aot_autograd import aot_function
from torch.utils import _pytree
from torch.utils.checkpoint import checkpoint

from fxcompress import compat
from fxcompress.compat.shortcuts import cutting_fast, graphs_edited_fast
from fxcompress.passes.copy_graph import copy_graph

Point = collections.namedtuple("Point", "x y")


def repeated(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Equal subexpressions with numbers, lists and keywords among their arguments; 1 and 1.0 are not equal."""
    h = torch.cat([x @ w, x @ w + 1, x @ w + 1.0]).sum(0, dtype=torch.float64)
    return (h * torch.cat([x @ w, x @ w + 1]).sum(0, dtype=torch.float64)).float().tanh().sum()


def masked(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Dropout, indices, and values that only one half needs."""
    first, second = torch.split(F.dropout(x @ w, 0.5), 4, dim=1)
    return (first[:, [0, 2]].sort().values.exp().sum() + second.max(0).values.relu().sum()).square()


def checkpointed(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return checkpoint(lambda y: F.gelu(F.dropout(y @ w, 0.5)) @ w, x.sin(), use_reentrant=False).sum()


def cut_both_ways(step: Any, *, rebuild_more: bool) -> list[tuple[str, ...]]:
    """The code of the pair as PyTorch makes it and as `compat.partition` does, and that of the joint graph after it."""
    found: list[tuple[str, ...]] = []

    def partition(gm: fx.GraphModule, inputs: Sequence[object], *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        relaxed = {"ban_recompute_materialized_backward": False} if rebuild_more else {}
        plain = copy_graph(gm)
        with config.patch(recompute_views=True, **relaxed):
            pair = partitioners.min_cut_rematerialization_partition(plain, inputs, num_fwd_outputs=num_fwd_outputs)
        found.append(tuple(each.code for each in (*pair, plain)))
        ours = compat.partition(
            gm,
            inputs,
            num_fwd_outputs=num_fwd_outputs,
            static_lifetime_input_indices=None,
            rebuild_more=rebuild_more,
        )
        found.append(tuple(each.code for each in (*ours, gm)))
        return ours

    x, w = torch.randn(4, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    aot_function(step, fw_compiler=lambda gm, _: gm, bw_compiler=lambda gm, _: gm, partition_fn=partition)(
        x, w
    ).backward()
    assert x.grad is not None
    return found


@pytest.mark.parametrize("rebuild_more", [True, False])
@pytest.mark.parametrize("step", [repeated, masked, checkpointed])
def test_pairs_are_the_same(step: Any, rebuild_more: bool) -> None:
    theirs, ours = cut_both_ways(step, rebuild_more=rebuild_more)
    assert theirs == ours


TREES = [
    (),
    ([1, (2.0, None)], {"b": torch.float32, "a": [torch.device("cpu"), "text"]}),
    Point(1, [2, Point(3, 4)]),
    collections.OrderedDict(b=1, a=(2,)),
    [slice(0, 3, None), {1: (), 2: [[]]}],
]


@pytest.mark.parametrize("tree", TREES)
def test_leaves_are_the_same(tree: object) -> None:
    expected = list(_pytree.tree_iter(tree))
    with cutting_fast():
        assert list(_pytree.tree_iter(tree)) == expected
        assert _pytree.arg_tree_leaves(tree, more=tree) == expected * 2
        assert compile_utils.tree_flatten(tree)[0] == expected
        assert list(_pytree.tree_iter(tree, is_leaf=lambda part: isinstance(part, dict))) == _pytree.tree_leaves(
            tree, is_leaf=lambda part: isinstance(part, dict)
        )


def test_structures_are_told_apart() -> None:
    trees = [[1, 2], (1, 2), ([1], 2), [[1, 2]], {"a": 1, "b": 2}, {"b": 1, "a": 2}, Point(1, 2), [{"a": 1}, 2]]
    with cutting_fast():
        structures = [compile_utils.tree_flatten(tree)[1] for tree in trees]
        again = [compile_utils.tree_flatten(tree)[1] for tree in trees]
    for i, structure in enumerate(structures):
        assert [structure == other for other in again] == [i == j for j in range(len(trees))]


def test_the_same_nodes_are_dead() -> None:
    def graph() -> fx.Graph:
        made = fx.Graph()
        x = made.placeholder("x")
        unread = made.call_function(operator.add, (x, 1))
        made.call_function(operator.mul, (unread, 2))
        made.call_function(torch._assert, (x, "kept for its effect"))
        made.output(made.call_function(operator.neg, (x,)))
        return made

    plain, fast = graph(), graph()
    plain.eliminate_dead_code()
    with graphs_edited_fast():
        fast.eliminate_dead_code()
    assert [node.name for node in fast.nodes] == [node.name for node in plain.nodes]
    assert len(fast.nodes) == 4


def test_nothing_stays_patched() -> None:
    before = _pytree.tree_iter, compile_utils.tree_flatten, fx.Graph.lint, fx.GraphModule.recompile, fx.Node.is_impure
    with pytest.raises(ZeroDivisionError), cutting_fast():
        raise ZeroDivisionError
    after = _pytree.tree_iter, compile_utils.tree_flatten, fx.Graph.lint, fx.GraphModule.recompile, fx.Node.is_impure
    assert before == after


def test_other_threads_know_nothing_of_it() -> None:
    def edited() -> str:
        gm = fx.symbolic_trace(lambda x: x + 1)
        (node,) = gm.graph.find_nodes(op="call_function", target=operator.add)
        node.args = (node.args[0], 2)
        gm.recompile()
        return str(gm.code)

    with concurrent.futures.ThreadPoolExecutor(1) as other:
        expected = edited()
        with cutting_fast():
            assert other.submit(edited).result() == expected
