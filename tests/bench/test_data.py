"""The benchmarks' data are deterministic, disjoint, and in the promised form."""

import pytest
import torch

from bench import data


def test_text_is_capped_split_and_repeatable() -> None:
    split = data.stdlib_text(0.6)
    again = data.stdlib_text(0.6)
    train, test = split.train[0], split.test[0]
    assert train.dtype == torch.uint8 and len(train) + len(test) == 600_000
    assert len(train) > 0 and len(test) > 0
    assert torch.equal(train, again.train[0]) and torch.equal(test, again.test[0])


def test_text_batch_is_shifted_by_one_and_seeded() -> None:
    text = torch.arange(200, dtype=torch.uint8)
    tokens, targets = data.text_batch(text, batch=3, time=16, seed=1)
    assert tokens.shape == targets.shape == (3, 16) and tokens.dtype == torch.int64
    assert torch.equal(tokens + 1, targets)
    assert torch.equal(tokens, data.text_batch(text, batch=3, time=16, seed=1)[0])
    assert not torch.equal(tokens, data.text_batch(text, batch=3, time=16, seed=2)[0])


@pytest.mark.parametrize("side", [8, 16])
def test_digits_are_normalised_and_split_without_overlap(side: int) -> None:
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    split = data.digits(side)
    images, labels = split.train
    assert images.shape[1:] == (1, side, side) and len(images) == len(labels)
    assert len(labels) + len(split.test[1]) == len(sklearn_datasets.load_digits().target)
    assert abs(float(images.mean())) < 0.05
    if side == 8:
        assert 0.9 < float(images.std()) < 1.1
