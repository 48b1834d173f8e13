"""A training step that starts the same way each time, and a loss for models that return none."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fxcompress import compat
from fxcompress.errors import OptionError
from fxcompress.inputs import InputSpec
from fxcompress.options import Options
from fxcompress.trace import materialize_callable


@contextlib.contextmanager
def seeded(
    model_factory: Callable[[], object], inputs: Sequence[InputSpec], options: Options
) -> Iterator[tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]]:
    """The model with its inputs, and the random stream, as every step that is compared starts from them."""
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        case = materialize_callable(model_factory, inputs, None)
        torch.compiler.reset()
        torch.manual_seed(options.seed + 1)
        yield case


def outputs_of(result: object) -> dict[str, torch.Tensor]:
    return {f"output{path}": tensor for path, tensor in compat.tensors_by_path(result).items()}


def loss_of(outputs: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
    differentiable = {name: output for name, output in outputs.items() if output.requires_grad}
    if not differentiable:
        raise OptionError("the model returned no tensor that depends on a parameter, so there is no gradient to verify")
    for name, output in differentiable.items():
        if output.numel() == 1 and (len(differentiable) == 1 or name in ("output['loss']", "output.loss")):
            return output.sum()
    generator = torch.Generator().manual_seed(seed)
    terms = []
    for output in differentiable.values():
        weight = torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
        terms.append((output * weight).abs().sum() if output.is_complex() else (output * weight).sum())
    return torch.stack([term.float() for term in terms]).sum()
