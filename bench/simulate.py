"""Training steps as the GPU would run them, without one: `python -m bench.simulate [--models cnn,gpt2]`.

Each model's step is planned and lowered for an H200; the generated wrappers run on the CPU, their kernels under
Triton's interpreter (`bench/compat/fake_cuda/interpret.py`). Loss and gradients are compared with the same pair of
graphs run operator by operator by ATen, with the codecs' references: what Inductor, our kernels and our rewriting of
its schedule do to the numbers is all that can differ. Plain Inductor's step beside it says what the interpreter alone
does. fp32; dropout is off, whose random numbers the two draw differently.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, fx, nn

from bench.compat import Pair, with_reshapes
from bench.compat.fake_cuda import fake_cuda, lower
from bench.models.zoo import ZOO
from bench.record import append_rows, environment, wide_console
from bench.step_graphs import Joint, as_positional, partition, plain, trace
from bench.variants import REFERENCE
from bench.widths import options_of
from fxcompress.inductor_settings import settings
from fxcompress.partition import ActcompPartitioner
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.find_saved import outputs, placeholders
from fxcompress.replayed_peak import laid_out

MODELS = ("cnn", "vit", "resnet", "gpt2", "bert", "llama", "swin", "convnext", "bnn", "lstm")
VARIANTS = (REFERENCE, "exact", "default", "4 bit", "2 bit")
_LAUNCH = re.compile(r"^ +(\w+)\.run\(", re.MULTILINE)
MIN_BYTES = 1024
"""Of tensors that are encoded: most tensors of models this small."""


@dataclass(frozen=True, slots=True)
class Case:
    """A lowered step and what it should give.

    Attributes:
        forward, backward: generated code.
        inputs: of the forward.
        handed: names of the forward's outputs, the user's first.
        taken: names of the backward's inputs.
        num_fwd_outputs: how many outputs are the user's.
        expected, expected_gradients: what ATen computes.
    """

    forward: str
    backward: str
    inputs: list[Any]
    handed: list[str]
    taken: list[str]
    num_fwd_outputs: int
    expected: list[Any]
    expected_gradients: list[Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One model under one variant.

    Attributes:
        kernels: launches of generated kernels, ours among them.
        ours: launches of kernels written by hand.
        loss_error, grad_error: relative distance of all outputs, and of all gradients, to ATen's.
        error: why nothing was compared.
    """

    model: str
    variant: str
    kernels: int = 0
    ours: int = 0
    loss_error: float | None = None
    grad_error: float | None = None
    seconds: float = 0.0
    error: str = ""


def main() -> int:
    """Print a table per model, append JSON lines; 1 if any row carries an error."""
    arguments = _arguments()
    if arguments.run:
        print(json.dumps(compare(torch.load(arguments.run, weights_only=False))))
        return 0
    failed, about = False, environment()
    for name in arguments.models.split(","):
        rows = measure(name, arguments.variants.split(","))
        wide_console().print(table(name, rows))
        failed = failed or any(row.error for row in rows)
        if arguments.json:
            append_rows(arguments.json, ({"bench": "simulate", **asdict(row), **about} for row in rows))
    return int(failed)


def measure(name: str, variants: Sequence[str]) -> list[Row]:
    """Simulate one model of the zoo in each variant."""
    module, args, kwargs = ZOO[name]()
    return [simulate(name, variant, *traced(module, args, kwargs)) for variant in variants]


def traced(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Joint, list[Any]]:
    """The joint graph of a module without its dropout, and values of its inputs."""
    joint = trace(as_positional(without_dropout(module), kwargs), [*args, *kwargs.values()])
    return joint, [value.detach() if isinstance(value, Tensor) else value for value in joint.values]


