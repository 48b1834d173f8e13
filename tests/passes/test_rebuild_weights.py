"""Functions of parameters are replayed in the backward: the same bits, fewer saved bytes, once and for all."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.passes.find_saved import find_saved, placeholders
from fxcompress.passes.rebuild_weights import MAX_CHAIN, rebuild_weights
from fxcompress.testing_graphs import Pair, Ran, capture, run, same, storages

W = torch.Tensor


def normalized(w: W) -> W:
    return w / (w.square().sum(1, keepdim=True) + 1e-6).sqrt()


def binarised(w: W) -> W:
    return torch.where(w >= 0, 1.0, -1.0) * w.detach().abs().mean(1, keepdim=True) + (w - w.detach())


CHEAP: dict[str, Callable[[W], W]] = {
    "copy": lambda w: w.bfloat16().float(),
    "scaled": lambda w: w * 0.5 + 1,
    "normalized": normalized,
    "binarised": binarised,
    "masked": lambda w: w * torch.ones_like(w).flip(0) * (w.detach().abs() > 0.3),
    "transposed": lambda w: (w * 2).t().clone(),
    "cat": lambda w: torch.cat([w[:8] * 2, w[8:] - 1]),
}


def network(function: Callable[[W], W]) -> Callable[..., torch.Tensor]:
    return lambda x, w, v: torch.tanh(x @ function(w)) @ v


def captured(function: Callable[..., torch.Tensor], partition="default") -> Pair:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(16, 16, generator=generator).requires_grad_() for _ in range(3)]
    return capture(function, made, partition)


def parameters(pair: Pair) -> set[str]:
    return {node.name for node in placeholders(pair.fw)[1:]}


def rebuild(pair: Pair) -> tuple[str, ...]:
    return rebuild_weights(pair.fw, pair.bw, parameters(pair), pair.num_fwd_outputs)


def own_bytes(pair: Pair, ran: Ran) -> int:
    held = {**storages(pair.inputs), **storages(ran.outputs)}
    return sum(size for key, size in storages(ran.saved).items() if key not in held)


def check_exact(pair: Pair) -> tuple[int, int]:
    """Rebuild; nothing may change but what is saved. Returns the bytes saved before and after."""
    before = run(pair)
    rebuild(pair)
    after = run(pair, compiled=True)
    assert same(after.outputs, before.outputs) and same(after.gradients, before.gradients)
    return own_bytes(pair, before), own_bytes(pair, after)


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("partition", ["default", "bases"])
def test_no_bit_changes_and_less_is_saved(name: str, partition) -> None:
    before, after = check_exact(captured(network(CHEAP[name]), partition))
    activation = 16 * 16 * 4
    assert after == activation <= before
    assert partition != "default" or after < before


@settings(deadline=None, max_examples=8, derandomize=True)
@given(st.lists(st.sampled_from(sorted(CHEAP)), min_size=1, max_size=3), st.sampled_from(["default", "min_cut"]))
def test_chains_of_functions(names: list[str], partition) -> None:
    def chain(w: W) -> W:
        for name in names:
            w = CHEAP[name](w)
        return w

    before, after = check_exact(captured(network(chain), partition))
    assert after <= before


@pytest.mark.parametrize("name", CHEAP)
def test_a_second_time_there_is_nothing_to_do(name: str) -> None:
    pair = captured(network(CHEAP[name]))
    assert rebuild(pair)
    text = str(pair.fw.graph) + str(pair.bw.graph)
    assert set(rebuild(pair)) <= {node.name for node in placeholders(pair.fw)}
    assert str(pair.fw.graph) + str(pair.bw.graph) == text


def test_each_replay_stands_right_before_its_first_reader() -> None:
    pair = captured(network(normalized))
    rebuild(pair)
    nodes = [node for node in pair.bw.graph.nodes if node.op == "call_function"]
    replayed = [i for i, node in enumerate(nodes) if node.name.startswith("actcomp_")]
    last = nodes[replayed[-1]]
    assert replayed and nodes[replayed[-1] + 1] in last.users


def steps(count: int) -> Callable[[W], W]:
    def function(w: W) -> W:
        for _ in range(count):
            w = w * 1.5
        return w

    return function


SAVED: dict[str, Callable[..., torch.Tensor]] = {
    "of data": lambda x, w, v: torch.tanh(x * 2) @ w * v,
    "of data and a weight": lambda x, w, v: torch.tanh(x) * (w * x.detach()) @ v,
    "random": lambda x, w, v: torch.tanh(x @ F.dropout(w, 0.5)) @ v,
    "a product": lambda x, w, v: torch.tanh(x @ (w @ v)) @ v,
    "a long chain": network(steps(MAX_CHAIN + 1)),
}


@pytest.mark.parametrize("name", SAVED)
def test_what_is_not_cheap_or_not_of_weights_alone_stays_saved(name: str) -> None:
    pair = captured(SAVED[name])
    before = [p.bw.name for p in find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)]
    made = {p.bw.name for p in find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs) if not moved(p.fw)}
    rebuilt = set(rebuild(pair))
    assert not rebuilt & made and made <= set(before)


def moved(node) -> bool:
    """Whether a node is an input or moves one."""
    while node.op == "call_function" and any(word in str(node.target) for word in (".t.", "detach", "view", "permute")):
        node = node.all_input_nodes[0]
    return node.op == "placeholder"


def test_a_chain_of_the_allowed_length_is_rebuilt() -> None:
    assert len(rebuild(captured(network(steps(MAX_CHAIN - 1))))) >= 1


def test_placeholders_that_do_not_live_through_the_step_are_no_parameters() -> None:
    pair = captured(network(CHEAP["scaled"]))
    text = str(pair.bw.graph)
    assert rebuild_weights(pair.fw, pair.bw, set(), pair.num_fwd_outputs) == () and str(pair.bw.graph) == text
