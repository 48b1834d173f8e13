"""Full activation checkpointing as users write it: every block of a model is run again in the backward."""

import copy
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputed(nn.Module):
    """A block of which only the inputs are saved."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the block returns."""
        return checkpoint(self.block, *args, use_reentrant=False, **kwargs)


def recomputing(module: nn.Module) -> nn.Module:
    """A twin of `module` with the same parameters and buffers, in which every block is checkpointed.

    Blocks are the elements of the outermost `ModuleList`s and `Sequential`s whose elements have children; a module
    without any is one block.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, shared)
    return twin if _wrap_blocks(twin) else Recomputed(twin)


def _wrap_blocks(module: nn.Module) -> bool:
    """Wrap the blocks below `module` in place; whether there were any."""
    found = False
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and all(any(block.children()) for block in child):
            for i, block in enumerate(child):
                child[i] = Recomputed(block)
            found = True
        else:
            found |= _wrap_blocks(child)
    return found
