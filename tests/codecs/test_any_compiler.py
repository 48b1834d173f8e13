"""Codecs give the same bits whatever a compiler makes of their arithmetic, as far as it has a choice.

Inductor's code for a GPU rounds no product that only feeds a sum, and divides two units in the last place off.
`Hostile` does both to a traced codec, on the CPU.
"""

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxcompress import compat
from fxcompress.codecs import groups, planes
from fxcompress.codecs.base import Codec
from fxcompress.testing import dtypes, examples, fitting, sample

aten = torch.ops.aten
SALT = 2**31 + 7
_QUOTIENTS = (aten.reciprocal.default, aten.div.Tensor)
_SUMS = {aten.add.Tensor: 1, aten.sub.Tensor: -1}
_MOVES = (aten.view, aten.reshape, aten.expand, aten.unsqueeze, aten.squeeze, aten.slice, aten.select, aten.unbind)
_MOVES += (aten.permute, aten.transpose, aten.clone, aten.cat, aten.where, aten.constant_pad_nd, operator.getitem)


class Hostile(fx.Interpreter):
    """Runs a graph with products fused into the sums that they reach, and quotients some units in the last place off.

    `exact` holds, as fp64, what a node would be without the rounding of its product.
    """

    def __init__(self, gm: fx.GraphModule, off: int) -> None:
        super().__init__(gm)
        self.exact: dict[fx.Node, Any] = {}
        self.off = off

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if getattr(value, "dtype", torch.float32) != torch.float32:
            return value
        if n.target in _QUOTIENTS:
            return _moved(value, self.off)
        if n.target == aten.mul.Tensor:
            left, right = (_wide(part) for part in self.fetch_args_kwargs_from_env(n)[0])
            self.exact[n] = left * right
        elif any(part in self.exact for part in n.all_input_nodes):
            return self._reached(n, value)
        return value

    def _reached(self, n: fx.Node, value: Any) -> Any:
        """A product arrives at a sum, which is fused, or at something that hands it on."""
        args = fx.node.map_arg(n.args, lambda part: self.exact.get(part, self.env[part]))
        if n.target in _SUMS:
            return (_wide(args[0]) + _SUMS[n.target] * _wide(args[1])).to(torch.float32)
        if n.target in _MOVES or getattr(n.target, "overloadpacket", None) in _MOVES:
            kwargs = {key: part for key, part in n.kwargs.items() if key != "dtype"}
            self.exact[n] = n.target(*torch.utils._pytree.tree_map(_wide, args), **kwargs)
        return value


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _moved(value: Tensor, off: int) -> Tensor:
    """Positive floats so many units in the last place away."""
    return (value.view(torch.int32) + off).view(torch.float32)


def data(codec: Codec, cols: int, dtype: torch.dtype) -> Tensor:
    """Rows of few significant bits, whose quotients are ties, and rows of many."""
    x = sample(codec, (48, cols), torch.float32)
    if codec.contract.kind != "exact":
        x[::2] = x[::2].to(torch.bfloat16)
        x[:8] = (x[:8] * 8).round()
        x[-4:] *= 1e20
        x[-8:-4] *= 1e-20
    return x.to(dtype)


CASES = [(codec, dtype) for codec in examples() for dtype in dtypes(codec)[:2]]


@pytest.mark.parametrize(("codec", "dtype"), CASES, ids=str)
def test_payload_and_decode(codec: Codec, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    cols = fitting(codec, 300)
    x = data(codec, cols, dtype)
    parts = codec.encode(x, SALT)
    y = codec.decode(parts, cols, dtype)
    monkeypatch.setattr(planes, "wanted", lambda _: True)
    table = compat.inductor_decompositions()
    encode = make_fx(lambda x: codec.encode(x, SALT), decomposition_table=table)(x)
    decode = make_fx(lambda *parts: codec.decode(parts, cols, dtype), decomposition_table=table)(*parts)
    # Zero-preserving codes still depend on the division.
    for off in (0,) if getattr(codec, "zero_preserving", False) else (-2, 2):
        for field, one, two in zip(codec.fields(cols, dtype), Hostile(encode, off).run(x), parts, strict=True):
            assert torch.equal(one.view(torch.uint8), two.view(torch.uint8)), field.name
        assert torch.equal(Hostile(decode, off).run(*parts), y)


def test_inverse_of_every_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the smallest normal number to the largest whose inverse is one, whatever division it starts from."""
    monkeypatch.setattr(planes, "wanted", lambda _: True)
    bits = torch.arange(0x0080, 0x7E81, dtype=torch.int32) << 16
    expected = bits.view(torch.float32).double().reciprocal().to(torch.float32)
    assert torch.equal(groups.inverse(bits), expected)
    traced = make_fx(groups.inverse)(bits)
    for off in range(-8, 9):
        assert torch.equal(Hostile(traced, off).run(bits), expected)
    assert groups.inverse(torch.tensor([0x7FC00000], dtype=torch.int32)).isnan().all()


def test_hostile_sees_a_product_fused_and_a_quotient_off() -> None:
    """The oracle itself, on arithmetic that has a choice."""
    x, y = torch.rand(2, 1000).unbind()
    fused = make_fx(lambda x, y: torch.where(x > 0, x * y, 0.0) - x)(x, y)
    assert not torch.equal(Hostile(fused, 0).run(x, y), x * y - x)
    divided = make_fx(lambda x: x.reciprocal())(x)
    assert not torch.equal(Hostile(divided, 1).run(x), x.reciprocal())
