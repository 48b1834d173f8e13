"""Every decision against brute force: what is really stored, what refusals allow, what a stored plan asks for."""

import itertools
from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress import codecs
from fxcompress.codecs.order import to_rows
from fxcompress.errors import PlanError
from fxcompress.facts import Need, SavedTensor
from fxcompress.options import Options
from fxcompress.passes.alias import Storage, find_storages
from fxcompress.passes.choose import SHARED, Choice, choose, codec_for, lossy_need, strictest
from fxcompress.passes.collect import collect
from fxcompress.passes.demand import find_demands
from fxcompress.passes.find_masked import find_masked
from fxcompress.passes.find_saved import find_saved
from fxcompress.passes.values import Known, ValueSet, find_values
from fxcompress.plan import KEEP, Decision
from fxcompress.testing_graphs import Pair, capture, node_values
from fxcompress.testing_programs import Program, programs

SEARCH = settings(deadline=None, max_examples=8, derandomize=True)
NEEDS: tuple[Need, ...] = get_args(Need)
CHOICES = [
    {},
    {"bits": 1, "operand_bits": 2},
    {"codec": "float8"},
    {"codec": "dual", "bits": 2, "operand_bits": 2},
    {"lossy": False},
    {"group": 16, "bits": 8},
]


@dataclass(frozen=True)
class Findings:
    """What `choose` is told about a pair."""

    pair: Pair
    saved: tuple[SavedTensor, ...]
    storages: list[Storage]
    values: Known

    def choose(self, options: Options, exact_only=None, **more) -> Choice:
        return choose(self.saved, self.storages, self.values, options, exact_only or {}, **more)


def findings(pair: Pair, min_bytes: int = 64) -> Findings:
    pairs = find_saved(pair.fw, pair.bw, num_fwd_outputs=pair.num_fwd_outputs)
    grouped, values = find_storages(pair.fw, pairs, pair.num_fwd_outputs), find_values(pair.fw)
    demands = find_demands(pair.bw, pairs, values)
    return Findings(pair, collect(grouped, demands, values, find_masked(pair.fw), min_bytes), grouped, values)


def options(**changes) -> Options:
    return Options(inner="aot_eager", min_bytes=64, **changes)


def encoded(choice: Choice) -> list[Decision]:
    return [decision for decision in choice.decisions if decision.codec not in (KEEP, SHARED)]


@SEARCH
@given(programs(), st.sampled_from(CHOICES))
def test_every_encoding_stores_the_stated_and_fewer_bytes(program: Program, changes) -> None:
    found = findings(capture(program, program.inputs(), program.partition), 1)
    choice = found.choose(options(**changes))
    real = node_values(found.pair.fw, found.pair.inputs)
    decisions = {decision.tensor.name: decision for decision in choice.decisions}
    assert [decision.tensor for decision in choice.decisions] == list(found.saved)
    for encoding in choice.encodings:
        value = real[encoding.source]
        parts = encoding.codec.encode(to_rows(value, encoding.order), 1)
        decision = decisions[encoding.storage.members[0].bw.name]
        stored = sum(part.numel() * part.element_size() for part in parts)
        assert decision.nbytes == stored < value.untyped_storage().nbytes() == decision.tensor.storage_nbytes
        assert codecs.make(decision.codec, **dict(decision.params)) == encoding.codec
    assert found.choose(options(**changes)) == choice


@SEARCH
@given(programs(), st.sampled_from(CHOICES))
def test_refusals_hold_and_every_keep_has_a_reason(program: Program, changes) -> None:
    found = findings(capture(program, program.inputs(), program.partition))
    needs: dict[str, list[Need]] = {}
    for tensor in found.saved:
        needs.setdefault(tensor.storage, []).append(tensor.need)
    for decision in found.choose(options(**changes)).decisions:
        assert decision.reason
        if decision.tensor.refusal:
            assert decision.codec in (KEEP, SHARED)
        if decision.codec in ("affine", "float8"):
            assert all(lossy_need(need) for need in needs[decision.tensor.storage]) and changes.get("lossy", True)


@SEARCH
@given(programs())
def test_a_storage_is_brought_once(program: Program) -> None:
    found = findings(capture(program, program.inputs(), "default"))
    choice = found.choose(options())
    brought = [decision.tensor.storage for decision in choice.decisions if decision.codec != SHARED]
    assert len(brought) == len(set(brought)) == len(found.storages)
    assert all(decision.nbytes == 0 for decision in choice.decisions if decision.codec == SHARED)


@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize("bits, operand_bits", list(itertools.product((1, 2, 4, 8), (2, 4, 8))))
def test_widths_by_need(need: Need, bits: int, operand_bits: int) -> None:
    codec, reason = codec_for(need, None, options(bits=bits, operand_bits=operand_bits))
    widths = {
        "derivative": bits, "operand": operand_bits, "operand+mask": operand_bits, "propagating": operand_bits,
        "attention": 8, "logits": 8,
    }  # fmt: skip
    assert reason and (codec is None) == (need not in widths)
    if codec is not None:
        assert codec.bits == widths[need]
        assert bool(codecs.params(codec)["zero_preserving"]) == (need == "operand+mask")


@pytest.mark.parametrize("need", NEEDS)
def test_known_values_are_exact_whatever_the_need(need: Need) -> None:
    for count in (1, 2, 3, 17, 256):
        codec, _ = codec_for(need, ValueSet(-2, 3, count), options(lossy=False))
        assert codec is not None and codec.contract.kind == "exact" and 2**codec.bits >= count


