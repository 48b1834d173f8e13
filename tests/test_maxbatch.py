"""The largest batch: counted parts against torch's own tensors, peaks against measured ones, answers against a scan."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxcompress.batch import batch_maker, with_leading_size
from fxcompress.cli import main
from fxcompress.cli.maxbatch import OPTIMIZERS
from fxcompress.cli.maxbatch import VARIANTS as CHOICES
from fxcompress.errors import FxcompressError, OptionError
from fxcompress.footprint import STATES, GraphNeed, footprint_of, stacked_peak, storage_bytes
from fxcompress.inputs import InputSpec, parse_input
from fxcompress.maxbatch import VARIANTS, MaxBatch, max_batch
from fxcompress.options import Options
from fxcompress.testing_graphs import capture_module, measure

WIDTH = 64
MODEL = """
import torch

def mlp():
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU()), (torch.randn(8, 64),)
"""
LOSS_BYTES = 4
EAGER = Options(inner="aot_eager", min_bytes=1024)


class Mlp(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = F.gelu(layer(x))
        return x.square().mean()


class Reading(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum().item() else super().forward(-x)


class Broken(Mlp):
    """Three compiled graphs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.layers[0](x))
        torch._dynamo.graph_break()
        x = F.gelu(self.layers[1](x))
        torch._dynamo.graph_break()
        return F.gelu(self.layers[2](x)).square().mean()


def mlp() -> Any:
    return Mlp(), (torch.randn(16, WIDTH),)


def found(memory: int, factory: Any = mlp, **more: Any) -> MaxBatch:
    return max_batch(factory, memory, **{"options": EAGER, "variants": ("plain", "actcomp"), **more})


def measured_total(batch: int) -> int:
    """Everything that is alive at the peak of a plain step, its working memory measured by the interpreter.

    The interpreter measures its own graphs; the caller holds the loss besides.
    """
    module = Mlp()
    peak = max(max(curve.values()) for curve in measure(capture_module(module, (torch.randn(batch, WIDTH),))))
    parameters = storage_bytes(module.parameters())
    return 4 * parameters + batch * WIDTH * 4 + peak + LOSS_BYTES


@pytest.mark.parametrize("memory", [400_000, 1_000_000])
def test_the_plain_answer_is_what_measuring_finds(memory: int) -> None:
    """Interpreted, the predicted peak is exact: the answer fits when it is run, and one more does not."""
    (answer,) = found(memory, variants=("plain",)).answers
    assert answer.largest and answer.next and answer.next.batch == answer.largest.batch + 1
    assert answer.largest.footprint.total_bytes == measured_total(answer.largest.batch) <= memory
    assert answer.next.footprint.total_bytes == measured_total(answer.next.batch) > memory
    assert answer.traces <= 5


def test_compression_fits_more_and_a_budget_no_less() -> None:
    result = found(1_000_000, options=Options(min_bytes=1024), variants=("plain", "actcomp", "budget"))
    plain, ours, budget = (answer.largest.batch for answer in result.answers if answer.largest)
    assert plain < ours <= budget


def test_more_memory_never_means_a_smaller_batch() -> None:
    sizes = [found(memory, variants=("plain",)).answers[0].largest for memory in (200_000, 400_000, 800_000)]
    assert [probe.batch for probe in sizes if probe] == sorted(probe.batch for probe in sizes if probe)


def test_specifications_and_the_factory_mean_the_same() -> None:
    by_factory = found(500_000, variants=("plain",)).answers[0].largest
    by_text = found(500_000, Mlp, inputs=[f"f32[B,{WIDTH}]"], variants=("plain",)).answers[0].largest
    assert by_factory == by_text


def test_a_multiple_of_the_batch() -> None:
    single = found(500_000, Mlp, inputs=[f"f32[B,{WIDTH}]"], variants=("plain",)).answers[0].largest
    fourfold = found(500_000, Mlp, inputs=[f"f32[4*B,{WIDTH}]"], variants=("plain",)).answers[0].largest
    assert single and fourfold and fourfold.batch == single.batch // 4


