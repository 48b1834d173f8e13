"""The noise against an oracle in plain integers, its layout, and its independence of everything but key and counter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.codecs import noise

LOW = 0xFFFFFFFF
U32 = st.integers(0, LOW)
# Random123's published vectors for philox4x32 with 10 rounds whose last counter word is ours or can be moved there.
ZEROS = ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8))
ONES = ((LOW,) * 4, (LOW,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD))
PI = (
    (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
    (0xA4093822, 0x299F31D0),
    (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
)


def oracle(counter: tuple[int, ...], key: tuple[int, ...], rounds: int) -> tuple[int, ...]:
    """Philox4x32 in Python's own integers, as in the paper."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & LOW, (p0 >> 32) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "expected"), [ZEROS, ONES, PI])
def test_oracle_meets_the_published_vectors(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert oracle(counter, key, 10) == expected


@settings(deadline=None, max_examples=200)
@given(st.lists(U32, min_size=3, max_size=3), U32, U32, st.integers(1, 10))
def test_philox_is_the_oracle(counter: list[int], key0: int, key1: int, rounds: int) -> None:
    c0, c1, c2 = (torch.tensor([part], dtype=torch.int64) for part in counter)
    ours = noise.philox((key0, torch.tensor([key1], dtype=torch.int64)), (c0, c1, c2), rounds)
    assert tuple(int(word) & LOW for word in ours) == oracle((*counter, 0), (key0, key1), rounds)


@pytest.mark.parametrize("group", [16, 64, 128])
def test_words_follow_the_stated_layout(group: int) -> None:
    word = torch.tensor([[0, -1, 12345], [-(2**31), 2**31 - 1, 7]], dtype=torch.int32)
    words = noise.words(99, word, group)
    for index, key in enumerate(word.flatten().tolist()):
        for k in range(group // 16):
            expected = oracle((index, 0, k, 0), (99, key & LOW), noise.ROUNDS)
            ours = tuple(int(part[index // 3, index % 3, k]) & LOW for part in words)
            assert ours == expected


def test_group_index_beyond_32_bits_is_split() -> None:
    index = torch.tensor([2**35 + 3], dtype=torch.int64)
    zero = torch.zeros(1, dtype=torch.int64)
    ours = noise.philox((1, zero), (index & LOW, index >> 32, zero))
    assert tuple(int(word) & LOW for word in ours) == oracle((3, 8, 0, 0), (1, 0), noise.ROUNDS)


def test_bytes_are_uniform_and_uncorrelated_over_groups_and_salts() -> None:
    word = torch.zeros(4096, dtype=torch.int32)
    both = [torch.stack(noise.words(salt, word, 64)).view(torch.uint8).flatten().double() for salt in (1, 2)]
    for stream in both:
        count = torch.bincount(stream.long(), minlength=256).double()
        expected = stream.numel() / 256
        chi2 = float(((count - expected) ** 2 / expected).sum())
        assert abs(chi2 - 255) < 5 * (2 * 255) ** 0.5
    centred = [stream - 127.5 for stream in both]
    sigma = centred[0].numel() ** -0.5
    variance = (256**2 - 1) / 12
    assert abs(float((centred[0] * centred[1]).mean()) / variance) < 5 * sigma
    assert abs(float((centred[0][1:] * centred[0][:-1]).mean()) / variance) < 5 * sigma
