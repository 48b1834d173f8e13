"""Programs in which a graph that calibrates for `max_error` runs at unusual times."""

import pytest
import torch
from step_pairs import mlp
from torch import nn
from torch.utils.checkpoint import checkpoint

from fxcompress import ledger

MEASURED = {"inner": "aot_eager", "min_bytes": 64, "max_error": 0.1}


def test_compiled_autograd_traces_nothing_of_what_calibrates() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def counting(gm: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(gm)
        return gm

    fast = torch.compile(mlp(64, nn.GELU()), backend="actcomp", options=MEASURED)
    for _ in range(2):
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend=counting)):
            fast(torch.randn(16, 64)).square().sum().backward()
    assert len(graphs) <= 3 and len(ledger.reports()) == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_a_checkpoint_computes_again_is_saved_as_the_first_time(reentrant: bool) -> None:
    """Equal blocks are one graph: computed again in the backward that calibrates it, it is not compiled yet.

    Reentrant checkpoints run what needs gradients in backwards only, and there it is compiled.
    """
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)) for _ in range(2)]
    fast = [torch.compile(b, backend="actcomp", options=MEASURED) for b in blocks]
    for _ in range(2):
        x = torch.randn(32, 64, requires_grad=True)
        for block in fast:
            x = checkpoint(block, x, use_reentrant=reentrant)
        x.square().sum().backward()
    assert len(ledger.reports()) == 1
