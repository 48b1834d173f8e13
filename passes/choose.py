"""Decide for every saved tensor how it is represented, by what the backward needs of it.

`choose(saved, storages, values, options, …)` is one pure function from facts to decisions: exact codecs wherever a
static value set allows, the lossy codec at the width of the need class elsewhere, and `keep` with a reason for the
rest. A codec is chosen only if it stores fewer bytes.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import fx

from fxcompress import codecs
from fxcompress.codecs.base import Codec
from fxcompress.codecs.order import MemoryOrder, memory_order
from fxcompress.codecs.valueset import Valueset
from fxcompress.errors import OptionError, PlanError
from fxcompress.facts import Need, SavedTensor
from fxcompress.options import Options
from fxcompress.passes.alias import Storage
from fxcompress.passes.fill_rows import encoded_nbytes, fill_rows, order_of_row
from fxcompress.passes.find_channels_last import channels_last_order
from fxcompress.passes.find_rules import Ruled, find_rules
from fxcompress.passes.ops import SIGNED
from fxcompress.passes.pick_codec import pick_codec
from fxcompress.passes.pick_slab import pick_slab
from fxcompress.passes.row_groups import end_at_rows
from fxcompress.passes.values import Known, ValueSet
from fxcompress.plan import ATEN, KEEP, Decision, Param

TOO_SMALL = "smaller than min_bytes"
"""How the refusal of a small tensor begins, which a plan made under another floor may overrule."""
SHARED = "shared"
"""The representation of a further view of a storage that another saved tensor already brings."""
_LOSSY: dict[Need, str] = {
    "derivative": "only pointwise derivatives and normalizations read it",
    "operand": "operand of a product: error reaches only a leaf gradient",
    "operand+mask": "operand of a product and zero pattern: zeros exact",
    "propagating": "operands of products, or factors of the whole gradient, are rebuilt from it",
    "attention": "attention operand: 8 bit or more",
    "logits": "argument or result of a softmax, argument of a sine or scale, or divided by its length: 8 bit or more",
}
"""Need classes that a lossy codec may serve, from the most to the least tolerant, with the reason for their width."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """What to do with one storage: encode `source` (a forward node), stored in memory order `order`, with `codec`.

    `lowering` is the code that does it, `plan.ATEN` unless `pick_lowering` says otherwise.
    """

    storage: Storage
    source: fx.Node
    codec: Codec
    order: MemoryOrder
    lowering: str = ATEN

    @property
    def nbytes(self) -> int:
        """Exact payload bytes; symbolic sizes enter by their hint."""
        return encoded_nbytes(self.codec, self.order, self.source.meta["val"].dtype)


@dataclass(frozen=True, slots=True)
class Choice:
    """Decisions in the order of the saved tensors, and the encodings they imply."""

    decisions: tuple[Decision, ...]
    encodings: tuple[Encoding, ...]


def lossy_need(need: Need) -> bool:
    return need in _LOSSY


def strictest(needs: list[Need]) -> Need:
    """The need class that covers all views of one storage."""
    if all(lossy_need(need) for need in needs):
        return max(needs, key=list(_LOSSY).index)
    return next(need for need in needs if not lossy_need(need))


def codec_for(
    need: Need,
    values: ValueSet | None,
    options: Options,
    source: fx.Node | None = None,
    order: MemoryOrder | None = None,
) -> tuple[Codec | None, str]:
    """The codec for a need class and a tensor's layout, and the reason; None means keep."""
    if values is not None and values.finite:
        count = max(values.count, 2)
        return codecs.make("valueset", lo=values.lo, step=values.step, count=count), f"values in {values}, exact"
    if not lossy_need(need):
        return None, {"statistic": "statistic: kept exact"}.get(need, f"{need}: no exact codec fits")
    if not options.lossy:
        return None, "lossy codecs are off"
    codec, instead = pick_codec(need, options, source, order)
    return codec, f"{_LOSSY[need]}; {instead}" if instead else _LOSSY[need]


def choose(
    saved: Sequence[SavedTensor],
    storages: Sequence[Storage],
    values: Known,
    options: Options,
    exact_only: Mapping[str, str],
    *,
    channels_last: Set[str] = frozenset(),
    given: Mapping[str, Decision] | None = None,
) -> Choice:
    """Choose a representation for every saved tensor.

    Args:
        saved: facts per saved tensor.
        storages: the same tensors grouped by storage.
        values: value sets of the forward graph.
        options: widths, rounding, floor, limit.
        exact_only: names of tensors that must not become lossy, with why.
        channels_last: shapes that the inner compiler will lay out with channels last.
        given: decisions of a stored plan by tensor name, which are followed instead.
    """
    facts = {tensor.name: tensor for tensor in saved}
    decisions: dict[str, Decision] = {}
    encodings: list[Encoding] = []
    rules = find_rules(storages, options)
    for storage in storages:
        members = [facts[pair.bw.name] for pair in storage.members]
        if given is None:
            encoding, reason = _encode(storage, members, values, rules[storage.root.name], exact_only, channels_last)
        else:
            encoding, reason = _follow(storage, given[members[0].name], channels_last)
            if encoding is not None:
                _admit(encoding, members, values.get(encoding.source), exact_only, given[members[0].name])
        if encoding is not None and options.limit is not None and len(encodings) >= options.limit:
            encoding, reason = None, f"beyond limit={options.limit}"
        if encoding is not None:
            encodings.append(encoding)
        for decision in _decide(members, encoding, reason):
            decisions[decision.tensor.name] = decision
    return Choice(tuple(decisions[tensor.name] for tensor in saved), tuple(encodings))


