"""Which saved tensors share a storage, against the storages of really executed values."""

import pytest
import torch
from hypothesis import given, settings
from torch import fx

from fxcompress.passes.alias import Storage, distinct_nbytes, find_storages, hint, nbytes_of, storage_key
from fxcompress.passes.find_saved import find_saved, outputs
from fxcompress.testing_graphs import Pair, capture, node_values, same, storages
from fxcompress.testing_programs import Program, programs

SEARCH = settings(deadline=None, max_examples=8, derandomize=True)


def found(pair: Pair) -> list[Storage]:
    saved = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
    return find_storages(pair.fw, saved, pair.num_fwd_outputs)


def real_key(value: torch.Tensor) -> int:
    return value.untyped_storage()._cdata


def check_against_execution(pair: Pair) -> None:
    """Groups, sizes, holders and views of `found` are those of the values that the forward computes."""
    values = node_values(pair.fw, pair.inputs)
    held = {**storages(pair.inputs), **storages([values[out] for out in outputs(pair.fw)[: pair.num_fwd_outputs]])}
    keys = []
    for storage in found(pair):
        (key,) = {real_key(values[member.fw]) for member in storage.members}
        keys.append(key)
        assert real_key(values[storage.root]) == key and bool(storage.held_by) == (key in held)
        assert (storage.held_by == "input") == (key in storages(pair.inputs))
        assert storage.nbytes == values[storage.root].untyped_storage().nbytes()
        for member, chain in zip(storage.members, storage.views, strict=True):
            assert chain is not None
            assert nbytes_of(member.val) == values[member.fw].numel() * values[member.fw].element_size()
            replayed = replay(chain, {storage.root: values[storage.root]}, member.fw)
            assert same([replayed], [values[member.fw]]) and replayed.stride() == values[member.fw].stride()
    assert len(keys) == len(set(keys)), "one storage was found twice"


def replay(chain: tuple[fx.Node, ...], env: dict[fx.Node, torch.Tensor], end: fx.Node) -> torch.Tensor:
    for node in chain:
        args = fx.map_arg(node.args, lambda arg: env[arg])
        env[node] = node.target(*args, **node.kwargs)  # type: ignore[operator]
    return env[end].detach()


@SEARCH
@given(programs())
def test_storages_are_those_of_executed_values(program: Program) -> None:
    check_against_execution(capture(program, program.inputs(), program.partition))


def slices(x: torch.Tensor) -> torch.Tensor:
    q, k, v = (x * 2).split(8, 1)
    return q.exp() * k.sin() * v.t().cos().t() * q[:, ::2].sum() * k.select(0, 1).cos()


@pytest.mark.parametrize("partition", ["default", "min_cut", "bases"])
def test_slices_splits_and_transposes_lead_back_to_their_base(partition) -> None:
    pair = capture(slices, (torch.randn(6, 24, requires_grad=True),), partition)
    check_against_execution(pair)
    assert max(len(storage.members) for storage in found(pair)) >= (3 if partition == "default" else 1)


def test_a_value_that_two_views_of_its_storage_make_has_no_chain() -> None:
    graph = fx.Graph()
    x = graph.placeholder("primals_1")
    base = graph.call_function(torch.ops.aten.sin.default, (x,))
    view = graph.call_function(torch.ops.aten.view.default, (base, [6]))
    both = graph.create_node("call_function", torch.ops.aten.add_.Tensor, (base, view), name="both")
    graph.output((both, both))
    x.meta["val"], value = torch.zeros(6), torch.ones(6)
    for node in (base, view, both):
        node.meta["val"] = value.view(6)
    backward = fx.Graph()
    saved = backward.placeholder("both")
    saved.meta["val"] = torch.ones(6)
    backward.output((saved,))
    pairs = find_saved(fx.GraphModule({}, graph), fx.GraphModule({}, backward), num_fwd_outputs=1)
    (storage,) = find_storages(fx.GraphModule({}, graph), pairs, 1)
    assert storage.views == (None,) and storage.members[0].fw is not storage.root


def test_finding_twice_finds_the_same_and_edits_nothing() -> None:
    pair = capture(slices, (torch.randn(6, 24, requires_grad=True),), "default")
    before = str(pair.fw.graph)
    assert found(pair) == found(pair) and str(pair.fw.graph) == before


SIZES = [
    (torch.zeros(3, 5), 60),
    (torch.zeros(5).expand(100, 5), 20),
    (torch.zeros(1, 5, dtype=torch.int8).expand(7, 5), 5),
    (torch.zeros(3, 5)[:, :2], 24),
    (torch.zeros(0, 5), 0),
    (torch.zeros(()), 4),
]


@pytest.mark.parametrize("value, nbytes", SIZES, ids=str)
def test_bytes_of_what_a_tensor_addresses(value: torch.Tensor, nbytes: int) -> None:
    assert nbytes_of(value) == nbytes


def test_what_has_no_storage_has_no_key() -> None:
    graph = fx.Graph()
    values = [(torch.zeros(2), torch.zeros(2)), 3, None, torch.zeros(2, 2).to_sparse()]
    for value in values:
        node = graph.placeholder("x")
        node.meta["val"] = value
        assert storage_key(node) is None


def test_symbolic_sizes_count_by_their_hint() -> None:
    pair = capture(torch.tanh, (torch.randn(5, 7, requires_grad=True),), dynamic=True)
    (node,) = [node for node in pair.fw.graph.nodes if "tanh" in str(node.target)]
    assert hint(node.meta["val"].shape[0]) == 5 and hint(3) == 3
    assert nbytes_of(node.meta["val"]) == 5 * 7 * 4


@SEARCH
@given(programs(max_steps=5))
def test_distinct_bytes_are_those_of_distinct_real_storages(program: Program) -> None:
    pair = capture(program, program.inputs(), program.partition)
    nodes = [node for node in pair.fw.graph.nodes if node.op == "call_function"]
    values = node_values(pair.fw, pair.inputs)
    real = storages([values[node] for node in nodes if isinstance(values[node], torch.Tensor)])
    nodes = [node for node in nodes if isinstance(values[node], torch.Tensor)]
    expected = sum(size for key, size in real.items() if key not in storages(pair.inputs))
    assert distinct_nbytes(nodes) == expected and (not nodes or distinct_nbytes(nodes * 2) == expected)
