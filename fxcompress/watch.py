"""Look at the pairs that a partitioner makes, without compiling them.

`interpreting(partitioner, inner, seen)` is a torch.compile backend that shows each pair to `seen` and interprets it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxcompress import compat
from fxcompress.errors import FxcompressError
from fxcompress.options import Options
from fxcompress.partition import ActcompPartitioner
from fxcompress.plain_cut import plain_partition

Partitioner = Callable[..., compat.Partition]
Seen = Callable[[fx.GraphModule, fx.GraphModule, int], None]
"""`(forward, backward, num_fwd_outputs)`; the graphs are PyTorch's to change afterwards."""


class WatchedPartitioner(compat.partitioner_base()):  # type: ignore[misc]
    """Cuts as `partitioner` does and shows each pair to `seen`."""

    def __init__(self, partitioner: Partitioner, seen: Seen) -> None:
        self._partitioner, self._seen = partitioner, seen

    def uuid(self) -> str:
        """Nothing compiled with it may be cached, and nothing is: `seen` would not be called on a hit."""
        return f"{type(self).__name__}:{id(self)}"

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], *, num_fwd_outputs: int, **kwargs: Any
    ) -> compat.Partition:
        pair = self._partitioner(gm, joint_inputs, num_fwd_outputs=num_fwd_outputs, **kwargs)
        self._seen(*pair, num_fwd_outputs)
        return pair


def partitioner_for(options: Options | None, inner: str) -> Partitioner:
    """Ours under these options; None: PyTorch's own."""
    if options is None:
        return plain_partition
    return ActcompPartitioner(options, decompose=inner == "inductor")


def interpreting(partitioner: Partitioner, inner: str, seen: Seen | None = None) -> Callable[..., Any]:
    """A backend that takes graphs as far as the inner compiler's partitioned ones, and then interprets those."""
    watched = WatchedPartitioner(partitioner, seen) if seen else partitioner

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        if inner == "aot_eager":
            return compat.compile_with_aot_eager(gm, example_inputs, watched)
        return compat.partition_with_inductor(gm, example_inputs, watched)

    return backend


def run_once(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], backend: Callable[..., Any]
) -> None:
    """Call `module` compiled by `backend`, every size static, whatever was traced before in this process.

    Raises:
        FxcompressError: nothing of it was compiled.
    """
    graphs: list[fx.GraphModule] = []

    def counting(gm: fx.GraphModule, example_inputs: Sequence[Any], **more: Any) -> Callable[..., Any]:
        graphs.append(gm)
        compiled: Callable[..., Any] = backend(gm, example_inputs, **more)
        return compiled

    torch.compiler.reset()
    with compat.static_sizes():
        torch.compile(module, backend=counting)(*args, **kwargs)
    if not graphs:
        raise FxcompressError(
            f"torch.compile took no graph from {type(module).__name__}, it runs as it is: TORCH_LOGS=graph_breaks "
            "shows where; nn.LSTM, nn.GRU and nn.RNN need torch._dynamo.config.allow_rnn = True"
        )
