"""A budget in bytes holds for each graph by itself; a process that compiles several under one is told so, once.

A backend is called for one graph at a time and cannot know whether others are part of the same step. A share of
PyTorch's own peak means the same for one graph and for several, a number of bytes does not.
"""

import warnings

from fxcompress import compat
from fxcompress.options import Options

_frames: set[int] = set()


def note_graph(options: Options) -> None:
    """Warn at the second Python frame whose graph is compiled for training under `options.budget` bytes.

    Other sizes of a frame are compiled again, but run in other steps.
    """
    frame = compat.compiled_frame()
    if not isinstance(options.budget, int) or options.plan is not None or frame is None or frame in _frames:
        return
    _frames.add(frame)
    if len(_frames) == 2:
        warnings.warn(
            f"actcomp: two graphs were compiled under a budget of {options.budget} bytes, which each keeps by itself: "
            "if both are part of one step, their peaks add up. `fxcompress plan module:factory --option "
            f"budget={options.budget} -o plan.json` shares it between the graphs of a step; "
            "options={'plan': 'plan.json'} compiles that",
            stacklevel=2,
        )


def forget() -> None:
    """Begin anew."""
    _frames.clear()
