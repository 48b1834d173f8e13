"""faults.md, section Tensors and storage: layouts, aliases, mutation, and tensors that are no plain tensors."""

import warnings

import pytest
import torch
from step_pairs import EXACT, LOSSY, compare_both, mlp, train
from torch import nn
from torch.nn import functional as F
from torch.testing._internal.two_tensor import TwoTensor

from fxcompress import ledger


class Apply(nn.Module):
    """A function of the input and of one linear layer."""

    def __init__(self, function, width: int = 64) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(width, width), function

    def forward(self, *args: torch.Tensor) -> object:
        return self.function(self.linear, *args)


def of(function, *shape: int, width: int = 64):
    def case():
        return Apply(function, width), (torch.randn(*shape, requires_grad=True),)

    return case


LAYOUTS = {
    "transposed": lambda f, x: torch.tanh(f(x).T).T.sigmoid(),
    "transposed batch": lambda f, x: torch.tanh(f(x).view(8, 4, 64).transpose(0, 1) * 2),
    "expanded": lambda f, x: torch.tanh(f(x)[:1].expand(32, 64)) * torch.sigmoid(x),
    "expanded and saved": lambda f, x: f(x)[:1].expand(32, 64) * f(x).exp(),
    "strided slice": lambda f, x: torch.tanh(f(x)[:, ::2]) * torch.sigmoid(f(x)[::2].repeat(2, 1)[:, ::2]),
    "overlapping": lambda f, x: torch.sigmoid(torch.as_strided(f(x), (60, 40), (32, 1))).exp(),
    "unfold": lambda f, x: torch.sigmoid(f(x).unfold(1, 16, 4)).exp(),
    "diagonal": lambda f, x: torch.tanh(torch.diagonal(f(x).view(8, 4, 8, 8), dim1=2, dim2=3)),
    "flip and roll": lambda f, x: torch.tanh(f(x).flip(0)) * torch.sigmoid(f(x).roll(3, 1)),
    "chunks": lambda f, x: torch.cat([torch.tanh(c) * torch.sigmoid(c) for c in f(x).chunk(4, 1)], 1),
    "split and swap": lambda f, x: (lambda a, b: torch.tanh(a) * torch.sigmoid(b) * a)(*f(x).split(32, 1)),
    "stack and unbind": lambda f, x: sum(torch.sigmoid(r) * r for r in f(x).view(4, 8, 64).unbind(0)),
    "cat with itself": lambda f, x: torch.tanh(torch.cat([f(x), f(x)], 0)).exp(),
    "nothing contiguous": lambda f, x: torch.sigmoid(f(x).t().reshape(8, -1).t()).exp(),
    "pad": lambda f, x: torch.sigmoid(F.pad(f(x), (3, 5))).exp(),
    "gather": lambda f, x: torch.sigmoid(f(x)[torch.arange(31, -1, -1)]).exp(),
    "view as other rank": lambda f, x: torch.sigmoid(f(x).view(2, 4, 4, 8, 8).permute(4, 0, 2, 1, 3)).exp(),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str):
    compare_both(of(LAYOUTS[name], 32, 64), encodes=None)


@pytest.mark.parametrize("name", ["transposed", "as_strided", "expanded", "overlapping"])
def test_inputs_that_are_not_contiguous(name: str):
    def case():
        base = torch.randn(64, 64)
        inputs = {
            "transposed": base.t(),
            "as_strided": base.as_strided((32, 64), (128, 1)),
            "expanded": base[:1].expand(32, 64),
            "overlapping": base.as_strided((32, 64), (32, 1)),
        }
        return mlp(64, nn.GELU(), nn.Dropout(0.2)), (inputs[name],)

    compare_both(case)


def test_channels_last():
    def case():
        model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 4, 3), nn.ReLU())
        x = torch.randn(2, 4, 12, 12).contiguous(memory_format=torch.channels_last)
        return model.to(memory_format=torch.channels_last), (x.requires_grad_(),)

    compare_both(case)


