"""A hash of a graph pair: operators, shapes, dtypes, strides and topology, whatever the nodes are called."""

import hashlib
import re
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType

import torch
from torch import fx

_SYMBOL = re.compile(r"\b[su]\d+\b")


def fingerprint(*graphs: fx.GraphModule) -> str:
    """32 hex digits, equal for graphs that compute the same thing in the same order with the same layouts."""
    digest = hashlib.sha256()
    spelled_targets: dict[int, str] = {}
    symbols: dict[str, str] = {}
    for gm in graphs:
        number: dict[fx.Node, int] = {}
        for i, node in enumerate(gm.graph.nodes):
            number[node] = i
            if id(node.target) not in spelled_targets:
                spelled_targets[id(node.target)] = _spell(node.target)
            target = node.op if node.op in ("placeholder", "output") else spelled_targets[id(node.target)]
            args = fx.map_arg((node.args, node.kwargs), _speller(number))
            spelled, val = _normal(repr(args), symbols), _describe(node.meta.get("val"), symbols)
            digest.update(f"{target}|{spelled}|{val}\n".encode())
    return digest.hexdigest()[:32]


def _spell(target: object) -> str:
    """An operator's name; functions print with their address, which differs from process to process."""
    if isinstance(target, FunctionType | BuiltinFunctionType):
        return f"{target.__module__}.{target.__qualname__}"
    return str(target)


def _speller(number: dict[fx.Node, int]) -> Callable[[fx.Node], str]:
    return lambda arg: f"%{number[arg]}"


def _describe(val: object, symbols: dict[str, str]) -> str:
    if isinstance(val, torch.Tensor):
        stride = tuple(val.stride()) if val.layout is torch.strided else val.layout
        return _normal(f"{val.dtype}{tuple(val.shape)}{stride}{val.device.type}", symbols)
    if isinstance(val, (tuple, list)):
        return ",".join(_describe(item, symbols) for item in val)
    return type(val).__name__


def _normal(text: str, symbols: dict[str, str]) -> str:
    """Rename symbols (s77, u3) in order of appearance: their numbers depend on what was traced before."""
    return _SYMBOL.sub(lambda m: symbols.setdefault(m[0], f"S{len(symbols)}"), text)
