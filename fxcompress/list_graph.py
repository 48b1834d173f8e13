"""A graph as lines of text, each with its layer, its source line and how it is saved."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

import torch
from torch import fx

from fxcompress.passes.find_codec_nodes import find_codec_nodes
from fxcompress.passes.find_saved import layer_of, source_of
from fxcompress.report.data import Line
from fxcompress.report.text import short_op

LONGEST = 120
"""Characters of one node's arguments; large constants would be pages."""
_PAYLOAD = re.compile(r"actcomp_\d+_(?!salt)")


def list_graph(gm: fx.GraphModule, notes: Mapping[str, str]) -> tuple[Line, ...]:
    """List the nodes in their order; neighbouring codec nodes make one line.

    Args:
        gm: a forward or backward graph, rewritten or not.
        notes: by node name, how its value is saved.
    """
    codecs = find_codec_nodes(gm.graph)
    lines: list[Line] = []
    # The iterator of graph.nodes starts anew after its end, which groupby asks it for.
    for is_codec, run in groupby(list(gm.graph.nodes), codecs.__contains__):
        nodes = list(run)
        lines += [_codec_line(nodes)] if is_codec else _lines(nodes, notes)
    return tuple(lines)


def _lines(nodes: Iterable[fx.Node], notes: Mapping[str, str]) -> Iterator[Line]:
    for node in nodes:
        shape, layer, source = _shape(node.meta.get("val")), layer_of(node), source_of(node)
        note = notes.get(node.name, "")
        if node.op == "placeholder":
            yield Line("input", node.name, shape, layer, source, note)
        elif node.op == "output":
            yield Line("output", _cut(f"return {_text(node.args[0])}"))
        else:
            target = node.target if isinstance(node.target, str) else short_op(str(node.target))
            arguments = [*map(_text, node.args), *(f"{name}={_text(value)}" for name, value in node.kwargs.items())]
            yield Line("node", _cut(f"{node.name} = {target}({', '.join(arguments)})"), shape, layer, source, note)


def _codec_line(nodes: list[fx.Node]) -> Line:
    made = [node for node in nodes if _PAYLOAD.match(node.name)]
    names = ", ".join(node.name for node in made)
    code = f"encode → {names}" if made else f"decode → {nodes[-1].name}"
    shapes = ", ".join(_shape(node.meta.get("val")) for node in made or nodes[-1:])
    return Line("codec", _cut(code), _cut(shapes), note=f"{len(nodes)} nodes")


def _text(value: object) -> str:
    return str(value).replace("torch.", "")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _shape(val: object) -> str:
    if isinstance(val, torch.Tensor):
        return f"{str(val.dtype).removeprefix('torch.')}[{'x'.join(map(str, val.shape))}]"
    if isinstance(val, (tuple, list)):
        return f"({', '.join(map(_shape, val))})"
    return "" if val is None else str(val)