def test_memory_that_holds_no_batch_at_all() -> None:
    (answer,) = found(1000, variants=("plain",)).answers
    assert answer.largest is None and answer.next and answer.next.batch == 1


def test_a_batch_without_end() -> None:
    (answer,) = found(10**9, variants=("plain",), most=100).answers
    assert answer.largest and answer.largest.batch == 100 and answer.next is None


def test_an_absolute_budget_is_a_limit_of_its_own() -> None:
    free = found(1_000_000, variants=("actcomp",)).answers[0].largest
    capped = found(1_000_000, options=Options(inner="aot_eager", min_bytes=1024, budget=200_000))
    answer = capped.answers[1].largest
    assert free and answer and answer.batch < free.batch and answer.footprint.peak_bytes <= 200_000


def test_several_graphs_stand_on_what_the_earlier_ones_hold() -> None:
    result = found(500_000, lambda: (Broken(), (torch.randn(16, WIDTH),)), variants=("plain", "budget"))
    (whole,) = found(500_000, variants=("plain",)).answers
    (answer,) = result.answers
    assert answer.largest and whole.largest and answer.largest.graphs == 3
    assert 0.5 * whole.largest.batch <= answer.largest.batch <= whole.largest.batch
    assert result.skipped == (("budget", "a budget holds per graph, and this step has 3"),)


def test_stacking() -> None:
    first, second = GraphNeed(10, 12, 5, 2), GraphNeed(9, 4, 3, 1)
    assert stacked_peak([first]) == 14
    assert stacked_peak([first, second]) == 7 + 9
    assert stacked_peak([]) == 0


@pytest.mark.parametrize("name", list(STATES))
def test_parts_are_those_of_a_real_optimizer(name: str) -> None:
    module = Mlp()
    module.layers[0].requires_grad_(False)
    module.register_buffer("table", torch.zeros(100))
    counted = footprint_of(module, ((torch.randn(4, WIDTH),), {}), name, 7)
    module(torch.randn(4, WIDTH)).backward()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    made = {
        "adamw": lambda: torch.optim.AdamW(trained),
        "sgd": lambda: torch.optim.SGD(trained, momentum=0.9),
    }
    state_bytes = 0
    if name in made:
        optimizer = made[name]()
        optimizer.step()
        tensors = [value for state in optimizer.state.values() for value in state.values() if value is not None]
        state_bytes = storage_bytes(tensor for tensor in tensors if tensor.dim())
    assert counted.optimizer_bytes == state_bytes
    assert counted.gradient_bytes == storage_bytes(p.grad for p in trained if p.grad is not None)
    assert counted.parameter_bytes == sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
    assert counted.input_bytes == 4 * WIDTH * 4
    assert counted.total_bytes == counted.fixed_bytes + counted.input_bytes + 7


def test_tied_parameters_count_once() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    module[1].weight = module[0].weight
    assert footprint_of(module, (), "adamw", 0).parameter_bytes == (64 + 8 + 8) * 4


@pytest.mark.parametrize("make", [
    lambda: torch.randn(2, 3, 4, 5),
    lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    lambda: torch.randn(7, 2).t(),
    lambda: torch.ones(2, dtype=torch.bool),
])  # fmt: skip
def test_more_rows_keep_dtype_and_memory_order(make: Any) -> None:
    tensor = make()
    made = with_leading_size(tensor, 6)
    assert made.shape == (6, *tensor.shape[1:]) and made.dtype is tensor.dtype
    assert made.stride() == torch.empty_like(torch.cat([tensor] * 3)).stride() or tensor.dim() == 2
    assert sorted(range(tensor.dim()), key=made.stride) == sorted(range(tensor.dim()), key=tensor.stride)


def test_scalars_and_plain_values_stay() -> None:
    scalar = torch.tensor(3.0)
    assert with_leading_size(scalar, 5) is scalar
    batches = batch_maker(
        (), (torch.randn(4, 2), 3), {"mask": [torch.ones(4)]}, FakeTensorMode(allow_non_fake_inputs=True)
    )
    (x, number), kwargs = batches.make(9)
    assert batches.start == 4 and x.shape == (9, 2) and number == 3 and kwargs["mask"][0].shape == (9,)


