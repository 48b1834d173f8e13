"""The joint trial of a plan against plain repetition, in both directions, and against rare large draws."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import pytest
import torch
from torch import Tensor, fx, nn

from fxcompress.adjoint import Squares, Stored, squared_errors
from fxcompress.codecs.affine import Affine
from fxcompress.codecs.order import memory_order
from fxcompress.joint_errors import joined
from fxcompress.passes.alias import Storage
from fxcompress.passes.choose import Encoding
from fxcompress.passes.find_saved import SavedPair
from fxcompress.perturbation import Repeater

CODECS = (Affine(bits=8, rounding="nearest"), Affine(bits=4), Affine(bits=2), Affine(bits=1))


@dataclass(frozen=True, slots=True)
class Product:
    """The backward x·y·g of two saved factors, which are worse together than the sum of each alone."""

    stored: dict[str, Stored]
    encodings: list[Encoding]
    first: Squares
    squared: float
    repeater: Repeater

    def together(self, place: int) -> float:
        """Mean ‖ΔG‖² of both at one width, of draws that no trial takes."""
        return fmean(
            self.repeater.squared_error(
                [(self.stored[name], CODECS[place], salt) for name, salt in (("x", a), ("y", -a))]
            )
            for a in range(100, 104)
        )


@pytest.fixture
def product() -> Product:
    torch.manual_seed(0)
    graph = fx.Graph()
    x, y, g = (graph.placeholder(name) for name in "xyg")
    both = graph.call_function(torch.ops.aten.mul.Tensor, (x, y))
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (both, g)),))
    bw = fx.GraphModule(nn.Module(), graph)
    values = [torch.randn(512, 64) for _ in range(3)]
    stored = {node.name: Stored((node,), 0, CODECS) for node in (x, y)}
    first, squared, _ = squared_errors(bw, stored, values, draws=8)
    encodings = [encoding_of(node, values[0]) for node in (x, y)]
    return Product(stored, encodings, first, squared, Repeater(bw, values))


def encoding_of(node: fx.Node, value: Tensor) -> Encoding:
    """As `choose` would make it for a saved tensor of this node."""
    node.meta["val"] = value
    order = memory_order(value)
    assert order is not None
    storage = Storage(node, (SavedPair(0, node, node),), "", value.nbytes, ((),))
    return Encoding(storage, node, CODECS[0], order)


def test_errors_that_meet_make_coarse_ones_larger_until_the_plan_is_as_exact_as_predicted(product: Product) -> None:
    first, limit = product.first, 4 * product.squared
    found = joined(first, product.stored, product.encodings, limit, product.repeater)
    factor = found["x"][2] / first["x"][2]
    assert factor > 1.1 and found["y"][2] / first["y"][2] == pytest.approx(factor)
    assert found["x"][:2] == first["x"][:2]
    assert found["x"][2] + found["y"][2] == pytest.approx(product.together(2), rel=0.1)
    assert joined(first, product.stored, product.encodings, 1e-6 * product.squared, product.repeater) == first


@pytest.mark.parametrize("coarse", [2.0, 1.0])
def test_what_is_predicted_too_high_is_made_smaller_as_well(product: Product, coarse: float) -> None:
    """Where the coarse ones are not to blame, all are changed."""
    high = {name: [2 * s for s in own[:2]] + [coarse * s for s in own[2:]] for name, own in product.first.items()}
    limit = 1e-3 * product.squared if coarse == 1 else 4 * product.squared
    found = joined(high, product.stored, product.encodings, limit, product.repeater)
    place = 1 if coarse == 1 else 2
    assert found["x"][place] + found["y"][place] == pytest.approx(product.together(place), rel=0.1)


@dataclass(slots=True)
class Drawn:
    """Stands for a repeated backward pass: squares from a list, over and over."""

    squares: Sequence[float]
    calls: int = field(default=0)

    def squared_error(self, stored: object) -> float:
        """The next square."""
        self.calls += 1
        return self.squares[(self.calls - 1) % len(self.squares)]


@pytest.mark.parametrize("squares", [(1.0, 8.0, 0.9, 6.0, 0.9), (0.5, 0.5, 3.0, 0.5, 0.5), (1.0,)])
def test_rare_large_draws_change_nothing(product: Product, squares: tuple[float, ...]) -> None:
    whole = {name: [0.0, 0.5, 0.5, 0.5] for name in product.first}
    drawn = Drawn(squares)
    assert joined(whole, product.stored, product.encodings, 1.0, drawn) == whole  # type: ignore[arg-type]
    assert drawn.calls == 5
