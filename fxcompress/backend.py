"""The doors into torch.compile: the `actcomp` backend, and the hook that makes plain Inductor compress.

`torch.compile(model, backend="actcomp", options={…})` finds `actcomp` by its entry point, without an import. Where a
backend cannot be named, `install()` (or `with enabled()`) sets Inductor's partitioner for the whole process.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxcompress import budget_scope, compat, ledger
from fxcompress.error_table import ErrorTable
from fxcompress.errors import OptionError
from fxcompress.first_call import FirstCall
from fxcompress.inductor_settings import settings
from fxcompress.ledger import reports as reports
from fxcompress.options import Options, from_mapping
from fxcompress.partition import ActcompPartitioner

RESERVED = ("custom_partitioner_fn",)
_previous: list[dict[str, Any]] = []


def actcomp(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, object] | None = None,
    mode: str | None = None,
    **kwargs: Any,
) -> Callable[..., Any]:
    """Compile a Dynamo graph so that what it saves for backward is stored compressed.

    Args:
        gm: the graph that Dynamo captured.
        example_inputs: its inputs; sizes may be symbolic.
        options: see `fxcompress.Options`.
        mode: an Inductor mode (`reduce-overhead`, `max-autotune`, …).
        **kwargs: what newer PyTorch versions add; ignored.

    Raises:
        OptionError: an option is unknown or wrong.
        PlanError: `options["plan"]` cannot be read, or does not fit this graph.
    """
    chosen = from_mapping(options, mode=mode)
    compile_graph = functools.partial(_compile_noted, chosen)
    if chosen.max_error is not None and chosen.calibration is None and chosen.plan is None:
        return FirstCall(gm, example_inputs, chosen, compile_graph)
    return compile_graph(gm, example_inputs, None)


def _compile_noted(
    chosen: Options, gm: fx.GraphModule, example_inputs: Sequence[Any], errors: ErrorTable | None
) -> Callable[..., Any]:
    before = len(ledger.reports())
    compiled = _compile(chosen, gm, example_inputs, errors)
    if len(ledger.reports()) > before:
        budget_scope.note_graph(chosen)
    return compiled


def _compile(
    chosen: Options, gm: fx.GraphModule, example_inputs: Sequence[Any], errors: ErrorTable | None
) -> Callable[..., Any]:
    if chosen.inner == "aot_eager":
        partitioner = ActcompPartitioner(chosen, decompose=False, errors=errors)
        return compat.compile_with_aot_eager(gm, example_inputs, partitioner)
    partitioner = ActcompPartitioner(chosen, errors=errors)
    extra = chosen.inductor_patches()
    for key in RESERVED:
        if key in extra:
            raise OptionError(f"option 'inductor': {key!r} is what actcomp itself sets; remove it")
    on_gpu = any(isinstance(x, torch.Tensor) and x.device.type == "cuda" for x in example_inputs)
    patches = {**settings(chosen, on_gpu=on_gpu), **compat.inductor_mode_options(chosen.mode), **extra}
    patches["custom_partitioner_fn"] = partitioner
    with ledger.recorded(gm, example_inputs, partitioner.uuid(), chosen):
        return compat.compile_with_inductor(gm, example_inputs, patches)


actcomp.reset = compat.reset_cuda_graphs  # type: ignore[attr-defined]


def install(options: Mapping[str, object] | None = None, **named: object) -> None:
    """Make every later Inductor compilation of this process compress; `uninstall` undoes it.

    For callers who cannot name a backend, such as Hugging Face's `TrainingArguments(torch_compile=True)`. Options as
    for the backend, as one mapping or by name; `inner`, `mode` and `inductor` are torch.compile's business here.

    Raises:
        OptionError: an option is unknown, wrong, or without effect here.
    """
    chosen = from_mapping({**(options or {}), **named})
    for name in ("inner", "mode", "inductor"):
        if getattr(chosen, name) != getattr(Options(), name):
            raise OptionError(f"option {name!r} has no effect in install(): give it to torch.compile")
    if chosen.max_error is not None and chosen.calibration is None:
        raise OptionError(
            "option 'max_error' needs a table in install(): make one with `fxcompress calibrate` and give its path as "
            "option 'calibration'"
        )
    partitioner = ActcompPartitioner(chosen)
    own = settings(chosen, on_gpu=torch.cuda.is_available())
    _previous.append(compat.set_inductor_config({**own, "custom_partitioner_fn": partitioner}))


def uninstall() -> None:
    """Undo the latest `install`. Does nothing if there is none."""
    if _previous:
        compat.set_inductor_config(_previous.pop())


@contextlib.contextmanager
def enabled(options: Mapping[str, object] | None = None, **named: object) -> Iterator[None]:
    """`install` for the duration of a `with` block: graphs first compiled inside it compress."""
    install(options, **named)
    try:
        yield
    finally:
        uninstall()
