"""Plan under `max_error` without a table: the first step calibrates, the next one compiles.

The partitioner sees shapes only, and how much a gradient depends on what is saved, no shape tells. So a graph is first
taken as far as its partitioned halves under 8 bits and interpreted (`calibration`). Once its backward has run on real
data and found a gradient, the next call compiles the graph under the plan that is then chosen, or, with a budget,
calibrates another cut first (`next_cut`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fxcompress import compat
from fxcompress.calibration import Calibrator, calibrating_backend, has_more_cuts, table_of
from fxcompress.compat.scene import in_backward
from fxcompress.error_table import ErrorTable, GraphErrors
from fxcompress.errors import OptionError
from fxcompress.options import Options

Compile = Callable[[fx.GraphModule, Sequence[Any], ErrorTable | None], Callable[..., Any]]


class FirstCall:
    """What Dynamo calls for one graph: calibrating versions until they have told its errors, then the compiled one."""

    def __init__(self, gm: fx.GraphModule, inputs: Sequence[Any], options: Options, compile_graph: Compile) -> None:
        refuse_ranks()
        self._gm, self._options, self._compile = gm, options, compile_graph
        self._scene = compat.CompileScene(inputs)
        self._errors: list[GraphErrors] = []
        self._used = 0
        """How many of these errors led to what runs."""
        self._waiting = True
        self._repeated = False
        """Whether it has run outside a backward, so that a backward may compute again what ran then."""
        self._calibrate()

    def __call__(self, *args: Any) -> Any:
        # What a backward computes again, as checkpoints do, must save what the forward saved. Reentrant ones save
        # nothing there: what they compile for gradients runs in backwards only.
        again = in_backward()
        self._repeated |= not again
        if self._waiting and len(self._errors) > self._used and not (again and self._repeated):
            with self._scene.restored():
                self._calibrate() if has_more_cuts(self._options) else self._finish()
            if not self._waiting:
                del self._gm, self._scene
        return self._run(*args)

    def _calibrate(self) -> None:
        """Watch the next cut; compile where there is none, or no backward, or nothing in it that we could analyse."""
        calibrator = Calibrator(self._options, self._errors.append, table_of(self._errors))
        known = len(self._errors)
        run = calibrating_backend(calibrator)(self._gm, self._scene.inputs)
        if calibrator.graphs:
            self._run = run
        else:
            self._finish()
        self._used = known  # Where planning fails, each later call says so again.

    def _finish(self) -> None:
        self._run = self._compile(self._gm, self._scene.inputs, table_of(self._errors))
        self._waiting = False


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
