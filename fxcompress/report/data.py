"""What a report shows, as plain data: made by `fxcompress.survey`, drawn by the modules beside this one. Torch-free."""

from dataclasses import dataclass
from typing import Literal

from fxcompress.plan import GraphPlan, Plan
from fxcompress.timeline import Timeline

Kind = Literal["plain", "given", "width", "budget"]
LineKind = Literal["input", "node", "codec", "output"]


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the planner and what it is predicted to need: PyTorch's own cut, the options given, and others.

    All numbers are models. `failure` says why there is no plan; the numbers are then 0.
    """

    label: str
    kind: Kind
    peak_bytes: int = 0
    saved_bytes: int = 0
    extra_s: float = 0.0
    """Seconds of recomputing, encoding and decoding, above PyTorch's own cut (`fxcompress.costs`)."""
    step_s: float = 0.0
    """Seconds of the step under PyTorch's own cut, by the same model."""
    stored_error: float = 0.0
    """Root mean square error of the saved values over their own, for normal numbers; exact ones count as 0."""
    failure: str = ""

    @property
    def extra_share(self) -> float:
        """Modelled extra time as a share of the step."""
        return self.extra_s / self.step_s if self.step_s else 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """One node of a graph, or a run of codec nodes, as text. `note` says how it is saved."""

    kind: LineKind
    code: str
    shape: str = ""
    layer: str = ""
    source: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class GraphView:
    """One compiled graph: its plan, the step under PyTorch's own cut and under the plan, and the rewritten graphs."""

    plan: GraphPlan
    before: Timeline
    after: Timeline
    forward: tuple[Line, ...]
    backward: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """All graphs of a model under one set of options, and the settings beside it; PyTorch's own cut comes first."""

    target: str
    plan: Plan
    graphs: tuple[GraphView, ...]
    points: tuple[Point, ...]
