"""The checker accepts what the rewriter makes and names what is wrong with every seeded mutation of it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from fxcompress import pipeline
from fxcompress.errors import GraphError
from fxcompress.options import Options
from fxcompress.passes.check import check
from fxcompress.passes.find_saved import outputs, placeholders
from fxcompress.passes.splice import set_outputs
from fxcompress.testing_graphs import Pair, capture


def network(x: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
    y = F.relu(x @ w) @ w
    return [F.gelu(y).sin(), y.sum(0)]


def made() -> Pair:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(32, 32, generator=generator, requires_grad=True) for _ in range(2))
    pair = capture(network, (x, w))
    pipeline.run(pair.fw, pair.bw, Options(inner="aot_eager", min_bytes=64))
    return pair


def payloads(gm: fx.GraphModule) -> list[fx.Node]:
    return [node for node in placeholders(gm) if node.name.startswith("actcomp_")]


def edit_outputs(pair: Pair, edit: Callable[[list[object]], None]) -> None:
    changed = list(outputs(pair.fw))
    edit(changed)
    set_outputs(pair.fw, changed)


def swap_placeholders(pair: Pair) -> None:
    first, second, *_ = payloads(pair.bw)
    second.append(first)


def rename_placeholder(pair: Pair) -> None:
    node = payloads(pair.bw)[0]
    node._rename("another")
    node.target = node.name


def shadow(pair: Pair) -> None:
    payloads(pair.bw)[0].target = payloads(pair.bw)[1].name


def wrong_dtype(pair: Pair) -> None:
    node = payloads(pair.bw)[0]
    node.meta["val"] = node.meta["val"].to(torch.int16)


def wrong_shape(pair: Pair) -> None:
    node = payloads(pair.bw)[0]
    node.meta["val"] = node.meta["val"].unsqueeze(0)


def wrong_stride(pair: Pair) -> None:
    node = next(node for node in payloads(pair.bw) if node.meta["val"].dim() == 2)
    val = node.meta["val"]
    node.meta["val"] = torch.empty_strided(val.shape, (1, val.shape[0]), dtype=val.dtype, device="meta")


def swap_outputs(pair: Pair) -> None:
    at = pair.num_fwd_outputs
    edit_outputs(pair, lambda outs: outs.__setitem__(slice(at, at + 2), outs[at : at + 2][::-1]))


def drop_first_saved(pair: Pair) -> None:
    edit_outputs(pair, lambda outs: outs.__delitem__(pair.num_fwd_outputs))


def drop_last_saved(pair: Pair) -> None:
    edit_outputs(pair, lambda outs: outs.__delitem__(-1))


def duplicate_saved(pair: Pair) -> None:
    edit_outputs(pair, lambda outs: outs.insert(-1, outs[-1]))


def duplicate_all_saved(pair: Pair) -> None:
    edit_outputs(pair, lambda outs: outs.extend(outs[pair.num_fwd_outputs :]))


def replace_user_output(pair: Pair) -> None:
    edit_outputs(pair, lambda outs: outs.__setitem__(0, outs[1]))


def swap_user_outputs(pair: Pair) -> None:
    edit_outputs(pair, lambda outs: outs.__setitem__(slice(0, 2), outs[:2][::-1]))


def no_fake_value(pair: Pair) -> None:
    calls = [n for n in pair.fw.graph.nodes if n.op == "call_function" and n.name.startswith("actcomp_")]
    del calls[0].meta["val"]


def not_contiguous(pair: Pair) -> None:
    node = next(node for node in payloads(pair.bw) if node.meta["val"].dim() == 2)
    val = node.meta["val"]
    (source,) = [out for out in outputs(pair.fw) if isinstance(out, fx.Node) and out.name == node.name]
    for side in (node, source):
        side.meta["val"] = torch.empty_strided(val.shape, (1, val.shape[0]), dtype=val.dtype, device="meta")


def reserved_name(pair: Pair) -> None:
    calls = [n for n in pair.bw.graph.nodes if n.op == "call_function" and n.name.startswith("actcomp_")]
    calls[0]._rename("actcomp_tangents_7")


def use_before_definition(pair: Pair) -> None:
    calls = [n for n in pair.bw.graph.nodes if n.op == "call_function"]
    calls[-1].append(calls[0])


MUTATIONS: list[Callable[[Pair], None]] = [
    swap_placeholders,
    rename_placeholder,
    shadow,
    wrong_dtype,
    wrong_shape,
    wrong_stride,
    swap_outputs,
    drop_first_saved,
    drop_last_saved,
    duplicate_saved,
    duplicate_all_saved,
    replace_user_output,
    swap_user_outputs,
    no_fake_value,
    not_contiguous,
    reserved_name,
]


def test_what_the_rewriter_makes_is_accepted() -> None:
    pair = made()
    assert len(payloads(pair.bw)) > 2
    check(pair.fw, pair.bw, pair.num_fwd_outputs, outputs(pair.fw)[: pair.num_fwd_outputs])


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_mutations_are_named(mutate: Callable[[Pair], None]) -> None:
    pair = made()
    user = outputs(pair.fw)[: pair.num_fwd_outputs]
    mutate(pair)
    with pytest.raises(GraphError):
        check(pair.fw, pair.bw, pair.num_fwd_outputs, user)


def test_order_of_definition_is_linted() -> None:
    pair = made()
    use_before_definition(pair)
    with pytest.raises(RuntimeError, match="used before it has been defined"):
        check(pair.fw, pair.bw, pair.num_fwd_outputs, outputs(pair.fw)[: pair.num_fwd_outputs])
