"""Run what Inductor generated for a CUDA device on the CPU, under Triton's interpreter.

The wrapper runs as it is: its generated and hand-written kernels are interpreted, its libraries are ATen's for the CPU,
its buffers lie in the CPU's memory. Only for processes that were started with TRITON_INTERPRET=1. The interpreter
truncates where a GPU rounds to bf16, and has none of libdevice: NumPy's functions stand in.

Names of `torch._inductor.runtime` and of `triton.runtime.interpreter`: run in torch 2.13 with triton
3.9, and in torch 2.11 with triton 3.6.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

_LARGEST = {"x": 4096, "y": 64, "z": 64}
"""Blocks of pointwise kernels: no larger than Inductor leaves masks out for, and small enough that several run."""
_LARGEST_OF_REDUCTIONS = {"x": 128, "y": 16, "r0_": 512, "r1_": 64}
_HEURISTICS = ("pointwise", "reduction", "persistent_reduction", "user_autotune", "cooperative_reduction", "split_scan")
_BY_HAND = "user_autotune"
_REPLACED = (
    ("from torch._C import _cuda_getCurrentRawStream as get_raw_stream", "get_raw_stream = lambda index: 0"),
    ("from torch._inductor.async_compile import AsyncCompile", "AsyncCompile = _Kernels"),
    ("guards._empty_strided_cuda", "guards._empty_strided_cpu"),
    ("device(type='cuda', index=0)", "device(type='cpu')"),
)


def load(source: str, folder: Path) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """A generated graph as a function of its inputs, over which it may write as it would on a GPU.

    Args:
        source: as from `lower`.
        folder: where its kernels are written; Triton reads sources from files.
    """
    text = source.split("\ndef get_args", 1)[0]
    for old, new in _REPLACED:
        text = text.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    scope: dict[str, Any] = {"_Kernels": lambda: _Kernels(folder), "__name__": "generated"}
    exec(compile(text, "generated", "exec"), scope)

    def call(inputs: Sequence[Tensor]) -> list[Tensor]:
        with (
            mock.patch.object(torch.cuda, "_DeviceGuard", lambda index: contextlib.nullcontext()),
            mock.patch.object(torch.cuda, "set_device", lambda index: None),
            torch.no_grad(),
        ):
            results: list[Tensor] = scope["call"](list(inputs))
        return results

    return call


class _Kernels:
    """What the wrapper takes for Inductor's compiler."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def triton(self, name: str, source: str, **_: object) -> "_Kernel":
        self._count += 1
        return _Kernel(name, source, self._folder / f"{name[:60]}_{self._count}.py")

    def wait(self, scope: object) -> None: ...


class _Kernel:
    """A kernel in one configuration, started as the wrapper starts it."""

    def __init__(self, name: str, source: str, path: Path) -> None:
        start = source.index("@triton_heuristics.")
        end = source.index("@triton.jit", start)
        decorator = source[start:end].strip().replace("@triton_heuristics.", "_heuristics.", 1)
        body = f"{source[:start]}_said = {decorator}\n\n{source[end:].replace('in tl.range(', 'in _range(')}"
        body = body.replace("triton_helpers.set_driver_to_gpu()", "")
        path.write_text(body)
        heuristics = SimpleNamespace(**{kind: _said(kind) for kind in _HEURISTICS})
        scope: dict[str, Any] = {"__name__": name, "__file__": str(path), "_heuristics": heuristics, "_range": _range}
        exec(compile(body, str(path), "exec"), scope)
        scope["libdevice"] = scope["tl_math"] = LIBDEVICE
        (found,) = re.findall(r"def (\w+)", source[end:])[:1]
        self._function = scope[found]
        self._kind, meta = scope["_said"]
        self._about, self._signature = meta["inductor_meta"], meta["triton_meta"]["signature"]
        self._constants = dict(meta["triton_meta"].get("constants", {}))

    def run(self, *args: Any, stream: int) -> None:
        """Interpret every program of the grid."""
        by_hand = self._kind == _BY_HAND
        names = [name for name, kind in self._signature.items() if self._is_passed(name, kind)]
        given = dict(zip(names, args, strict=False))
        if by_hand:
            grid = tuple(int(size) for size in args[len(names) :])
            self._function[grid](**given, **self._constants)
            return
        assert len(args) == len(names), (names, len(args))
        blocks = self._blocks(given)
        self._function[self._grid(given, blocks)](**given, **blocks)

    def _is_passed(self, name: str, kind: str) -> bool:
        if self._kind == _BY_HAND:
            return kind != "constexpr" and name not in self._constants
        return not name.isupper()

    def _blocks(self, given: dict[str, Any]) -> dict[str, Any]:
        """Sizes of blocks, and what else the kernel is compiled for."""
        largest = _LARGEST if self._kind == "pointwise" else _LARGEST_OF_REDUCTIONS
        found: dict[str, Any] = {}
        for name, kind in self._signature.items():
            if name in given:
                continue
            if name in self._constants:
                found[name] = self._constants[name]
            elif name.endswith("BLOCK"):
                dimension = name.removesuffix("BLOCK").lower()
                size = int(given[f"{dimension}numel"])
                found[name] = min(1 << max(size - 1, 0).bit_length(), largest[dimension])
            elif kind == "constexpr":
                found[name] = self._about["RSPLIT_SIZE"] if name == "RSPLIT_SIZE" else 1
        if self._kind == "pointwise" and "YBLOCK" in found:
            found["XBLOCK"] = min(found["XBLOCK"], _LARGEST["y"])
        return found

    def _grid(self, given: dict[str, Any], blocks: dict[str, Any]) -> tuple[int, ...]:
        from torch._inductor.runtime.triton_heuristics import GridExpr

        sizes = {name: int(value) for name, value in given.items() if name.endswith("numel")}
        grid: tuple[int, ...] = GridExpr.from_meta(self._about, dict(blocks)).eval_slow({**sizes, **blocks})
        return grid


