"""fxcompress in a compiler stack of one's own: graphs in, graphs out, no torch.compile.

Run `python examples/custom_stack.py`. Two ways in:

- `partition_fn(options)` is a drop-in partitioner for AOTAutograd;
- `pipeline.run(fw, bw, options)` rewrites a forward/backward pair that any partitioner made.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from functorch.compile import aot_function, default_partition, make_boxed_func
from torch import fx, nn

from fxcompress import Options
from fxcompress.partition import partition_fn
from fxcompress.pipeline import run

OPTIONS = Options(inner="aot_eager", bits=4, operand_bits=8, min_bytes=1024)


def compiler(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """Where your own code generator would stand; this one interprets."""
    return make_boxed_func(gm.forward)


def own_partitioner(
    joint: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Any partitioner, followed by our pipeline."""
    fw, bw = default_partition(joint, inputs, num_fwd_outputs=kwargs["num_fwd_outputs"])
    result = run(fw, bw, OPTIONS, num_fwd_outputs=kwargs["num_fwd_outputs"])
    print(
        f"pipeline.run:  saved for backward {result.plan.saved_bytes_before} -> {result.plan.saved_bytes_after} bytes"
    )
    return result.fw, result.bw


def gradient(partitioner: Callable[..., Any]) -> torch.Tensor:
    """The gradient of one step through AOTAutograd with this partitioner, as one vector."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256), nn.Tanh(), nn.Linear(256, 10))
    names = [name for name, _ in model.named_parameters()]
    x, target = torch.randn(64, 256), torch.randint(0, 10, (64,))

    def loss(x: torch.Tensor, target: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        output = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))
        return nn.functional.cross_entropy(output, target)

    compiled = aot_function(loss, fw_compiler=compiler, bw_compiler=compiler, partition_fn=partitioner)
    compiled(x, target, *model.parameters()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main() -> None:
    exact = gradient(default_partition)
    for name, partitioner in (("partition_fn", partition_fn(OPTIONS)), ("pipeline.run", own_partitioner)):
        error = float((gradient(partitioner) - exact).norm() / exact.norm())
        print(f"{name + ':':15}relative gradient error {error:.4f}")


if __name__ == "__main__":
    main()
