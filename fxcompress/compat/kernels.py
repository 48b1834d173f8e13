"""How Inductor's kernels compute, and functions that it compiles on their own, outside of any captured graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


def computes_as_generated() -> bool:
    """Whether Inductor computes between load and store in fp32, with `libdevice` and Triton's own division.

    `torch._inductor.config.emulate_precision_casts`, `.use_fast_math`, `.eager_numerics`,
    `.triton.codegen_upcast_to_fp32`: run in 2.13, read in 2.11.
    """
    from torch._inductor import config

    eager = config.eager_numerics
    unlike = (config.emulate_precision_casts, config.use_fast_math, eager.division_rounding, eager.disable_ftz)
    upcast = bool(config.triton.codegen_upcast_to_fp32)
    return upcast and not any(unlike) and not getattr(eager, "use_pytorch_libdevice", False)


def compile_for_rows(
    function: Callable[..., tuple[torch.Tensor, ...]], examples: Sequence[torch.Tensor], *, dynamic: bool
) -> Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]:
    """Compile a traceable function of tensors; the result takes them as one list, which it empties.

    With `dynamic`, first dimensions of equal size in `examples` stand for one size, which may be any.

    `compile_fx.compile_fx_inner(gm, fake tensors)`, `tracing`, `TracingContext`, `StatelessSymbolicContext`: run in
    2.13, read in 2.11.
    """
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx import GraphModule
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    mode = FakeTensorMode(shape_env=ShapeEnv())
    inputs = []
    for example in examples:
        sizes = [DimDynamic.STATIC] * example.dim()
        if dynamic and sizes:
            sizes[0] = DimDynamic.DYNAMIC
        context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
        inputs.append(mode.from_tensor(example, symbolic_context=context))
    # The first run may stand in a region of autocast, which is not meant for codecs.
    with mode, torch.no_grad(), torch.autocast("cpu", enabled=False):
        how: dict[str, Any] = {"tracing_mode": "symbolic", "decomposition_table": select_decomp_table()}
        gm = make_fx(function, **how)(*inputs)
    gm.graph.eliminate_dead_code()
    # Without what tracing hangs on the module: its shape environment cannot be part of a compile cache's key.
    constants = {str(node.target): getattr(gm, str(node.target)) for node in gm.graph.find_nodes(op="get_attr")}
    gm = GraphModule(constants, gm.graph)
    with tracing(TracingContext(mode)):
        compiled: Callable[[list[torch.Tensor]], Sequence[torch.Tensor]] = compile_fx_inner(gm, inputs)
    return compiled