def test_a_signal_of_one_channel_keeps_its_layout():
    """As Wav2Vec2's first block, whose convolution is computed again: oneDNN reads off the stride of a dimension of
    size 1 how to lay its result out, and ATen's group normalization errs where that differs from the gradient's."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv1d(1, 16, 8, 4, bias=False), nn.GroupNorm(16, 16)
            self.second = nn.Conv1d(16, 16, 3, 2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.second(F.gelu(self.norm(self.first(x)))).float()

    compare_both(lambda: (Block(), (torch.randn(3, 1, 200),)))


def test_slices_of_one_fused_buffer_are_stored_and_counted_once():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).view(2, 16, 3, 4, 16).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(y.transpose(1, 2).reshape(2, 16, 64))

    ours = compare_both(lambda: (Attention(), (torch.randn(2, 16, 64),)), within=0.1)
    (graph,) = ours.graphs
    storages = [d.tensor.storage for d in graph.decisions if d.codec != "shared"]
    assert len(storages) == len(set(storages))
    views = [d for d in graph.decisions if d.codec == "shared"]
    assert all(d.nbytes == 0 for d in views)


def test_a_saved_tensor_that_is_an_output_too():
    def both(f, x):
        y = torch.tanh(f(x))
        return y, torch.sigmoid(f(y) * 2).exp(), y.view(-1)[:64]

    ours = compare_both(of(both, 32, 64))
    assert any(d.tensor.refusal == "user output" for graph in ours.graphs for d in graph.decisions)


@pytest.mark.parametrize("options", [None, EXACT, LOSSY])
def test_an_output_mutated_before_backward_is_pytorchs_own_error(options: dict[str, object] | None):
    backend = "actcomp" if options else "aot_eager"
    compiled = torch.compile(Apply(lambda f, x: torch.tanh(f(x))), backend=backend, options=options)
    y = compiled(torch.randn(32, 64))
    y.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("options", [None, EXACT, LOSSY])
def test_an_input_mutated_before_backward_is_pytorchs_own_error(options: dict[str, object] | None):
    compiled = torch.compile(Apply(lambda f, x: f(x)), backend="actcomp" if options else "aot_eager", options=options)
    x = torch.randn(32, 64)
    y = compiled(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def _in_place(f, x):
    y = f(x)
    y.mul_(2).add_(1)
    z = torch.tanh(y)
    y[:, 3] = 0
    return torch.sigmoid(z * y).exp() * 3


def _mutates_input(f, x, memory):
    memory.mul_(0.5).add_(f(x).detach())
    return torch.tanh(f(x) * memory).exp()


@pytest.mark.parametrize("act", [nn.ReLU, nn.Hardtanh, nn.Dropout, nn.SiLU])
def test_in_place_modules(act: type[nn.Module]):
    compare_both(lambda: (mlp(64, act(inplace=True), nn.Linear(64, 64), nn.Tanh()), (torch.randn(32, 64),)))


def test_in_place_operators():
    compare_both(of(_in_place, 32, 64))


def test_mutated_inputs():
    results = []
    for backend, options in (("aot_eager", None), ("actcomp", EXACT), ("actcomp", LOSSY)):
        memory = torch.ones(32, 64)
        train(lambda memory=memory: (Apply(_mutates_input), (torch.randn(32, 64), memory)), backend, options)
        results.append(memory)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    compare_both(lambda: (Apply(_mutates_input), (torch.randn(32, 64), torch.ones(32, 64))))


def test_buffers_mutated_in_training():
    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)
            self.register_buffer("mean", torch.zeros(64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x)
            self.mean.lerp_(y.detach().mean(0), 0.1)
            return torch.tanh(y - self.mean).exp()

    compare_both(lambda: (Average(), (torch.randn(32, 64),)))


def test_input_aliases_returned():
    compare_both(of(lambda f, x: (x, x.view(-1), x.t(), torch.tanh(f(x)).exp()), 32, 64))


def test_outputs_that_alias_each_other():
    def views(f, x):
        y = torch.tanh(f(x)).exp()
        return y, y.t(), y[3:5], y.detach()

    compare_both(of(views, 32, 64), encodes=None)


def test_complex_tensors_are_left_alone_and_right():
    def spectrum(f, x):
        y = torch.fft.rfft(torch.tanh(f(x)).exp())
        return (y * y.conj()).real + (y * (1 + 2j)).abs()

    ours = compare_both(of(spectrum, 32, 64))
    assert all(not d.tensor.dtype.startswith("complex") for d in ours.encoded)


def test_sparse_inputs_are_right():
    def case():
        indices = torch.randint(0, 64, (2, 100))
        sparse = torch.sparse_coo_tensor(indices, torch.randn(100), (64, 64)).coalesce()
        return Apply(lambda f, x, s: torch.tanh(torch.sparse.mm(s, f(x))).exp()), (torch.randn(64, 64), sparse)

    compare_both(case, encodes=None)


def test_quantized_tensors_are_right():
    def rounded(f, x):
        y = torch.fake_quantize_per_tensor_affine(f(x), 0.1, 0, -128, 127)
        return torch.tanh(y).exp()

    compare_both(of(rounded, 32, 64))


def jagged():
    values = torch.randn(11, 64, requires_grad=True)
    return torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 3, 7, 11]))


def _on_nested(backend: str, options: dict[str, object] | None) -> tuple[list[torch.Tensor], list[str]]:
    torch._dynamo.reset()
    ledger.clear()
    torch.manual_seed(0)
    module = Apply(lambda f, x: torch.sigmoid(torch.tanh(f(x)) * 2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = torch.compile(module, backend=backend, options=options)(jagged())
        (y.values() * torch.arange(64)).sum().backward()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return [y.values(), *grads], [str(w.message) for w in caught if "actcomp" in str(w.message)]


@pytest.mark.parametrize("options", [EXACT, LOSSY])
def test_nested_tensors_are_right(options: dict[str, object]):
    plain, _ = _on_nested("aot_eager", None)
    ours, warned = _on_nested("actcomp", options)
    assert torch.equal(plain[0], ours[0])
    for a, b in zip(plain, ours, strict=True):
        assert float((a - b).detach().norm() / a.detach().norm()) <= (0.0 if options is EXACT else 0.02)
    assert len(warned) == len(ledger.unchanged()) <= 1


@pytest.mark.parametrize("options", [EXACT, LOSSY])
def test_tensor_subclasses_are_right(options: dict[str, object]):
    def case():
        x = TwoTensor(torch.randn(32, 64), torch.randn(32, 64))
        return Apply(lambda f, x: torch.sigmoid(torch.tanh(f(x)) * 2)), (x,)

    def step(backend: str, options: dict[str, object] | None):
        torch._dynamo.reset()
        torch.manual_seed(0)
        module, args = case()
        y = torch.compile(module, backend=backend, options=options)(*args)
        y.sum().backward()
        weight = module.linear.weight.grad
        assert weight is not None
        return [y.a.detach(), y.b.detach(), weight.a if isinstance(weight, TwoTensor) else weight]

    plain, ours = step("aot_eager", None), step("actcomp", options)
    assert torch.equal(plain[0], ours[0]) and torch.equal(plain[1], ours[1])
    for a, b in zip(plain[2:], ours[2:], strict=True):
        assert float((a - b).norm() / a.norm()) <= (0.0 if options is EXACT else 0.02)


def test_subclass_parameters_are_right():
    def case():
        module = Apply(lambda f, x: torch.sigmoid(torch.tanh(f(x)) * 2))
        weight = module.linear.weight.detach()
        module.linear.weight = nn.Parameter(TwoTensor(weight, weight.clone()))
        return module, (torch.randn(32, 64),)

    def gradient(backend: str, options: dict[str, object] | None) -> torch.Tensor:
        torch._dynamo.reset()
        torch.manual_seed(0)
        module, args = case()
        torch.compile(module, backend=backend, options=options)(*args).sum().backward()
        grad = module.linear.weight.grad
        return grad.a if isinstance(grad, TwoTensor) else grad

    assert torch.equal(gradient("aot_eager", None), gradient("actcomp", EXACT))
    plain = gradient("aot_eager", None)
    assert float((plain - gradient("actcomp", LOSSY)).norm() / plain.norm()) < 0.02
