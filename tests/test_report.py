import io
import re
from dataclasses import replace

import pytest

from fxcompress.plan import Decision, LossDecision, Param, Plan
from fxcompress.plan_diff import diff
from fxcompress.report.fold import counted, fold
from fxcompress.report.table import make_console, print_diff, print_plan
from fxcompress.report.text import human_bytes, layer_pattern, printable, ratio, representation, short_op, signed_bytes


def shown(plan: Plan, *, verbose: bool = False) -> str:
    file = io.StringIO()
    print_plan(plan, make_console(file), verbose=verbose)
    return file.getvalue()


def shown_diff(before: Plan, after: Plan, *, verbose: bool = False) -> str:
    file = io.StringIO()
    print_diff(diff(before, after), make_console(file), verbose=verbose)
    return file.getvalue()


@pytest.mark.parametrize(
    "nbytes, text",
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1536, "1.50 KiB"), (16384, "16.0 KiB"),
        (2**20 - 1, "1024 KiB"), (-2048, "-2.00 KiB"), (5 * 2**30, "5.00 GiB"), (2**63 - 1, "8.00 EiB"),
    ],
)  # fmt: skip
def test_human_bytes(nbytes: int, text: str):
    assert human_bytes(nbytes) == text


def test_small_texts():
    assert signed_bytes(2048) == "+2.00 KiB" and signed_bytes(-1) == "-1 B" and signed_bytes(0) == "0 B"
    assert ratio(100, 10) == "10.0x" and ratio(0, 0) == "1.0x" and ratio(5, 0) == "all" and ratio(1, 2) == "0.5x"
    assert layer_pattern("h.11.mlp.2") == "h.*.mlp.*" and layer_pattern("layer1.0.conv2") == "layer1.*.conv2"
    assert layer_pattern("") == "" and layer_pattern("3") == "*"
    assert printable("a\x1b[31m\nb→ü") == "a?[31m?b→ü"


@pytest.mark.parametrize(
    "codec, params, text",
    [
        ("affine", {"bits": 4, "group": 128, "rounding": "stochastic", "zero_preserving": False}, "affine 4b g128 SR"),
        (
            "affine",
            {"bits": 8, "group": 0, "rounding": "nearest", "zero_preserving": True},
            "affine 8b RN zero_preserving",
        ),
        ("valueset", {"count": 3, "lo": -1, "step": 1}, "valueset 2b"),
        ("valueset", {"count": 2, "lo": 0, "step": 1}, "valueset 1b"),
        ("keep", {}, "keep"),
        ("other", {"eps": 0.5}, "other eps=0.5"),
    ],
)
def test_representation(plan: Plan, codec: str, params: dict[str, Param], text: str):
    assert representation(Decision(plan.graphs[0].decisions[0].tensor, codec, tuple(params.items()), 1, "")) == text


def test_a_kernel_of_ours_is_named(plan: Plan):
    decision = replace(plan.graphs[0].decisions[0], lowering="triton")
    assert representation(decision) == "affine 4b g128 SR triton"
    assert representation(replace(decision, lowering="aten")) == "affine 4b g128 SR"


def test_identical_layers_become_one_row(plan: Plan):
    rows = fold(plan.graphs[0].decisions)
    assert [(row.layer, row.count) for row in rows] == [
        ("h.*.mlp (x12)", 12),
        ("h.0.act", 1),
        ("norm", 1),
        ("h.3.mlp", 1),
    ]
    assert rows[0].nbytes_before == 12 * 32768 and rows[0].nbytes_after == 12 * 4352


def test_one_difference_keeps_layers_apart(plan: Plan):
    decisions = plan.graphs[0].decisions
    tensor = decisions[5].tensor
    for changed in (
        replace(decisions[5], nbytes=1),
        replace(decisions[5], codec="keep"),
        replace(decisions[5], params=()),
        *(replace(decisions[5], tensor=replace(tensor, **{name: value})) for name, value in (
            ("op", "x"), ("shape", (1,)), ("dtype", "x"), ("need", "attention"), ("consumers", ()), ("layer", "h.5.a"),
        )),
    ):  # fmt: skip
        assert fold((*decisions[:5], changed, *decisions[6:12]))[0].count == 11


def test_rows_add_up_to_the_totals(plan: Plan):
    graph = plan.graphs[0]
    rows = fold(graph.decisions)
    assert sum(row.nbytes_before for row in rows) == graph.saved_bytes_before
    assert sum(row.nbytes_after for row in rows) == graph.saved_bytes_after
    assert sum(before for _, before, _ in counted(graph.decisions)) == graph.saved_bytes_before


