"""The plan: one decision per saved tensor, with its reason. Torch-free."""

from dataclasses import dataclass

from fxcompress.facts import Peak, SavedTensor, Size

SCHEMA_VERSION = 5
Param = int | float | str | bool
KEEP = "keep"
ATEN, TRITON, FUSED, OPERATOR = "aten", "triton", "fused", "operator"
"""The code that encodes a tensor: operators that the compiler fuses, a kernel of ours, one that also computes what
makes or reads the tensor, or one operator that the compiler calls. All compute equal bits."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How one saved tensor is represented: `codec` is `keep`, `shared` (a view of an earlier tensor) or a codec."""

    tensor: SavedTensor
    codec: str
    params: tuple[tuple[str, Param], ...]
    nbytes: int
    """Payload bytes after encoding; for `keep`, those of the whole storage."""
    reason: str
    lowering: str = ""
    """The code that encodes it, `ATEN`, `TRITON`, `FUSED` or `OPERATOR`; empty where nothing is encoded."""
    predicted_error: float = 0.0
    """What its storage alone is predicted to do to the gradient: ‖Δ‖/‖gradient‖. 0 where exact or not predicted."""
    row: int = 0
    """Elements after which a group ends, whatever its size; 0: at the end of the tensor only."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How a plan meets a peak-memory budget. Seconds are a model (`fxcompress.costs`), for comparing plans only."""

    limit_bytes: int
    plain_peak_bytes: int
    """Predicted peak of PyTorch's own cut of the same joint graph, nothing encoded."""
    lowest_peak_bytes: int
    """The lowest peak that was found reachable under the same options."""
    cut: str
    """Which cut of the joint graph it is: PyTorch's, or ours at a price per byte."""
    recompute_s: float
    """Seconds of computing in the backward once more what the forward computed, above PyTorch's own cut."""
    code_s: float
    """Seconds of encoding and decoding, with what their error is weighed at."""
    bound_s: float
    """No choice of representations for this cut has a lower `code_s` and a predicted peak as low as was aimed at, or as
    this one's where that was out of reach."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How a plan meets a limit on the gradient's error. All are relative to the norm of the whole gradient."""

    limit: float
    gradient_norm: float
    """In the step that calibrated it."""
    predicted: float
    """Of the plan, roundings of different tensors being independent."""
    lowest: float
    """The lowest that any choice of representations was found to have."""
    bound: float
    """No choice within the limit costs less: saved bytes, or seconds of coding where there is a budget too."""
    cost: float
    """What this choice costs, in the same unit."""


@dataclass(frozen=True, slots=True)
class LossDecision:
    """Whether the logits of a graph are computed in chunks of tokens, so that they never exist as a whole."""

    graph: str = ""
    """Fingerprint of the joint graph, before it was cut into forward and backward."""
    chunks: int = 0
    """0: they exist as a whole, or there are none."""
    reason: str = ""
    """Why they are not chunked."""
    shape: tuple[Size, ...] = ()
    """Tokens and vocabulary; empty if no logits were found."""
    dtype: str = ""
    nbytes: int = 0
    """Of the logits as a whole."""
    chunk_nbytes: int = 0
    extra_s: float = 0.0
    """Modelled seconds that chunks take longer than whole logits would."""
    layer: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """All decisions for one graph, keyed by its fingerprint."""

    fingerprint: str
    decisions: tuple[Decision, ...]
    saved_bytes_before: int
    """Distinct storage bytes that the graph pair saved before rewriting."""
    saved_bytes_after: int
    plain_saved_bytes: int
    """What PyTorch's own cut of the same joint graph saves."""
    peak_before: Peak
    peak_after: Peak
    fits: tuple[Fit, ...] = ()
    """One under a budget, none without."""
    accuracies: tuple[Accuracy, ...] = ()
    """One under a limit on the gradient's error, none without."""
    loss: LossDecision = LossDecision()


@dataclass(frozen=True, slots=True)
class Plan:
    """One file: the plans of all graphs compiled under one set of options."""

    graphs: tuple[GraphPlan, ...]
    options: tuple[tuple[str, Param], ...]
    fxcompress_version: str
    torch_version: str
    schema_version: int = SCHEMA_VERSION
