"""Value sets: bit-equal for every value, in the fewest bits, and refused where the dtype cannot hold them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.codecs.base import payload_nbytes
from fxcompress.codecs.valueset import Valueset
from fxcompress.codecs.valueset.reference import widths
from fxcompress.errors import OptionError
from fxcompress.testing import check_payload


@settings(deadline=None, max_examples=200)
@given(
    st.integers(-(2**40), 2**40),
    st.integers(1, 1000),
    st.integers(2, 2**32) | st.integers(2, 70),
    st.lists(st.integers(0), min_size=1, max_size=130),
)
def test_exact_for_any_progression(lo: int, step: int, count: int, draws: list[int]) -> None:
    codec = Valueset(lo=lo, step=step, count=count)
    codes = [draw % count for draw in draws] + [0, count - 1]
    x = torch.tensor([lo + step * code for code in codes], dtype=torch.int64)
    parts = codec.encode(x, 0)
    check_payload(codec, x, parts)
    assert torch.equal(codec.decode(parts, x.numel(), x.dtype), x)


@pytest.mark.parametrize("lo, hi", [(-(2**31), 2**31 - 1), (-(2**63), -(2**63) + 9), (2**63 - 10, 2**63 - 1)])
def test_the_ends_of_the_integers(lo: int, hi: int) -> None:
    codec = Valueset(lo=lo, count=hi - lo + 1)
    x = torch.tensor([lo, hi, lo, hi - 1], dtype=torch.int64)
    assert torch.equal(codec.decode(codec.encode(x, 0), 4, x.dtype), x)


def test_bool_masks_take_one_bit() -> None:
    codec = Valueset()
    x = torch.rand(3, 640) < 0.5
    parts = codec.encode(x, 0)
    assert payload_nbytes(codec, 3, 640, x.dtype) == 3 * 80
    assert torch.equal(codec.decode(parts, 640, torch.bool), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_signs_in_floating_point(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=dtype)
    codec = Valueset(lo=-1, step=2)
    assert torch.equal(codec.decode(codec.encode(x, 0), 4, dtype), x)


def test_padding_bits_are_zero() -> None:
    (packed,) = Valueset().encode(torch.ones(5, dtype=torch.bool), 0)
    assert int(packed.sum()) == 5


@given(st.integers(1, 32))
def test_pieces_cover_the_bits_once(bits: int) -> None:
    assert sum(widths(bits)) == bits


@pytest.mark.parametrize(
    "params",
    [{"count": 1}, {"count": 2**33}, {"step": 0}, {"lo": 0.5}, {"lo": True}, {"lo": 2**63}, {"lo": -(2**63) - 1}],
    ids=str,
)
def test_wrong_configurations_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="valueset"):
        Valueset(**params)  # type: ignore[arg-type]


def test_dtypes_that_cannot_hold_the_set_are_refused() -> None:
    assert Valueset(count=3).refuse(torch.bool)
    assert Valueset(count=257).refuse(torch.uint8) and not Valueset(count=256).refuse(torch.uint8)
    assert Valueset(lo=-1).refuse(torch.uint8)
    assert Valueset(count=2**12).refuse(torch.float16) and not Valueset(count=2**11).refuse(torch.float16)
    assert Valueset().refuse(torch.complex64)
