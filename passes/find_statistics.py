"""Tell small or precise values that are kept as they are: means, deviations, norms, log-probabilities. Read-only."""

import operator

import torch
from torch import fx

from fxcompress.passes.alias import elements_in
from fxcompress.passes.ops import GEMMS, REDUCTIONS, is_attention, op_name


def is_statistic(node: fx.Node, known: dict[fx.Node, bool] | None = None) -> bool:
    """Mean, rstd, maximum, log-sum-exp, log-probabilities, random state: small or precise values that are kept.

    True for auxiliary results of normalizations and attention kernels, and for what only pointwise operators make of
    reductions to an eighth of their input or less. `known` remembers answers, for who asks about many nodes.
    """
    known = {} if known is None else known
    pending = [node]
    while pending:
        current = pending[-1]
        answer = known[current] if current in known else _answer(current, known)
        if isinstance(answer, bool):
            known[current] = answer
            pending.pop()
        else:
            pending.append(answer)
    return known[node]


def _answer(node: fx.Node, known: dict[fx.Node, bool]) -> bool | fx.Node:
    """Whether it is one; or an argument of which that is to be known first."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        source = node.args[0]
        if is_attention(source):
            return bool(node.args[1] != 0)
        if "norm" in op_name(source):
            return bool(node.args[1] != 0)
        return op_name(source) in ("var_mean", "std_mean") and shrinks(source, node)
    if op_name(node) in ("_log_softmax", "log_softmax"):
        return True
    if op_name(node) in REDUCTIONS:
        return node.op == "call_function" and bool(node.all_input_nodes) and shrinks(node, node)
    if node.op != "call_function" or op_name(node) in GEMMS:
        return False
    numel = _numel(node)
    inputs = [arg for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), torch.Tensor)]
    same = [arg for arg in inputs if _numel(arg) == numel]
    open_ones = (arg for arg in same if not known.get(arg, False))
    first = next(open_ones, None)
    return bool(same) if first is None else first if first not in known else False


def shrinks(reduction: fx.Node, result: fx.Node) -> bool:
    """Whether each element of `result` is made of eight elements of the reduction's input or more."""
    return _numel(result) * 8 <= max((_numel(arg) for arg in reduction.all_input_nodes), default=0)


def _numel(node: fx.Node) -> int:
    """Elements of a node's tensor, those of expanded dimensions counted each; 0 for anything else."""
    val = node.meta.get("val")
    return elements_in(val.shape) if isinstance(val, torch.Tensor) else 0
