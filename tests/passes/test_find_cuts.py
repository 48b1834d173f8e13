"""Cuts of small joint graphs against trying every set of saved values."""

import itertools
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import aot_function, min_cut_rematerialization_partition, nop
from torch import fx

from fxcompress import compat
from fxcompress.passes.find_cuts import Way, build_network
from fxcompress.passes.ops import is_view
from fxcompress.passes.phases import cut_phases


def joint_of(function: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> tuple[fx.Graph, Any, int]:
    seen: list[Any] = []

    def partition_fn(joint: fx.GraphModule, joint_inputs: Any, *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        def choose(graph: fx.Graph, info: Any, torch_choice: compat.TorchChoice) -> list[fx.Node]:
            seen.extend((graph, info, num_fwd_outputs))
            return torch_choice(rebuild_more=False)

        with compat.choosing_saved_values(choose):
            return min_cut_rematerialization_partition(joint, joint_inputs, num_fwd_outputs=num_fwd_outputs, **kwargs)

    aot_function(function, nop, nop, partition_fn)(*inputs)
    return seen[0], seen[1], seen[2]


def chain(x: torch.Tensor) -> torch.Tensor:
    return x.sin().exp().tanh().sum()


def fork(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = torch.sigmoid(x @ w)
    return (y * y.exp()).cos().sum()


def gelu(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (F.gelu(x @ w) @ w).sum()


def ways_of(joint: fx.Graph, info: Any) -> dict[fx.Node, tuple[Way, ...]]:
    """Every value of the forward may be saved; each has its own cost."""
    ways = {}
    for i, node in enumerate(joint.nodes):
        val = node.meta.get("val")
        if node.op == "placeholder":
            ways[node] = (Way(0.0, 0),)
        elif (
            isinstance(val, torch.Tensor) and (_is_element(node) or not is_view(node)) and not _is_gradient(node, info)
        ):
            size = val.numel() * val.element_size() + i
            ways[node] = (Way(0.0, size), Way(1e-6 * (i % 5), size // 3, (0, 0)))
    return ways


def _is_element(node: fx.Node) -> bool:
    return node.target is operator.getitem


def _is_gradient(node: fx.Node, info: Any) -> bool:
    return node in info.tangents_closure


def cuts_at(joint: fx.Graph, info: Any, ways: Any, again: Any, prices: list[float]) -> list[list[fx.Node]]:
    network = build_network(joint, info, ways, again)
    return [network.cut(lambda node, way, price=price: way.seconds + price * way.nbytes) for price in prices]


def total(joint: fx.Graph, saved: Any, count: int, ways: Any, again: Any, price: float) -> float:
    forward, backward = cut_phases(joint, list(saved), count)
    kept = sum(min(way.seconds + price * way.nbytes for way in ways[node]) for node in saved)
    return kept + sum(again.get(node, 0.0) for node in backward.nodes if node in forward.members)


@pytest.mark.parametrize("function", [chain, fork, gelu])
@pytest.mark.parametrize("price", [0.0, 1e-9, 1e-7, 1e-4])
def test_no_other_set_of_saved_values_is_cheaper(function: Callable[..., Any], price: float) -> None:
    count = 1 if function is chain else 2
    inputs = tuple(torch.randn(8, 8, requires_grad=True) for _ in range(count))
    joint, info, outputs = joint_of(function, inputs)
    ways = ways_of(joint, info)
    again = {n: 1e-6 * (1 + i % 7) for i, n in enumerate(joint.nodes) if n.op == "call_function" and not is_view(n)}
    again = {node: seconds for node, seconds in again.items() if info.is_required_fw(node)}
    (saved,) = cuts_at(joint, info, ways, again, [price])
    free = [node for node in ways if node.op != "placeholder"]
    given = [node for node in ways if node.op == "placeholder"]
    candidates = [[*given, *some] for n in range(5) for some in itertools.combinations(free, n)]
    best = min(total(joint, candidate, outputs, ways, again, price) for candidate in candidates)
    assert total(joint, [*given, *(n for n in saved if n not in given)], outputs, ways, again, price) <= best + 1e-12


def test_random_operators_run_once() -> None:
    x = torch.randn(8, 8, requires_grad=True)
    joint, info, outputs = joint_of(lambda x: (F.dropout(x.sin(), 0.5) * x.cos()).sum(), (x,))
    again = {n: 1.0 for n in joint.nodes if n.op == "call_function"}
    for saved in cuts_at(joint, info, ways_of(joint, info), again, [0.0, 1e-6, 1e6]):
        forward, backward = cut_phases(joint, saved, outputs)
        twice = [node for node in backward.nodes if node in forward.members]
        assert not [n for n in twice if torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ())]


def test_dearer_bytes_save_no_more_bytes() -> None:
    joint, info, _ = joint_of(gelu, (torch.randn(8, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)))
    ways = ways_of(joint, info)
    again = {n: 1e-6 for n in joint.nodes if n.op == "call_function" and info.is_required_fw(n)}
    sizes = [
        sum(min(way.nbytes for way in ways[node]) for node in saved)
        for saved in cuts_at(joint, info, ways, again, [0.0, 1e-10, 1e-8, 1e-6, 1e-3])
    ]
    assert sizes[-1] <= sizes[0]
    assert sizes[-1] == 0
