"""When each saved storage must exist, whole or packed, over one training step.

`find_lifetimes(forward, backward, groups, machine)` splits the live-bytes curve of a step into what the saved storages
add (`Lifetime`, one each) and the rest, so that the curve under any choice of representations is a sum. A storage that
is kept lives from its producer to its last reader in the backward. One that is encoded lives whole up to its last
reader in the forward, packed from its producer on, and whole again between its first and last reader in the backward,
unless all of those are kernels that decode it as they read. Slots number the steps of the forward and then those of the
backward. Interpreted codecs have slots of their own: after each step of the forward, where what it read may be gone,
and before each of the backward, where what it makes is not there yet. Read-only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from fxcompress.passes.join_steps import Buffer, Step
from fxcompress.passes.liveness import Machine, find_steps, is_fused_away, simulate
from fxcompress.passes.ops import GRADIENT
from fxcompress.passes.phases import Phase


@dataclass(frozen=True, slots=True)
class Group:
    """One saved storage: the values that the forward hands over and those that the backward gets, views included."""

    given: tuple[fx.Node, ...]
    taken: tuple[fx.Node, ...]


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Slots of one storage of `nbytes`.

    Attributes:
        encoding, decoding: where interpreted codecs run.
        decoded_inline: no reader in the backward needs it whole.
    """

    nbytes: int
    made: int
    last_forward: int
    first_backward: int
    last_backward: int
    encoding: int
    decoding: int
    decoded_inline: bool

    def kept(self) -> list[tuple[int, int, int]]:
        """Live bytes as `(first slot, last slot, bytes)` if it is saved as it is."""
        return [(self.made, self.last_backward, self.nbytes)]

    def encoded(self, packed_bytes: int, working: tuple[float, float] | None = None) -> list[tuple[int, int, int]]:
        """The same if its payload of `packed_bytes` is saved.

        Args:
            packed_bytes: of the payload.
            working: where codecs are interpreted, what an encode and a decode take besides, in sizes of the storage
                (`codec_memory`); None where they are compiled.
        """
        whole = (self.made, self.last_forward, self.nbytes)
        if working is not None:
            encode, decode = (int(share * self.nbytes) for share in working)
            return [
                (self.made, max(self.last_forward, self.encoding), self.nbytes),
                (self.encoding, self.encoding, encode),
                (self.encoding, self.decoding, packed_bytes),
                (self.decoding, self.decoding, decode),
                (self.decoding, self.last_backward, self.nbytes),
            ]
        if self.decoded_inline:
            return [whole, (self.made, self.last_backward, packed_bytes)]
        again = (self.first_backward, self.last_backward, self.nbytes)
        return [whole, (self.made, self.first_backward, packed_bytes), again]


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """`rest_bytes`: live bytes per slot without the saved storages; `storages` in the order of the groups.

    `names` is the step of each slot, by its first node; from slot `turn` on they are the backward's.
    """

    rest_bytes: tuple[int, ...]
    storages: tuple[Lifetime, ...]
    names: tuple[str, ...]
    turn: int


def find_lifetimes(forward: Phase, backward: Phase, groups: Sequence[Group], machine: Machine) -> Lifetimes:
    """Take a step apart into saved storages and the rest.

    Args:
        forward, backward: the halves of the step.
        groups: the saved storages, those that the caller holds left out.
        machine: how the step is run.
    """
    first, then = find_steps(forward, machine), find_steps(backward, machine)
    if not machine.fused:
        first = [each for step in first for each in (step, _codecs_beside(step))]
        then = [each for step in then for each in (_codecs_beside(step), step)]
    given = [{key for node in group.given for key in forward.traits(node).keys} for group in groups]
    taken = [{key for node in group.taken for key in backward.traits(node).keys} for group in groups]
    early = [node for node in forward.returned if machine.fused and node.meta.get("actcomp") == GRADIENT]
    held = {key for node in (*forward.inputs, *early) for key in forward.traits(node).keys}
    kept = {key for out in forward.returned for key in forward.traits(out).keys}
    before = simulate(first, {}, held.union(*given), kept)
    own = held | {key for out in backward.returned for key in backward.traits(out).keys}
    tangents = {key: size for node in backward.inputs for key, size in backward.traits(node).buffers}
    after = simulate(then, tangents, own.union(*taken), set())
    rest = tuple(size for _, size in before + after)
    in_forward, in_backward = _spans(first, 0), _spans(then, len(first))
    end = max(len(rest) - 1, 0)
    storages = [
        _lifetime(group, keys, in_forward, _join(in_backward, others, end, len(first)), backward)
        for group, keys, others in zip(groups, given, taken, strict=True)
    ]
    return Lifetimes(rest, tuple(storages), tuple(name for name, _ in before + after), len(first))


def _codecs_beside(step: Step) -> Step:
    """A slot for the codecs that run next to it."""
    return Step(step.name, (), (), generated=False, workspace_bytes=0, over=(), elements=None)


Spans = dict[Buffer, tuple[int, int]]


def _spans(steps: list[Step], offset: int) -> Spans:
    """First and last slot that makes or reads each buffer."""
    found: Spans = {}
    for slot, step in enumerate(steps, offset):
        for key in (*step.read, *(key for key, _ in step.made)):
            found[key] = (found[key][0] if key in found else slot, slot)
    return found


def _join(spans: Spans, keys: set[Buffer], end: int, start: int) -> tuple[int, int]:
    """From the first to the last use of any of `keys`; what is never read leaves at once."""
    used = [spans[key] for key in keys if key in spans]
    if not used:
        return min(start, end), min(start, end)
    return min(first for first, _ in used), max(last for _, last in used)


def _lifetime(group: Group, keys: set[Buffer], in_forward: Spans, used: tuple[int, int], backward: Phase) -> Lifetime:
    made, last = _join(in_forward, keys, max(used[0] - 1, 0), 0)
    nbytes = max(size for node in group.given for _, size in backward.traits(node).buffers)
    inline = all(is_fused_away(node, backward) for node in group.taken)
    decoding = max(used[0] - 1, 0)
    return Lifetime(nbytes, made, last, *used, min(made + 1, decoding), decoding, inline)
