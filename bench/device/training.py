"""Is a training step right, how long does it take, and how much memory?"""

import contextlib
import functools
import gc
import importlib.util
import math
import statistics
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from bench import measure
from bench.device.section import Cases, Measured, Scale, Skipped
from bench.device.turns import alone, together
from bench.models.large import LARGE
from bench.models.zoo import ZOO
from bench.trial import Job, Trial, run_trial
from bench.variants import GRAPHS, REFERENCE, Variant, in_graphs, variants

PLAIN_TORCH = ("cnn", "bytegpt", "digits_vit", "bnn", "gcn", "lstm")
BATCHES = {"vit_base": 128, "resnet50": 256, "gpt2_medium": 8}
_TOY_BATCH = 4
COMPARED = (
    (REFERENCE, "actcomp", "actcomp-4bit-all", "actcomp-unsplit", "actcomp-unfused"),
    (REFERENCE + GRAPHS, "actcomp" + GRAPHS, "peak-50"),
    ("budget-0.5", "fp8-pass", "checkpoint"),
    ("actcomp-2bit-all", "peak-35", "actcomp-4bit-all-aten", "actcomp-limits"),
    ("actcomp-4bit-all" + GRAPHS, "actcomp-2bit-all" + GRAPHS, "budget-0.5" + GRAPHS, "fp8-pass" + GRAPHS),
    ("checkpoint" + GRAPHS,),
)
"""What is compared on the large models, the most important first."""
_TOY_COMPARED = (REFERENCE, "actcomp", "checkpoint")
_STEP_VARIANTS = (("actcomp", "actcomp-exact"), ("actcomp" + GRAPHS,))
_ROUNDS, _TOY_ROUNDS = 20, 2
_KERNELS_SHOWN, _NAME_SHOWN = 60, 120
_LOSS_ERROR = 1e-5
_EXACT_ERROR, _LOSSY_ERROR = 1e-5, 0.5
"""Largest gradient errors that count as right: rounding of another fusion, and anything that is not garbage."""


def step_cases(scale: Scale) -> Cases:
    """Steps of the zoo's models that need nothing but torch."""
    return _steps(PLAIN_TORCH[: 1 if scale.toy else None], scale)


def family_cases(scale: Scale) -> Cases:
    """Steps of the zoo's models from transformers."""
    names = [name for name in ZOO if name not in PLAIN_TORCH]
    return _steps(names[: 1 if scale.toy else None], scale, library="transformers")


def train_cases(scale: Scale) -> Cases:
    """Steps of the large models."""
    return {name: functools.partial(train, *case, scale) for name, case in _large(scale)}


def compare_step(model: str, variant: Variant, library: str, scale: Scale) -> Measured:
    """One step of a zoo model against the reference on the same device: loss, gradients, bytes.

    `repeats`: whether another step has bit-equal gradients; `reference_repeats`: whether the reference's has. Not asked
    for: atomic additions have no fixed order.
    """

    def repeats(one: Trial) -> bool:
        again = job.gradient_step(one.compiled)()
        return all(torch.equal(*pair) for pair in zip(again, one.gradients.values(), strict=True))

    if library and not _is_installed(library):
        raise Skipped(f"{library} is not installed")
    # cuDNN rounds operands of convolutions to 10 bits otherwise, which no bound on an exact gradient survives.
    torch.backends.cudnn.allow_tf32 = False
    with together():
        module, args, kwargs = ZOO[model]()
        job = Job(module, args, kwargs).to(scale.place)
        reference = run_trial(variants(scale.inner)[REFERENCE], job, fresh=False)
        reference_repeats = repeats(reference)
        trial = run_trial(variant, job, fresh=False)
        trial_repeats = repeats(trial)
    loss_error = abs(trial.loss - reference.loss) / abs(reference.loss)
    grad_error = measure.rel_grad_error(trial.gradients, reference.gradients)
    allowed = _EXACT_ERROR if "exact" in variant.name else _LOSSY_ERROR
    return {
        "ok": bool(loss_error <= _LOSS_ERROR and grad_error <= allowed),
        "loss_error": loss_error,
        "grad_error": grad_error,
        "repeats": trial_repeats,
        "reference_repeats": reference_repeats,
        "saved_bytes": trial.saved_bytes,
        "reference_saved_bytes": reference.saved_bytes,
        "peak_bytes": trial.memory.peak_bytes,
        "reference_peak_bytes": reference.memory.peak_bytes,
        "predicted_peak_bytes": trial.predicted_peak_bytes,
    }


