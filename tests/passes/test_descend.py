"""Where nothing fits, the lowest peak is looked for one value away from the best cut."""

import functools

import pytest
import torch
from torch import fx, nn

from bench.peaks import trace_large
from bench.step_graphs import trace
from fxcompress import compat
from fxcompress.options import Options
from fxcompress.passes import cut_within
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.estimate_cut import make_model
from fxcompress.passes.liveness import Machine
from fxcompress.passes.ops import is_view
from fxcompress.rank_cuts import rank_cuts


@pytest.mark.slow
def test_a_descent_lowers_the_peak_that_a_refusal_states(monkeypatch: pytest.MonkeyPatch) -> None:
    joint = trace_large("vit_base", 128, toy=False)
    options = Options(budget=1, bits=4, operand_bits=4)

    def lowest_peak() -> int:
        cutter = compat.Cutter(copy_graph(joint.gm), joint.inputs, joint.num_fwd_outputs, None)
        cuts = rank_cuts(cutter, options, joint.num_fwd_outputs).cuts
        assert cuts is not None
        return cuts.ranked[0].lowest_peak_bytes

    found = lowest_peak()
    monkeypatch.setattr(cut_within._Search, "descend", lambda *args: None)
    assert found < 0.9 * lowest_peak()


def test_a_value_more_or_less_leaves_a_cut_that_can_be_extracted() -> None:
    """Layers computed again read their biases, which nothing else in the backward does."""
    model = nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(32, 32), nn.GELU())])
    joint = trace(model, (torch.randn(8, 32),))
    cutter = compat.Cutter(joint.gm, joint.inputs, joint.num_fwd_outputs, None)
    asked = cutter.question()
    assert asked is not None
    plain = asked.torch_choice(rebuild_more=False)
    sketching = make_model(joint.gm, plain, Options(), joint.num_fwd_outputs, Machine(True))
    tried = [node for node in joint.gm.graph.nodes if node.op == "call_function" and not is_view(node)]
    added = 0
    for node in (node for node in tried if asked.info.is_required_fw(node)):
        saved = sketching.with_inputs(set(plain) ^ {node})
        added += len(set(saved) - set(plain) - {node})
        with compat.choosing_saved_values(functools.partial(_named, {value.name for value in saved})):
            fw, bw = cutter(rebuild_more=True)
        assert len(fw.graph.nodes) and len(bw.graph.nodes)
    assert added


def _named(names: set[str], graph: fx.Graph, *_: object) -> list[fx.Node]:
    return [node for node in graph.nodes if node.name in names]
