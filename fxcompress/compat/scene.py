"""Where a backend, or its result, is called: the setting that Dynamo made, kept to compile again, or a backward."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch


def compiled_frame() -> int | None:
    """Which Python frame Dynamo is compiling; the same for further sizes of it. None outside a compilation.

    `torch._guards.CompileContext.current_compile_id`, `CompileId.frame_id`: run in 2.11 and 2.13.
    """
    from torch._guards import CompileContext

    found = CompileContext.current_compile_id()
    frame: int | None = found.frame_id if found is not None else None
    return frame


def in_backward() -> bool:
    """Whether autograd runs a backward in this thread; `torch._C._current_graph_task_id`: run in 2.13, read in 2.11."""
    return bool(torch._C._current_graph_task_id() != -1)


class CompileScene:
    """What Dynamo has set up while it calls a backend, kept so that the same graph can be compiled again later.

    `torch._guards.TracingContext`, `CompileContext`, `tracing`, `compile_context`; `FakeTensorMode.from_tensor`, which
    gives the fake tensor that Dynamo made of a real one: run in 2.13, read in 2.11. AOTAutograd compiles backward
    graphs late in the same way.

    Attributes:
        inputs: the graph's inputs, with no data behind them.
    """

    def __init__(self, inputs: Sequence[Any]) -> None:
        from torch._guards import CompileContext, TracingContext

        self._tracing, self._compile = TracingContext.try_get(), CompileContext.try_get()
        mode = self._tracing.fake_mode if self._tracing is not None else None
        self.inputs = [mode.from_tensor(x) if mode and isinstance(x, torch.Tensor) else x for x in inputs]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """The same setting again."""
        from torch._guards import compile_context, tracing

        with compile_context(self._compile), tracing(self._tracing):
            yield
