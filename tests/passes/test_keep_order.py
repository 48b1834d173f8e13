"""Bounds on the order of kernels: against a replay of their memory, and on Inductor's own scheduler."""

from dataclasses import replace

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._inductor import config
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V

import fxcompress
from fxcompress import compat
from fxcompress.compat.scheduler_bounds import KeepOrder
from fxcompress.passes.find_saved import placeholders
from fxcompress.passes.keep_order import MANY, Kernel, find_bounds
from fxcompress.testing_graphs import Pair, capture


def components(kernels: list[Kernel], positions: set[int]) -> tuple[list[set[int]], set[str]]:
    """Those kernels, with those together that share what nothing else reads, by networkx; and what they share."""
    stretch = [sum(kernel.called for kernel in kernels[: i + 1]) for i in range(len(kernels))]
    graph = nx.Graph()
    graph.add_nodes_from(positions)
    inner = set()
    for i in positions:
        for name in kernels[i].makes:
            near = [j for j, other in enumerate(kernels) if name in other.reads]
            if (
                near
                and positions >= set(near)
                and not kernels[i].called
                and all(stretch[j] == stretch[i] for j in near)
            ):
                inner.add(name)
                graph.add_edges_from((i, j) for j in near)
    return sorted(nx.connected_components(graph), key=max), inner


def merged(kernels: list[Kernel], members: set[int], inner: set[str]) -> Kernel:
    """Members as one kernel."""
    reads = {name: size for i in members for name, size in kernels[i].reads.items() if name not in inner}
    makes = {name: size for i in members for name, size in kernels[i].makes.items() if name not in inner}
    return Kernel(reads, makes, any(kernels[i].called for i in members))


def soonest_call(kernels: list[Kernel], members: set[int]) -> tuple[int, set[int]]:
    """The first call that is computed from members, and those of them that it needs, by networkx."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(kernels)))
    maker = {name: i for i, kernel in enumerate(kernels) for name in kernel.makes}
    graph.add_edges_from((maker[name], j) for j, kernel in enumerate(kernels) for name in kernel.reads if name in maker)
    for i, kernel in enumerate(kernels):
        needed = nx.ancestors(graph, i) & members
        if kernel.called and needed:
            return i, needed
    return len(kernels), set()


def live_bytes(kernels: list[Kernel], times: list[int], now: int) -> int:
    """Bytes in memory after the kernels that run up to `now`: given buffers that are still to be read, and results."""
    ends: dict[str, int] = {}
    for kernel, time in zip(kernels, times, strict=True):
        for name in kernel.reads:
            ends[name] = max(ends.get(name, 0), time)
    sizes = {name: size for kernel in kernels for name, size in kernel.reads.items()}
    made = sum(sum(kernel.makes.values()) for kernel, time in zip(kernels, times, strict=True) if time <= now)
    return made + sum(size for name, size in sizes.items() if ends[name] > now)


def fuller_from(kernels: list[Kernel], times: list[int], one: int) -> int | None:
    """The first moment at which memory is fuller if this kernel has not run yet."""
    end = max(times) + 1
    away = [*times[:one], end, *times[one + 1 :]]
    moments = range(times[one], end)
    return next((now for now in moments if live_bytes(kernels, away, now) > live_bytes(kernels, times, now)), None)


def bound_by_replay(kernels: list[Kernel], times: list[int], one: int) -> int | None:
    """The time of the first call behind that moment, or of the call that runs then, if memory would also be fuller for
    a kernel that makes many times as much."""
    now = fuller_from(kernels, times, one)
    if now is None:
        return None
    calls = {time for time, kernel in zip(times, kernels, strict=True) if kernel.called}
    grown = replace(kernels[one], makes={name: MANY * size for name, size in kernels[one].makes.items()})
    if (
        now in calls
        and now > times[one]
        and fuller_from([*kernels[:one], grown, *kernels[one + 1 :]], times, one) == now
    ):
        return now
    return min((time for time in calls if time > now), default=None)


SIZES = dict(zip("abcdef", (1, 2, 3, 5, 8, 13), strict=True))


@st.composite
def steps(draw: st.DrawFn) -> list[Kernel]:
    """Kernels that read given buffers and what earlier ones made."""
    kernels: list[Kernel] = []
    made: dict[str, int] = dict(SIZES)
    for i in range(draw(st.integers(0, 9))):
        names = draw(st.sets(st.sampled_from(sorted(made)), max_size=3))
        makes = {f"k{i}": draw(st.integers(1, 12))} if draw(st.booleans()) else {}
        kernels.append(Kernel({name: made[name] for name in sorted(names)}, makes, draw(st.booleans())))
        made |= makes
    return kernels


def expected_bounds(kernels: list[Kernel]) -> dict[int, int]:
    """By replays with kernels in one; then by replays in which a call's needs are one kernel and the others apart."""
    groups, inner = components(kernels, set(range(len(kernels))))
    ones, times = [merged(kernels, members, inner) for members in groups], [max(members) for members in groups]
    found: dict[int, int] = {}
    for i, members in enumerate(groups):
        call = bound_by_replay(ones, times, i)
        found |= dict.fromkeys(members if call is not None else (), call or 0)
        soonest, needed = soonest_call(kernels, members)
        parts, own = components(kernels, members - needed) if needed else ([], set())
        pieces = [*(merged(kernels, part, own) for part in parts), *([merged(kernels, needed, set())] if parts else [])]
        rest = [one for j, one in enumerate(ones) if j != i]
        moments = [max(part) for part in (*parts, needed) if part] + [time for j, time in enumerate(times) if j != i]
        for j, part in enumerate(parts):
            call = bound_by_replay([*pieces, *rest], moments, j)
            if call is not None:
                later = max(call, soonest)
                found |= {member: min(found.get(member, later), later) for member in part}
    return found


