"""Exact rewrites of a forward/backward pair that come before choosing, and what must stay exact after them."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torch import fx

from fxcompress.facts import Need, SavedTensor
from fxcompress.limits import Findings
from fxcompress.options import Options
from fxcompress.passes.choose import SHARED, choose, lossy_need, strictest
from fxcompress.passes.find_masked import learned_inputs
from fxcompress.passes.find_normalized import Normalized, find_normalized
from fxcompress.passes.find_rules import Ruled, find_rules
from fxcompress.passes.find_saved import find_saved, outputs, placeholders
from fxcompress.passes.fold_masks import Fold, find_folds, fold_masks
from fxcompress.passes.pick_codec import keeps_zeros
from fxcompress.passes.rebuild_weights import rebuild_weights
from fxcompress.passes.row_groups import WHOLE
from fxcompress.passes.save_differences import save_differences
from fxcompress.passes.save_normalized import Replaced, save_normalized
from fxcompress.passes.save_predicates import save_predicates
from fxcompress.passes.save_slopes import save_slopes
from fxcompress.plan import KEEP, GraphPlan


@dataclass(frozen=True, slots=True)
class Prepared:
    """Tensors that must stay exact, with why; values saved normalized; whether a graph was edited."""

    exact_only: dict[str, str]
    replaced: tuple[Replaced, ...]
    edited: bool


def prepare(
    fw: fx.GraphModule,
    bw: fx.GraphModule,
    options: Options,
    count: int,
    parameters: Sequence[str],
    found: Findings,
    channels_last: Set[str],
    stored: GraphPlan | None,
) -> Prepared:
    """Rewrite the pair, in place, so that lossy codes do no more harm than their own error.

    Args:
        fw, bw: the pair.
        options: what to do.
        count: how many forward outputs are the user's.
        parameters: names of the forward placeholders that live through the step.
        found: what was found out about the pair.
        channels_last: shapes that the inner compiler will lay out with channels last.
        stored: the plan that is replayed, if one is.
    """
    sizes = len(fw.graph.nodes), len(bw.graph.nodes)
    rebuilt = "rebuild_weights" not in options.disable_passes and rebuild_weights(fw, bw, set(parameters), count)
    rules = find_rules(found.storages, options)
    unfit = _unfit(found, options, channels_last)
    lossy = _lossy_names(found.saved, rules, unfit, stored)
    zero_keeping = {tensor.name for tensor in found.saved if keeps_zeros(rules[tensor.storage].options)}
    normalized = _normalized(fw, bw, options, count, found, lossy, channels_last)
    answering = lossy & _zero_exact(found.saved) & zero_keeping - {each.pair.bw.name for each in normalized}
    done = save_predicates(fw, bw, lossy, answering, count)
    inexact = lossy - dict(done.exact_only).keys()
    differs = save_differences(fw, bw, inexact, learned_inputs(placeholders(fw), outputs(bw)), count)
    differs |= save_slopes(fw, bw, inexact, count)
    names = inexact & {node.name for node in placeholders(bw)}
    wanted = {each.pair.fw: each for each in normalized if each.pair.bw.name in names}
    folds = _folds(fw, bw, options, count, found, names, rules)
    wanted |= {fold.normalized.pair.fw: fold.normalized for fold in folds}
    replaced = save_normalized(fw, bw, list(wanted.values()), count)
    replaced = fold_masks(fw, bw, folds, replaced, count)
    same = sizes == (len(fw.graph.nodes), len(bw.graph.nodes))  # without dead code, too
    edited = bool(rebuilt or done.masks or done.dropped or differs or replaced) or not same
    statistics = {name: "statistic: kept exact" for each in replaced for name in each.exact}
    return Prepared({**unfit, **dict(done.exact_only), **statistics}, tuple(replaced), edited)


def _folds(
    fw: fx.GraphModule,
    bw: fx.GraphModule,
    options: Options,
    count: int,
    found: Findings,
    names: Set[str],
    rules: Mapping[str, Ruled],
) -> list[Fold]:
    """Masks that codes are to answer for: where a compiler fuses what that takes, and the codec is one that can."""
    if options.inner != "inductor" or "fold_masks" in options.disable_passes:
        return []
    able = {t.name for t in found.saved if rules[t.storage].options.codec == "affine"} - _precise(found)
    return find_folds(fw, find_saved(fw, bw, num_fwd_outputs=count), names & able)


def _precise(found: Findings) -> set[str]:
    """Lengths and logits, which are judged by the error of the value itself."""
    return {tensor.name for tensor in found.saved if tensor.need in ("attention", "logits")}


def _normalized(
    fw: fx.GraphModule,
    bw: fx.GraphModule,
    options: Options,
    count: int,
    found: Findings,
    lossy: Set[str],
    channels_last: Set[str],
) -> list[Normalized]:
    """What is to be saved normalized."""
    group = options.group if isinstance(options.group, int) and options.group else WHOLE
    pairs = find_saved(fw, bw, num_fwd_outputs=count)
    return find_normalized(fw, pairs, lossy - _precise(found), channels_last, group)


def _zero_exact(saved: Sequence[SavedTensor]) -> set[str]:
    """Tensors whose codec will keep zeros; one codec serves all views of a storage."""
    needs: dict[str, list[Need]] = {}
    for tensor in saved:
        needs.setdefault(tensor.storage, []).append(tensor.need)
    return {tensor.name for tensor in saved if strictest(needs[tensor.storage]).endswith("+mask")}


def _unfit(found: Findings, options: Options, channels_last: Set[str]) -> dict[str, str]:
    """What the options would leave alone, with why, even if nothing in the backward forbade lossy codes.

    No predicate of it need be saved: it answers for itself.
    """
    trial = choose(
        found.saved, found.storages, found.values, replace(options, limit=None), {}, channels_last=channels_last
    )
    kept = {d.tensor.storage: d.reason for d in trial.decisions if d.codec == KEEP and not d.tensor.refusal}
    return {tensor.name: kept[tensor.storage] for tensor in found.saved if tensor.storage in kept}


def _lossy_names(
    saved: Sequence[SavedTensor], rules: Mapping[str, Ruled], unfit: Mapping[str, str], stored: GraphPlan | None
) -> set[str]:
    finite = {t.name for t in saved if t.values and not t.values.startswith("≥")}
    allowed = {t.name for t in saved if rules[t.storage].options.lossy and not rules[t.storage].keep}
    lossy = {t.name for t in saved if lossy_need(t.need) and not t.refusal}
    names = (lossy & allowed) - finite - unfit.keys()
    exact = {"valueset", KEEP, SHARED}
    return names | {d.tensor.name for d in (stored.decisions if stored is not None else ()) if d.codec not in exact}
