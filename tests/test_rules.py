"""Precision rules: read strictly, applied to what they name, recorded, replayed, equal to the options they state."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxcompress
from fxcompress.errors import OptionError
from fxcompress.options import Options, from_mapping, under_rule
from fxcompress.plan import Decision, GraphPlan, Plan
from fxcompress.plan_io import dumps
from fxcompress.precision import PrecisionRule
from fxcompress.trace import explain
from fxcompress.verify import verify

BASE: dict[str, Any] = {"inner": "aot_eager", "min_bytes": 1024}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.h:
            x = F.gelu(block(x))
        return self.norm(x).square().mean()


def net() -> Any:
    torch.manual_seed(0)
    return Net(), (torch.randn(256, 64),)


def planned(*rules: dict[str, Any], **more: Any) -> Plan:
    return explain(net, (), Options(**{**BASE, **more}, rules=rules))


def encoded(plan: Plan) -> dict[str, Decision]:
    (graph,) = plan.graphs
    return {d.tensor.name: d for d in graph.decisions if d.codec not in ("keep", "shared")}


def forms(plan: Plan) -> dict[str, object]:
    return {name: (decision.codec, decision.params, decision.nbytes) for name, decision in encoded(plan).items()}


@pytest.mark.parametrize(
    "rule, fits",
    [
        ({"layer": "h.*.up"}, True), ({"layer": "h.0*"}, True), ({"layer": "H.*"}, False), ({"layer": "up"}, False),
        ({"op": "addmm"}, True), ({"op": "*mm"}, True), ({"op": "mul"}, False),
        ({"dtype": "float32"}, True), ({"dtype": "float*"}, True), ({"dtype": "bfloat16"}, False),
        ({"min_elements": 100}, True), ({"min_elements": 101}, False), ({"max_elements": 100}, True),
        ({"max_elements": 99}, False), ({"layer": "h.*", "op": "mul"}, False), ({}, True),
    ],
)  # fmt: skip
def test_matching(rule: dict[str, Any], fits: bool) -> None:
    assert PrecisionRule(**rule, bits=2).matches("h.0.up", "addmm", "float32", 100) is fits


def test_a_rule_for_everything_is_the_options_it_states() -> None:
    for setting, options in (
        ({"bits": 2}, {"bits": 2, "operand_bits": 2}),
        ({"lossy": False}, {"lossy": False}),
        ({"codec": "bounded"}, {"codec": "bounded"}),
        ({"codec": "float8"}, {"codec": "float8"}),
        ({"group": 64, "rounding": "nearest"}, {"group": 64, "rounding": "nearest"}),
    ):
        assert forms(planned(setting)) == forms(planned(**options)), setting
    assert not encoded(planned({"keep": True}))


def test_a_rule_reaches_what_it_names_and_nothing_else() -> None:
    free, ruled = planned(), planned({"layer": "h.1*", "bits": 2})
    assert forms(free) != forms(ruled)
    for name, decision in encoded(ruled).items():
        named = decision.tensor.layer.startswith("h.1")
        assert named == ("rule 1: layer=h.1* bits=2" in decision.reason)
        if not named:
            assert forms(ruled)[name] == forms(free)[name]
        elif decision.codec == "affine":
            assert dict(decision.params)["bits"] == 2


def test_the_first_rule_that_matches_wins() -> None:
    narrow, wide = {"layer": "h.1*", "keep": True}, {"layer": "h.*", "bits": 2}
    first, second = encoded(planned(narrow, wide)), encoded(planned(wide, narrow))
    assert not any(decision.tensor.layer.startswith("h.1") for decision in first.values())
    assert any(decision.tensor.layer.startswith("h.1") for decision in second.values())


def test_a_kept_tensor_says_by_which_rule() -> None:
    (graph,) = planned({"layer": "h.0*", "keep": True}).graphs
    reasons = {d.reason for d in graph.decisions if d.codec == "keep" and d.tensor.layer.startswith("h.0")}
    assert "rule 1: layer=h.0* keep=True" in reasons


def test_floors_hold_under_rules() -> None:
    """Zeros of what answers for a mask stay exact: one bit is not enough for that."""
    widths = {dict(d.params).get("bits") for d in encoded(planned({"bits": 1})).values() if "mask" in d.tensor.need}
    assert widths <= {2}


def train(options: dict[str, Any]) -> tuple[GraphPlan, list[torch.Tensor]]:
    module, (x,) = net()
    torch._dynamo.reset()
    before = len(fxcompress.reports())
    base = {"inner": "aot_eager"} if "plan" in options else BASE
    torch.compile(module, backend="actcomp", options={**base, **options})(x).backward()
    return fxcompress.reports()[before], [p.grad for p in module.parameters() if p.grad is not None]


RULES = [{"layer": "h.0*", "keep": True}, {"op": "relu", "bits": 2}, {"layer": "norm", "lossy": False}]


def test_a_plan_made_under_rules_is_replayed(tmp_path: Path) -> None:
    path = str(tmp_path / "plan.json")
    made, gradients = train({"rules": RULES, "save_plan": path})
    again, replayed = train({"plan": path})
    assert again.decisions == made.decisions and again.fingerprint == made.fingerprint
    assert all(torch.equal(a, b) for a, b in zip(gradients, replayed, strict=True))
    stored = json.loads(Path(path).read_text())["options"]["rules"]
    assert json.loads(stored) == RULES
    with pytest.raises(OptionError, match="'plan' and 'rules' conflict"):
        from_mapping({"plan": path, "rules": RULES})


def test_keeping_everything_is_bit_equal_to_no_compression() -> None:
    _, kept = train({"rules": [{"keep": True}]})
    _, exact = train({"lossy": False})
    assert all(torch.equal(a, b) for a, b in zip(kept, exact, strict=True))


@pytest.mark.parametrize(
    "rules", [RULES, [{"layer": "h.1*", "codec": "bounded"}], [{"layer": "h.2*", "codec": "float8"}]]
)
def test_gradients_under_mixed_rules_are_near(rules: list[dict[str, Any]]) -> None:
    """No yes/no answer is read from a lossy value, whichever tensors are lossy: the error stays that of the codes."""
    result = verify(net, (), Options(**BASE, rules=rules), max_error=0.3)
    assert result.ok, result.failure
    assert result.gradient_rel_error > 0


def test_equal_rules_give_equal_bytes_and_other_rules_other_keys() -> None:
    assert dumps(planned(*RULES)) == dumps(planned(*RULES))
    keys = {Options(rules=rules).canonical() for rules in ([], RULES, RULES[::-1], [{"bits": 2}], [{"bits": 4}])}
    assert len(keys) == 5


def test_a_budget_takes_no_fewer_bits_than_a_rule_says() -> None:
    plan = planned({"layer": "h.1*", "keep": True}, {"bits": 8}, budget="80%")
    assert not any(decision.tensor.layer.startswith("h.1") for decision in encoded(plan).values())
    widths = {dict(decision.params).get("bits") for decision in encoded(plan).values() if decision.codec == "affine"}
    assert widths <= {8} and plan.graphs[0].fits


@pytest.mark.parametrize(
    "rule, words",
    [
        ({"layer": "h.*.dwn", "bits": 2}, ["rule 1 (layer=h.*.dwn bits=2)", "no saved tensor", "'h.*.down'"]),
        ({"op": "adm", "bits": 2}, ["operators near it", "'addmm'"]),
        ({"op": "linear", "bits": 2}, ["operators near it", "'addmm'"]),
        ({"dtype": "float16", "bits": 2}, ["dtypes near it", "'float32'"]),
        ({"min_elements": 10**9, "bits": 2}, ["its sizes leave none"]),
    ],
)
def test_a_rule_without_a_match_warns_with_near_names(rule: dict[str, Any], words: list[str]) -> None:
    with pytest.warns(UserWarning, match="actcomp: rule 1") as caught:
        planned(rule)
    assert all(word in str(caught[0].message) for word in words), caught[0].message


def test_a_rule_behind_one_that_takes_everything_warns_too() -> None:
    with pytest.warns(UserWarning, match="rule 2 .* only what an earlier rule takes"):
        planned({"bits": 2}, {"layer": "h.0*", "bits": 4})


def test_rules_that_match_are_quiet() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="actcomp")
        planned(*RULES)


@pytest.mark.parametrize(
    "rules, words",
    [
        ([{"layr": "h.*", "bits": 2}], ["rule 1", "unknown entry 'layr'", "'layer'"]),
        ([{"bits": 2}, {"bits": 3}], ["rule 2, 'bits'", "found 3", "1, 2, 4, 8"]),
        ([{"layer": "h.*"}], ["rule 1", "sets nothing", "keep"]),
        ([{"keep": True, "bits": 2}], ["keep=true and 'bits' conflict"]),
        ([{"layer": "", "bits": 2}], ["'layer'", "a pattern"]),
        ([{"layer": 3, "bits": 2}], ["'layer'", "found 3"]),
        ([{"min_elements": -1, "bits": 2}], ["'min_elements'", "≥ 0"]),
        ([{"keep": "yes"}], ["'keep'", "True or False"]),
        ([{"codec": "afine"}], ["'codec'", "'affine'"]),
        (["h.*"], ["rule 1", "a table"]),
        ({"bits": 2}, ["a list of tables"]),
        ("not json", ["a list of tables"]),
        ([{"codec": "float8", "bits": 2}], ["rule 1 (bits=2 codec=float8)", "float8 always stores 8 bits"]),
        ([{"codec": "bounded", "rounding": "nearest"}], ["rule 1", "bounded always rounds"]),
    ],
)
def test_wrong_rules_are_refused(rules: Any, words: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        from_mapping({"rules": rules})
    assert all(word in str(caught.value) for word in words), caught.value


def test_rules_come_from_toml_the_environment_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (PrecisionRule(layer="h.*", bits=2), PrecisionRule(op="gelu", keep=True))
    path = tmp_path / "actcomp.toml"
    path.write_text('[options]\nseed = 3\n[[rule]]\nlayer = "h.*"\nbits = 2\n[[rule]]\nop = "gelu"\nkeep = true\n')
    monkeypatch.setenv("FXCOMPRESS_CONFIG", str(path))
    assert from_mapping() == Options(seed=3, rules=expected)
    assert from_mapping({"rules": []}) == Options(seed=3)
    monkeypatch.setenv("FXCOMPRESS_RULES", '[{"bits": 4}]')
    assert from_mapping().rules == (PrecisionRule(bits=4),)
    monkeypatch.delenv("FXCOMPRESS_RULES")
    path.write_text('[[rule]]\nlayr = "h.*"\n')
    with pytest.raises(OptionError, match=r"actcomp.toml.*rule 1: unknown entry 'layr'"):
        from_mapping()
    path.write_text("[options]\nrules = []\n[[rule]]\nbits = 2\n")
    with pytest.raises(OptionError, match="given twice"):
        from_mapping()


def test_options_with_rules_go_round() -> None:
    options = Options(rules=RULES)  # type: ignore[arg-type]
    assert from_mapping(options.to_dict()) == options
    assert pickle.loads(pickle.dumps(options)) == options and hash(options) == hash(pickle.loads(pickle.dumps(options)))
    assert under_rule(options, options.rules[1]).operand_bits == 2
