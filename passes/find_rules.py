"""Find which precision rule each saved storage falls under.

`find_rules(storages, options)` goes by the storage's first node, which no rewriting of what is saved changes, so that
every view of a storage, before and after such rewriting, falls under one rule. Read-only.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.options import Options, under_rule
from fxcompress.passes.alias import Storage, elements_in
from fxcompress.passes.find_saved import layer_of
from fxcompress.passes.ops import ORIGIN, op_name
from fxcompress.precision import PrecisionRule
from fxcompress.report.text import layer_pattern

SHOWN = 4
"""Names shown where a rule matches nothing."""


@dataclass(frozen=True, slots=True)
class Ruled:
    """What holds for one storage: the options, whether it is kept as it is, and the rule's number and text, if any."""

    options: Options
    keep: bool = False
    number: int | None = None
    label: str = ""


def find_rules(storages: Sequence[Storage], options: Options) -> dict[str, Ruled]:
    """What holds for each storage, by the name of its first node (`SavedTensor.storage`)."""
    return {storage.root.name: rule_for(storage.root, options) for storage in storages}


def rule_for(node: fx.Node, options: Options) -> Ruled:
    """What holds for the value of one node: the first rule that matches."""
    facts = _facts(node) if options.rules else None
    for number, rule in enumerate(options.rules):
        if facts is not None and rule.matches(*facts):
            return Ruled(under_rule(options, rule), bool(rule.keep), number, f"rule {number + 1}: {rule}")
    return Ruled(options)


def find_unmatched(storages: Sequence[Storage], options: Options) -> list[str]:
    """One text per rule that takes no storage of this graph, with the nearest names."""
    free = [storage for storage in storages if not storage.held_by]
    used = {rule_for(storage.root, options).number for storage in free}
    facts = [found for storage in free if (found := _facts(storage.root)) is not None]
    return [
        f"rule {number + 1} ({rule}) {_why(rule, facts)}"
        for number, rule in enumerate(options.rules)
        if number not in used
    ]


Facts = tuple[str, str, str, int]
"""Layer, operator, dtype and number of elements, as `PrecisionRule.matches` takes them."""


def _facts(node: fx.Node) -> Facts | None:
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        return None
    return (
        layer_of(node),
        str(node.meta.get(ORIGIN, "")).rpartition(".")[2] or op_name(node),
        str(val.dtype).removeprefix("torch."),
        elements_in(val.shape),
    )


def _why(rule: PrecisionRule, facts: Sequence[Facts]) -> str:
    if any(rule.matches(*found) for found in facts):
        return "matches only what an earlier rule takes: move it up"
    near: Mapping[str, tuple[str | None, Callable[[Facts], str]]] = {
        "layers": (rule.layer, lambda found: layer_pattern(found[0]) or "(top)"),
        "operators": (rule.op, lambda found: found[1]),
        "dtypes": (rule.dtype, lambda found: found[2]),
    }
    hints = [f"{what} near it: {_nearest(word, map(of, facts))}" for what, (word, of) in near.items() if word]
    return "matches no saved tensor of this graph; " + ("; ".join(hints) or "its sizes leave none")


def _nearest(word: str, names: Iterable[str]) -> str:
    known = list(dict.fromkeys(names))
    # What a user calls `linear` is an `addmm` here, which no spelling tells: the others follow.
    close = difflib.get_close_matches(word, known, n=SHOWN, cutoff=0.3)
    shown = [*close, *(name for name in known if name not in close)][:SHOWN]
    return ", ".join(map(repr, shown)) or "none at all"
