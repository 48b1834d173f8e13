"""The three doors: the named backend, the process-wide hook, and graphs without torch.compile."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch._functorch.aot_autograd import aot_function, aot_module_simplified
from torch._inductor import config as inductor_config

import fxcompress
from fxcompress import OptionError, Options, ledger
from fxcompress.partition import ActcompPartitioner, partition_fn

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    ledger.clear()
    yield
    torch._dynamo.reset()
    assert inductor_config.custom_partitioner_fn is None, "a test left the hook in"


def encoded() -> int:
    return sum(d.codec not in ("keep", "shared") for graph in fxcompress.reports() for d in graph.decisions)


def test_the_backend_is_listed_without_being_imported():
    code = "import sys, torch; assert 'actcomp' in torch._dynamo.list_backends(); print('fxcompress' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


def test_the_backend_is_found_by_name_without_an_import():
    code = (
        "import sys, torch; "
        "m = torch.compile(torch.nn.Linear(8, 8), backend='actcomp', options={'inner': 'aot_eager'}); "
        "m(torch.randn(2, 8)).sum().backward(); print('fxcompress.backend' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "True", result.stderr


def test_the_hook_goes_in_and_out():
    assert inductor_config.custom_partitioner_fn is None
    fxcompress.install(bits=8)
    outer = inductor_config.custom_partitioner_fn
    assert isinstance(outer, ActcompPartitioner)
    with fxcompress.enabled({"bits": 2}):
        assert inductor_config.custom_partitioner_fn is not outer
    assert inductor_config.custom_partitioner_fn is outer
    fxcompress.uninstall()
    fxcompress.uninstall()
    assert inductor_config.custom_partitioner_fn is None


def test_the_hook_comes_out_after_an_exception():
    with pytest.raises(KeyError), fxcompress.enabled():
        raise KeyError
    assert inductor_config.custom_partitioner_fn is None


@pytest.mark.parametrize(
    ("options", "message"), [({"inner": "aot_eager"}, "no effect in install"), ({"bitz": 1}, "did you mean 'bits'")]
)
def test_wrong_options_leave_the_hook_out(options: dict[str, object], message: str):
    with pytest.raises(OptionError, match=message):
        fxcompress.install(options)
    assert inductor_config.custom_partitioner_fn is None


def _interpret(gm: fx.GraphModule, inputs: object):
    return gm.forward


def _boxed(gm: fx.GraphModule, inputs: object):
    from functorch.compile import make_boxed_func

    return make_boxed_func(gm.forward)


def f(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.tanh(torch.nn.functional.gelu(x @ weight) @ weight)


def test_a_partitioner_for_aot_function():
    x, weight = torch.randn(32, 64), torch.randn(64, 64, requires_grad=True)
    f(x, weight).sum().backward()
    plain, weight.grad = weight.grad, None
    partitioner = partition_fn(Options(inner="aot_eager", bits=8, min_bytes=64))
    aot_function(f, fw_compiler=_interpret, bw_compiler=_interpret, partition_fn=partitioner)(
        x, weight
    ).sum().backward()
    assert plain is not None and weight.grad is not None
    assert float((plain - weight.grad).norm() / plain.norm()) < 0.02
    assert encoded() >= 1


def test_a_partitioner_for_aot_module_simplified():
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    x = torch.randn(32, 64)

    def backend(gm: fx.GraphModule, inputs: list[torch.Tensor]):
        partitioner = partition_fn(Options(inner="aot_eager", bits=8, min_bytes=64))
        return aot_module_simplified(gm, inputs, fw_compiler=_boxed, bw_compiler=_boxed, partition_fn=partitioner)

    torch.compile(model, backend=backend)(x).square().sum().backward()
    assert encoded() >= 1
    assert all(p.grad is not None for p in model.parameters())


def test_the_example_of_a_custom_stack(capsys):
    runpy.run_path(str(ROOT / "examples" / "custom_stack.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "saved for backward" in printed
    errors = [float(line.rsplit(" ", 1)[1]) for line in printed.splitlines() if "gradient error" in line]
    assert len(errors) == 2 and all(0 < error < 0.1 for error in errors)


@pytest.mark.slow
def test_installed_into_plain_torch_compile():
    def step() -> torch.Tensor:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
        torch.compile(model)(torch.randn(32, 64)).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain = step()
    with fxcompress.enabled(bits=8, min_bytes=64):
        ours = step()
    assert encoded() >= 1
    assert 0 < float((plain - ours).norm() / plain.norm()) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints, least", [(False, 3), (True, 1)])
def test_a_hugging_face_trainer_compresses_through_the_hook(tmp_path: Path, checkpoints: bool, least: int):
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    config = GPT2Config(n_layer=1, n_embd=32, n_head=2, n_positions=32, vocab_size=64, use_cache=False)

    def train() -> list[torch.Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
        rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (12, 32))]
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, torch_compile=True, report_to=[],
            save_strategy="no", use_cpu=True, seed=0, disable_tqdm=True, learning_rate=1e-3,
            gradient_checkpointing=checkpoints,
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=rows).train()
        return [p.detach().clone() for p in model.parameters()]

    start = [p.detach().clone() for p in _fresh(config).parameters()]
    plain = train()
    assert not fxcompress.reports()
    with fxcompress.enabled(bits=8, min_bytes=256):
        ours = train()
    assert encoded() >= least
    moved = sum(float((a - b).square().sum()) for a, b in zip(plain, start, strict=True)) ** 0.5
    apart = sum(float((a - b).square().sum()) for a, b in zip(plain, ours, strict=True)) ** 0.5
    assert 0 < apart < 0.3 * moved


def _fresh(config: object) -> nn.Module:
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(config)
