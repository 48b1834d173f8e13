"""Random states of checkpointed regions get one name on both sides; nothing else is renamed."""

import pytest
import torch
from torch import fx

from fxcompress.passes.align_names import align_names
from fxcompress.passes.find_saved import find_saved, outputs
from fxcompress.testing_graphs import Pair, capture, run, same

STATE = torch.zeros(16, dtype=torch.uint8)
Graphs = tuple[fx.GraphModule, fx.GraphModule]


def pair_of(saved: list[str], incoming: list[str], state: torch.Tensor = STATE) -> Graphs:
    """A forward that returns one user output and `saved`, and a backward that takes `incoming`."""
    forward, backward = fx.Graph(), fx.Graph()
    x = forward.placeholder("primals_1")
    made = [forward.create_node("call_function", torch.ops.aten.sin.default, (x,), name=name) for name in ["y", *saved]]
    forward.output(tuple(made))
    taken = [backward.placeholder(name) for name in [*incoming, "tangents_1"]]
    backward.output((taken[-1],))
    for node in [*made, *taken]:
        node.meta["val"] = STATE if node.name.startswith("getitem") else torch.zeros(4)
    for node in taken:
        node.meta["val"] = state if node.name.startswith("rng_state") else torch.zeros(4)
    return fx.GraphModule({}, forward), fx.GraphModule({}, backward)


def test_states_are_renamed_in_order_and_only_once() -> None:
    fw, bw = pair_of(["a", "getitem_2", "getitem_7"], ["a", "rng_state_output_0", "rng_state_output_1"])
    assert align_names(fw, bw, 1) == ("rng_state_output_0", "rng_state_output_1")
    assert [pair.bw.name for pair in find_saved(fw, bw, num_fwd_outputs=1)] == [
        "a",
        "rng_state_output_0",
        "rng_state_output_1",
    ]
    assert align_names(fw, bw, 1) == ()


DIFFERENT = {
    "number": pair_of(["a", "getitem_2"], ["a", "rng_state_output_0", "rng_state_output_1"]),
    "dtype": pair_of(["a", "getitem_2"], ["a", "rng_state_output_0"], torch.zeros(16)),
    "shape": pair_of(["a", "getitem_2"], ["a", "rng_state_output_0"], torch.zeros(8, dtype=torch.uint8)),
    "no state": pair_of(["a", "getitem_2"], ["a", "b"]),
    "equal already": pair_of(["a", "b"], ["a", "b"]),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_does_not_agree_keeps_its_names(name: str) -> None:
    fw, bw = DIFFERENT[name]
    before = [str(out) for out in outputs(fw)]
    assert align_names(fw, bw, 1) == ()
    assert [str(out) for out in outputs(fw)] == before


def renamed(pair: Pair) -> Pair:
    """`pair` as the partitioner would return it for random states: the backward calls the first saved value another."""
    first = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)[0]
    first.bw._rename("rng_state_output_0")
    first.bw.target = first.bw.name
    return pair


def test_values_and_order_stay() -> None:
    x = torch.randn(6, 6, requires_grad=True)
    pair = renamed(capture(lambda x: x.tanh().sin().exp().t(), (x,), "default"))
    before = run(pair)
    assert align_names(pair.fw, pair.bw, pair.num_fwd_outputs) == ("rng_state_output_0",)
    after = run(pair, compiled=True)
    assert same(after.gradients, before.gradients) and same(after.outputs, before.outputs)
