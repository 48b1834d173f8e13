"""What fxcompress uses of PyTorch's partitioner: its cut, its question what to save, and its rules."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import fx

from fxcompress.compat.mutated import save_reads_of_mutated
from fxcompress.compat.shortcuts import cutting_fast
from fxcompress.compat.tracing import remade
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
    Code is written once for what comes out, and by the compiler at work as late as it wants.
    """
    from torch._functorch import config, partitioners

    relaxed: dict[str, Any] = {"ban_recompute_materialized_backward": False} if rebuild_more else {}
    try:
        with config.patch(recompute_views=True, **relaxed), cutting_fast():
            fw, bw = partitioners.min_cut_rematerialization_partition(
                joint,
                joint_inputs,
                num_fwd_outputs=num_fwd_outputs,
                static_lifetime_input_indices=list(static_lifetime_input_indices or []),
            )
    finally:
        joint.recompile()
    return remade(fw), remade(bw)


@contextlib.contextmanager
def recomputing_views(wanted: bool) -> Iterator[None]:
    """Whether PyTorch's partitioner recomputes views.

    `torch._functorch.config.recompute_views`: run in 2.11 and 2.13.
    """
    from torch._functorch import config

    with config.patch(recompute_views=wanted):
        yield


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


@dataclass(frozen=True, slots=True)
class Question:
    """What to save of `joint`? `info` is its classification, `torch_choice` what PyTorch would answer."""

    joint: fx.Graph
    info: NodeInfo
    torch_choice: TorchChoice


@dataclass(slots=True)
class Cutter:
    """`partition` for the joint graph that a partitioner was called with, as often as it is asked.

    What PyTorch's partitioner does before its question, merging common subexpressions and classifying nodes, is done
    once. The joint graph is the one so merged from then on. `finish` edits each pair.
    """

    joint: fx.GraphModule
    joint_inputs: object
    num_fwd_outputs: int
    static_lifetime_input_indices: Sequence[int] | None
    finish: Callable[[Partition], None] | None = None
    _classified: tuple[fx.Graph, NodeInfo] | None = None
    _question: Question | None = None

    def __post_init__(self) -> None:
        save_reads_of_mutated(self.joint.graph)

    def __call__(self, *, rebuild_more: bool) -> Partition:
        with self._prepared_once():
            pair = partition(
                self.joint,
                self.joint_inputs,
                num_fwd_outputs=self.num_fwd_outputs,
                static_lifetime_input_indices=self.static_lifetime_input_indices,
                rebuild_more=rebuild_more,
            )
        if self.finish is not None:
            self.finish(pair)
        return pair

    def of(self, joint: fx.GraphModule, num_fwd_outputs: int, finish: Callable[[Partition], None]) -> "Cutter":
        """The same for another joint graph with the same inputs."""
        return Cutter(joint, self.joint_inputs, num_fwd_outputs, self.static_lifetime_input_indices, finish)

    def question(self) -> Question | None:
        """What PyTorch asks; nothing is extracted. None where it does not: nothing depends on a tangent then."""

        def choose(*asked: Any) -> list[fx.Node]:
            self._question = Question(*asked)
            raise _Answered

        if self._question is None or self._question.joint is not self.joint.graph:
            with contextlib.suppress(_Answered), choosing_saved_values(choose):
                self(rebuild_more=True)
        return self._question

    @contextlib.contextmanager
    def _prepared_once(self) -> Iterator[None]:
        """`partitioners.classify_nodes` and `config.cse`: run in 2.11 and 2.13."""
        from torch._functorch import config, partitioners

        known = self._classified
        done = known is not None and known[0] is self.joint.graph
        classify = partitioners.classify_nodes

        def classified(gm: fx.GraphModule, *args: Any, **kwargs: Any) -> NodeInfo:
            if known is None or not done:
                self._classified = gm.graph, classify(gm, *args, **kwargs)
            assert self._classified is not None
            return self._classified[1]

        with config.patch(cse=config.cse and not done), patch.object(partitioners, "classify_nodes", classified):
            yield


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
            with rebuilding, patch.object(partitioners, "solve_min_cut", known), _solving_fast():
                return list(original(joint_graph, node_info, memory_budget=budget))

        return chooser(joint_graph, node_info, torch_choice)

    partitioners.choose_saved_values_set = choose
    try:
        yield
    finally:
        partitioners.choose_saved_values_set = original


@contextlib.contextmanager
def _solving_fast() -> Iterator[None]:
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
