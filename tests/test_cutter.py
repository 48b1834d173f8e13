"""A joint graph is prepared once, however often it is cut: what a pair is does not depend on it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch._functorch import partitioners
from torch._functorch.aot_autograd import aot_function

from fxcompress import compat
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.fingerprint import fingerprint


def step(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Twice the same subexpression, dropout, and a value that only the forward needs."""
    h = F.gelu(x @ w) + F.gelu(x @ w)
    return (F.dropout(h, 0.5) @ w).tanh().sum()


def cut_of(count: list[int]) -> tuple[fx.GraphModule, list[compat.Partition], compat.Cutter]:
    """The joint graph as it was, its pairs by one cutter that was asked before, and the cutter."""
    found: list[Any] = []

    def partition(gm: fx.GraphModule, inputs: Sequence[object], *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        before, cut = copy_graph(gm), compat.Cutter(gm, inputs, num_fwd_outputs, None)
        classify = partitioners.classify_nodes

        def counted(*args: Any, **kwargs: Any) -> Any:
            count.append(1)
            return classify(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(partitioners, "classify_nodes", counted)
            assert cut.question() is cut.question() is not None
            pairs = [cut(rebuild_more=rebuild) for rebuild in (True, False)]
        found.extend((before, pairs, cut))
        return compat.partition(
            before, inputs, num_fwd_outputs=num_fwd_outputs, static_lifetime_input_indices=None, rebuild_more=True
        )

    x, w = torch.randn(4, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    aot_function(step, fw_compiler=lambda gm, _: gm, bw_compiler=lambda gm, _: gm, partition_fn=partition)(x, w)
    before, pairs, cut = found
    return before, pairs, cut


def test_what_is_prepared_once_is_cut_the_same() -> None:
    count: list[int] = []
    before, pairs, cut = cut_of(count)
    assert len(count) == 1
    for rebuild, pair in zip((True, False), pairs, strict=True):
        anew = compat.partition(
            copy_graph(before),
            (),
            num_fwd_outputs=cut.num_fwd_outputs,
            static_lifetime_input_indices=None,
            rebuild_more=rebuild,
        )
        assert fingerprint(*pair) == fingerprint(*anew)


def test_another_joint_graph_is_asked_about_anew() -> None:
    count: list[int] = []
    before, _, cut = cut_of(count)
    edited: list[compat.Partition] = []
    other = cut.of(copy_graph(before), cut.num_fwd_outputs, edited.append)
    asked, first = other.question(), cut.question()
    assert asked is not None and first is not None and asked.joint is other.joint.graph is not first.joint
    pair = other(rebuild_more=True)
    assert edited == [pair]