def _range(*bounds: Any) -> range:
    """`tl.range`: the interpreter of Triton 3.6 makes no loop's bound of a tensor under NumPy 2.4."""
    numbers = [getattr(bound, "value", bound) for bound in bounds]
    return range(*(int(np.ravel(number.handle.data)[0]) if hasattr(number, "handle") else number for number in numbers))


def _said(kind: str) -> Callable[..., tuple[str, dict[str, Any]]]:
    return lambda *_, **meta: (kind, meta)


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays as one of the interpreter's tensors."""

    def apply(*args: Any) -> Any:
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        first = next(arg for arg in args if isinstance(arg, tl.core.tensor))
        dtype = first.handle.data.dtype
        given = [arg.handle.data if isinstance(arg, tl.core.tensor) else np.asarray(arg, dtype) for arg in args]
        with np.errstate(all="ignore"):
            data = np.asarray(function(*given))
        kind = tl.int1 if data.dtype == np.bool_ else first.type.scalar
        data = data if kind is tl.int1 else data.astype(dtype)
        shape = list(data.shape) if first.type.is_block() else None
        return tl.core.tensor(TensorHandle(data, kind), kind if shape is None else tl.block_type(kind, shape))

    return apply


def _aten(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    return lambda data: function(torch.from_numpy(np.array(data))).numpy()


_NUMPY = (
    "abs", "ceil", "cos", "cosh", "exp", "exp2", "expm1", "floor", "fmod", "isinf", "isnan", "log", "log10", "log1p",
    "log2", "rint", "signbit", "sin", "sinh", "sqrt", "tan", "tanh", "trunc",
)  # fmt: skip
LIBDEVICE = SimpleNamespace(
    **{name: _elementwise(getattr(np, name)) for name in _NUMPY},
    erf=_elementwise(_aten(torch.erf)),
    erfc=_elementwise(_aten(torch.erfc)),
    mul_rn=_elementwise(np.multiply),
    nearbyint=_elementwise(np.rint),
    pow=_elementwise(np.power),
    rsqrt=_elementwise(lambda x: 1 / np.sqrt(x)),
    sigmoid=_elementwise(lambda x: 1 / (1 + np.exp(-x))),
)
"""Functions that Inductor and kernels of chains take from libdevice."""


@contextlib.contextmanager
def interpreting() -> Iterator[None]:
    """Let the interpreter know libdevice, reduce by any function in reasonable time, and order NaN as a GPU does."""
    from torch._inductor.runtime import triton_helpers
    from triton.runtime.interpreter import InterpreterBuilder, ReduceOps

    def largest(self: Any, left: Any, right: Any) -> Any:
        return self.binary_op(left, right, np.fmax)

    def smallest(self: Any, left: Any, right: Any) -> Any:
        return self.binary_op(left, right, np.fmin)

    with (
        mock.patch.object(triton_helpers, "libdevice", LIBDEVICE),
        mock.patch.object(triton_helpers, "math", LIBDEVICE),
        mock.patch.object(InterpreterBuilder, "create_maxnumf", largest),
        mock.patch.object(InterpreterBuilder, "create_minnumf", smallest),
        mock.patch.object(ReduceOps, "generic_reduce", _reduce_by_halves),
    ):
        yield


def _reduce_by_halves(self: Any, given: Any) -> list[Any]:
    """Combine neighbours along the axis until one is left: its length is a power of two."""
    whole = self.axis is None
    tensors, axis = self.unravel(given, self.axis)
    arrays = [tensor.handle.data for tensor in tensors]
    while (length := arrays[0].shape[axis]) > 1:
        halves = [
            self.to_tensor(np.take(array, np.arange(start, length, 2), axis=axis), tensor.dtype)
            for start in (0, 1)
            for array, tensor in zip(arrays, tensors, strict=True)
        ]
        made = self.combine_fn.fn(*halves)
        arrays = [item.handle.data for item in (made if isinstance(made, tuple) else (made,))]
    results = []
    for array, tensor in zip(arrays, tensors, strict=True):
        data = array if self.keep_dims else np.squeeze(array, axis)
        results.append(self.to_tensor(data.item() if whole and not self.keep_dims else data, tensor.dtype))
    return results
