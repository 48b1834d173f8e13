"""What fxcompress uses of PyTorch's partitioner: its cut, its question what to save, and its rules."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import fx

from fxcompress.solve.networkx_cut import networkx_cut

Partition = tuple[fx.GraphModule, fx.GraphModule]


def partition(
    joint: fx.GraphModule,
    joint_inputs: object,
    *,
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] | None,
    rebuild_more: bool,
) -> Partition:
    """PyTorch's min-cut partitioner; `min_cut_rematerialization_partition` is run in 2.13, read in 2.11 and 2.15.

    Views are recomputed, so that bases are saved and not their aliases. With `rebuild_more`, pointwise results that a
    backward GEMM reads may be rebuilt too (`ban_recompute_materialized_backward`): decoding materializes them anyway.
    """
    from torch._functorch import config, partitioners

    relaxed: dict[str, Any] = {"ban_recompute_materialized_backward": False} if rebuild_more else {}
    with config.patch(recompute_views=True, **relaxed):
        return partitioners.min_cut_rematerialization_partition(
            joint,
            joint_inputs,
            num_fwd_outputs=num_fwd_outputs,
            static_lifetime_input_indices=list(static_lifetime_input_indices or []),
        )


def cutter(
    joint: fx.GraphModule,
    joint_inputs: object,
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] | None,
) -> Callable[..., Partition]:
    """`partition` for the graph that a partitioner was called with; `rebuild_more` is left to state."""
    return functools.partial(
        partition,
        joint,
        joint_inputs,
        num_fwd_outputs=num_fwd_outputs,
        static_lifetime_input_indices=static_lifetime_input_indices,
    )


NodeInfo = Any
"""`partitioners.NodeInfo`: PyTorch's classification of a joint graph's nodes; read in 2.11, run in 2.13."""


class TorchChoice(Protocol):
    """What PyTorch itself would save.

    `rebuild_more`: more than its default rebuilds. `memory_budget`: its `activation_memory_budget`, from 0, rebuild
    all, to 1; None: as configured.
    """

    def __call__(self, *, rebuild_more: bool, memory_budget: float | None = None) -> list[fx.Node]: ...


Chooser = Callable[[fx.Graph, NodeInfo, TorchChoice], list[fx.Node]]
"""`(joint graph, classification, PyTorch's choice) -> values to save`."""


@contextlib.contextmanager
def choosing_saved_values(chooser: Chooser) -> Iterator[None]:
    """Let `chooser` answer when PyTorch's partitioner asks what to save.

    Patches `partitioners.choose_saved_values_set(joint_graph, node_info, memory_budget)`: run in 2.13, read in 2.11.
    Its answers at several memory budgets share minimum cuts, each of which is made once.
    """
    from torch._functorch import config, partitioners

    original = partitioners.choose_saved_values_set

    def choose(joint_graph: fx.Graph, node_info: NodeInfo, memory_budget: float = 1) -> list[fx.Node]:
        configured, known = memory_budget, _Remembering(partitioners.solve_min_cut)

        def torch_choice(*, rebuild_more: bool, memory_budget: float | None = None) -> list[fx.Node]:
            budget = configured if memory_budget is None else memory_budget
            rebuilding = config.patch(
                recompute_views=rebuild_more, ban_recompute_materialized_backward=not rebuild_more
            )
            with rebuilding, patch.object(partitioners, "solve_min_cut", known), _cutting_fast():
                return list(original(joint_graph, node_info, memory_budget=budget))

        return chooser(joint_graph, node_info, torch_choice)

    partitioners.choose_saved_values_set = choose
    try:
        yield
    finally:
        partitioners.choose_saved_values_set = original


@contextlib.contextmanager
def _cutting_fast() -> Iterator[None]:
    """Let PyTorch's partitioner call our solver for `networkx.minimum_cut(graph, "source", "sink")`; the same cut.

    `partitioners.solve_min_cut` looks the name up when it cuts: run in 2.13, read in 2.11.
    """
    import networkx

    original = networkx.minimum_cut

    def cut(graph: Any, source: Any, sink: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return networkx_cut(graph, source, sink)
        except ValueError:  # networkx says what is wrong
            return original(graph, source, sink, *args, **kwargs)

    networkx.minimum_cut = cut
    try:
        yield
    finally:
        networkx.minimum_cut = original


class _Answered(Exception):
    """Ends a partition that was only asked for its question."""


def ask_what_to_save(cut: Callable[..., Partition], listener: Callable[..., object]) -> None:
    """Call `listener` as a `Chooser` when PyTorch asks what to save, and extract nothing.

    It is not called where PyTorch does not ask: nothing depends on a tangent then.
    """

    def choose(*question: Any) -> list[fx.Node]:
        listener(*question)
        raise _Answered

    with contextlib.suppress(_Answered), choosing_saved_values(choose):
        cut(rebuild_more=True)


class _Remembering:
    """`partitioners.solve_min_cut` for one graph, which remembers its answers by its rules and its configuration."""

    def __init__(self, solve: Callable[..., Any]) -> None:
        self._solve = solve
        self._known: dict[object, Any] = {}

    def __call__(self, joint_graph: fx.Graph, node_info: NodeInfo, rules: Any, dont_ban: Any = None) -> Any:
        from torch._functorch import config

        key = (repr(rules), config.recompute_views, frozenset(dont_ban or ()))
        if key not in self._known:
            self._known[key] = self._solve(joint_graph, node_info, rules, dont_ban)
        return self._known[key]


@dataclass(frozen=True, slots=True)
class RecomputeRules:
    """Nodes that depend on a tangent; other results of the backward; what runs once; what a checkpoint recomputes."""

    backward: frozenset[fx.Node]
    wanted: frozenset[fx.Node]
    fixed: frozenset[fx.Node]
    forced: frozenset[fx.Node]


def recompute_rules(joint: fx.Graph, info: NodeInfo) -> RecomputeRules:
    """The rules of `partitioners.solve_min_cut` that are about legality, without its heuristics about speed.

    `partitioners.must_recompute`, `NodeInfo.required_bw_nodes`, `tangents_closure`: run in
    2.13, read in 2.11.
    """
    from torch._functorch import partitioners

    forced = {node for node in joint.nodes if partitioners.must_recompute(node)}
    fixed = {node for node in joint.nodes if _runs_once(node) and info.is_required_fw(node)}
    fixed |= {node for node in joint.find_nodes(op="placeholder") if node not in info.required_bw_nodes}
    backward = frozenset(info.tangents_closure)
    return RecomputeRules(
        backward, frozenset(info.required_bw_nodes) - backward, frozenset(fixed - forced), frozenset(forced)
    )


def _runs_once(node: fx.Node) -> bool:
    """Random, marked by PyTorch as to be saved, or an operator of which nothing is known."""
    from torch.utils.checkpoint import CheckpointPolicy

    if node.op != "call_function":
        return False
    if node.meta.get("recompute") is CheckpointPolicy.MUST_SAVE:
        return True
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return (
            torch.Tag.nondeterministic_seeded in target.tags
            or target.namespace not in ("aten", "prims")
            or target._schema.is_mutable
        )
    return isinstance(target, torch._ops.HigherOrderOperator)
