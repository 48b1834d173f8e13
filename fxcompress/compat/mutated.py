"""What reads an input that the forward changes is not to be computed again in the backward, when it has changed."""

import torch
from torch import fx


def save_reads_of_mutated(joint: fx.Graph) -> None:
    """Mark what reads a mutated input of a joint graph as to be saved, if the backward needs what depends on it.

    PyTorch's partitioner takes every input for what lives through the step: it saves one that the forward changes, and
    computes from its new value (silently wrong in 2.13 without us, too, where a cut falls on such an input).

    An input is changed by `copy_` at the end of the graph, or by the caller, to whom the graph returns its new value:
    `output.meta["desc"]`, `descriptors.InputMutationAOTOutput`, run in 2.11 and 2.13.
    """
    from torch.utils.checkpoint import CheckpointPolicy

    changed = [node.args[0] for node in joint.find_nodes(op="call_function", target=torch.ops.aten.copy_.default)]
    told = _told(joint)
    for source in joint.find_nodes(op="placeholder"):
        if source in changed or source.meta.get("desc") in told:
            for reader in _readers(source):
                reader.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def _told(joint: fx.Graph) -> list[object]:
    """The inputs whose new values are outputs, as their descriptors name them."""
    described = joint.output_node().meta.get("desc") or ()
    return [out.mutated_input for out in described if hasattr(out, "mutated_input")]


def _readers(source: fx.Node) -> list[fx.Node]:
    """What is computed from `source` itself, of which views are no copies."""
    found: list[fx.Node] = []
    views = [source]
    for value in views:
        for user in value.users:
            if isinstance(user.target, torch._ops.OpOverload) and user.target.is_view:
                views.append(user)
            elif user.target is not torch.ops.aten.copy_.default and not _updates_statistics(user):
                found.append(user)
    return found


def _updates_statistics(node: fx.Node) -> bool:
    """Whether `node` normalizes with a batch's own moments, and reads the running ones to update them alone."""
    if node.target is torch.ops.aten._native_batch_norm_legit_functional.default:
        return node.args[5] is True
    return node.target is torch.ops.aten._batch_norm_with_update_functional.default
