"""The order of fused kernels: against a replay of their memory, and where the best order is known."""

import itertools
import pickle
from collections.abc import Collection, Sequence
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._inductor import config

from fxcompress.compat import scheduling
from fxcompress.compat.scheduling import AfterFusion
from fxcompress.inductor_settings import settings
from fxcompress.options import Options
from fxcompress.passes.order_launches import Fused, end_rows, order_launches, peak_bytes
from fxcompress.passes.workspace import library_nbytes

GIVEN = {"a": 3, "b": 8, "c": 21}


@st.composite
def steps(draw: st.DrawFn) -> list[Fused]:
    """Launches that read given buffers and what earlier ones made, and may yield what they read."""
    launches: list[Fused] = []
    maker: dict[str, int] = {}
    for i in range(draw(st.integers(0, 8))):
        reads = draw(st.sets(st.sampled_from([*GIVEN, *maker]), max_size=3))
        yields = draw(st.sets(st.sampled_from(sorted(reads)))) if reads else set()
        makes = {f"k{i}.{j}": draw(st.sampled_from([0, 3, 8, 21])) for j in range(draw(st.integers(0, 2)))}
        after = {maker[name] for name in reads if name in maker}
        called = draw(st.booleans())
        needed = draw(st.sampled_from([0, 0, 8])) if called else 0
        yields = set() if called else yields
        launches.append(Fused(makes, frozenset(reads), frozenset(after), frozenset(yields), called, needed))
        maker |= dict.fromkeys(makes, i)
    return launches


def replayed(
    order: Sequence[int], launches: list[Fused], kept: frozenset[str], ends: Collection[int] | None = None
) -> int:
    """The largest sum of blocks of memory; a block taken over changes its owner.

    Blocks are freed behind each launch, or, with `ends`, behind those and before and behind library calls.
    """
    owner = {name: name for name in GIVEN}
    blocks = dict(GIVEN)
    sums = [sum(blocks.values())]
    dead: set[str] = set()

    def free() -> None:
        for name in dead:
            del blocks[name]
        dead.clear()

    for at, i in enumerate(order):
        launch = launches[i]
        if launch.called:
            free()
        later = {name for j in order[at + 1 :] for name in launches[j].reads} | kept
        spare = [name for name in launch.yields if name not in later]
        for name, size in launch.makes.items():
            taken = next((n for n in spare if blocks[owner[n]] == size), None)
            if taken is not None:
                spare.remove(taken)
                owner[name] = owner.pop(taken)
            else:
                owner[name], blocks[name] = name, size
        sums.append(sum(blocks.values()) + launch.workspace_bytes)
        dead |= {owner.pop(n) for n in (*launch.reads, *launch.makes) if n in owner and n not in later}
        if ends is None or launch.called or i in ends:
            free()
    return max(sums)


@given(steps(), st.sets(st.sampled_from(["k0.0", "k1.0", "k2.1"])))
def test_the_order_can_be_run_and_is_no_worse(launches: list[Fused], kept: set[str]) -> None:
    held = frozenset(kept)
    order = order_launches(launches, GIVEN, held)
    assert sorted(order) == list(range(len(launches)))
    for at, i in enumerate(order):
        assert launches[i].after <= set(order[:at])
    found = peak_bytes(order, launches, GIVEN, held)
    assert found == replayed(order, launches, held)
    assert found <= peak_bytes(range(len(launches)), launches, GIVEN, held)


def decode(payload: str, result: str) -> Fused:
    return Fused({result: 64}, frozenset({payload}), frozenset(), frozenset())


def test_decodes_run_before_their_readers_and_not_all_at_once() -> None:
    payloads = dict.fromkeys(("p0", "p1", "p2"), 16)
    decodes = [decode(f"p{i}", f"x{i}") for i in range(3)]
    before = [{0}, {1, 3}, {2, 4}]
    products = [Fused({}, frozenset({f"x{i}"}), frozenset(before[i]), frozenset()) for i in range(3)]
    assert order_launches([*decodes, *products], payloads, frozenset()) == [0, 3, 1, 4, 2, 5]


def test_what_does_not_write_over_an_operand_runs_before_its_last_reader() -> None:
    encode = Fused({"codes": 16}, frozenset({"x"}), frozenset(), frozenset(), called=True, workspace_bytes=48)
    product = Fused({"y": 64}, frozenset({"x"}), frozenset(), frozenset())
    end = Fused({}, frozenset({"y"}), frozenset({0}), frozenset())
    assert order_launches([product, encode, end], {"x": 64}, frozenset({"codes"})) == [1, 0, 2]


