"""More outputs for the forward part of a joint graph, and the order of its nodes.

PyTorch's partitioner computes in the forward only what forward outputs need. What the forward shall compute for the
backward is therefore made a forward output (`add_outputs`), and taken out of the partitioned forward (`strip_outputs`),
where it is still saved.
"""

from collections.abc import Sequence
from typing import Any

from torch import fx

from fxcompress.compat import OpOverload
from fxcompress.passes.find_saved import outputs


def add_outputs(output: fx.Node, values: Sequence[fx.Node], place: int) -> None:
    """Put `values` among a graph's outputs, from number `place` on."""
    found = list(output.args[0])  # type: ignore[arg-type]
    _set_outputs(output, [*found[:place], *values, *found[place:]])
    if "desc" in output.meta:
        desc = list(output.meta["desc"])
        output.meta["desc"] = [*desc[:place], *(None for _ in values), *desc[place:]]


def _set_outputs(output: fx.Node, values: Sequence[Any]) -> None:
    kind: Any = type(output.args[0])
    output.args = (kind(values),)


def strip_outputs(fw: fx.GraphModule, start: int, count: int) -> None:
    """Take `count` outputs from number `start` on out of a forward graph."""
    (output,) = fw.graph.find_nodes(op="output")
    _set_outputs(output, outputs(fw)[:start] + outputs(fw)[start + count :])
    if "desc" in output.meta:
        desc = list(output.meta["desc"])
        output.meta["desc"] = desc[:start] + desc[start + count :]
    fw.recompile()


def sort_graph(graph: fx.Graph) -> None:
    """Move every node behind its operands, and otherwise keep the order."""
    waiting: dict[fx.Node, list[fx.Node]] = {}
    ready: set[fx.Node] = set()
    nodes = list(graph.nodes)
    cursor = graph._root
    pending = list(reversed(nodes))
    while pending:
        node = pending.pop()
        missing = next((arg for arg in node.all_input_nodes if arg not in ready), None)
        if missing is not None:
            waiting.setdefault(missing, []).append(node)
            continue
        ready.add(node)
        cursor.append(node)
        cursor = node
        pending.extend(reversed(waiting.pop(node, [])))


def is_mutating(node: fx.Node) -> bool:
    """Whether a call writes into one of its operands."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable
