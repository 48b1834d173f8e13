"""What PyTorch's tracing uses and does not export: run in 2.13, read in 2.11."""

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator as HigherOrderOperator
from torch._ops import OpOverload as OpOverload
from torch._subclasses.fake_tensor import DataDependentOutputException as DataDependentOutputException
from torch._subclasses.fake_tensor import DynamicOutputShapeException as DynamicOutputShapeException
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx._lazy_graph_module import _make_graph_module


def fake_mode() -> FakeTensorMode:
    """A fake tensor mode in which models may copy their layers, as `nn.TransformerEncoder` does, and read real tensors.

    A deep copy of a fake tensor copies its mode too, `FakeTensor.fake_mode`, and two modes do not mix: PyTorch aborts
    the process. Run in 2.13, read in 2.11.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.__deepcopy__ = lambda memo: mode  # type: ignore[attr-defined]
    return mode


@contextlib.contextmanager
def convertible_fake_modules() -> Iterator[None]:
    """Let modules of fake parameters change their dtype, as `model.bfloat16()` does.

    `torch.utils.swap_tensors`, by which they do, refuses tensors with weak references, and each fake parameter has one.
    Patches the module `weakref` that it looks them up in: run in 2.13.
    """
    original = torch.utils.weakref  # type: ignore[attr-defined]
    torch.utils.weakref = types.SimpleNamespace(getweakrefs=lambda tensor: [])  # type: ignore[assignment, attr-defined]
    try:
        yield
    finally:
        torch.utils.weakref = original  # type: ignore[attr-defined]


@contextlib.contextmanager
def static_sizes() -> Iterator[None]:
    """Let Dynamo trace the sizes that it sees as they are; `torch._dynamo.config.automatic_dynamic_shapes`: run in 2.11
    and 2.13."""
    from torch._dynamo import config

    with config.patch(automatic_dynamic_shapes=False):
        yield


def make_graph_module(root: torch.nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A graph module whose Python code is written only once it runs, if the compiler at work wants it so."""
    return _make_graph_module(root, graph)


def remade(gm: fx.GraphModule) -> fx.GraphModule:
    """`make_graph_module` of a module's own graph."""
    made = make_graph_module(gm, gm.graph)
    made.meta.update(gm.meta)
    return made


def decomposition_of(target: Any) -> Callable[..., Any] | None:
    """An operator's definition in smaller operators, or None; `torch._decomp.get_decompositions`: run in 2.13, read in
    2.11."""
    from torch._decomp import get_decompositions

    return get_decompositions([target]).get(target)


_STORED = "inductor_realize_to_strides"


def store_in_memory(node: fx.Node) -> None:
    """Let Inductor write this result to memory in the strides that the graph states.

    `node.meta["inductor_realize_to_strides"]`, read by `GraphLowering.run_node`.
    """
    node.meta[_STORED] = True


def is_stored(node: fx.Node) -> bool:
    """Whether `store_in_memory` was called for it."""
    return bool(node.meta.get(_STORED))


def stated_number(value: object) -> complex | None:
    """The number in a real tensor of one element on the CPU, as programs state them, even under a fake tensor mode;
    None for anything else."""
    if type(value) is not torch.Tensor or value.layout is not torch.strided or value.is_nested:
        return None
    if value.device.type != "cpu" or value.numel() != 1:
        return None
    with unset_fake_temporarily():
        return value.item()


def in_storage(val: torch.Tensor, storage: torch.UntypedStorage, device: torch.device | None = None) -> torch.Tensor:
    """A fake tensor like `val`, in another meta storage or on another device; no operator runs, which
    would cost ten times as much. `FakeTensor(mode, meta tensor, device)`: run in 2.11 and 2.13."""
    assert isinstance(val, FakeTensor)
    with unset_fake_temporarily():
        meta = torch.empty(0, dtype=val.dtype, device="meta")
        meta.set_(storage, val.storage_offset(), val.shape, val.stride())
        return FakeTensor(val.fake_mode, meta, device or val.device)


def move_storages(graph: fx.Graph, moves: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Let all fake values in the storage of each first tensor lie in that of the second, but for tuples of values."""
    places = {storage_id(old): new.untyped_storage() for old, new in moves if storage_id(old) != storage_id(new)}

    def moved(val: Any) -> Any:
        if not isinstance(val, FakeTensor) or val.layout is not torch.strided or storage_id(val) not in places:
            return val
        storage = places[storage_id(val)]
        while storage._cdata in places:
            storage = places[storage._cdata]
        return in_storage(val, storage)

    for node in graph.nodes:
        if (val := node.meta.get("val")) is not None:
            node.meta["val"] = {k: moved(v) for k, v in val.items()} if isinstance(val, dict) else moved(val)


def storage_id(val: torch.Tensor) -> int:
    """Equal for tensors of one storage; `UntypedStorage._cdata`: run in 2.11 and 2.13."""
    return int(val.untyped_storage()._cdata)
