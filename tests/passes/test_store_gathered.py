"""What rows are gathered from is stored where reading it anew would unpack a mask again, and nothing else is."""

from typing import Any

import torch
from torch import Tensor

from fxcompress import pipeline
from fxcompress.compat.tracing import is_stored
from fxcompress.options import Options
from fxcompress.testing_graphs import Pair, capture

NODES, WIDTH = 64, 32


def messages(x: Tensor, weight: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """A graph convolution with a ReLU in front: its backward gathers the gradient once per edge."""
    hidden = torch.relu(torch.zeros_like(x).index_add(0, target, (x @ weight)[source]))
    return torch.zeros_like(x).index_add(0, target, (hidden @ weight)[source]).square().sum()


def captured(edges: int) -> Pair:
    torch.manual_seed(0)
    places = torch.randint(NODES, (2, edges))
    return capture(messages, [torch.randn(NODES, WIDTH), torch.randn(WIDTH, WIDTH, requires_grad=True), *places])


def stored(edges: int, **options: Any) -> list[str]:
    pair = captured(edges)
    result = pipeline.run(pair.fw, pair.bw, Options(min_bytes=0, **options), num_fwd_outputs=1)
    return [node.name for node in result.bw.graph.nodes if is_stored(node)]


def test_gradients_from_decoded_values_are_stored_where_each_row_is_read_several_times() -> None:
    """The square's, of its argument in four bits, and the one behind the mask."""
    assert [name.split("_")[0] for name in stored(4 * NODES)] == ["mul", "where"]


def test_it_is_not_where_rows_are_read_once() -> None:
    assert stored(NODES) == []


def test_what_is_read_as_it_was_kept_is_not() -> None:
    assert stored(4 * NODES, lossy=False) == []


def test_it_can_be_left_out() -> None:
    assert stored(4 * NODES, disable_passes=("store_gathered",)) == []
