"""A user who states `bits` alone is told where it decides nothing."""

import warnings

import pytest
import torch
from torch import Tensor

from fxcompress import pipeline
from fxcompress.options import Options
from fxcompress.testing_graphs import capture

WIDTH = 64


def products(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    return x @ w @ v


def derivatives(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    return x + torch.sigmoid(torch.tanh(x * 2).exp().sin() + w[0] + v[0])


def warned(function, **options: object) -> list[str]:
    torch.manual_seed(0)
    inputs = [torch.randn(size, WIDTH, requires_grad=True) for size in (256, WIDTH, WIDTH)]
    pair = capture(function, inputs)
    stated = Options(inner="aot_eager", min_bytes=64, **options)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline.run(pair.fw, pair.bw, stated)
    return [str(warning.message) for warning in caught if "bits=" in str(warning.message)]


def test_bits_alone_where_all_is_rebuilt_into_operands() -> None:
    (text,) = warned(products, bits=2)
    assert "bits=2 is the width of 0 of 1 encoded tensors (0% of their bytes)" in text and "operand_bits=8" in text


@pytest.mark.parametrize("options", [{}, {"bits": 8}, {"bits": 2, "operand_bits": 2}, {"lossy": False}], ids=str)
def test_nothing_to_say(options: dict[str, object]) -> None:
    assert warned(products, **options) == []
    assert warned(derivatives, **{"bits": 2, **options}) == []
