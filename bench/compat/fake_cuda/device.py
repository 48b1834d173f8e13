"""An H200 that is not there: what Dynamo, Inductor and Triton ask of a device while they generate code.

Run in torch 2.11 with triton 3.6 and in torch 2.13 with triton 3.9.
"""

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._prims_common import suggest_memory_format
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor

from fxcompress import costs
from fxcompress.codecs import lowering, planes
from fxcompress.passes import devices

_rates_of = costs.rates_of

DEVICE = torch.device("cuda", 0)
CAPABILITY = (9, 0)
PROPERTIES = SimpleNamespace(
    name="NVIDIA H200",
    major=CAPABILITY[0],
    minor=CAPABILITY[1],
    multi_processor_count=132,
    total_memory=141 * 2**30,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=48 * 1024,
    shared_memory_per_block_optin=227 * 1024,
    shared_memory_per_multiprocessor=228 * 1024,
    L2_cache_size=50 * 2**20,
    is_integrated=False,
    gcnArchName="",
)
"""What torch.cuda.get_device_properties says of an H200."""


class _Worker:
    """What Inductor's compile workers ask; nothing is compiled here."""

    @staticmethod
    def get_device_properties(device: object = None) -> Any:
        return PROPERTIES

    @staticmethod
    def current_device() -> int:
        return DEVICE.index

    @staticmethod
    def set_device(device: int) -> None: ...


def _interface() -> type:
    """A Dynamo device interface that answers for one H200."""
    from torch._dynamo.device_interface import CudaInterface

    answers: dict[str, object] = {
        "Worker": _Worker,
        "is_available": True,
        "device_count": 1,
        "current_device": DEVICE.index,
        "get_device_properties": PROPERTIES,
        "get_compute_capability": 10 * CAPABILITY[0] + CAPABILITY[1],
        "is_bf16_supported": True,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
        "synchronize": None,
        "get_raw_stream": 0,
        "exchange_device": DEVICE.index,
        "maybe_exchange_device": DEVICE.index,
    }
    members = {name: v if isinstance(v, type) else staticmethod(_constant(v)) for name, v in answers.items()}
    return type("FakeCudaInterface", (CudaInterface,), members)


def _constant(value: object) -> Callable[..., object]:
    return lambda *args, **kwargs: value


def _invert(value: torch.Tensor) -> torch.Tensor:
    inverted: torch.Tensor = torch.ops.aten.bitwise_not.default(value)
    return inverted


def _copy(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    copied: torch.Tensor = torch.ops.aten.copy_.default(target, source)
    return copied


class _Driver:
    """Triton's driver for a target that is not there."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], PROPERTIES.warp_size)

    def get_current_device(self) -> int:
        return DEVICE.index

    def get_active_torch_device(self) -> torch.device:
        return DEVICE


def _cached_answers() -> list[Any]:
    """Functions that remember whether there is a GPU."""
    import torch._inductor.utils as inductor_utils
    import torch.utils._triton as triton_utils
    from torch._inductor.runtime.hints import DeviceProperties

    modules = (triton_utils, inductor_utils)
    found = [f for module in modules for f in vars(module).values() if hasattr(f, "cache_clear")]
    return [*found, DeviceProperties.create]


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """Make Inductor and Triton believe in one H200. No kernel can be loaded or run inside."""
    import torch._inductor.lowering
    from torch._dynamo import device_interface
    from torch._inductor import config
    from triton.runtime.driver import driver

    device_interface.get_interface_for_device("cpu")  # fills the registry before it is patched
    answers: dict[str, object] = {
        "is_available": True,
        "device_count": 1,
        "current_device": DEVICE.index,
        "get_device_properties": PROPERTIES,
        "get_device_capability": CAPABILITY,
        "get_device_name": PROPERTIES.name,
        "is_bf16_supported": True,
        "synchronize": None,
        "is_current_stream_capturing": False,
        "get_arch_list": ["sm_90"],
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(gpu_layouts())
        for name, value in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, _constant(value)))
        stack.enter_context(mock.patch.object(torch.cuda, "device", contextlib.nullcontext))
        # A wheel with CUDA would ask for the driver.
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", _constant(None)))
        interfaces = {"cuda": _interface(), "cuda:0": _interface()}
        stack.enter_context(mock.patch.dict(device_interface.device_interfaces, interfaces))
        # A wheel without CUDA refuses these methods on the device, but not the operators behind them.
        stack.enter_context(mock.patch.object(FakeTensor, "copy_", _copy, create=True))
        stack.enter_context(mock.patch.object(FakeTensor, "__invert__", _invert, create=True))
        stack.enter_context(mock.patch.object(type(driver), "active", _Driver()))
        stack.enter_context(config.patch(compile_threads=1, force_disable_caches=True))
        for remembered in _cached_answers():
            remembered.cache_clear()
        try:
            yield
        finally:
            for remembered in _cached_answers():
                remembered.cache_clear()


@contextlib.contextmanager
def gpu_layouts() -> Iterator[None]:
    """Decide as for a GPU while a graph is still on the CPU: layouts by Inductor's rule and cuDNN's, our codecs, memory
    and time."""
    with (
        mock.patch.object(devices, "is_on_cpu", _constant(False)),
        mock.patch.object(costs, "rates_of", _rates),
        mock.patch.object(torch.backends.mkldnn, "is_available", _constant(False)),
        mock.patch.object(planes, "wanted", _constant(True)),
        mock.patch.object(lowering, "wanted", _constant(True)),
        mock.patch.object(torch._C, "_conv_determine_backend_memory_format", _cudnn_format),
    ):
        yield


def _rates(device: torch.device, *, fused: bool = True) -> costs.Rates:
    """An H200's, whatever the device."""
    with (
        mock.patch.object(torch.cuda, "is_available", _constant(True)),
        mock.patch.object(torch.cuda, "get_device_name", _constant(PROPERTIES.name)),
    ):
        return _rates_of(DEVICE, fused=fused)


def _cudnn_format(x: torch.Tensor, weight: torch.Tensor, backend: object) -> torch.memory_format:
    """cuDNN computes with channels last if either operand lies so."""
    for tensor in (x, weight):
        if tensor.dim() == 4 and suggest_memory_format(tensor) == torch.channels_last:
            return torch.channels_last
    return torch.contiguous_format
