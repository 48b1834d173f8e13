"""Every private PyTorch name that the benchmarks use and fxcompress does not, in one place.

As in `fxcompress.compat`, each function states what it wraps and the versions in which the name was checked: "run"
means executed by the test suite or a benchmark on that version, "read" that its source was compared. `fake_cuda` holds
what generates code for a GPU that is not there.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

from torch import fx

Pair = tuple[fx.GraphModule, fx.GraphModule]


def min_cut_partition(gm: fx.GraphModule, inputs: Any, **arguments: Any) -> Pair:
    """PyTorch's own partitioner, called as Inductor does; `partitioners.min_cut_rematerialization_partition`: run in
    2.11 and 2.13."""
    from torch._functorch import partitioners

    return partitioners.min_cut_rematerialization_partition(gm, inputs, **arguments)


@contextlib.contextmanager
def around_partitioner(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Let `wrap` stand around every call of PyTorch's own partitioner, Inductor's and those of our cuts.

    Patches `min_cut_rematerialization_partition` in `torch._functorch.partitioners` and in
    `torch._inductor.compile_fx`, which imports it: run in 2.13, read in 2.11.
    """
    from torch._functorch import partitioners
    from torch._inductor import compile_fx

    name = "min_cut_rematerialization_partition"
    wrapped = wrap(partitioners.min_cut_rematerialization_partition)
    with patch.object(partitioners, name, wrapped), patch.object(compile_fx, name, wrapped):
        yield


@contextlib.contextmanager
def functorch_settings(settings: Mapping[str, Any]) -> Iterator[None]:
    """Settings that `torch.compile(options=…)` does not reach.

    `torch._functorch.config.patch`: run in 2.11 and 2.13.
    """
    from torch._functorch import config

    with config.patch(**settings):
        yield


@contextlib.contextmanager
def inductor_settings(settings: Mapping[str, Any]) -> Iterator[None]:
    """`torch._inductor.config.patch`: run in 2.11 and 2.13."""
    from torch._inductor import config

    with config.patch(dict(settings)):
        yield


@contextlib.contextmanager
def recompile_limit(count: int) -> Iterator[None]:
    """How many compilations of one frame Dynamo makes before it runs it as it is.

    `torch._dynamo.config.recompile_limit`: run in 2.11 and 2.13.
    """
    from torch._dynamo import config

    with config.patch(recompile_limit=count):
        yield


@contextlib.contextmanager
def fresh_caches() -> Iterator[None]:
    """Compile caches that start empty; `torch._inductor.utils.fresh_cache`: run in 2.11 and 2.13."""
    from torch._inductor.utils import fresh_cache

    with fresh_cache():
        yield


def backend_of(name: str) -> Callable[..., Any]:
    """A backend by the name that `torch.compile` takes; `torch._dynamo.lookup_backend`: run in 2.11 and 2.13."""
    from torch._dynamo import lookup_backend

    found: Callable[..., Any] = lookup_backend(name)
    return found


def with_reshapes(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph, in place, without views that hold for the graph's strides only; `fx_passes.post_grad.view_to_reshape`:
    run in 2.11 and 2.13."""
    from torch._inductor.fx_passes.post_grad import view_to_reshape

    view_to_reshape(gm)  # type: ignore[no-untyped-call]
    gm.recompile()
    return gm
