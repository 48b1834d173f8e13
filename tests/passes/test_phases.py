"""A joint graph cut by eye against PyTorch's extraction of the same cut."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import aot_function, min_cut_rematerialization_partition, nop
from torch import fx

from fxcompress import compat
from fxcompress.passes.alias import storage_key
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.lifetimes import Group, find_lifetimes
from fxcompress.passes.liveness import Machine, find_cut_peak, find_peak
from fxcompress.passes.phases import cut_phases, phase_of

Function = Callable[..., Any]


def both(function: Function, inputs: tuple[torch.Tensor, ...], rebuild_more: bool) -> tuple[Any, ...]:
    """The joint graph, PyTorch's choice, its forward and backward, and the number of user outputs."""
    seen: list[Any] = []

    def partition_fn(joint: fx.GraphModule, joint_inputs: Any, *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        def choose(graph: fx.Graph, info: Any, torch_choice: compat.TorchChoice) -> list[fx.Node]:
            saved = torch_choice(rebuild_more=rebuild_more)
            seen.extend((graph, saved))
            return saved

        with compat.choosing_saved_values(choose):
            pair = min_cut_rematerialization_partition(joint, joint_inputs, num_fwd_outputs=num_fwd_outputs, **kwargs)
        seen.extend((copy_graph(pair[0]), copy_graph(pair[1]), num_fwd_outputs))
        return pair

    aot_function(function, nop, nop, partition_fn)(*inputs)
    return tuple(seen)


def mlp(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(F.gelu(x @ w) @ w, (32,)).tanh().sum()


def branching(x: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
    y = torch.relu(x @ w)
    a, b = torch.split(y, [16, 16], 1)
    return [(a * b.sigmoid()).sum(), y.exp()]


def attention(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    q = (x @ w).view(1, 2, 16, 32)
    return F.scaled_dot_product_attention(q, q, q * 2, is_causal=True).sin().mean()


@pytest.mark.parametrize("function", [mlp, branching, attention])
@pytest.mark.parametrize("rebuild_more", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_cut_is_what_pytorch_extracts(function: Function, rebuild_more: bool, fused: bool) -> None:
    x = torch.randn(32, 32, requires_grad=True)
    w = torch.randn(32, 32, requires_grad=True)
    joint, saved, fw, bw, count = both(function, (x, w), rebuild_more)
    forward, backward = cut_phases(joint, saved, count)
    assert {n.name for n in forward.nodes} == {n.name for n in phase_of(fw).nodes}
    assert {n.name for n in backward.nodes} == {n.name for n in phase_of(bw).nodes}
    held = {storage_key(node) for node in (*forward.inputs, *forward.returned[:count])}
    groups: dict[int, list[fx.Node]] = {}
    for node in saved:
        key = storage_key(node)
        if key is not None and key not in held:
            groups.setdefault(key, []).append(node)
    found = find_lifetimes(
        forward, backward, [Group(tuple(nodes), tuple(nodes)) for nodes in groups.values()], Machine(fused)
    )
    curve = list(found.rest_bytes)
    for lifetime in found.storages:
        for first, last, nbytes in lifetime.kept():
            for slot in range(first, last + 1):
                curve[slot] += nbytes
    peak = find_peak(fw, bw, count, Machine(fused))
    unextracted = find_cut_peak(joint, saved, count, Machine(fused))
    assert (unextracted.at, unextracted.timeline) == (peak.at, peak.timeline)
    if not fused:
        assert max(curve) == peak.peak_bytes
    else:
        assert peak.peak_bytes <= max(curve) <= 1.3 * peak.peak_bytes
