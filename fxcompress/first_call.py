"""Plan under `max_error` without a table: the first step calibrates, the next one compiles.

The partitioner sees shapes only, and how much a gradient depends on what is saved, no shape tells. So a graph is first
taken as far as its partitioned halves under 8 bits and interpreted (`calibration`). Once its backward has run on real
data and found a gradient, the next call compiles the graph under the plan that is then chosen.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fxcompress import __version__, compat
from fxcompress.calibration import Calibrator, calibrating_backend
from fxcompress.error_table import ErrorTable, GraphErrors
from fxcompress.errors import OptionError
from fxcompress.options import Options

Compile = Callable[[fx.GraphModule, Sequence[Any], ErrorTable | None], Callable[..., Any]]


class FirstCall:
    """What Dynamo calls for one graph: the calibrating version until it has told its errors, then the compiled one."""

    def __init__(self, gm: fx.GraphModule, inputs: Sequence[Any], options: Options, compile_graph: Compile) -> None:
        refuse_ranks()
        self._gm, self._compile = gm, compile_graph
        self._scene = compat.CompileScene(inputs)
        self._errors: list[GraphErrors] = []
        calibrator = Calibrator(options, self._errors.append)
        self._run = calibrating_backend(calibrator)(gm, self._scene.inputs)
        self._waiting = calibrator.graphs > 0
        if not self._waiting:  # no backward, or nothing in it that we could analyse
            self._run = compile_graph(gm, self._scene.inputs, ErrorTable((), __version__, str(torch.__version__)))

    def __call__(self, *args: Any) -> Any:
        if self._waiting and self._errors:
            table = ErrorTable(tuple(self._errors), __version__, str(torch.__version__))
            with self._scene.restored():
                self._run = self._compile(self._gm, self._scene.inputs, table)
            self._waiting = False
            del self._gm, self._scene
        return self._run(*args)


def refuse_ranks() -> None:
    """Raise `OptionError` in a process group of several ranks: each has other data, and all must choose one plan."""
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise OptionError(
            "option 'max_error': ranks would calibrate on different data and choose different plans; make one table "
            "with `fxcompress calibrate` and give its path as option 'calibration'"
        )
