"""The working memory of interpreted codecs against what an interpreter allocates for another shape."""

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import codecs
from fxcompress.passes.codec_memory import working_sizes


class Meter(fx.Interpreter):
    """Runs a graph and notes the most bytes that are held at a time beyond the inputs and the last result."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=True)
        self.peak = 0
        self.given: set[int] = set()

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        held = [value for value in (*self.env.values(), result) if isinstance(value, torch.Tensor)]
        if n.op == "placeholder" and isinstance(result, torch.Tensor):
            self.given.add(result.untyped_storage()._cdata)
        sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}
        self.peak = max(self.peak, sum(size for key, size in sizes.items() if key not in self.given))
        return result


def extra(gm: fx.GraphModule, *inputs: torch.Tensor) -> int:
    meter = Meter(gm)
    results = meter.run(*inputs)
    return meter.peak - sum(result.untyped_storage().nbytes() for result in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_working_memory_is_what_an_interpreter_holds(dtype: torch.dtype, bits: int, rounding: str) -> None:
    codec = codecs.make("affine", bits=bits, rounding=rounding)
    x = torch.randn(256, 512).to(dtype)
    encode = make_fx(lambda x: codec.encode(x, torch.zeros((), dtype=torch.int64)))(x)
    encode.graph.eliminate_dead_code()
    encode.recompile()
    parts = codec.encode(x, 0)
    decode = make_fx(lambda *parts: (codec.decode(parts, 512, dtype),))(*parts)
    predicted = working_sizes(codec, dtype)
    assert extra(encode, x) / x.nbytes == pytest.approx(predicted[0], rel=0.02, abs=0.02)
    assert extra(decode, *parts) / x.nbytes == pytest.approx(predicted[1], rel=0.02, abs=0.02)
