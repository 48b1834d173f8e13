"""What the codecs' operators take beside their arguments and results while they run on a CPU.

An operator runs what Inductor makes of a codec (`codecs.operators`): its temporaries are replayed from that code, once
per codec and dtype.
"""

import functools
import math

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import compat
from fxcompress.codecs import operators
from fxcompress.compat import FakeTensorMode
from fxcompress.compat.lowering import lower
from fxcompress.compat.scheduler_passes import settings_undone
from fxcompress.passes.find_saved import outputs
from fxcompress.passes.workspace import library_nbytes
from fxcompress.replay import replay

_ROWS = 64
"""Rows of the sample; temporaries grow in proportion to them."""


def called_nbytes(node: fx.Node) -> int:
    """Bytes that a library's call, or one of an operator of ours, allocates and frees on a CPU."""
    return operator_nbytes(node) or library_nbytes(node)


def operator_nbytes(node: fx.Node) -> int:
    """Bytes that a call of `fxcompress::encode` or `::decode` allocates and frees; 0 for every other node."""
    if node.target is torch.ops.fxcompress.encode.default:
        x, lead, codec = node.args[0].meta["val"], node.args[1], node.args[2]  # type: ignore[union-attr]
        cols, count, way, dtype = math.prod(x.shape[lead:]), x.numel(), "encode", x.dtype
    elif node.target is torch.ops.fxcompress.decode.default:
        val, codec = node.meta["val"], node.args[2]
        cols, count, way, dtype = math.prod(node.args[1]), val.numel(), "decode", val.dtype  # type: ignore[arg-type]
    else:
        return 0
    width = operators.row_width(operators.read(str(codec)), cols)
    return int(_nbytes_of_row(way, str(codec), width, dtype) * (count // max(width, 1)))


@functools.cache
def _nbytes_of_row(way: str, codec: str, width: int, dtype: torch.dtype) -> float:
    with FakeTensorMode(), torch.no_grad(), torch.autocast("cpu", enabled=False):
        function, examples = operators.row_function(way, codec, width, dtype, _ROWS)
        gm = make_fx(function, compat.inductor_decompositions())(*examples)
    gm.graph.eliminate_dead_code()
    given = [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]
    results: set[torch.UntypedStorage] = {
        out.meta["val"].untyped_storage() for out in outputs(gm) if isinstance(out, fx.Node)
    }
    lowered = lower(gm, given, settings_undone(), is_backward=False)
    moments = replay(lowered.source, {}, lowered.result_nbytes)
    most = max((moment.most_bytes for moment in moments), default=0)
    return max(most - sum(storage.nbytes() for storage in results), 0) / _ROWS
