"""Find what the forward graph hands to the backward graph, and whose it is.

`find_saved(fw, bw, …)` pairs each saved tensor's forward node with its backward placeholder, in the order of the
partition contract (torch/_functorch/partitioners.py: forward outputs end with `tensors | opaque | symints`, backward
placeholders begin with `symints | tensors | opaque`). Read-only.
"""

import itertools
import re
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.errors import UnsupportedGraphError

DESCRIPTIVE = ("nn_module_stack", "fwd_nn_module_stack", "stack_trace")
"""Keys of a node's `meta` that say which of the user's code made it."""


@dataclass(frozen=True, slots=True)
class SavedPair:
    """One saved tensor: its place in the forward outputs and the two nodes that stand for it."""

    position: int
    fw: fx.Node
    bw: fx.Node

    @property
    def val(self) -> torch.Tensor:
        """The fake tensor that describes it."""
        val = self.bw.meta["val"]
        assert isinstance(val, torch.Tensor)
        return val


def outputs(gm: fx.GraphModule) -> list[object]:
    """The flat list that the graph returns."""
    (node,) = gm.graph.find_nodes(op="output")
    return list(node.args[0])


def placeholders(gm: fx.GraphModule) -> list[fx.Node]:
    return list(gm.graph.find_nodes(op="placeholder"))


def is_tangent(node: fx.Node) -> bool:
    """Whether it is an input that gradients start from."""
    return node.op == "placeholder" and "tangents" in str(node.target)


def handed_over(fw: fx.GraphModule, num_fwd_outputs: int) -> list[fx.Node]:
    """The nodes that the forward returns behind the user's outputs: tensors and sizes."""
    return [out for out in outputs(fw)[num_fwd_outputs:] if isinstance(out, fx.Node)]


def count_user_outputs(fw: fx.GraphModule, bw: fx.GraphModule) -> int:
    """How many leading forward outputs are the user's, inferred from the names that both graphs share."""
    names = {node.name for node in placeholders(bw)}
    outs = outputs(fw)
    saved = {out.name for out in outs if isinstance(out, fx.Node) and out.name in names}
    return len(outs) - len(saved)


def find_saved(fw: fx.GraphModule, bw: fx.GraphModule, *, num_fwd_outputs: int | None = None) -> list[SavedPair]:
    """Pair the saved tensors of a partitioned graph.

    Args:
        fw: forward graph; its outputs are the user's followed by the saved values.
        bw: backward graph.
        num_fwd_outputs: how many outputs are the user's; inferred from node names if None.

    Raises:
        UnsupportedGraphError: the two sides do not agree in names and order.
    """
    if num_fwd_outputs is None:
        num_fwd_outputs = count_user_outputs(fw, bw)
    by_name = {node.name: node for node in placeholders(bw)}
    pairs = []
    for position, out in enumerate(outputs(fw)):
        if position < num_fwd_outputs or not isinstance(out, fx.Node):
            continue
        partner = by_name.get(out.name)
        if partner is None:
            raise UnsupportedGraphError(f"forward saves {out.name!r}, which is no placeholder of the backward graph")
        if isinstance(partner.meta.get("val"), torch.Tensor):
            pairs.append(SavedPair(position, out, partner))
    order = {node: i for i, node in enumerate(placeholders(bw))}
    if any(order[a.bw] >= order[b.bw] for a, b in itertools.pairwise(pairs)):
        raise UnsupportedGraphError(
            "saved tensors stand in another order in the backward graph than in the forward one"
        )
    return pairs


def layer_of(node: fx.Node) -> str:
    """Dotted module path of the innermost layer that made `node`; empty if unknown."""
    for key in ("nn_module_stack", "fwd_nn_module_stack"):
        stack = node.meta.get(key)
        if stack:
            path = str(next(reversed(stack.values()))[0])
            return _tidy(path)
    return ""


def _tidy(path: str) -> str:
    # Dynamo spells paths as L['self'].blocks[0].mlp or L['self']._modules['h']['0'], after forward's first argument.
    path = re.sub(r"^L\['\w+'\]", "", path)
    for old, new in (("._modules", ""), ("['", "."), ("']", ""), ("[", "."), ("]", "")):
        path = path.replace(old, new)
    return path.strip(".")


def source_of(node: fx.Node) -> str:
    """`file.py:line` of the user's code that made `node`; empty if unknown."""
    trace = node.meta.get("stack_trace") or ""
    frames = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    if not frames:
        return ""
    file, _, rest = frames[-1].removeprefix('File "').partition('", line ')
    return f"{file.rsplit('/', 1)[-1]}:{rest.split(',')[0]}"