def train(model: str, variant: Variant, scale: Scale) -> Measured:
    """Step time, alone on the machine, and memory.

    Peaks of steps in CUDA graphs lie in the graphs' pool: of those, see `reserved_bytes`. First steps are timed while
    other processes compile.
    """
    batch = _batch(model, scale)
    with together():
        job = large_job(model, batch, scale)
        trial = run_trial(variant, job, fresh=False)
        reserved = torch.cuda.memory_reserved() if scale.device == "cuda" else None
        torch.cuda.empty_cache()
    step = job.train_step(trial.compiled)
    with alone(), without_collections():
        step()
        seconds = measure.step_times({"": step}, rounds=_TOY_ROUNDS if scale.toy else _ROUNDS)[""]
        kernels = kernel_times(step) if scale.device == "cuda" else {}
    graphs, peak, predicted = GRAPHS in variant.name, trial.memory.peak_bytes, trial.predicted_peak_bytes
    return {
        "batch": batch,
        "step_s": statistics.median(seconds),
        "fastest_step_s": min(seconds),
        "kernels_s": sum(kernel["seconds_s"] for kernel in kernels.values()) or None,
        "launches": sum(kernel["launches"] for kernel in kernels.values()) or None,
        "kernels": dict(list(kernels.items())[:_KERNELS_SHOWN]),
        "saved_bytes": trial.saved_bytes,
        "peak_bytes": None if graphs else peak,
        "total_peak_bytes": None if graphs else trial.memory.total_peak_bytes,
        "predicted_peak_bytes": predicted,
        "predicted": None if graphs or not predicted else predicted / peak,
        "reserved_bytes": reserved,
        "first_step_s": trial.first_step_s,
        "loss": trial.loss if math.isfinite(trial.loss) else None,
    }


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Keep Python's garbage collector, which walks all that a compiler left behind, out of single steps."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def kernel_times(step: Callable[[], None]) -> dict[str, dict[str, float]]:
    """Seconds and launches of every kernel of one step by name, the longest first; waits between them are left out."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        measure.timed(step)
    events = sorted(profiler.key_averages(), key=lambda event: event.self_device_time_total, reverse=True)
    return {
        event.key[:_NAME_SHOWN]: {"seconds_s": 1e-6 * event.self_device_time_total, "launches": event.count}
        for event in events
        if event.self_device_time_total
    }


def large_job(model: str, batch: int, scale: Scale) -> Job:
    """A large model with a batch, equal for equal sizes, under bf16 autocast."""
    # Made where it is needed: drawing hundreds of millions of weights takes a CPU longer than compiling.
    with torch.random.fork_rng(), torch.device(scale.device):
        torch.manual_seed(0)
        module, args = LARGE[model](batch, scale.toy)
    return Job(module.train(), args, bf16=True)


def chosen(name: str, scale: Scale) -> Variant | None:
    """A variant by name; None where the inner compiler does not have it."""
    known = variants(scale.inner)
    if not name.endswith(GRAPHS):
        return known.get(name)
    plain = known.get(name.removesuffix(GRAPHS))
    return in_graphs(plain) if plain is not None and scale.device == "cuda" else None


def _is_installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ValueError:  # someone has put a stand-in there
        return False


def _batch(model: str, scale: Scale) -> int:
    return _TOY_BATCH if scale.toy else BATCHES[model]


def _large(scale: Scale) -> Iterable[tuple[str, tuple[str, Variant]]]:
    """Models × variants by name, in the order of `COMPARED`."""
    for names in (_TOY_COMPARED,) if scale.toy else COMPARED:
        for model in list(LARGE)[: 1 if scale.toy else None]:
            for name in names:
                if (variant := chosen(name, scale)) is not None:
                    yield f"{model} {name}", (model, variant)


def _steps(models: Iterable[str], scale: Scale, library: str = "") -> Cases:
    found: dict[str, Callable[[], Measured]] = {}
    for names in _STEP_VARIANTS[: 1 if scale.toy else None]:
        for model in models:
            for name in names:
                if (variant := chosen(name, scale)) is not None:
                    found[f"{model} {name}"] = functools.partial(compare_step, model, variant, library, scale)
    return found
