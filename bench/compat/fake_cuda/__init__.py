"""Inductor's code for a CUDA device, generated on a host that has none.

    with fake_cuda():
        lowered = lower(gm, is_backward=False)  # kernels scheduled, source written; nothing compiled or run
        for kernel in scheduled(lowered): ...

Graphs are traced and partitioned on the CPU (a wheel without CUDA aborts on autograd of fake CUDA tensors, and refuses
to index them) and moved just before they are lowered. What the trace decided stays decided: attention is the CPU's
fused kernel, with the operands and results of CUDA's.

Every private name of torch that this needs is in this package; all were run in torch 2.11 with triton 3.6
and in torch 2.13 with triton 3.9.
"""

from bench.compat.fake_cuda.compiled import Compiled, compile_generated, numels
from bench.compat.fake_cuda.device import DEVICE, fake_cuda, gpu_layouts
from bench.compat.fake_cuda.lower import lower, retarget
from bench.compat.fake_cuda.schedule import Access, Scheduled, scheduled
from fxcompress.compat.lowering import Lowered

__all__ = [
    "DEVICE", "Access", "Compiled", "Lowered", "Scheduled", "compile_generated", "fake_cuda", "gpu_layouts",
    "lower", "numels", "retarget", "scheduled",
]  # fmt: skip
