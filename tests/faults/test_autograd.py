"""faults.md, section Autograd and programs: what callers do between forward and backward, and around them."""

import copy
import pickle
import threading

import pytest
import torch
from step_pairs import EXACT, LOSSY, compare_both, mlp, train
from torch import nn
from torch._functorch import config as functorch_config
from torch._functorch import partitioners

from fxcompress import ledger

BOTH = pytest.mark.parametrize("options", [EXACT, LOSSY], ids=["exact", "8 bit"])
Options = dict[str, object] | None


def net(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return mlp(width, nn.GELU(), nn.Dropout(0.2), nn.Linear(width, width), nn.Tanh())


def compiled(model: nn.Module, options: Options, **more: object):
    return torch.compile(model, backend="actcomp" if options else "aot_eager", options=options, **more)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def agree(script, options: dict[str, object], within: float = 0.03) -> None:
    """Run `script(model, compiled)` with and without us; the tensors that it returns must agree."""
    found = []
    for choice in (None, options):
        torch._dynamo.reset()
        model = net()
        torch.manual_seed(1)
        found.append(script(model, compiled(model, choice)))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b) or (options is LOSSY and float((a - b).norm() / a.norm()) < within)


@BOTH
def test_backward_twice_gives_the_same_gradients_twice(options: dict[str, object]):
    def script(model: nn.Module, fast):
        with functorch_config.patch(donated_buffer=False):
            loss = fast(torch.randn(16, 64)).square().sum()
            loss.backward(retain_graph=True)
            first = gradients(model)
            model.zero_grad()
            loss.backward()
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(model), strict=True))
        return first

    agree(script, options)