def test_an_encode_runs_right_behind_its_producer() -> None:
    producer = Fused({"x": 64}, frozenset(), frozenset(), frozenset())
    others = [Fused({f"y{i}": 64}, frozenset(), frozenset(), frozenset()) for i in range(2)]
    encode = Fused({"codes": 16}, frozenset({"x"}), frozenset({0}), frozenset())
    order = order_launches([producer, *others, encode], {}, frozenset({"codes"}))
    assert order.index(3) == order.index(0) + 1


def test_what_a_kernel_yields_costs_nothing() -> None:
    launch = Fused({"y": 64}, frozenset({"x"}), frozenset(), frozenset({"x"}))
    assert peak_bytes([0], [launch], {"x": 64}, frozenset()) == 64
    kept = Fused({"y": 64}, frozenset({"x"}), frozenset(), frozenset())
    assert peak_bytes([0], [kept], {"x": 64}, frozenset()) == 128


@given(steps(), st.sets(st.sampled_from(["k0.0", "k1.0", "k2.1"])))
def test_rows_end_as_often_as_the_peak_wants_it_and_no_more(launches: list[Fused], kept: set[str]) -> None:
    held, order = frozenset(kept), range(len(launches))
    least = peak_bytes(order, launches, GIVEN, held)
    ends = end_rows(order, launches, GIVEN, held)
    assert replayed(order, launches, held, ends) == least
    generated = [i for i in order if not launches[i].called]
    fewer = (itertools.combinations(generated, len(ends) - 1)) if ends else ()
    assert all(replayed(order, launches, held, chosen) > least for chosen in fewer)


def test_in_a_row_nothing_is_freed_before_a_library_is_called() -> None:
    first = Fused({"y": 8}, frozenset({"x"}), frozenset(), frozenset())
    second = Fused({"z": 8}, frozenset({"y"}), frozenset({0}), frozenset())
    call = Fused({"w": 1}, frozenset({"z"}), frozenset({1}), frozenset(), called=True)
    launches, held = [first, second, call], frozenset({"w"})
    assert peak_bytes(range(3), launches, {"x": 8}, held) == 16
    assert end_rows(range(3), launches, {"x": 8}, held) == [0]
    parted = [first, Fused({}, frozenset(), frozenset(), frozenset(), called=True), second]
    assert end_rows(range(3), parted, {"x": 8}, held) == []


def after_fusion(options: Options, *, on_gpu: bool = True) -> tuple[bool, bool, object]:
    """What runs after fusion: whether loops are split, whether we order, and Inductor's own order where it is set."""
    found = settings(options, on_gpu=on_gpu)
    ours = found.get("_post_fusion_custom_pass")
    split, order = (ours.split, ours.order) if isinstance(ours, AfterFusion) else (False, False)
    return split, order, found.get("reorder_for_peak_memory")


def test_loops_are_split_on_a_gpu_only_and_the_callers_own_pass_is_left_alone() -> None:
    assert after_fusion(Options()) == (True, True, False)
    assert after_fusion(Options(disable_passes=("order_launches",))) == (True, False, None)
    assert after_fusion(Options(disable_passes=("split_loops",))) == (False, True, False)
    nothing = (False, False, None)
    assert after_fusion(Options(disable_passes=("order_launches", "split_loops"))) == nothing
    assert after_fusion(Options(), on_gpu=False) == (False, True, False)
    assert after_fusion(Options(disable_passes=("order_launches",)), on_gpu=False) == nothing
    with config.patch(_post_fusion_custom_pass=lambda nodes: nodes):
        assert after_fusion(Options()) == nothing


@pytest.mark.parametrize(
    "patch",
    [{"combo_kernels": True}, {"reorder_for_peak_memory": False}],
    ids=lambda patch: next(iter(patch)),
)
def test_patches_of_the_callers_that_contradict_leave_the_order_to_inductor(patch: dict[str, object]) -> None:
    assert after_fusion(Options(inductor=tuple(patch.items()))) == (True, False, None)


def test_draws_from_a_generator_keep_their_order() -> None:
    """As Inductor's nodes show it: by the operator of a call, or by its effects."""

    def node(op: object, effect: bool = False) -> SimpleNamespace:
        part = SimpleNamespace(node=SimpleNamespace(op_overload=op), has_side_effects=lambda: effect)
        return SimpleNamespace(get_nodes=lambda: [part])

    aten = torch.ops.aten
    assert scheduling._has_effect(node(aten.randint.low_out))
    assert scheduling._has_effect(node(aten._scaled_dot_product_flash_attention.default))
    assert scheduling._has_effect(node(None, effect=True))
    assert not scheduling._has_effect(node(aten.mm.out)) and not scheduling._has_effect(node(None))


def test_caches_can_take_the_pass() -> None:
    first, second = (AfterFusion(split=True, order=True, workspace=library_nbytes) for _ in range(2))
    assert first.uuid() == second.uuid() and pickle.dumps(first) == pickle.dumps(second)
    assert AfterFusion(split=False, order=True, workspace=library_nbytes).uuid() != first.uuid()