def test_the_table_says_everything_once(plan: Plan):
    text = shown(plan)
    (row,) = [line for line in text.splitlines() if "h.*.mlp (x12)" in line]
    for cell in (
        "addmm …",
        "model.py:12",
        " addmm ",
        "8x1024",
        "float32",
        "384 KiB",
        " mm ",
        "operand",
        "affine 4b g128 SR",
        "51.0 KiB",
    ):
        assert cell in row, cell
    assert "s0x1024" in text and "valueset 1b" in text
    assert "392 KiB → 52.1 KiB (7.5x)" in text and "PyTorch's own cut saves 384 KiB, 7.4x as much" in text
    assert "488 KiB → 195 KiB (2.5x)" in text and "backward:mm_3" in text
    assert "1 tensors (32.0 KiB) that the caller holds anyway" in text
    assert "1 small tensors (64 B)" in text
    assert not re.search("primals_1|mean|leaf gradient", text)
    assert all(word in shown(plan, verbose=True) for word in ("leaf gradient", "primals_1", "mean"))


def test_logits_have_a_line_where_there_are_any(plan: Plan):
    (graph,) = plan.graphs
    assert "logits" not in shown(plan)
    loss = LossDecision("f", 16, "", (8192, 50257), "float32", 1646821376, 102926336, 0.002, "head", "model.py:9")
    chunked = replace(plan, graphs=(replace(graph, loss=loss),))
    assert (
        "8192x50257 float32, 1.53 GiB: 16 chunks of tokens, 98.2 MiB at a time; modelled: 2 ms longer than whole"
        in shown(chunked)
    )
    whole = replace(plan, graphs=(replace(graph, loss=replace(loss, chunks=0, reason="the caller gets it")),))
    assert "1.53 GiB: whole, the caller gets it" in shown(whole)


def test_small_operator_names():
    assert short_op("aten.addmm.default") == "addmm" and short_op("aten.gt.Scalar") == "gt.Scalar"
    assert short_op("prims.x.default") == "x"


def test_no_line_is_cut_and_no_escape_code_written_where_there_is_no_terminal(plan: Plan, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    text = shown(plan, verbose=True)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) > 160


def test_a_hostile_plan_cannot_talk_to_the_terminal(plan: Plan):
    decisions = plan.graphs[0].decisions
    tensor = replace(decisions[0].tensor, name="\x1b[2Jevil[bold]", layer="[/nonsense]", source="\r\n")
    graph = replace(plan.graphs[0], decisions=(replace(decisions[0], tensor=tensor), *decisions[1:]))
    text = shown(replace(plan, graphs=(graph,)), verbose=True)
    assert "\x1b" not in text and "\r" not in text
    assert "?[2Jevil[bold]" in text and "[/nonsense]" in text


def test_several_graphs_have_headings_and_a_sum(plan: Plan):
    second = replace(plan.graphs[0], fingerprint="second")
    text = shown(replace(plan, graphs=(*plan.graphs, second)))
    assert "graph 1 of 2, fingerprint 0123456789ab" in text and "graph 2 of 2" in text
    assert re.search(r"all 2 graphs\n +saved for backward +784 KiB → 104 KiB", text)


def test_a_plan_without_graphs_and_one_without_tensors(plan: Plan):
    assert "all 0 graphs" in shown(replace(plan, graphs=()))
    assert "saved for backward" in shown(replace(plan, graphs=(replace(plan.graphs[0], decisions=()),)))


def test_a_difference_is_shown_by_tensor_and_layer(plan: Plan):
    assert shown_diff(plan, plan) == "the plans are equal\n"
    graph = plan.graphs[0]
    kept = replace(graph.decisions[2], codec="keep", params=(), nbytes=32768)
    decisions = (*graph.decisions[:2], kept, *graph.decisions[3:-1])
    other = replace(
        plan, graphs=(replace(graph, decisions=decisions, saved_bytes_after=graph.saved_bytes_after + 28416),)
    )
    text = shown_diff(plan, other)
    assert "first difference: graphs[0].decisions[2].codec" in text
    assert re.search(r"addmm_2 +h.2.mlp +8x1024 +affine 4b g128 SR +keep +\+27.8 KiB", text)
    assert re.search(r"h.2.mlp +4.25 KiB +32.0 KiB +\+27.8 KiB", text)
    assert re.search(r"primals_1 .* keep +not saved", text)
    assert "(+27.8 KiB)" in text
    assert "nbytes: 4352 → 32768" in shown_diff(plan, other, verbose=True)