def without_dropout(module: nn.Module) -> nn.Module:
    """The module, every probability that its parts or their configurations call drop set to 0."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for holder in (part, getattr(part, "config", None)):
            rates = {name: value for name, value in vars(holder or part).items() if "drop" in name}
            for name in (name for name, value in rates.items() if isinstance(value, float)):
                setattr(holder, name, 0.0)
    return module


def simulate(model: str, variant: str, joint: Joint, values: list[Any]) -> Row:
    """Lower one variant here, and run it in a process of its own."""
    start = time.perf_counter()
    case = make_case(variant, joint, values)
    launched = [name for source in (case.forward, case.backward) for name in _LAUNCH.findall(source)]
    ours = sum(not name.startswith("triton_") for name in launched)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.pt"
        torch.save(case, path)
        command = [sys.executable, "-m", "bench.simulate", "--run", str(path)]
        done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        return Row(model, variant, len(launched), ours, seconds=seconds, error=done.stderr.strip()[-400:])
    loss_error, grad_error = json.loads(done.stdout.splitlines()[-1])
    return Row(model, variant, len(launched), ours, loss_error, grad_error, seconds)


def make_case(variant: str, joint: Joint, values: list[Any]) -> Case:
    """Lower a variant for the GPU that is not there, and run its reference.

    Args:
        variant: `plain`, or as `options_of` reads it.
        joint: of the step.
        values: of the joint graph's inputs, tangents left out.
    """
    if variant == REFERENCE:
        pair, reference, patches = partition(joint, plain), partition(joint, plain), {}
    else:
        options = replace(options_of(variant), min_bytes=MIN_BYTES)
        by_aten = replace(options, disable_passes=(*options.disable_passes, "pick_lowering", "fuse"))
        pair, reference = (partition(joint, ActcompPartitioner(each)) for each in (options, by_aten))
        patches = settings(options, on_gpu=True)
    handed = [out.name if isinstance(out, fx.Node) else "" for out in outputs(pair[0])]
    taken = [node.name for node in placeholders(pair[1])]
    with fake_cuda():
        forward = lower(pair[0], is_backward=False, user_outputs=range(joint.num_fwd_outputs), settings=patches)
        chosen = zip(handed, forward.strides, strict=True)
        strides = {name: stride for name, stride in chosen if stride is not None}
        inputs = [laid_out(node, strides) for node in placeholders(pair[1])]
        backward = lower(pair[1], inputs, is_backward=True, settings=patches)
    copies = [value.clone() if isinstance(value, Tensor) else value for value in values]
    expected, gradients = run_by_aten(reference, copies, joint.num_fwd_outputs)
    return Case(forward.source, backward.source, values, handed, taken, joint.num_fwd_outputs, expected, gradients)


def run_by_aten(pair: Pair, values: list[Any], count: int) -> tuple[list[Any], list[Any]]:
    """The user's outputs and the gradients, for tangents of 1, operator by operator."""
    fw, bw = (with_reshapes(copy_graph(gm)) for gm in pair)
    with torch.no_grad():
        results = fx.Interpreter(fw).run(*values)
        names = [out.name if isinstance(out, fx.Node) else "" for out in outputs(fw)]
        saved = dict(zip(names[count:], results[count:], strict=True))
        given = [saved[n.name] if n.name in saved else ones(n) for n in placeholders(bw)]
        gradients = fx.Interpreter(bw).run(*given)
    return list(results[:count]), list(gradients)


def ones(node: fx.Node) -> Tensor:
    """A tangent of 1."""
    val = node.meta["val"]
    return torch.ones(val.shape, dtype=val.dtype)


def compare(case: Case) -> tuple[float, float]:
    """Run a step under the interpreter; the relative distances of its outputs and of its gradients."""
    from bench.compat.fake_cuda.interpret import interpreting, load

    count = case.num_fwd_outputs
    with tempfile.TemporaryDirectory() as folder, interpreting():
        results = load(case.forward, Path(folder) / "forward")(case.inputs)
        saved = dict(zip(case.handed[count:], results[count:], strict=True))
        given = [saved[name] if name in saved else torch.ones(()) for name in case.taken]
        gradients = load(case.backward, Path(folder) / "backward")(given)
    return distance(results[:count], case.expected), distance(gradients, case.expected_gradients)


def distance(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """‖found − expected‖ / ‖expected‖ over all floating-point tensors; others must be equal."""
    missed, whole = 0.0, 0.0
    for one, other in itertools.zip_longest(found, expected):
        if isinstance(other, Tensor) and other.is_floating_point():
            missed += float((one.double() - other.double()).square().sum())
            whole += float(other.double().square().sum())
        elif isinstance(other, Tensor):
            missed += 0.0 if torch.equal(one, other) else float("inf")
    return float((missed / max(whole, 1e-300)) ** 0.5)


def table(name: str, rows: Sequence[Row]) -> Table:
    """One model's variants."""
    view = Table("variant", "kernels", "by hand", "loss error", "grad error", "s", title=name, title_justify="left")
    for row in rows:
        errors = [f"{value:.1e}" if value is not None else "failed" for value in (row.loss_error, row.grad_error)]
        view.add_row(row.variant, str(row.kernels), str(row.ours), *errors, f"{row.seconds:.0f}")
    for row in (row for row in rows if row.error):
        view.caption = f"{row.variant}: {row.error}"
    return view


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated names of bench.models.zoo")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
