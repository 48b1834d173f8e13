"""What is alive when, over one predicted training step. Torch-free.

Moments number the nodes that touch memory, those of the forward first. Parameters, inputs and the gradients that the
backward returns are not in it, as they are in no predicted peak.
"""

from dataclasses import dataclass
from typing import Literal

PhaseName = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Moment:
    """One node that runs: `live_bytes` while it does, `workspace_bytes` of which no tensor holds."""

    phase: PhaseName
    name: str
    layer: str
    source: str
    live_bytes: int
    workspace_bytes: int


@dataclass(frozen=True, slots=True)
class Life:
    """One storage of `nbytes`, alive from moment `first` to moment `last`, both included.

    `saved`: the forward hands it to the backward, so that it lives across the turn.
    """

    name: str
    layer: str
    source: str
    nbytes: int
    first: int
    last: int
    saved: bool


@dataclass(frozen=True, slots=True)
class Timeline:
    """One step of one graph: at every moment the lives that cover it and its workspace sum up to its live bytes."""

    moments: tuple[Moment, ...]
    lives: tuple[Life, ...]

    @property
    def turn(self) -> int:
        """The first moment of the backward; the number of moments if there is none."""
        return next((i for i, moment in enumerate(self.moments) if moment.phase == "backward"), len(self.moments))

    @property
    def peak(self) -> int:
        """The moment at which most is alive; of several, the first."""
        return max(range(len(self.moments)), key=lambda i: self.moments[i].live_bytes, default=0)

    @property
    def peak_bytes(self) -> int:
        """The most that is alive."""
        return max((moment.live_bytes for moment in self.moments), default=0)
