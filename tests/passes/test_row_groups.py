"""Groups end where normalized rows do: neither rows of zeros nor small ones take on their neighbours' error."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress import ledger


class Masked(nn.Module):
    """Normalizes what a product makes of rows of which some are masked."""

    def __init__(self, width: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.norm = norm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.norm(self.linear(F.gelu(x * mask)))


def gradients(width: int, norm: type[nn.Module], backend: str, options: dict[str, object] | None = None) -> Tensor:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Masked(width, norm), torch.randn(64, width)
    mask = (torch.arange(64) % 5 > 0).float()[:, None]
    compiled = torch.compile(model, backend=backend, options=options)
    (compiled(x, mask) * torch.randn(64, width)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("width", [32, 48, 128, 192])
def test_rows_of_zeros_leave_no_error(width: int, norm: type[nn.Module]) -> None:
    plain = gradients(width, norm, "aot_eager")
    ledger.clear()
    ours = gradients(width, norm, "actcomp", {"inner": "aot_eager", "min_bytes": 64})
    encoded = [dict(d.params) for graph in ledger.reports() for d in graph.decisions if d.codec == "affine"]
    assert len(encoded) == 2 and all(width % int(str(params["group"])) == 0 for params in encoded)
    assert (plain - ours).norm() < 0.15 * plain.norm()


class WithToken(nn.Module):
    """Two pre-norm layers on a sequence with a token of zeros in front, as class tokens begin."""

    def __init__(self, width: int, eps: float, how: str) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, 9, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width, eps) for _ in range(2)])
        self.linears = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.scale = nn.Parameter(torch.full((width,), 1e-3))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "cat":
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x[:, 1:]], 1)
        elif self.how == "shuffled":
            x = torch.cat([self.token.repeat(x.shape[0], 5, 1), x[:, 5:]], 1)
            x = x.gather(1, (torch.arange(9) * 2 % 9)[None, :, None].expand_as(x))
        elif self.how == "mask":
            mask = (torch.arange(9) % 4 == 0).float()[None, :, None]
            x = x * (1 - mask) + self.token * mask
        else:
            x = torch.where((torch.arange(9) % 4 == 0)[None, :, None], self.token, x)
        x = x + self.places
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x = x + self.scale * linear(norm(x))
        return x


def token_gradients(
    width: int, how: str, backend: str, options: dict[str, object] | None = None, *, dynamic: bool | None = None
) -> Tensor:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = WithToken(width, 1e-6, how), torch.randn(8, 9, width)
    compiled = torch.compile(model, backend=backend, options=options, dynamic=dynamic)
    (compiled(x) * torch.randn(8, 9, width)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("how", ["cat", "shuffled", "mask", "where"])
@pytest.mark.parametrize("width", [36, 48, 192, 200])
def test_tokens_of_zeros_leave_no_error(width: int, how: str) -> None:
    plain = token_gradients(width, how, "aot_eager")
    ours = token_gradients(width, how, "actcomp", {"inner": "aot_eager", "min_bytes": 64})
    assert (plain - ours).norm() < 0.15 * plain.norm()


@pytest.mark.parametrize("width", [36, 48])
def test_rows_behind_a_symbolic_size_come_back_dense(width: int) -> None:
    plain = token_gradients(width, "cat", "aot_eager", dynamic=True)
    ours = token_gradients(width, "cat", "actcomp", {"inner": "aot_eager", "min_bytes": 64}, dynamic=True)
    assert (plain - ours).norm() < 0.15 * plain.norm()


@pytest.mark.parametrize(("group", "texts"), [(0, []), (16, ["group=16"]), (64, ["group=64"]), (48, [])])
def test_a_stated_group_that_does_not_end_at_rows_is_warned_about(group: int, texts: list[str]) -> None:
    width = 36 if group == 16 else 48
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        token_gradients(width, "cat", "actcomp", {"inner": "aot_eager", "min_bytes": 64, "group": group})
    told = [str(warning.message) for warning in caught if "do not end where rows do" in str(warning.message)]
    assert len(told) == len(texts) and all(f"in rows of {width} elements" in text for text in told)
    assert all(text in message for text, message in zip(texts, told, strict=True))


class OfAnySize(nn.Module):
    """Normalizes a residual stream."""

    def __init__(self, width: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(width, width, bias=False), norm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(x + self.first(x))))


def scaled_gradients(width: int, norm: type[nn.Module], backend: str, options: dict[str, object] | None) -> Tensor:
    torch._dynamo.reset()
    torch.manual_seed(0)
    sizes = torch.logspace(-3, 0, 64)[torch.randperm(64)]
    model, x = OfAnySize(width, norm), torch.randn(64, width) * sizes[:, None]
    (torch.compile(model, backend=backend, options=options)(x) * torch.randn(64, 5)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("width", [48, 100, 128, 144, 192])
def test_small_rows_beside_large_ones_keep_their_gradient(width: int, norm: type[nn.Module]) -> None:
    plain = scaled_gradients(width, norm, "aot_eager", None)
    ours = scaled_gradients(width, norm, "actcomp", {"inner": "aot_eager", "min_bytes": 64})
    assert (plain - ours).norm() < 0.15 * plain.norm()


def test_rows_along_channels_that_lie_apart_take_groups_of_any_size() -> None:
    """Rows of a map are not what a normalization over channels reads, and would be 10 elements each."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 12, 3, padding=1), nn.LayerNorm(12), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.conv(x).flatten(2).transpose(1, 2)))

    torch._dynamo.reset()
    ledger.clear()
    options = {"inner": "aot_eager", "min_bytes": 64}
    torch.compile(Patches(), backend="actcomp", options=options)(torch.randn(2, 3, 10, 10)).sum().backward()
    encoded = [d for graph in ledger.reports() for d in graph.decisions if d.codec == "affine"]
    assert [dict(d.params)["group"] for d in encoded if d.tensor.stride == (1200, 1, 100)] == [128]


class Padded(nn.Module):
    """A residual block without biases on tokens of which some are zero, as padding's embeddings are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-8) for _ in range(2))
        self.first, self.second = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        before, behind = self.norms
        return behind(x + self.second(torch.tanh(self.first(before(x)))))


@pytest.mark.parametrize("width", [32, 48, 64, 96])
def test_what_is_multiplied_into_a_sum_of_zeros_leaves_no_error(width: int) -> None:
    def gradient(backend: str, options: dict[str, object] | None = None) -> Tensor:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, x = Padded(width), torch.randn(8, 9, width) * (torch.arange(9) > 2)[None, :, None]
        (torch.compile(model, backend=backend, options=options)(x) * torch.randn(8, 9, width)).sum().backward()
        assert model.second.weight.grad is not None
        return model.second.weight.grad

    plain = gradient("aot_eager")
    ours = gradient("actcomp", {"inner": "aot_eager", "min_bytes": 64})
    assert (plain - ours).norm() < 0.02 * plain.norm()