@pytest.mark.parametrize(
    "factory, more, words",
    [
        (lambda: (Mlp(), (torch.randn(4, 8), torch.randn(5, 8))), {}, ["4x8, 5x8", "common leading size", "--input"]),
        (lambda: (Mlp(), (torch.randn(0, 8),)), {}, ["common leading size"]),
        (Mlp, {}, ["no inputs to vary", "--input"]),
        (Mlp, {"inputs": ["f32[8,64]"]}, ["no size is B"]),
        (mlp, {"optimizer": "adam"}, ["unknown optimizer", "'adamw'"]),
        (mlp, {"variants": ("plane",)}, ["unknown variant", "'plain'"]),
        (lambda: (Reading(), (torch.randn(4, WIDTH),)), {}, ["reads values"]),
        (lambda: (Mlp().requires_grad_(False), (torch.randn(4, WIDTH),)), {}, ["without gradients"]),
    ],
)
def test_errors_say_what_to_do(factory: Any, more: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(FxcompressError) as caught:
        found(10**6, factory, **more)
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_error_of_the_model_names_the_batch() -> None:
    with pytest.raises(Exception) as caught:
        found(10**6, lambda: (Mlp(), (torch.randn(4, WIDTH + 1),)))
    assert any("batch size 4" in note for note in caught.value.__notes__)


def test_the_command_knows_what_the_search_knows() -> None:
    """It states the names itself, so that its help needs no torch."""
    assert tuple(STATES) == OPTIMIZERS and CHOICES == VARIANTS


@pytest.mark.parametrize("text, shape", [("f32[B,3]", (5, 3)), ("f32[ 4*B , B]", (20, 5)), ("i64[2 * B]<7", (10,))])
def test_specifications_with_a_batch(text: str, shape: tuple[int, ...]) -> None:
    assert parse_input(text, batch=5).shape == shape
    with pytest.raises(OptionError, match="maxbatch"):
        parse_input(text)


@pytest.mark.parametrize(
    "text", ["f32[b,3]", "f32[B*2]", "f32[2B]", "f32[**B]", "B[3]", "f32[N,3]", "f32[B", "f32[-B]"]
)
def test_wrong_specifications_with_a_batch(text: str) -> None:
    with pytest.raises(OptionError, match="expected a form like"):
        parse_input(text, batch=5)


def test_plain_specifications_read_the_same_with_a_batch() -> None:
    assert parse_input("bf16[2,3]", batch=5) == InputSpec("bf16", (2, 3))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "batch_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    monkeypatch.delitem(sys.modules, "batch_model", raising=False)
    return "batch_model:mlp"


def test_the_command(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["maxbatch", model, "--memory", "1MiB", "--option", "inner=aot_eager"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert (
        "largest batch" in out and "peak (predicted)" in out and "leading size of the factory's inputs (8 there)" in out
    )
    assert main([*argv, "--json", "--variants", "plain", "--optimizer", "none"]) == 0
    content = json.loads(capsys.readouterr().out)
    (answer,) = content["answers"]
    assert content["memory_bytes"] == 2**20 and answer["variant"] == "plain" and answer["batch"] > 8
    assert answer["largest"]["optimizer_bytes"] == 0
    assert answer["largest"]["total_bytes"] <= 2**20 < answer["next"]["total_bytes"]
    assert main([*argv[:3], "1KiB", "-q", *argv[4:]]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--memory", "much"], ["--memory 'much'", "24GiB"]),
        (["--memory", "1MiB", "--variants", "plane"], ["unknown variant 'plane'"]),
        (["--memory", "1MiB", "--input", "f32[8,64]"], ["no size is B"]),
    ],
)
def test_bad_arguments_are_one_line(model: str, argv: list[str], words: list[str], capsys: Any) -> None:
    assert main(["maxbatch", model, *argv]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and all(word in err for word in words), err