def _encode(
    storage: Storage,
    members: list[SavedTensor],
    values: Known,
    ruled: Ruled,
    exact_only: Mapping[str, str],
    channels_last: Set[str],
) -> tuple[Encoding | None, str]:
    """How the rule or the options would store a storage, and why."""
    refusal = next((member.refusal for member in members if member.refusal), "")
    if refusal or ruled.keep:
        return None, refusal or ruled.label
    encoding, reason = _encode_under(storage, members, values, ruled.options, exact_only, channels_last)
    return encoding, f"{reason}; {ruled.label}" if ruled.label else reason


def _encode_under(
    storage: Storage,
    members: list[SavedTensor],
    values: Known,
    options: Options,
    exact_only: Mapping[str, str],
    channels_last: Set[str],
) -> tuple[Encoding | None, str]:
    source = _source(storage)
    if source is not storage.root and len(members) > 1:
        return None, "several views of one storage whose derivation is not a chain of views"
    val = source.meta["val"]
    need, order = strictest([member.need for member in members]), _order_of(val, channels_last)
    codec, reason = codec_for(need, values.get(source), options, source, order)
    if codec is None:
        return None, reason
    why_exact = next((exact_only[m.name] for m in members if m.name in exact_only), "")
    if why_exact and codec.contract.kind != "exact":
        return None, why_exact
    why_not = codec.refuse(val.dtype)
    if why_not or order is None:
        return None, why_not or "not dense in memory"
    order = fill_rows(codec, end_at_rows(source, order, codec), source)
    if options.inner == "inductor":
        codec = pick_slab(codec, order, val)
    if encoded_nbytes(codec, order, val.dtype) >= storage.nbytes:
        rows = f": it would be stored in rows of {order.cols} elements" if order.lead else ""
        return None, f"no codec stores it in fewer bytes{rows}"
    return Encoding(storage, source, codec, order), reason


def _follow(storage: Storage, decision: Decision, channels_last: Set[str]) -> tuple[Encoding | None, str]:
    """What a stored decision says."""
    if decision.codec in (KEEP, SHARED):
        return None, decision.reason
    source = _source(storage)
    order = _order_of(source.meta["val"], channels_last)
    order = order and order_of_row(order, decision.row)
    if order is None:
        rows = f"in rows of {decision.row} elements" if decision.row else "in memory"
        raise PlanError(f"plan: {decision.tensor.name!r} is to be encoded, but is not dense {rows}")
    try:
        codec = codecs.make(decision.codec, **dict(decision.params))
    except OptionError as error:
        raise PlanError(f"plan: {decision.tensor.name!r}: {error}") from error
    return Encoding(storage, source, codec, order), decision.reason


def _admit(
    encoding: Encoding,
    members: list[SavedTensor],
    values: ValueSet | None,
    exact_only: Mapping[str, str],
    decision: Decision,
) -> None:
    """Raise `PlanError` where a stored decision asks for what no plan of ours would: a file may have been edited."""
    codec, dtype = encoding.codec, encoding.source.meta["val"].dtype
    refused = next((m.refusal for m in members if m.refusal and not m.refusal.startswith(TOO_SMALL)), "")
    why_exact = next((exact_only[m.name] for m in members if m.name in exact_only), "")
    need = strictest([member.need for member in members])
    problem = refused or codec.refuse(dtype)
    if codec.contract.kind == "exact":
        expected = codec_for(need, values, Options())[0]
        whole = replace(codec, slab=0) if isinstance(codec, Valueset) else codec
        problem = problem or ("" if whole == expected else "its values are not known to lie in that set")
    else:
        inexact = why_exact or ("" if lossy_need(need) else f"{need}: no lossy codec may serve it")
        zeros = need.endswith("+mask") and not codecs.params(codec).get("zero_preserving")
        signs = SIGNED in encoding.source.meta and not codecs.params(codec).get("sign_preserving")
        problem = problem or inexact or ("its zeros must stay exact" if zeros else "")
        problem = problem or ("its signs must stay exact" if signs else "")
    try:
        nbytes = encoding.nbytes
    except OptionError as error:
        raise PlanError(f"plan: {decision.tensor.name!r}: {error}") from error
    if not problem and not nbytes == decision.nbytes < encoding.storage.nbytes:
        problem = f"{nbytes} bytes encoded, {decision.nbytes} in the plan, {encoding.storage.nbytes} as it is"
    if problem:
        raise PlanError(f"plan: {decision.tensor.name!r} cannot be stored as {codec.name}: {problem}; make a new plan")


def _order_of(val: torch.Tensor, channels_last: Set[str]) -> MemoryOrder | None:
    """In which order to store a tensor; None if it is not dense."""
    order = memory_order(val)
    if order is not None and str(tuple(val.shape)) in channels_last and val.is_contiguous():
        return channels_last_order(val)
    return order


def _source(storage: Storage) -> fx.Node:
    """What to encode: the whole storage, unless its saved view cannot be replayed from it."""
    return storage.root if all(chain is not None for chain in storage.views) else storage.members[0].fw


def _decide(members: list[SavedTensor], encoding: Encoding | None, reason: str) -> list[Decision]:
    first = decision_of(members[0], encoding, reason)
    return [first, *(Decision(member, SHARED, (), 0, f"view of {members[0].name}") for member in members[1:])]


def decision_of(tensor: SavedTensor, encoding: Encoding | None, reason: str) -> Decision:
    """What is recorded of the first tensor of a storage that is encoded so, or kept (None)."""
    if encoding is None:
        return Decision(tensor, KEEP, (), tensor.storage_nbytes, reason)
    params: tuple[tuple[str, Param], ...] = tuple(sorted(codecs.params(encoding.codec).items()))  # type: ignore[arg-type]
    return Decision(tensor, encoding.codec.name, params, encoding.nbytes, reason, row=encoding.order.row)
