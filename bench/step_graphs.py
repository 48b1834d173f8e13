"""The graphs of one training step, partitioned in several ways from one trace.

joint = trace(module, inputs)
pair = partition(joint, ActcompPartitioner(Options(bits=4)))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from bench.compat import Pair, min_cut_partition
from bench.compat.fake_cuda import gpu_layouts
from bench.models.blocks import default_dtype
from bench.models.zoo import Case
from fxcompress import compat
from fxcompress.compat import FakeTensorMode
from fxcompress.passes.alias import distinct_nbytes
from fxcompress.passes.copy_graph import copy_graph

Partitioner = Callable[..., Pair]


@dataclass(frozen=True, slots=True)
class Joint:
    """A joint graph after Inductor's passes, and what a partitioner is told with it; `values` are what it was traced
    with, tangents left out."""

    gm: fx.GraphModule
    inputs: Any
    arguments: dict[str, Any]
    values: tuple[Any, ...] = ()

    @property
    def num_fwd_outputs(self) -> int:
        """How many forward outputs are the user's."""
        count: int = self.arguments["num_fwd_outputs"]
        return count


def plain(gm: fx.GraphModule, inputs: Any, **arguments: Any) -> Pair:
    """PyTorch's own partitioner as Inductor calls it."""
    return min_cut_partition(gm, inputs, **arguments)


class _Recorder(compat.partitioner_base()):  # type: ignore[misc]
    """Keeps a copy of each joint graph, and partitions as ever."""

    def __init__(self) -> None:
        self.joints: list[Joint] = []

    def uuid(self) -> str:
        return type(self).__name__

    def __call__(self, gm: fx.GraphModule, joint_inputs: Any, **arguments: Any) -> Pair:
        del arguments["compiler"]
        self.joints.append(Joint(copy_graph(gm), joint_inputs, arguments))
        return plain(gm, joint_inputs, **arguments)


def trace(module: nn.Module, inputs: Sequence[Tensor]) -> Joint:
    """The joint graph of `module(*inputs)`; module and inputs may be fake.

    Raises:
        ValueError: there is more than one graph, or none that wants a gradient.
    """
    recorder = _Recorder()
    values: list[Any] = []

    def backend(gm: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        values[:] = examples
        return compat.partition_with_inductor(gm, examples, recorder)

    torch.compiler.reset()
    with gpu_layouts(), compat.static_sizes():
        torch.compile(module, backend=backend)(*inputs)
    if len(recorder.joints) != 1:
        raise ValueError(f"{type(module).__name__} has {len(recorder.joints)} training graphs; one can be counted")
    return replace(recorder.joints[0], values=tuple(values))


def trace_bf16(factory: Callable[[], Case]) -> Joint:
    """The joint graph of a model on fake tensors, its parameters bf16."""
    with FakeTensorMode(), default_dtype(torch.bfloat16):
        module, args, kwargs = factory()
        return trace(as_positional(module, kwargs), [*args, *kwargs.values()])


def as_positional(module: nn.Module, kwargs: Mapping[str, Any]) -> nn.Module:
    """A module that takes these keyword arguments by position, in their order."""
    return _Positional(module, tuple(kwargs))


class _Positional(nn.Module):
    """A module whose keyword arguments are given by position."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *values: Tensor) -> Tensor:
        """Return the module's loss."""
        first = len(values) - len(self.names)
        loss: Tensor = self.module(*values[:first], **dict(zip(self.names, values[first:], strict=True)))
        return loss


def partition(joint: Joint, partitioner: Partitioner) -> Pair:
    """Forward and backward graph, planned as for an H200; `joint` may be partitioned again."""
    with gpu_layouts():
        return partitioner(copy_graph(joint.gm), joint.inputs, **joint.arguments)


def saved_nbytes(fw: fx.GraphModule, num_fwd_outputs: int) -> int:
    """Bytes of the distinct storages that a forward graph saves, inputs of the graph left out."""
    (output,) = fw.graph.find_nodes(op="output")
    saved = [node for node in output.args[0][num_fwd_outputs:] if isinstance(node, fx.Node)]
    return distinct_nbytes([node for node in saved if isinstance(node.meta["val"], torch.Tensor)])