@given(steps())
def test_bounds_are_where_a_replay_of_memory_has_them(kernels: list[Kernel]) -> None:
    assert find_bounds(kernels) == sorted(expected_bounds(kernels).items())


def test_what_a_call_does_not_need_is_not_put_off_behind_it() -> None:
    """The gradient of a scale, a sum over what the next layer's gradient is computed from."""
    makes = Kernel({"y": 64}, {"g": 64}, False)
    total, scaled = Kernel({"g": 64}, {"sum": 2}, False), Kernel({"g": 64}, {"h": 64}, False)
    call = Kernel({"h": 64}, {"z": 64}, True)
    assert find_bounds([makes, total, scaled, call]) == [(1, 3)]


def test_what_is_larger_than_its_operands_may_wait() -> None:
    call = Kernel({}, {"c": 4}, True)
    assert find_bounds([Kernel({"a": 8}, {"b": 8}, False), call]) == []
    assert find_bounds([Kernel({"a": 8}, {"b": 7}, False), call]) == [(0, 1)]
    assert find_bounds([]) == []


def test_an_encode_waits_for_the_other_reader_of_what_it_encodes() -> None:
    """Its own range, read by the codes alone, is never stored: nothing is freed by being early."""
    ranged = Kernel({"x": 64}, {"range": 2}, False)
    codes = Kernel({"x": 64, "range": 2}, {"codes": 16}, False)
    call, other = Kernel({}, {"y": 64}, True), Kernel({"x": 64, "y": 64}, {"z": 64}, False)
    assert find_bounds([ranged, codes, call, other, call]) == [(0, 4), (1, 4), (3, 4)]


STEPS, ROWS, WIDTH = 6, 256, 16


def recurrent() -> Pair:
    """One bias in all steps: its gradient is the sum of as many small sums."""

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        for _ in range(STEPS):
            x = torch.sin(x @ weight + bias)
        return x

    torch.manual_seed(0)
    sizes = ((ROWS, WIDTH), (WIDTH, WIDTH), (WIDTH,))
    return capture(function, [torch.randn(size, requires_grad=True) for size in sizes])


def most_sums_in_a_kernel(pair: Pair, *, keeping: bool) -> int:
    """Of the backward, as Inductor has fused it."""
    values = [node.meta["val"] for node in placeholders(pair.bw)]
    setting = {"_pre_fusion_custom_pass": KeepOrder()} if keeping else {}
    gm = pair.copy().bw
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.t.default):
        node.target, node.args = torch.ops.aten.permute.default, (node.args[0], [1, 0])
    with compat.fake_mode_of(values) as mode, torch.no_grad(), config.patch(**setting):
        lowering = GraphLowering(gm, example_inputs=values, is_inference=False)
        with V.set_graph_handler(lowering), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
            lowering.run(*values)
            lowering.init_wrapper_code()
            lowering._update_scheduler()
            return max(sum(part.is_reduction() for part in node.get_nodes()) for node in lowering.scheduler.nodes)


def test_inductor_does_not_collect_the_gradients_of_all_steps() -> None:
    pair = recurrent()
    assert most_sums_in_a_kernel(pair, keeping=False) >= STEPS - 1, "Inductor no longer collects: the reason is gone"
    assert most_sums_in_a_kernel(pair, keeping=True) <= 2


def step(options: dict[str, object]) -> list[Tensor]:
    torch._dynamo.reset()
    pair_inputs = recurrent().inputs
    inputs = [value.detach().clone().requires_grad_() for value in pair_inputs]

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.sin(x @ weight + bias)
        return x.sum()

    loss = torch.compile(function, backend="actcomp", options=options)(*inputs)
    return [loss, *torch.autograd.grad(loss, inputs)]


@pytest.mark.slow
def test_no_bit_changes_and_the_callers_own_pass_is_left_alone() -> None:
    expected = step({"lossy": False, "disable_passes": ["keep_order"]})
    assert all(map(torch.equal, step({"lossy": False}), expected))
    seen: list[int] = []

    def theirs(nodes):
        seen.append(len(nodes))
        return nodes

    with config.patch(_pre_fusion_custom_pass=theirs, force_disable_caches=True):
        assert all(map(torch.equal, step({"lossy": False}), expected))
    assert seen


def test_installing_sets_the_pass_and_uninstalling_takes_it_away() -> None:
    for disabled, expected in (((), KeepOrder), (("keep_order",), type(None))):
        with fxcompress.enabled(disable_passes=list(disabled)):
            assert isinstance(config._pre_fusion_custom_pass, expected)
        assert config._pre_fusion_custom_pass is None


def test_equal_settings_have_equal_cache_keys() -> None:
    first, second = KeepOrder(), KeepOrder()
    assert first.uuid() == second.uuid() and first.uuid()