def test_the_strictest_need_covers_all() -> None:
    """Brute force over all triples: as wide as the widest, and kept if one of them must be."""
    for needs in itertools.product(NEEDS, repeat=3):
        worst = strictest(list(needs))
        assert worst in needs
        assert lossy_need(worst) == all(lossy_need(need) for need in needs)
        if lossy_need(worst):
            widths = [codec_for(need, None, options(bits=1, operand_bits=2))[0].bits for need in needs]  # type: ignore[union-attr]
            assert codec_for(worst, None, options(bits=1, operand_bits=2))[0].bits == max(widths)  # type: ignore[union-attr]


def network(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.gelu(F.relu(x @ w) @ v).tanh() * torch.where(x @ v > 0.3, x, w)


def known(min_bytes: int = 64) -> Findings:
    inputs = [torch.randn(32, 32, requires_grad=True) for _ in range(3)]
    return findings(capture(network, inputs), min_bytes)


@pytest.mark.parametrize("limit", range(7))
def test_a_limit_takes_the_first(limit: int) -> None:
    found = known()
    whole = found.choose(options())
    assert len(whole.encodings) >= 4
    choice = found.choose(options(limit=limit))
    assert choice.encodings == whole.encodings[:limit]
    assert sum("beyond limit" in d.reason for d in choice.decisions) == max(len(whole.encodings) - limit, 0)


def test_what_must_stay_exact_is_kept_with_its_reason_unless_a_codec_is_exact() -> None:
    found = known()
    names = {decision.tensor.name: "because" for decision in encoded(found.choose(options()))}
    choice = found.choose(options(), names)
    assert {decision.codec for decision in encoded(choice)} == {"valueset"}
    kept = [d for d in choice.decisions if d.tensor.name in names and d.codec == KEEP]
    assert kept and all(decision.reason == "because" for decision in kept)


def test_channels_last_is_the_order_of_the_shapes_named() -> None:
    x, w = torch.randn(2, 3, 6, 5, requires_grad=True), torch.randn(4, 3, 1, 1, requires_grad=True)
    found = findings(capture(lambda x, w: F.gelu(F.conv2d(x * 2, w)), (x, w)))
    orders = {e.source.meta["val"].shape[1]: e.order.dims for e in found.choose(options()).encodings}
    assert set(orders.values()) == {(0, 1, 2, 3)}
    named = found.choose(options(), channels_last={"(2, 4, 6, 5)"})
    changed = {e.source.meta["val"].shape[1]: e.order.dims for e in named.encodings}
    assert changed == {**orders, 4: (0, 2, 3, 1)}


@pytest.mark.parametrize("changes", CHOICES, ids=str)
def test_a_stored_plan_is_followed_whatever_the_options_say(changes) -> None:
    found = known()
    choice = found.choose(options(**changes))
    given_ = {decision.tensor.name: decision for decision in choice.decisions}
    for other in CHOICES:
        assert found.choose(options(**other), given=given_) == choice


EDITS = {
    "fewer bytes": lambda d: replace(d, nbytes=d.nbytes - 1),
    "unknown codec": lambda d: replace(d, codec="zip"),
    "unknown width": lambda d: replace(d, params=(("bits", 3),)),
    "values not known": lambda d: replace(d, codec="valueset", params=(("count", 2), ("lo", 0), ("step", 1))),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_no_plan_of_ours_says_is_refused(name: str) -> None:
    found = known()
    decisions = found.choose(options()).decisions
    edited = next(decision for decision in decisions if decision.codec == "affine")
    given_ = {d.tensor.name: EDITS[name](d) if d is edited else d for d in decisions}
    with pytest.raises(PlanError, match=edited.tensor.name):
        found.choose(options(), given=given_)


def test_a_stored_plan_cannot_encode_what_the_caller_holds() -> None:
    found = known()
    decisions = {decision.tensor.name: decision for decision in found.choose(options()).decisions}
    lossy = next(decision for decision in decisions.values() if decision.codec == "affine")
    held = [d for d in decisions.values() if d.tensor.refusal and d.tensor.storage_nbytes == 4096]
    assert held and lossy.tensor.storage_nbytes == 4096
    for decision in held:
        edited = replace(decision, codec=lossy.codec, params=lossy.params, nbytes=lossy.nbytes)
        with pytest.raises(PlanError, match=decision.tensor.refusal):
            found.choose(options(), given={**decisions, decision.tensor.name: edited})


def test_what_a_payload_would_not_make_smaller_is_kept() -> None:
    """Nine elements are one group of 128 codes and a word."""
    inputs = [torch.randn(3, 3, requires_grad=True) for _ in range(3)]
    decisions = findings(capture(network, inputs), 1).choose(options()).decisions
    assert not [decision for decision in decisions if decision.codec == "affine"]
    assert "no codec stores it in fewer bytes" in [decision.reason for decision in decisions]


def test_a_stored_plan_cannot_make_lossy_what_must_stay_exact() -> None:
    found = known()
    decisions = {decision.tensor.name: decision for decision in found.choose(options()).decisions}
    name = next(name for name, decision in decisions.items() if decision.codec == "affine")
    with pytest.raises(PlanError, match="because"):
        found.choose(options(), {name: "because"}, given=decisions)


def test_the_floor_may_be_overruled_by_a_plan_made_under_another() -> None:
    decisions = {decision.tensor.name: decision for decision in known().choose(options()).decisions}
    found = known(1 << 20)
    assert not encoded(found.choose(options())) and encoded(found.choose(options(), given=decisions))
