"""Seconds that a step spends on recomputing, encoding and decoding: a roofline, for ranking plans.

Rates come from a table of data sheets, not from a measurement, so that equal graphs give equal plans on every rank
and in every process. Seconds are good for comparing two plans of one graph and nothing else.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from fxcompress import compat
from fxcompress.passes.alias import hint, nbytes_of
from fxcompress.passes.find_codec_nodes import find_codec_nodes
from fxcompress.passes.ops import REDUCTIONS, is_view, op_name


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device does per second. `encode_passes`, `decode_passes`: how many passes over the tensor a stochastic
    encode and a decode take as long as. `call_s`: seconds that starting a compiled kernel takes. `pointwise_share`: of
    reading and writing, what a pointwise operator costs that may be fused. `launch_s`: seconds that every operator
    costs whatever its size, where none is fused. `passes`: kernels bound by arithmetic take as long as so many passes
    over their result, or over what they reduce."""

    name: str
    bytes_per_s: float
    flops_per_s: float
    half_flops_per_s: float
    encode_passes: float
    decode_passes: float
    call_s: float
    pointwise_share: float = 0.25
    launch_s: float = 0.0
    passes: Mapping[str, float] = field(default_factory=dict)


_ATEN_PASSES = {
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional"), 20.0),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), 19.0),
    **dict.fromkeys(("sin", "cos", "softplus"), 12.0),
    **dict.fromkeys(("sigmoid", "silu"), 4.0),
    "native_layer_norm": 8.0,
    "native_group_norm": 3.0,
    "max_pool2d_with_indices": 100.0,
    "avg_pool2d": 60.0,
    "_softmax": 10.0,
    "_log_softmax": 13.0,
    "tanh": 22.0,
    "erf": 11.0,
    "exp": 7.0,
    "log": 80.0,
    "gelu": 5.0,
    "where": 29.0,
    "var_mean": 170.0,
    "mean": 5.0,
}
"""Measured with torch 2.13 on one core, fp32 maps of 0.6 MB; an addition takes one pass."""
_CPU = Rates("cpu", 2e10, 3e11, 3e11, 4.0, 1.5, 5e-6)
_CPU_INTERPRETED = Rates("cpu", 7e10, 1e11, 1e11, 200.0, 40.0, 5e-6, 1.0, 3e-6, _ATEN_PASSES)
"""One core, measured with torch 2.13: a codec interpreted is dozens of operators, each a pass of its own."""
_GPUS = (
    Rates("H200", 4.3e12, 5e13, 7e14, 1.1, 1.0, 2.5e-6),
    Rates("H100", 2.9e12, 5e13, 6e14, 1.1, 1.0, 2.5e-6),
    Rates("A100", 1.6e12, 1.9e13, 2.5e14, 1.3, 1.0, 2.5e-6),
)
"""Newest first; another GPU is taken for the last."""


def rates_of(device: torch.device, *, fused: bool = True) -> Rates:
    """The rates of a device; an unknown GPU counts as the slowest known.

    Args:
        device: where tensors are.
        fused: whether a compiler fuses pointwise operators, or each runs by itself.
    """
    if device.type != "cuda":
        return _CPU if fused else _CPU_INTERPRETED
    name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else ""
    found = next((rates for rates in _GPUS if rates.name in name), _GPUS[-1])
    return (
        found if fused else replace(found, encode_passes=50.0, decode_passes=20.0, pointwise_share=1.0, launch_s=5e-6)
    )


