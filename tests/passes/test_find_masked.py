"""Values with extreme entries by construction, against the entries of really executed values."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fxcompress import pipeline
from fxcompress.options import Options
from fxcompress.passes.find_masked import find_masked, learned_inputs
from fxcompress.passes.find_saved import outputs, placeholders
from fxcompress.passes.ops import is_attention, op_name
from fxcompress.testing_graphs import Pair, capture, capture_module, distance, node_values, run
from fxcompress.testing_programs import Program, programs

SEARCH = settings(deadline=None, max_examples=8, derandomize=True)


def hidden() -> torch.Tensor:
    return torch.ones(8, 8, dtype=torch.bool).triu(1)


def additive(low: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(8, 8, dtype=dtype).masked_fill(hidden(), low)


MASKS = {
    "filled": lambda s: s.masked_fill(hidden(), -torch.inf),
    "where": lambda s: torch.where(hidden(), -torch.inf, s),
    "lowest": lambda s: s.masked_fill(hidden(), torch.finfo(torch.float32).min),
    "-10000": lambda s: s.masked_fill(hidden(), -10000),
    "-1e9": lambda s: torch.where(hidden(), -1e9, s),
    "scaled": lambda s: s + (1 - (~hidden()).float()) * -10000.0,
    "made": lambda s: s + torch.full((8, 8), -torch.inf).triu(1),
    "chosen": lambda s: s + torch.where(hidden(), -torch.inf, 0.0),
    "padding": lambda s: F.pad(s[:, :7], (0, 1), value=-torch.inf),
    "scattered": lambda s: s.scatter(1, torch.arange(8).view(8, 1), -torch.inf),
    "a column": lambda s: s.index_fill(1, torch.tensor([3]), -torch.inf),
}
MOVES = {
    "nothing": lambda s: s,
    "halved": lambda s: s * 0.5,
    "transposed": lambda s: s.transpose(0, 1).contiguous().transpose(0, 1),
    "shifted": lambda s: s - 1.5,
    "doubled": lambda s: torch.cat([s, s]),
    "lower half": lambda s: s.tril(2),
    "rolled": lambda s: s.roll(1, 0),
    "gathered": lambda s: s.gather(1, torch.arange(s.shape[1]).expand(s.shape)),
    "repeated": lambda s: s.repeat(3, 1),
    "selected": lambda s: s[torch.tensor([1, 3, 5])],
    "padded": lambda s: F.pad(s, (0, 0, 1, 1)),
    "larger": lambda s: torch.minimum(s, s.sin().detach().nan_to_num()),
}


def extreme(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and bool((value.abs() >= 1e3).any())


def extremes(pair: Pair) -> set[str]:
    values = node_values(pair.fw, pair.inputs)
    return {node.name for node, value in values.items() if node.op == "call_function" and extreme(value)}


def found(pair: Pair) -> set[str]:
    names = {node.name for node in find_masked(pair.fw)}
    assert names == {node.name for node in find_masked(pair.fw)}, "a second look finds something else"
    return names


def scores() -> torch.Tensor:
    return torch.randn(8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)


@SEARCH
@given(st.sampled_from(sorted(MASKS)), st.lists(st.sampled_from(sorted(MOVES)), max_size=3, unique=True))
def test_every_executed_extreme_is_found(mask: str, moves: list[str]) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        s = MASKS[mask](x.sin() * 3)
        for move in moves:
            s = MOVES[move](s)
        return s.softmax(-1)

    pair = capture(function, (scores(),), "default")
    assert extremes(pair) and extremes(pair) <= found(pair)


@pytest.mark.parametrize(
    "mask, move", [(mask, "nothing") for mask in MASKS] + [("filled", move) for move in MOVES if move != "nothing"]
)
def test_each_mask_through_each_move(mask: str, move: str) -> None:
    pair = capture(lambda x: MOVES[move](MASKS[mask](x.sin() * 3)).softmax(-1), (scores(),), "default")
    assert extremes(pair) <= found(pair)


@SEARCH
@given(programs())
def test_ordinary_programs_hold_none(program: Program) -> None:
    # What is added to a caller's tensor might be masked by it; sin() makes it the program's own.
    pair = capture(lambda x, *weights: program(x.sin(), *weights), program.inputs(), program.partition)
    assert found(pair) == set() == extremes(pair)


@pytest.mark.parametrize("reader", [lambda s: s.softmax(-1), torch.exp, F.softplus, lambda s: s.clamp(-3.0, 3.0)])
def test_a_callers_mask_is_found_where_the_sum_is_read_as_masks_are(reader) -> None:
    """Its values are not known when compiling; what reads the sum is."""
    pair = capture(lambda x, m: reader(x.sin() + m.view(1, 8, 8)), (scores(), additive(-torch.inf)), "default")
    assert extremes(pair) and extremes(pair) - {"view"} <= found(pair) | {"view"}


@pytest.mark.parametrize("reader", [lambda s: s @ s, torch.square, lambda s: s.sin(), lambda s: F.relu(s) + s @ s])
def test_a_sum_whose_reader_would_spread_infinities_is_not_masked(reader) -> None:
    """Positions and targets are the caller's, too, and nothing gives -inf a meaning there."""
    pair = capture(lambda x, m: reader(x.sin() + m), (scores(), scores().detach()), "default")
    assert found(pair) == set()


