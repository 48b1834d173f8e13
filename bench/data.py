"""Training data that is on every machine: the standard library's source text, and scikit-learn's digits."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

HELD_OUT_EVERY = 10
"""One file in so many goes to the held-out text."""


@dataclass(frozen=True, slots=True)
class Split:
    """Two parts of a data set."""

    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...]


def stdlib_text(megabytes: float = 4.0) -> Split:
    """Return the bytes of the standard library's own .py files as one uint8 tensor per part.

    Files are taken in sorted path order until `megabytes` (10^6 bytes) are read; every tenth file is held out. The
    result depends on the Python version only.
    """
    limit = int(megabytes * 1e6)
    root = Path(os.__file__).parent
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    total = 0
    for number, path in enumerate(sorted(root.glob("*.py")) + sorted(root.glob("[a-z]*/**/*.py"))):
        if total >= limit or "site-packages" in path.parts:
            continue
        content = path.read_bytes()[: limit - total]
        total += len(content)
        parts[number % HELD_OUT_EVERY == 0].append(content)
    train, test = (torch.frombuffer(bytearray(b"".join(part)), dtype=torch.uint8) for part in parts)
    return Split((train,), (test,))


def text_batch(text: Tensor, *, batch: int, time: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw random windows: int64 tokens and next tokens, each [batch, time]. Equal seeds draw equal windows."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(text) - time - 1, (batch,), generator=generator)
    windows = torch.stack([text[start : start + time + 1] for start in starts.tolist()]).long()
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def digits(side: int = 16, test_fraction: float = 0.25) -> Split:
    """Return (images, labels) per part: float32 [n, 1, side, side] with zero mean and unit variance, int64 [n].

    The 8x8 originals are enlarged bilinearly; the split is one fixed permutation.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32)[:, None]
    images = (images - images.mean()) / images.std()
    if side != images.shape[-1]:
        images = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    labels = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    cut = int(len(labels) * test_fraction)
    return Split((images[order[cut:]], labels[order[cut:]]), (images[order[:cut]], labels[order[:cut]]))
