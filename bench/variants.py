"""The ways to compile that are compared: plain Inductor, what torch itself offers, and actcomp under several options.

Torch's activation budget is set in functorch's config, which `torch.compile(options=…)` does not reach, and a compile
time is only fair on empty caches.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench import compat
from bench.recompute import recomputing
from fxcompress.backend import actcomp

REFERENCE = "plain"
GRAPHS = "+graphs"
"""Ends the name of a variant that runs in CUDA graphs."""
FP8_PASS = {
    "activation_quantization_aten_pass": {
        "quant_type": "torch.float8_e5m2",
        "use_scaling": True,
        # The pass compares in MiB; its default, 100, would leave every model of this size alone.
        "size_in_mb": 16384 / 2**20,
        "allowed_dtypes": "torch.bfloat16;torch.float32",
        "exclude_primals": True,
    }
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compile. `functorch` is patched while compiling; `recompute` checkpoints every block of the module."""

    name: str
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    functorch: Mapping[str, Any] = field(default_factory=dict)
    recompute: bool = False

    def compile(self, module: nn.Module) -> Callable[..., Tensor]:
        """Wrap `module`; it compiles at the first call, which belongs inside `compiling`."""
        # By its name, the backend is found only where the package is installed.
        backend: Any = actcomp if self.backend == "actcomp" else self.backend
        backend = apart(backend) if self.functorch else backend
        compiled: Callable[..., Tensor] = torch.compile(
            recomputing(module) if self.recompute else module, backend=backend, options=dict(self.options) or None
        )
        return compiled

    @contextlib.contextmanager
    def compiling(self, *, fresh: bool = True) -> Iterator[None]:
        """Patch what must be patched for the first call; `fresh`: with compile caches that start empty."""
        with contextlib.ExitStack() as stack:
            if self.functorch:
                stack.enter_context(compat.functorch_settings(self.functorch))
            if fresh:
                stack.enter_context(compat.fresh_caches())
            yield


def apart(name: str) -> Callable[..., Any]:
    """A backend of PyTorch's as an object of its own: Dynamo would serve it code that it made for an equal one."""
    backend = compat.backend_of(name)
    return lambda gm, inputs, **options: backend(gm, inputs, **options)


def torch_budget(share: float, inner: str) -> Variant:
    """PyTorch's own partition at an `activation_memory_budget`."""
    return Variant(f"budget-{share:g}", inner, functorch={"activation_memory_budget": share})


def variants(inner: str = "inductor") -> dict[str, Variant]:
    """All variants over one inner compiler (`inductor` or `aot_eager`), by name; the first is the reference."""
    ours = {} if inner == "inductor" else {"inner": inner}
    everything = [
        Variant(REFERENCE, inner),
        *(torch_variants() if inner == "inductor" else ()),
        Variant("checkpoint", inner, recompute=True),
        Variant("actcomp", "actcomp", ours),
        Variant("actcomp-8bit", "actcomp", {**ours, "bits": 8}),
        Variant("actcomp-2bit", "actcomp", {**ours, "bits": 2}),
        Variant("actcomp-4bit-all", "actcomp", {**ours, "bits": 4, "operand_bits": 4}),
        Variant("actcomp-2bit-all", "actcomp", {**ours, "bits": 2, "operand_bits": 2}),
        Variant("actcomp-exact", "actcomp", {**ours, "lossy": False}),
        Variant("actcomp-whole", "actcomp", {**ours, "loss_chunks": 0}),
        Variant("actcomp-unpinned", "actcomp", {**ours, "disable_passes": ["pin_products"]}),
        Variant("actcomp-inlined", "actcomp", {**ours, "disable_passes": ["outline"]}),
        *(inductor_variants() if inner == "inductor" else ()),
        *(Variant(f"peak-{share}", "actcomp", {**ours, "budget": f"{share}%"}) for share in (75, 50, 35)),
    ]
    return {variant.name: variant for variant in everything}


def in_graphs(variant: Variant) -> Variant:
    """The same over Inductor, its steps replayed as CUDA graphs."""
    ours = variant.backend == "actcomp"
    added: dict[str, Any] = {"mode": "reduce-overhead"} if ours else {"triton.cudagraphs": True}
    return replace(variant, name=variant.name + GRAPHS, options={**variant.options, **added})


def inductor_variants() -> tuple[Variant, ...]:
    """Ours with what only Inductor has."""
    return (
        Variant("actcomp-reuse", "actcomp", {"inductor": {"allow_buffer_reuse": True}}),
        Variant("actcomp-unordered", "actcomp", {"disable_passes": ["keep_order"]}),
        # For a GPU: these passes run nowhere else.
        Variant("actcomp-unsplit", "actcomp", {"disable_passes": ["split_loops"]}),
        Variant("actcomp-unfused", "actcomp", {"disable_passes": ["fuse"]}),
        Variant(
            "actcomp-4bit-all-aten", "actcomp", {"bits": 4, "operand_bits": 4, "disable_passes": ["pick_lowering"]}
        ),
        # Inductor's own limits to what it computes where it is read, which ours widen on a GPU.
        Variant(
            "actcomp-limits",
            "actcomp",
            {
                "inductor": {
                    "realize_opcount_threshold": 30,
                    "realize_reads_threshold": 4,
                    "realize_acc_reads_threshold": 8,
                }
            },
        ),
    )


def torch_variants() -> tuple[Variant, ...]:
    """What torch itself offers for the same purpose."""
    return (
        torch_budget(0.5, "inductor"),
        Variant("fp8-pass", "inductor", {"post_grad_fusion_options": FP8_PASS}),
    )


def chosen(names: str, inner: str = "inductor") -> list[Variant]:
    """Variants by comma-separated names, the reference always first; `all` means all.

    Raises:
        ValueError: a name is unknown.
    """
    known = variants(inner)
    wanted = list(known) if names == "all" else [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"unknown variant {unknown[0]!r}; known over {inner}: {', '.join(known)}")
    return [known[REFERENCE], *(known[name] for name in wanted if name != REFERENCE)]
