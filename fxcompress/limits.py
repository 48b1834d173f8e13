"""What a choice must keep: a budget for the peak, a limit on the gradient's error, or both."""

from dataclasses import dataclass, replace

from torch import fx

from fxcompress import costs, plan_io
from fxcompress.error_table import ErrorTable, GraphErrors
from fxcompress.errors import BudgetError, OptionError, PlanError
from fxcompress.facts import Peak, SavedTensor
from fxcompress.options import Options
from fxcompress.passes.alias import Storage
from fxcompress.passes.choose import Choice
from fxcompress.passes.fit_budget import fit_budget
from fxcompress.passes.fit_error import Peak as PeakLimit
from fxcompress.passes.fit_error import fit_error
from fxcompress.passes.liveness import Machine
from fxcompress.passes.values import Known
from fxcompress.plan import Accuracy, Fit


@dataclass(frozen=True, slots=True)
class Budget:
    """A peak to stay below. `target_bytes` is what is aimed at, `limit_bytes` what is promised.

    `error_s_per_byte`: as for `fit_budget`.
    """

    limit_bytes: int
    target_bytes: int
    plain_peak_bytes: int
    lowest_peak_bytes: int
    cut: str
    recompute_s: float
    step_s: float
    error_s_per_byte: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the choice must keep: the options as stated, and a budget for the pair that will run on `machine`."""

    stated: Options
    budget: Budget | None
    machine: Machine


@dataclass(frozen=True, slots=True)
class Findings:
    saved: tuple[SavedTensor, ...]
    storages: list[Storage]
    values: Known


def budget_bytes(budget: int | str, plain_peak_bytes: int) -> int:
    """The limit that an option `budget` states: bytes, or a share of PyTorch's own peak."""
    if isinstance(budget, int):
        return budget
    return int(plain_peak_bytes * float(budget.removesuffix("%")) / 100)


def own_budget(fw: fx.GraphModule, bw: fx.GraphModule, options: Options, before: Peak) -> Budget | None:
    """The budget of a pair that was cut without one."""
    if options.budget is None:
        return None
    limit = budget_bytes(options.budget, before.peak_bytes)
    return Budget(
        limit,
        limit,
        before.peak_bytes,
        before.peak_bytes,
        "as given",
        0.0,
        costs.step_s(fw, bw, fused=options.inner == "inductor"),
    )


def fit_peak(
    fw: fx.GraphModule, bw: fx.GraphModule, found: Findings, choice: Choice, limits: Limits
) -> tuple[Choice, Fit]:
    budget = limits.budget
    assert budget is not None
    fitted = fit_budget(
        fw,
        bw,
        found.storages,
        choice,
        limit_bytes=budget.target_bytes,
        machine=limits.machine,
        step_s=budget.step_s,
        error_s_per_byte=budget.error_s_per_byte,
    )
    return fitted.choice, _fit_of(budget, fitted.lowest_peak_bytes, fitted.code_s, fitted.bound_s)


def _fit_of(budget: Budget, lowest_peak_bytes: int, code_s: float, bound_s: float) -> Fit:
    lowest = min(budget.lowest_peak_bytes, lowest_peak_bytes)
    return Fit(budget.limit_bytes, budget.plain_peak_bytes, lowest, budget.cut, budget.recompute_s, code_s, bound_s)


def widest(options: Options) -> Options:
    """The options under which a plan with a limit on the error starts; others are returned as they are."""
    if options.max_error is None:
        return options
    return replace(options, max_error=None, calibration=None, bits=8, operand_bits=8)


def errors_of(key: str, stated: Options, errors: ErrorTable | None) -> GraphErrors:
    """What is known of the graph with this fingerprint."""
    if errors is None and stated.calibration is None:
        raise OptionError(
            "option 'max_error' needs to know how the gradient depends on what is saved, and no shape tells: make a "
            "table with `fxcompress calibrate` under the same options and give its path as option 'calibration'"
        )
    table = plan_io.load_errors(str(stated.calibration)) if errors is None else errors
    found = table.find(key)
    if found is None:
        known = ", ".join(graph.fingerprint for graph in table.graphs) or "none"
        raise PlanError(
            f"calibration: no errors for this graph (fingerprint {key}; there are: {known}). The model, its input "
            "shapes, the options or the PyTorch version differ from those calibrated with; calibrate again"
        )
    return found


def fit_accuracy(
    fw: fx.GraphModule, bw: fx.GraphModule, found: Findings, choice: Choice, limits: Limits, errors: GraphErrors
) -> tuple[Choice, tuple[Fit, ...], tuple[Accuracy, ...]]:
    budget, stated = limits.budget, limits.stated
    assert stated.max_error is not None
    peak = PeakLimit(fw, bw, budget.target_bytes, limits.machine) if budget is not None else None
    fitted = fit_error(found.storages, found.saved, choice, widest(stated), errors, stated.max_error, peak)
    accuracy = fitted.accuracy
    fits = () if budget is None else (_fit_of(budget, fitted.lowest_peak_bytes, accuracy.cost, accuracy.bound),)
    return fitted.choice, fits, (accuracy,)


def kept(fits: tuple[Fit, ...], after: Peak, options: Options) -> tuple[Fit, ...]:
    """The fits with the peak reached among the reachable ones; raises where it is above the budget."""
    reached = tuple(replace(fit, lowest_peak_bytes=min(fit.lowest_peak_bytes, after.peak_bytes)) for fit in fits)
    for fit in reached:
        if after.peak_bytes > fit.limit_bytes:
            raise BudgetError(_shortfall(fit, after, options), peak_bytes=after.peak_bytes)
    return reached


def _shortfall(fit: Fit, after: Peak, options: Options) -> str:
    """What a budget error says."""
    under, change = f"bits={options.bits}, operand_bits={options.operand_bits}", "lower these widths"
    if options.max_error is not None:
        under, change = f"max_error={options.max_error:g}", "raise this limit"
    return (
        f"budget of {fit.limit_bytes} bytes: the lowest predicted peak found is {after.peak_bytes} bytes at "
        f"{under} (PyTorch's own: {fit.plain_peak_bytes}); state a larger budget, {change}, or make the batch smaller"
    )
