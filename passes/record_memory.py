"""Record when each storage of a training step is alive, for timelines.

`record_memory(fw, bw, num_fwd_outputs, machine)` follows the rules of `liveness` and says which storages make up the
live bytes at every moment. Read-only.
"""

from dataclasses import replace

from torch import fx

from fxcompress.passes.alias import storage_key
from fxcompress.passes.find_saved import handed_over, layer_of, placeholders, source_of
from fxcompress.passes.join_steps import Buffer
from fxcompress.passes.liveness import Half, Machine, find_halves, simulate
from fxcompress.timeline import Life, Moment, PhaseName, Timeline

Lives = dict[Buffer, Life]


def record_memory(fw: fx.GraphModule, bw: fx.GraphModule, num_fwd_outputs: int, machine: Machine) -> Timeline:
    """The timeline of one forward and backward. Symbolic sizes count by their hint.

    Args:
        fw, bw: the pair.
        num_fwd_outputs: how many forward outputs are the user's.
        machine: how they are run.
    """
    forward, backward = find_halves(fw, bw, num_fwd_outputs, machine)
    turn = len(forward.steps)
    moments = _moments(fw, forward, "forward") + _moments(bw, backward, "backward")
    lives, rest = _lives(fw, forward, 0), _lives(bw, backward, turn)
    arrived = {node.name: storage_key(node) for node in placeholders(bw)}
    for node in handed_over(fw, num_fwd_outputs):
        if (key := storage_key(node)) is None or key not in lives:
            continue
        then = rest.pop(arrived.get(node.name) or 0, None)
        last = max(lives[key].last, then.last if then else turn - 1)
        lives[key] = replace(lives[key], saved=True, last=last)
    alive = [life for life in (*lives.values(), *rest.values()) if life.first <= life.last]
    return Timeline(tuple(moments), tuple(sorted(alive, key=lambda life: (life.first, life.last))))


def _moments(gm: fx.GraphModule, half: Half, phase: PhaseName) -> list[Moment]:
    nodes = {node.name: node for node in gm.graph.nodes}
    curve = simulate(half.steps, half.given, half.uncounted, half.kept)
    return [
        Moment(phase, name, layer_of(nodes[name]), source_of(nodes[name]), live, step.workspace_bytes)
        for step, (name, live) in zip(half.steps, curve, strict=True)
    ]


def _lives(gm: fx.GraphModule, half: Half, offset: int) -> Lives:
    """Lives of one half; its first moment has the number `offset`."""
    nodes = {node.name: node for node in gm.graph.nodes}
    end = offset + len(half.steps) - 1
    last = {key: i for i, step in enumerate(half.steps, offset) for key in (*step.read, *dict(step.made))}
    owners = {storage_key(node): node for node in reversed(gm.graph.nodes)}
    lives: Lives = {}

    def begin(key: Buffer, nbytes: int, maker: str, first: int) -> None:
        until = end if key in half.kept else last.get(key, end)
        node = owners.get(key) or nodes[maker]
        # What a codec makes belongs to no layer; it is read for one.
        place = next((place for place in (node, *node.users) if layer_of(place)), node)
        lives[key] = Life(node.name, layer_of(place), source_of(place), nbytes, first, until, saved=False)

    for key, nbytes in half.given.items():
        if key not in half.uncounted:
            begin(key, nbytes, "", offset)
    for i, step in enumerate(half.steps, offset):
        made = [(key, size) for key, size in step.made if key not in half.uncounted and key not in lives]
        dying = {
            lives[key].nbytes: key for key in step.over if key in lives and last[key] == i and key not in half.kept
        }
        taken = next((dying[size] for _, size in made if size in dying), None)
        if taken is not None:
            # A result takes over the memory of an operand of its size.
            lives[taken] = replace(lives[taken], last=i - 1)
        for key, nbytes in made:
            begin(key, nbytes, step.name, i)
    return lives
