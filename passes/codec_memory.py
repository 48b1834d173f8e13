"""What an interpreted codec takes beside the tensor and its payload, in sizes of the tensor.

`working_sizes(codec, dtype)` traces an encode and a decode of a sample and simulates their live bytes, operator by
operator, as an interpreter runs them.
"""

import functools

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import codecs
from fxcompress.codecs.base import Codec
from fxcompress.compat import FakeTensorMode
from fxcompress.passes.find_saved import outputs
from fxcompress.passes.liveness import Machine, find_steps, simulate
from fxcompress.passes.phases import phase_of
from fxcompress.passes.traits import buffers_of

_ROWS, _COLS = 8, 8192
"""Shape of the sample: whole groups of every size, and bytes enough that scalars do not show."""


def working_sizes(codec: Codec, dtype: torch.dtype) -> tuple[float, float]:
    """Temporary bytes of an encode and of a decode, per byte of the tensor.

    Args:
        codec: which accepts tensors of `dtype` and rows of any length.
        dtype: the tensor's.
    """
    parameters = tuple(sorted(codecs.params(codec).items()))
    return _working_sizes(codec.name, parameters, dtype)


@functools.cache
def _working_sizes(name: str, parameters: tuple[tuple[str, object], ...], dtype: torch.dtype) -> tuple[float, float]:
    codec = codecs.make(name, **dict(parameters))
    with FakeTensorMode(), torch.no_grad():
        whole = torch.empty((_ROWS, _COLS), dtype=dtype)
        salt = torch.zeros((), dtype=torch.int64)
        encode = make_fx(lambda x, salt: codec.encode(x, salt))(whole, salt)
        parts = [torch.empty((_ROWS, *f.shape), dtype=f.dtype) for f in codec.fields(_COLS, dtype)]
        decode = make_fx(lambda *parts: (codec.decode(parts, _COLS, dtype),))(*parts)
    return _temporary_nbytes(encode) / whole.nbytes, _temporary_nbytes(decode) / whole.nbytes


def _temporary_nbytes(gm: fx.GraphModule) -> int:
    """The peak beyond what goes in and what comes out."""
    gm.graph.eliminate_dead_code()
    phase = phase_of(gm)
    given = {key for node in phase.inputs for key, _ in buffers_of(node)}
    results = {key: size for out in outputs(gm) if isinstance(out, fx.Node) for key, size in buffers_of(out)}
    curve = simulate(find_steps(phase, Machine(False)), {}, given, set(results))
    return max((size for _, size in curve), default=0) - sum(size for key, size in results.items() if key not in given)