PUT = {
    "as it is": lambda x, m: x + m,
    "before another sum": lambda x, m: x + m + x.cos(),
    "two masks": lambda x, m: x + (m + m.roll(1, 0)),
    "logarithm": lambda x, m: x + (m == 0).float().log(),
    "scaled after": lambda x, m: (x + m) * 0.5,
    "subtracted": lambda x, m: x - -m,
    "sorted after": lambda x, m: (x + m).sort(1)[0],
    "clamped": lambda x, m: x + m.clamp(max=0.0),
    "beside constants": lambda x, m: x + torch.cat([m[:, :4], torch.zeros(8, 4)], 1),
    "in the place of": lambda x, m: torch.where(m == 0, x, m),
    "looked up": lambda x, m: x + m[torch.arange(8)],
    "added to a product of matrices": lambda x, m: torch.addmm(m, x, x),
    "cast after": lambda x, m: (x.bfloat16() + m.bfloat16()).float(),
    "added to a product": lambda x, m: torch.baddbmm(m.view(1, 8, 8), x.view(1, 8, 8), x.view(1, 8, 8)),
    "made here, added to a product": lambda x, m: torch.baddbmm(
        torch.where(m == 0, 0.0, -torch.inf).view(1, 8, 8), x.view(1, 8, 8), x.view(1, 8, 8)
    ),
}
READ = {"softmax": torch.softmax, "log_softmax": torch.log_softmax, "logsumexp": torch.logsumexp}


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("put", PUT)
def test_a_callers_mask_is_found_however_it_is_put(put: str, read: str) -> None:
    pair = capture(lambda x, m: READ[read](PUT[put](x.sin(), m), -1), (scores(), additive(-torch.inf)), "default")
    values = {node.name: value for node, value in node_values(pair.fw, pair.inputs).items()}
    mixed = {name for name in extremes(pair) if values[name].isfinite().any() and (values[name] == -torch.inf).any()}
    made = {name for name in mixed if len(values[name].unique()) > 3}
    assert made and made - {"_log_softmax", "detach"} <= found(pair)


def test_a_bias_of_the_model_is_no_mask() -> None:
    pair = capture(lambda x, b: (x.sin() + b.sin()).softmax(-1), (scores(), scores()), "default")
    assert found(pair) == set()


def test_what_is_learned_is_no_mask() -> None:
    """A position's vector, in a stream that a softmax over positions pools in the end."""
    learned = scores().detach().requires_grad_()
    pair = capture(lambda x, b: (x.sin() + b).logsumexp(0), (scores(), learned), "default")
    inputs = placeholders(pair.fw)
    assert found(pair) and not find_masked(pair.fw, learned_inputs(inputs, [None, inputs[1]]))
    assert not learned_inputs(inputs, [inputs[1]])


