"""Stateless rounding noise: one byte per element from Philox4x32-7 (Salmon et al., SC 2011).

The key is (salt, the group's metadata word) and the counter (group index low, group index high, k, 0), so the noise
depends on nothing but the tensor's name, its data and the place in it: it is the same on every rank, in a replay and
for any launch geometry, and the user's random stream is not touched. One call yields 16 bytes for 16 elements: call k
serves elements 8k … 8k+7 of each half of the group, the first half with bytes 0 … 7. A GPU thread reads eight
neighbours at once, so that no byte has to leave the thread that drew it. No byte serves twice, because that would
multiply the variance of dot products.
"""

import torch

ROUNDS = 7
CALL = 16
"""Bytes per Philox call, hence elements that it serves."""

_LOW = 0xFFFFFFFF
_WEYL = (0x9E3779B9, 0xBB67AE85)
# The multipliers minus 2³²: a product with a 32-bit counter then fits int64; the plain one overflows, undefined in C++.
_MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)


def _multiply(multiplier: int, counter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low halves of the 64-bit product with `multiplier + 2³²`, each right in its low 32 bits only."""
    product = counter * multiplier
    return (product >> 32) + counter, product


def philox(
    key: tuple[int | torch.Tensor, torch.Tensor],
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    rounds: int = ROUNDS,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Philox4x32 of (counter, 0), in int64.

    Args:
        key: two of int or int64 tensor, of which the low 32 bits count; the second is a tensor.
        counter: three int64 tensors that broadcast together, each within 0 … 2³²-1.
        rounds: at least 1; 7 for noise, 10 has published test vectors.

    Returns:
        Four int64 tensors; only their low 32 bits are meaningful.
    """
    c0, c1, c2 = counter
    c3: torch.Tensor | int = 0
    for step in range(rounds):
        key0, key1 = (part + step * weyl if step else part for part, weyl in zip(key, _WEYL, strict=True))
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = (high1 ^ c1 ^ key0) & _LOW, low1, (high0 ^ c3 ^ key1) & _LOW, low0
    assert isinstance(c3, torch.Tensor)
    return c0, c1, c2, c3


def words(
    salt: int | torch.Tensor, word: torch.Tensor, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four int32 tensors `[*lead, groups, group/16]`: bytes 4w … 4w+3, lowest first, of each call are tensor w's.

    Args:
        salt: names the tensor, as an int or a 0-dimensional int64 tensor; its low 32 bits count.
        word: the groups' metadata, int32 `[*lead, groups]`.
        group: elements per group, a multiple of 16.
    """
    calls = group // CALL
    # One flat index space: over two, Inductor generates C++ for tiles of both, which takes it seconds.
    flat = torch.arange(word.numel() * calls, dtype=torch.int64, device=word.device)
    whole = calls & (calls - 1) == 0
    # A CPU's vectors shift and mask; they do not divide.
    index, call = (flat >> calls.bit_length() - 1, flat & calls - 1) if whole else (flat // calls, flat % calls)
    meta = word[..., None].expand(*word.shape, calls).reshape(-1).to(torch.int64)
    counter = (index & _LOW, index >> 32, call)
    w0, w1, w2, w3 = (part.to(torch.int32).reshape(*word.shape, calls) for part in philox((salt & _LOW, meta), counter))
    return w0, w1, w2, w3
