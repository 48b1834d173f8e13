"""What PyTorch does at each node of a graph, or more often than it must, in less time; its results stay the same.

All names: run in 2.11 and 2.13.
"""

import contextlib
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import fx
from torch.fx.immutable_collections import immutable_dict, immutable_list

from fxcompress.compat.merging import merging_in_place
from fxcompress.compat.threads import in_this_thread

_LEAVES = frozenset((fx.Node, int, float, bool, str, type(None), torch.dtype, torch.device, torch.memory_format))
_SEQUENCES = frozenset((tuple, list, immutable_list))
_MAPPINGS = frozenset((dict, immutable_dict))


@contextlib.contextmanager
def graphs_edited_fast() -> Iterator[None]:
    """Let `fx.Graph` take less time to make nodes and to look for dead ones.

    `create_node` does not search arguments for sizes to warn about, by `fx.graph.pytree.tree_iter`. While
    `eliminate_dead_code` runs, `fx.Node.is_impure` says of what is read that it is not to be removed, which is asked
    of every node, and known.
    """
    from torch.utils import _pytree

    is_impure, eliminate = fx.Node.is_impure, fx.Graph.eliminate_dead_code

    def is_needed(node: fx.Node, *how: Any) -> bool:
        return bool(node.users) or is_impure(node, *how)

    def eliminate_fast(graph: fx.Graph, *how: Any, **named: Any) -> bool:
        with patch.object(fx.Node, "is_impure", in_this_thread(is_needed, is_impure)):
            return eliminate(graph, *how, **named)

    unsearched = types.SimpleNamespace(**{**vars(_pytree), "tree_iter": lambda tree: ()})
    with (
        patch.object(fx.graph, "pytree", unsearched),
        patch.object(fx.Graph, "eliminate_dead_code", in_this_thread(eliminate_fast, eliminate)),
    ):
        yield


@contextlib.contextmanager
def cutting_fast() -> Iterator[None]:
    """Let PyTorch's partitioner take less time, besides `graphs_edited_fast`.

    Arguments are flattened without looking their types up in `torch.utils._pytree`. `fx.Graph.lint` finds nothing:
    `passes.check` lints what comes out. `fx.GraphModule.recompile` writes no code: the caller is to do that for what
    comes out. `partitioners._extract_fwd_bwd_modules` extracts the backward once where it would again, and
    `partitioners.fx_graph_cse` edits the joint graph instead of a copy.
    """
    from torch._functorch import compile_utils, partitioners
    from torch.utils import _pytree

    with (
        graphs_edited_fast(),
        patch.object(_pytree, "tree_iter", _leaves_like(_pytree.tree_iter)),
        patch.object(compile_utils, "tree_flatten", _flat_like(_pytree.tree_flatten)),
        patch.object(partitioners, "fx_graph_cse", merging_in_place(compile_utils.fx_graph_cse)),
        patch.object(fx.Graph, "lint", in_this_thread(lambda graph: None, fx.Graph.lint)),
        patch.object(fx.GraphModule, "recompile", in_this_thread(lambda gm: None, fx.GraphModule.recompile)),
        patch.object(partitioners, "_extract_fwd_bwd_modules", _extracting_once(partitioners._extract_fwd_bwd_modules)),
    ):
        yield


def _leaves_like(original: Callable[..., Iterable[Any]]) -> Callable[..., Iterable[Any]]:
    """`_pytree.tree_iter`, which finds the same leaves."""

    def leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Iterable[Any]:
        if is_leaf is not None:
            return original(tree, is_leaf)
        found: list[Any] = []
        collect(tree, found)
        return found

    def collect(tree: Any, found: list[Any]) -> None:
        kind = type(tree)
        if kind in _LEAVES:
            found.append(tree)
        elif kind in _SEQUENCES:
            for child in tree:
                collect(child, found)
        elif kind in _MAPPINGS:
            for child in tree.values():
                collect(child, found)
        else:
            found.extend(original(tree))

    return leaves


def _flat_like(original: Callable[[Any], tuple[list[Any], Any]]) -> Callable[[Any], tuple[list[Any], Any]]:
    """`_pytree.tree_flatten` for `fx_graph_cse`, which compares the structures and does nothing else with them."""

    def flat(tree: Any) -> tuple[list[Any], object]:
        found: list[Any] = []
        return found, collect(tree, found)

    def collect(tree: Any, found: list[Any]) -> object:
        kind = type(tree)
        if kind in _LEAVES:
            found.append(tree)
            return None
        if kind in _SEQUENCES:
            return kind, tuple([collect(child, found) for child in tree])
        if kind in _MAPPINGS:
            return kind, tuple(tree), tuple([collect(child, found) for child in tree.values()])
        leaves, structure = original(tree)
        found.extend(leaves)
        return structure

    return flat


def _extracting_once(original: Callable[..., Any]) -> Callable[..., Any]:
    """`partitioners._extract_fwd_bwd_modules`, which extracts the backward to see what of the saved values it reads,
    and again without the others, of which there are none as a rule. Nothing edits the first graph, or the joint one."""
    from torch._functorch import partitioners

    def extract(*args: Any, **kwargs: Any) -> Any:
        known: dict[object, fx.Graph] = {}
        copying = partitioners._extract_graph_with_inputs_outputs

        def copied(joint: fx.Graph, inputs: list[Any], outputs: list[Any], *more: Any, **rest: Any) -> fx.Graph:
            key = (tuple(inputs), tuple(outputs), more[1:], tuple(rest.items()))
            if key not in known:
                known[key] = copying(joint, inputs, outputs, *more, **rest)
            return known[key]

        with patch.object(partitioners, "_extract_graph_with_inputs_outputs", copied):
            return original(*args, **kwargs)

    return extract