def recompute_s(node: fx.Node, rates: Rates) -> float:
    """Seconds to run `node` once more, its inputs at hand; views and sizes are free, a subgraph is the sum of its."""
    if node.op != "call_function" or is_view(node):
        return 0.0
    inner = _subgraph(node)
    if inner is not None:
        return sum(recompute_s(called, rates) for called in inner.graph.nodes)
    vals = _tensors(node.meta.get("val"))
    if not vals:
        return 0.0
    written = sum(map(nbytes_of, vals))
    read = sum(nbytes_of(val) for arg in node.all_input_nodes for val in _tensors(arg.meta.get("val")))
    flops = _flops(node)
    if flops:
        rate = rates.flops_per_s if vals[0].dtype.itemsize >= 4 else rates.half_flops_per_s
        return rates.launch_s + flops / rate + (read + written) / rates.bytes_per_s
    passes = rates.passes.get(op_name(node), 1.0)
    if op_name(node) in REDUCTIONS:
        return rates.launch_s + passes * read / rates.bytes_per_s
    return rates.launch_s + passes * rates.pointwise_share * 2 * written / rates.bytes_per_s


def step_s(*graphs: fx.GraphModule, fused: bool = True) -> float:
    """Seconds to run every node of these graphs once; `fused` as for `rates_of`."""
    rates = rates_of(device_of(*graphs), fused=fused)
    return sum(recompute_s(node, rates) for gm in graphs for node in gm.graph.nodes)


def device_of(*graphs: fx.GraphModule) -> torch.device:
    """The device of the first tensor in these graphs."""
    vals = (val for gm in graphs for node in gm.graph.nodes for val in _tensors(node.meta.get("val")))
    return next((val.device for val in vals), torch.device("cpu"))


def repeated_s(fw: fx.GraphModule, bw: fx.GraphModule, *, fused: bool = True) -> float:
    """Seconds that a backward spends on computing once more what its forward has computed, codecs left out.

    PyTorch gives what it computes twice the same name in both graphs. `fused` as for `rates_of`.
    """
    codecs = find_codec_nodes(bw.graph)
    computed = {node.name for node in fw.graph.nodes if node.op == "call_function"}
    again = [node for node in bw.graph.nodes if node.op == "call_function" and node.name in computed]
    rates = rates_of(device_of(fw, bw), fused=fused)
    return sum(recompute_s(node, rates) for node in again if node not in codecs)


def code_s(nbytes: int, packed_bytes: int, stochastic: bool, rates: Rates) -> float:
    """Seconds to encode a tensor of `nbytes` and to decode it once."""
    encode = (nbytes + packed_bytes) * (rates.encode_passes if stochastic else rates.decode_passes)
    return (encode + (nbytes + packed_bytes) * rates.decode_passes) / rates.bytes_per_s


def _tensors(val: object) -> list[torch.Tensor]:
    items = val if isinstance(val, (tuple, list)) else (val,)
    return [item for item in items if isinstance(item, torch.Tensor) and item.layout is torch.strided]


def _subgraph(node: fx.Node) -> fx.GraphModule | None:
    """The graph that a node calls."""
    called = node.args[0] if node.target is compat.invoke_subgraph() else None
    if not isinstance(called, fx.Node) or node.graph.owning_module is None:
        return None
    found = node.graph.owning_module.get_submodule(str(called.target))
    return found if isinstance(found, fx.GraphModule) else None


def _flops(node: fx.Node) -> int:
    """Floating-point operations of a product, convolution or attention; 0 for everything else."""
    from torch.utils.flop_counter import flop_registry

    target, given = node.target, node.args
    if target is compat.auto_functionalized():
        target, given = given[0], given[1:]  # type: ignore[assignment]
    packet = getattr(target, "_overloadpacket", None)
    if packet not in flop_registry:
        return 0
    # It takes shapes for tensors; symbolic ones would leave guards behind.
    args, kwargs = fx.map_arg((given, node.kwargs), lambda arg: _shapes(arg.meta.get("val")))
    count: float = flop_registry[packet](*args, **kwargs, out_val=_shapes(node.meta.get("val")))
    return math.ceil(count)


def _shapes(val: object) -> Any:
    """A tensor's shape in numbers; the same for each tensor of a tuple."""
    if isinstance(val, (tuple, list)):
        return tuple(map(_shapes, val))
    return tuple(map(hint, val.shape)) if isinstance(val, torch.Tensor) else val