@BOTH
def test_double_backward_is_refused_by_aot_autograd(options: dict[str, object]):
    x = torch.randn(16, 64, requires_grad=True)
    y = compiled(net(), options)(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        grad.sum().backward()


@BOTH
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forwards_before_a_backward(options: dict[str, object], order: tuple[int, int]):
    def script(model: nn.Module, fast):
        losses = [fast(torch.randn(16, 64)).square().sum() for _ in range(2)]
        for i in order:
            losses[i].backward()
        return gradients(model)

    agree(script, options)


@BOTH
def test_gradient_accumulation_with_evaluation_in_between(options: dict[str, object]):
    def script(model: nn.Module, fast):
        results = []
        for i in range(4):
            loss = fast(torch.randn(16, 64)).square().sum()
            with [torch.no_grad, torch.inference_mode, torch.enable_grad, torch.no_grad][i]():
                model.eval()
                results.append(fast(torch.randn(16, 64)).detach().clone())
                model.train()
            loss.backward()
        return results + gradients(model)

    agree(script, options)


@BOTH
def test_shared_modules_and_tied_weights(options: dict[str, object]):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner, self.norm = nn.Embedding(50, 64), nn.Linear(64, 64), nn.LayerNorm(64)

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            x = self.embed(index)
            for _ in range(3):
                x = x + torch.tanh(self.inner(self.norm(x)))
            return nn.functional.linear(x, self.embed.weight).log_softmax(-1)

    compare_both(lambda: (Tied(), (torch.randint(0, 50, (4, 16)),)))


@BOTH
def test_gradients_of_a_subset(options: dict[str, object]):
    def script(model: nn.Module, fast):
        x = torch.randn(16, 64, requires_grad=True)
        first = torch.autograd.grad(fast(x).square().sum(), [model[3].weight])
        second = torch.autograd.grad(fast(x).square().sum(), [x, model[0].bias])
        return [*first, *second]

    agree(script, options)


@BOTH
def test_frozen_and_unfrozen(options: dict[str, object]):
    def script(model: nn.Module, fast):
        results = []
        for frozen in (False, True, False):
            model[0].requires_grad_(not frozen)
            model.zero_grad(set_to_none=True)
            fast(torch.randn(16, 64)).square().sum().backward()
            results += gradients(model)
        return results

    agree(script, options)


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = net()
        self.fail = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fail:
            raise ValueError("the user's own")
        return self.layers(x)


@BOTH
def test_an_exception_in_the_forward_or_backward_leaves_the_next_step_right(options: dict[str, object]):
    def script(choice: Options) -> list[torch.Tensor]:
        torch._dynamo.reset()
        module = Failing()
        torch.manual_seed(1)
        fast = compiled(module, choice)
        module.fail = True
        with pytest.raises(ValueError, match="the user's own"):
            fast(torch.randn(16, 64))
        module.fail = False
        y = fast(torch.randn(16, 64))
        y.register_hook(_raise)
        with pytest.raises(KeyError):
            y.sum().backward()
        module.zero_grad()
        fast(torch.randn(16, 64)).square().sum().backward()
        return gradients(module)

    for a, b in zip(script(None), script(options), strict=True):
        assert torch.equal(a, b) or (options is LOSSY and float((a - b).norm() / a.norm()) < 0.03)


def _raise(_: torch.Tensor) -> None:
    raise KeyError("in the backward")


@pytest.mark.parametrize("where", ["fxcompress.pipeline.find_peak", "fxcompress.pipeline.rewrite", "cut"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_while_compiling_leaves_nothing_patched(monkeypatch, where: str, error: type[BaseException]):
    chooser, settings = partitioners.choose_saved_values_set, functorch_config.recompute_views

    def interrupt(*args: object, **kwargs: object) -> None:
        raise error("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("torch._functorch.partitioners.solve_min_cut" if where == "cut" else where, interrupt)
        with pytest.raises(BaseException, match="interrupted"):
            compiled(net(), LOSSY)(torch.randn(16, 64))
    assert partitioners.choose_saved_values_set is chooser
    assert functorch_config.recompute_views == settings
    torch._dynamo.reset()
    compiled(net(), LOSSY)(torch.randn(16, 64)).sum().backward()
    assert len(ledger.reports()) == 1


@BOTH
def test_saved_tensors_hooks_see_payloads_and_are_respected(options: dict[str, object]):
    def script(model: nn.Module, fast):
        packed = []

        def pack(x: torch.Tensor) -> torch.Tensor:
            packed.append(x.dtype)
            return x.clone()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = fast(torch.randn(16, 64)).square().sum()
        loss.backward()
        assert packed
        return gradients(model)

    agree(script, options)


@BOTH
def test_save_on_cpu(options: dict[str, object]):
    def script(model: nn.Module, fast):
        with torch.autograd.graph.save_on_cpu():
            loss = fast(torch.randn(16, 64)).square().sum()
        loss.backward()
        return gradients(model)

    agree(script, options)


@BOTH
def test_a_deep_copy_and_a_pickle_train_alike(options: dict[str, object]):
    model = net()
    fast = compiled(model, options)
    fast(torch.randn(16, 64)).sum().backward()
    model.zero_grad(set_to_none=True)
    same_weights = pickle.loads(pickle.dumps(model))
    runs = [copy.deepcopy(fast), compiled(copy.deepcopy(model), options), compiled(same_weights, options)]
    results = []
    for run in runs:
        torch.manual_seed(3)
        run(torch.randn(16, 64)).square().sum().backward()
        results.append(gradients(run))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@BOTH
def test_threads(options: dict[str, object]):
    """Models trained in parallel threads get what they get one after the other."""

    def run(number: int, results: dict[int, list[torch.Tensor]]) -> None:
        model = mlp(32 + 32 * number, nn.GELU(), nn.Tanh())
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.01 * (number + 1))
        x = torch.linspace(-1, 1, 16 * (32 + 32 * number)).reshape(16, -1)
        compiled(model, options)(x).square().sum().backward()
        results[number] = gradients(model)

    alone: dict[int, list[torch.Tensor]] = {}
    for number in range(3):
        run(number, alone)
    torch._dynamo.reset()
    together: dict[int, list[torch.Tensor]] = {}
    threads = [threading.Thread(target=run, args=(number, together)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        assert all(torch.equal(a, b) for a, b in zip(alone[number], together[number], strict=True))


def test_nothing_is_shared_between_models():
    first = train(lambda: (net(), (torch.randn(16, 64),)), "actcomp", LOSSY)
    second = train(lambda: (net(), (torch.randn(16, 64),)), "actcomp", LOSSY)
    assert first.graphs == second.graphs
