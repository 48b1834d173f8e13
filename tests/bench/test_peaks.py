"""Live bytes replayed from generated code: against counts by hand, and against what the ordering pass counted."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")

from bench.compat import Pair
from bench.compat.fake_cuda import fake_cuda, lower
from bench.peaks import BLOCK, predict, replay_step, trace_large
from bench.step_graphs import partition, plain, saved_nbytes, trace
from bench.traffic import SETTINGS
from bench.widths import options_of
from fxcompress.compat import scheduling
from fxcompress.partition import ActcompPartitioner
from fxcompress.passes.alias import storage_nbytes
from fxcompress.passes.find_saved import placeholders
from fxcompress.passes.order_launches import Fused, peak_bytes
from fxcompress.replay import replay

ROWS, WIDTH, FP32 = 512, 1024, 4


class TwoProducts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.second = nn.Linear(2 * WIDTH, WIDTH, bias=False).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).sin())


def test_a_forward_counted_by_hand() -> None:
    """The first product is saved; its sine is gone when the second product is through."""
    with FakeTensorMode():
        joint = trace(TwoProducts(), (torch.randn(ROWS, WIDTH, requires_grad=True),))
    fw, _ = partition(joint, plain)
    with fake_cuda():
        lowered = lower(fw, is_backward=False, user_outputs=[0])
        moments = replay(lowered.source, {}, lowered.result_nbytes, block=BLOCK)
    wide, result = 2 * ROWS * WIDTH * FP32, ROWS * WIDTH * FP32
    assert max(moment.nbytes for moment in moments) == 2 * wide + result
    assert moments[-1].nbytes == wide + result


Counted = list[tuple[dict[str, int], int]]


@pytest.fixture(scope="module")
def toy() -> tuple[Pair, Pair, int]:
    """A ViT's graphs at default options, twice."""
    joint = trace_large("vit_base", 4, toy=True)
    ours = ActcompPartitioner(options_of("default"))
    return partition(joint, ours), partition(joint, ours), joint.num_fwd_outputs


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """What is given to the ordering pass, and the peak of the order that it returns."""
    found: Counted = []
    original = scheduling.order_launches

    def recording(launches: list[Fused], given: dict[str, int], kept: frozenset[str]) -> list[int]:
        order = original(launches, given, kept)
        found.append((given, peak_bytes(order, launches, given, kept)))
        return order

    monkeypatch.setattr(scheduling, "order_launches", recording)
    return found


def test_what_is_ordered_by_is_what_the_code_allocates(toy: tuple[Pair, Pair, int], counted: Counted) -> None:
    pair, again, count = toy
    held = {node.name for node in placeholders(pair[0])}
    saved = {n.name: storage_nbytes(n.meta["val"]) for n in placeholders(pair[1]) if isinstance(n.meta["val"], Tensor)}
    predicted = predict(again, count)
    forward, backward = replay_step(pair, count, SETTINGS, block=1)
    peaks = [max(moment.nbytes for moment in moments) for moments in (forward, backward)]
    assert [peak for _, peak in counted] == pytest.approx(peaks, rel=0.02)
    given, _ = counted[1]
    assert given == {name: saved[name] for name in given} and len(given) > 10
    assert given.keys().isdisjoint(held)
    assert predicted == pytest.approx(max(peaks), rel=0.05)


@pytest.mark.parametrize("model", ["vit_base", "gpt2_medium"])
def test_what_the_forward_hands_over_is_found_once(model: str) -> None:
    """Plain Inductor saves queries, keys and values as slices of one product."""
    # Three: no saved tensor is as large as a weight, whose gradient would be written over it, and count nothing.
    joint = trace_large(model, 3, toy=True)
    pair, count = partition(joint, plain), joint.num_fwd_outputs
    forward, backward = replay_step(pair, count, {}, block=1)
    loss = 4
    assert forward[-1].nbytes == backward[0].nbytes == saved_nbytes(pair[0], count) + loss
    assert max(moment.nbytes for moment in backward) == pytest.approx(predict(pair, count), rel=0.05)
