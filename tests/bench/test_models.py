"""Every zoo model builds equally each time, trains one step in eager, and is large enough to compare."""

import pytest
import torch

from bench import measure
from bench.models.zoo import ZOO
from bench.trial import Job

HUGGING_FACE = {"gpt2", "bert", "llama", "t5", "vit", "swin", "resnet", "convnext", "mamba", "moe"}


@pytest.mark.parametrize("name", ZOO)
def test_model_trains_and_saves_at_least_a_megabyte(name: str) -> None:
    if name in HUGGING_FACE:
        pytest.importorskip("transformers")
    module, args, kwargs = ZOO[name]()
    job = Job(module, args, kwargs)
    loss = job.step(module)
    assert loss.shape == () and torch.isfinite(loss)
    assert measure.saved_bytes(loss, job.held()) >= 1_000_000
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["bytegpt", "cnn", "lstm", "gcn"])
def test_equal_names_are_equal_models_and_the_stream_is_left_alone(name: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = ZOO[name]()
    assert torch.equal(torch.rand(1), expected)
    second = ZOO[name]()
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