def test_a_largest_value_that_is_not_subtracted_is_a_pool() -> None:
    pair = capture(lambda x, b: (x.sin() + b).amax(0).sin(), (scores(), scores()), "default")
    assert found(pair) == set()


@pytest.mark.parametrize("low", [-1.0, -20.0, -900.0])
def test_what_activations_may_be_is_ordinary(low: float) -> None:
    pair = capture(lambda x: (x * 2).masked_fill(hidden(), low).exp(), (scores(),), "default")
    assert found(pair) == set() == extremes(pair)


def test_whole_numbers_are_no_masks() -> None:
    pair = capture(lambda x: x.sin().flatten()[torch.full((8,), 5000) % 64] * x.numel(), (scores(),), "default")
    assert found(pair) == set()


@pytest.mark.parametrize("low", [-1e4, -1e9, -torch.inf])
def test_logits_of_forbidden_classes_spoil_no_gradient(low: float) -> None:
    """Action masking: a group with such a logit has codes for nothing else."""
    w = scores().detach().requires_grad_()
    pair = capture(lambda x, w: (x @ w).masked_fill(hidden(), low).logsumexp(1), (scores(), w))
    before = run(pair)
    pipeline.run(pair.fw, pair.bw, Options(inner="aot_eager", min_bytes=64))
    assert distance(run(pair).gradients, before.gradients) < 0.05


def test_additive_masks_of_fused_attention_are_found_and_operands_are_not() -> None:
    heads = [torch.randn(1, 2, 8, 8, requires_grad=True) for _ in range(3)]

    def attend(q, k, v, bias):
        return F.scaled_dot_product_attention(q * 2, k * 2, v * 2, attn_mask=bias.sin())

    pair = capture(attend, (*heads, torch.randn(1, 2, 8, 8)), "default")
    assert any(is_attention(node) for node in pair.fw.graph.nodes)
    (mask,) = find_masked(pair.fw)
    while mask.op == "call_function" and op_name(mask) != "sin":
        mask = mask.all_input_nodes[0]
    assert op_name(mask) == "sin"


def test_attention_without_a_mask_has_none() -> None:
    heads = [torch.randn(1, 2, 8, 8, requires_grad=True) for _ in range(3)]
    pair = capture(lambda *h: F.scaled_dot_product_attention(*(t * 2 for t in h), is_causal=True), heads, "default")
    assert not {op_name(node) for node in find_masked(pair.fw)} & {"mul"}


def test_numbers_that_the_program_states_are_read_under_fake_tensors_too() -> None:
    pair = capture(lambda x: torch.where(hidden(), torch.tensor(-1e9), x.sin() * 3).amax(1), (scores(),), "default")
    with FakeTensorMode():
        assert "where" in found(pair)


class FrozenNorm(torch.nn.Module):
    """Statistics and parameters in buffers, as detectors have them; written as a scale and a bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("scale", "bias"):
            self.register_buffer(name, torch.rand(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.bias


class RunningNorm(torch.nn.Module):
    """Batch normalization out of training, as Inductor takes it apart."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(channels))
        self.register_buffer("variance", torch.rand(channels))
        self.weight, self.bias = (torch.nn.Parameter(torch.rand(channels)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, variance, weight, bias = (v[:, None, None] for v in (self.mean, self.variance, self.weight, self.bias))
        return (x - mean) * torch.rsqrt(variance + 1e-5) * weight + bias


@pytest.mark.parametrize("norm", [RunningNorm, FrozenNorm])
@pytest.mark.parametrize("activation", [torch.nn.ReLU, torch.nn.ELU, torch.nn.SiLU])
@pytest.mark.parametrize("trained", [True, False])
def test_a_normalization_with_running_statistics_is_no_mask(
    norm: type[torch.nn.Module], activation: type[torch.nn.Module], trained: bool
) -> None:
    block = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3), norm(4), activation(), torch.nn.Conv2d(4, 4, 3))
    block[1].requires_grad_(trained)
    pair = capture_module(block, [torch.randn(2, 4, 8, 8)])
    assert not find_masked(pair.fw, learned_inputs(placeholders(pair.fw), outputs(pair.bw)))
