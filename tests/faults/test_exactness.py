"""faults.md, section Exactness: what no plan may change, and what each combination of options may."""

import itertools

import pytest
import torch
from step_pairs import EXACT, LOSSY, compare, compare_both, mlp, train
from torch import nn
from torch.nn import functional as F

from fxcompress import compat
from fxcompress.facts import CALLER_HELD
from fxcompress.plan import KEEP

COARSE = {**LOSSY, "bits": 1, "operand_bits": 2}
PLANS = {
    "exact": (EXACT, 0.0),
    "8 bit": (LOSSY, 0.05),
    "1 and 2 bit": (COARSE, 2.0),
    "float8": ({**LOSSY, "codec": "float8"}, 0.3),
}


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.3), nn.Conv2d(8, 8, 3),
            nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(128, 10), nn.Dropout(0.5),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.layers(x)
        return y, torch.rand(3, device=x.device)


@pytest.mark.parametrize("name", PLANS)
def test_outputs_buffers_random_stream_and_masks_are_equal_under_any_plan(name: str):
    options, within = PLANS[name]
    compare(lambda: (Cnn(), (torch.randn(4, 3, 14, 14),)), options, within=within, encodes=True)


@pytest.mark.parametrize("name", PLANS)
def test_the_random_stream_is_equal_over_several_steps(name: str):
    def stream(backend: str, options: dict[str, object] | None) -> torch.Tensor:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = torch.compile(mlp(64, nn.Dropout(0.5), nn.GELU()), backend=backend, options=options)
        drawn = []
        for _ in range(3):
            model(torch.randn(8, 64)).sum().backward()
            drawn.append(torch.rand(4))
        return torch.stack(drawn)

    assert torch.equal(stream("aot_eager", None), stream("actcomp", PLANS[name][0]))


PREDICATES = {
    "relu": lambda x: F.relu(x),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp_min": lambda x: x.clamp_min(0.1),
    "dropout": lambda x: F.dropout(x, 0.4),
    "where": lambda x: torch.where(x > 0.2, x * 2, x * -3),
    "abs": torch.abs,
    "maximum": lambda x: torch.maximum(x, x.flip(0)),
    "minimum": lambda x: torch.minimum(x, x.roll(1, 1)),
    "max": lambda x: x.max(1).values,
    "amax": lambda x: x.amax(1),
    "argmax": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: x.topk(7, 1).values,
    "cummax": lambda x: x.cummax(1).values,
    "median": lambda x: x.median(1).values,
    "max_pool1d": lambda x: F.max_pool1d(x[:, None], 3),
    "max_pool2d": lambda x: F.max_pool2d(x.reshape(-1, 1, 8, 8), 2),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x.reshape(-1, 1, 8, 8), 3),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.5),
    "masked_select": lambda x: x * (x > 0.3),
    "sign": lambda x: torch.sign(x) * x,
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "index": lambda x: x[:, [3, 1, 1, 5]],
    "gather": lambda x: x.gather(1, (x > 0).long()),
    "quantile mask": lambda x: x * (x > x.mean(1, keepdim=True)),
    "straight through": lambda x: x + (torch.sign(x) - x).detach(),
    "l1 norm": lambda x: x.norm(p=1, dim=1),
}


class Inner(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.scale, self.function = nn.Linear(64, 64), nn.Parameter(torch.ones(())), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.first(x)) * self.scale


@pytest.mark.parametrize("name", PREDICATES)
def test_predicates_and_indices_are_exact_whatever_the_width(name: str):
    """The input's gradient needs nothing but the predicate, so that even 1 bit must give it exactly."""

    def case():
        return Inner(PREDICATES[name]), (torch.randn(64, 64, requires_grad=True),)

    compare(case, EXACT)
    plain, ours = train(case, "aot_eager"), train(case, "actcomp", COARSE)
    for key in ("input0", "first.weight", "first.bias"):
        a, b = plain.gradients[key], ours.gradients[key]
        assert a is not None and b is not None
        assert torch.equal(a, b), key


def test_what_the_caller_holds_is_never_encoded():
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 64))
            self.register_buffer("offset", torch.randn(64, 64))

        def forward(self, x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = torch.tanh(x @ self.weight * self.offset)
            return y, torch.sigmoid((y * x)[index] * 2).square()

    inputs = (torch.randn(64, 64, requires_grad=True), torch.arange(0, 64, 2))
    ours = compare_both(lambda: (Held(), inputs), encodes=None)
    held = [d for graph in ours.graphs for d in graph.decisions if d.tensor.refusal in CALLER_HELD]
    assert held and all(d.codec in (KEEP, "shared") for d in held)
    assert {d.tensor.refusal for d in held} == set(CALLER_HELD)


def test_integer_and_bool_tensors_are_never_lossy_and_shrink():
    class Indices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            values, index = y.sort(1)
            return values * (y > 0).float() + y.gather(1, index.flip(1) % 64)

    ours = compare_both(lambda: (Indices(), (torch.randn(32, 64),)), within=1e-9)
    for decision in ours.encoded:
        assert decision.codec == "valueset"
        assert decision.nbytes < decision.tensor.storage_nbytes


WIDTHS = itertools.product(("affine",), (2, 4, 8), ("stochastic", "nearest"))
SETTINGS = [*WIDTHS, ("float8", 8, "nearest")]
FORMS = [(0, torch.float32), (16, torch.float32), (256, torch.float32), (0, torch.bfloat16), (0, torch.float16)]
GRID = [(*setting, *form) for setting, form in itertools.product(SETTINGS, FORMS)]
WITHIN = {2: 1.0, 4: 0.15, 8: 0.03}


@pytest.mark.parametrize(("codec", "bits", "rounding", "group", "dtype"), GRID)
def test_every_combination_of_options(codec: str, bits: int, rounding: str, group: int, dtype: torch.dtype):
    widths = {} if codec == "float8" else {"bits": bits, "operand_bits": bits}
    options = {**EXACT, "lossy": True, "codec": codec, "rounding": rounding, "group": group, **widths}

    def case():
        return mlp(64, nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.ReLU()).to(dtype), (
            torch.randn(32, 64).to(dtype),
        )

    compare(case, options, within=0.1 if codec == "float8" else WITHIN[bits], encodes=True)


def test_the_partitioner_global_is_untouched():
    from torch._functorch import partitioners

    before = partitioners.choose_saved_values_set
    train(lambda: (mlp(), (torch.randn(4, 32),)), "actcomp", LOSSY)
    assert partitioners.choose_saved_values_set is before
    assert compat.inductor_mode_options(None) == {}
