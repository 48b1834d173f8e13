"""From a model and sample inputs to the plan of its graphs, with nothing allocated and nothing compiled.

The model is built and run on fake tensors, through Dynamo, AOTAutograd and Inductor's own joint-graph passes up to the
partitioned graphs, so that what `explain` shows is what the backend does.
"""

import contextlib
import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import fx, nn

from fxcompress import compat, ledger
from fxcompress.compat import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from fxcompress.compat.tracing import fake_mode
from fxcompress.errors import BudgetError, FxcompressError
from fxcompress.options import GivenOptions, Options, as_options
from fxcompress.plan import GraphPlan, Plan
from fxcompress.shared_budget import needs_of, share_budget, sharing
from fxcompress.watch import Partitioner, interpreting, partitioner_for, run_once

if TYPE_CHECKING:
    from fxcompress.inputs import InputSpec

log = logging.getLogger(__name__)
T = TypeVar("T")
Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def explain(
    module_factory: Callable[[], object], inputs: Sequence["InputSpec"] = (), options: GivenOptions = None
) -> Plan:
    """Plan what a model saves for backward.

    Args:
        module_factory: returns a module, or `(module, args)`, or `(module, args, kwargs)`. It is called under a fake
            tensor mode, so that a model of any size takes no memory.
        inputs: sample inputs; needed if the factory returns only a module.
        options: as for the backend, or `Options`.

    Where the model becomes several graphs, a budget is shared between them (`shared_budget`).

    Raises:
        OptionError: an option is unknown or wrong.
        FxcompressError: the model saves nothing for backward.
        BudgetError: nothing found keeps the budget.
    """
    chosen = dataclasses.replace(as_options(options), save_plan=None)

    def capture(case: Case) -> list[GraphPlan]:
        return _plans_of(case, chosen)

    plans = on_fake_tensors(module_factory, inputs, capture)
    if not plans:
        raise FxcompressError(
            "no graph saves anything for backward: the model ran without gradients, or graphs are compiled unchanged "
            f"({'; '.join(ledger.unchanged()) or 'no warning'})"
        )
    return ledger.make_plan(plans, chosen)


def on_fake_tensors(module_factory: Callable[[], object], inputs: Sequence["InputSpec"], use: Callable[[Case], T]) -> T:
    """What `use` returns for the model on fake tensors; on real ones, with a warning, if it reads values."""
    try:
        with fake_mode() as mode:
            return use(materialize_callable(module_factory, inputs, mode))
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        log.warning("the model reads values while it is built or run (%s): it is run on real tensors instead", error)
        return use(materialize_callable(module_factory, inputs, None))


def materialize(
    module_factory: Callable[[], object], inputs: Sequence["InputSpec"], mode: FakeTensorMode | None
) -> Case:
    """Call the factory and make its inputs; under a mode, initializations that read values are left out.

    Raises:
        FxcompressError: the factory takes arguments, or returns something else than a module and its inputs.
    """
    with contextlib.ExitStack() as stack:
        if mode:
            stack.enter_context(compat.truncated_init_without_reading())
            stack.enter_context(compat.convertible_fake_modules())
        built = _built(module_factory)
    module, args, kwargs = built if isinstance(built, tuple) and len(built) == 3 else (*_pair(built), {})
    if inputs:
        args = tuple(spec.make(fake=mode) for spec in inputs)
    if not isinstance(module, nn.Module):
        found = f"a tuple of {len(built)}" if isinstance(built, tuple) and built is module else type(module).__name__
        raise FxcompressError(
            f"the factory returned {found}; it must return an nn.Module, (module, args) or (module, args, kwargs)"
        )
    if not isinstance(args, (tuple, list)):
        raise FxcompressError(f"the factory returned {type(args).__name__} as arguments; it must be a tuple")
    if not isinstance(kwargs, Mapping):
        raise FxcompressError(f"the factory returned {type(kwargs).__name__} as keyword arguments; it must be a dict")
    return module, tuple(args), dict(kwargs)


def _built(module_factory: Callable[[], object]) -> object:
    if isinstance(module_factory, nn.Module):
        name = type(module_factory).__name__
        raise FxcompressError(f"a {name} is a model, not a factory: name a function that returns it")
    try:
        return module_factory()
    except TypeError as error:
        if misfit := _misfit(module_factory, (), {}):
            raise FxcompressError(
                f"the factory must take no argument: {misfit}; name a function that calls it with its own"
            ) from error
        raise


def materialize_callable(
    module_factory: Callable[[], object], inputs: Sequence["InputSpec"], mode: FakeTensorMode | None
) -> Case:
    """`materialize` where nothing is added to the inputs: those that do not come with the module are easily forgotten.

    Raises:
        FxcompressError: as `materialize`; or the module does not take these inputs.
    """
    module, args, kwargs = materialize(module_factory, inputs, mode)
    stated = inputs or not (args or kwargs)
    if stated and (misfit := _misfit(module.forward, args, kwargs)):
        raise FxcompressError(
            f"{type(module).__name__}.forward got {len(args)} inputs: {misfit}; state its inputs in order, as "
            '--input "f32[8,1024]", or have the factory return (module, args)'
        )
    return module, args, kwargs


def _misfit(call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Why `call` cannot be called with these arguments, as far as its signature tells."""
    try:
        inspect.signature(call).bind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        return str(error) if isinstance(error, TypeError) else ""
    return ""


def _pair(built: object) -> tuple[Any, tuple[Any, ...]]:
    return built if isinstance(built, tuple) and len(built) == 2 else (built, ())


def _plans_of(case: Case, options: Options) -> list[GraphPlan]:
    """The plans of a model's graphs; a budget is the whole step's."""
    plans: list[GraphPlan] = []
    failure: Exception | None = None
    try:
        run_once(*case, planning_backend(options, plans))
    except Exception as error:
        if not isinstance(getattr(error, "inner_exception", error), BudgetError):
            raise
        failure = error
    if failure is None and (options.budget is None or len(plans) < 2):
        return plans
    plain = needs_of(case, partitioner_for(None, options.inner), options.inner)
    if failure is not None and len(plain) < 2:
        raise failure
    shared = share_budget(case, options, plain)
    plans.clear()
    run_once(*case, planning_backend(options, plans, sharing(options, shared.budgets)))
    return plans


def planning_backend(
    options: Options, plans: list[GraphPlan], partitioner: Partitioner | None = None
) -> Callable[..., Any]:
    """A backend that partitions and plans, and then interprets the graphs; `partitioner` if not ours under options."""

    interpret = interpreting(partitioner or partitioner_for(options, options.inner), options.inner)

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Mapping[str, Any]) -> Callable[..., Any]:
        before = len(ledger.reports())
        run: Callable[..., Any] = interpret(gm, example_inputs)
        plans.extend(ledger.reports()[before:])
        return run

    return backend
