"""What is saved and whose it is, on hand-made pairs: names, order, positions, and refusal of pairs that disagree."""

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from fxcompress.errors import UnsupportedGraphError
from fxcompress.passes.alias import distinct_nbytes, find_storages
from fxcompress.passes.find_saved import count_user_outputs, find_saved, placeholders
from fxcompress.testing_graphs import Partition, capture

aten = torch.ops.aten


def gradient(rows: int, cols: int) -> torch.Tensor:
    return torch.randn(rows, cols, requires_grad=True)


def backward_of(names: list[str]) -> fx.GraphModule:
    """A backward graph with these placeholders, each a tensor."""
    graph, mode = fx.Graph(), FakeTensorMode()
    nodes = [graph.placeholder(name) for name in names]
    for node in nodes:
        node.meta["val"] = mode.from_tensor(torch.zeros(3))
    graph.output((nodes[-1],))
    return fx.GraphModule(torch.nn.Module(), graph)


def forward_of(names: list[str]) -> fx.GraphModule:
    """A forward graph that returns one product per name."""
    graph, mode = fx.Graph(), FakeTensorMode()
    x = graph.placeholder("primals_1")
    x.meta["val"] = mode.from_tensor(torch.zeros(3))
    made: dict[str, fx.Node] = {"primals_1": x}
    for name in names:
        if name not in made:
            made[name] = graph.create_node("call_function", aten.mul.Tensor, (x, 2), {}, name=name)
            made[name].meta["val"] = mode.from_tensor(torch.zeros(3))
    graph.output(tuple(made[name] for name in names))
    return fx.GraphModule(torch.nn.Module(), graph)


def test_positions_and_names() -> None:
    fw, bw = forward_of(["out", "a", "primals_1", "b"]), backward_of(["a", "primals_1", "b", "tangents_1"])
    pairs = find_saved(fw, bw)
    assert [(pair.position, pair.fw.name, pair.bw.name) for pair in pairs] == [
        (1, "a", "a"),
        (2, "primals_1", "primals_1"),
        (3, "b", "b"),
    ]
    assert all(pair.val is pair.bw.meta["val"] for pair in pairs)


@pytest.mark.parametrize("user", [["out"], ["out", "out2"], ["a"], ["a", "out", "b"], ["primals_1"]], ids=str)
def test_user_outputs_are_counted(user: list[str]) -> None:
    """A tensor may be the user's and saved: it then stands twice, and positions decide."""
    fw, bw = forward_of([*user, "a", "b"]), backward_of(["a", "b", "tangents_1"])
    assert count_user_outputs(fw, bw) == len(user)
    assert [pair.position for pair in find_saved(fw, bw)] == [len(user), len(user) + 1]


def test_nothing_saved() -> None:
    assert find_saved(forward_of(["out"]), backward_of(["tangents_1"])) == []


def test_a_saved_name_that_the_backward_lacks_is_refused() -> None:
    with pytest.raises(UnsupportedGraphError, match="'a', which is no placeholder"):
        find_saved(forward_of(["out", "a", "b"]), backward_of(["b", "tangents_1"]), num_fwd_outputs=1)


def test_another_order_is_refused() -> None:
    with pytest.raises(UnsupportedGraphError, match="another order"):
        find_saved(forward_of(["out", "a", "b"]), backward_of(["b", "a", "tangents_1"]))


@pytest.mark.parametrize("partition", ["default", "min_cut", "bases"])
def test_saved_sizes_are_no_saved_tensors(partition: Partition) -> None:
    inputs = (gradient(5, 7), gradient(7, 7), torch.randn(7, requires_grad=True))
    pair = capture(lambda x, w, b: torch.relu(x @ w + b), inputs, partition, dynamic=True)
    pairs = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
    sizes = [node for node in placeholders(pair.bw) if isinstance(node.meta["val"], torch.SymInt)]
    tensors = [node for node in placeholders(pair.bw) if isinstance(node.meta["val"], torch.Tensor)]
    assert sizes and count_user_outputs(pair.fw, pair.bw) == pair.num_fwd_outputs
    assert [p.bw for p in pairs] == [node for node in tensors if not node.name.startswith("tangents")]


def storages_of(
    function: object, *inputs: torch.Tensor, partition: Partition = "default"
) -> list[tuple[str, str, int, int]]:
    assert callable(function)
    pair = capture(function, inputs, partition)
    pairs = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
    found = find_storages(pair.fw, pairs, pair.num_fwd_outputs)
    assert sum(s.nbytes for s in found if s.held_by != "input") == distinct_nbytes([p.fw for p in pairs])
    return [(storage.root.name, storage.held_by, len(storage.members), storage.nbytes) for storage in found]


def test_slices_of_one_buffer_are_one_storage() -> None:
    """q, k and v sliced from one product: three saved views, its bytes counted once."""

    def attend(x: torch.Tensor) -> torch.Tensor:
        q, k, v = torch.split(x * 2, 8, 1)
        return q.exp() * k.exp() * v.exp() * (q * k + k * v)

    held = [storage for storage in storages_of(attend, gradient(6, 24)) if storage[0] == "mul"]
    assert held == [("mul", "", 3, 6 * 24 * 4)]


def test_a_view_of_an_input_is_the_callers() -> None:
    found = storages_of(lambda x, w: x.sin() @ w.t(), gradient(4, 5), gradient(6, 5))
    assert ("primals_2", "input", 1, 120) in found and ("primals_1", "input", 1, 80) in found


def test_a_view_of_an_output_is_the_callers() -> None:
    found = storages_of(lambda x: x.tanh().t(), gradient(4, 5))
    assert found == [("tanh", "output", 1, 80)]


def test_an_expanded_tensor_counts_once() -> None:
    def scaled(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.exp().expand(100, 5) * y

    assert ("exp", "", 2, 20) in storages_of(scaled, gradient(1, 5), gradient(100, 5))
