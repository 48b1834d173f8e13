"""Why a step moves more or fewer bytes than plain Inductor's: the difference, by what the bytes are.

    parts = compare(ours, plain)  # both from `traffic.lower_pair`
    parts.least_nbytes            # what is left if every encode and decode shares a kernel with its neighbours

Library kernels (products, convolutions, attention) read operands from memory and write results there, so that a tensor
that only libraries write and read costs a pass to encode and a pass to decode, whatever is generated. That is the part
which no fusion of generated kernels takes away; only a library that encodes and decodes by itself would.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from bench.kernel_bytes import Kernel

OURS = "actcomp_"
"""How the graph nodes that actcomp adds are named, and with them the inputs of a backward that it adds."""
VALUES = tuple(OURS + kind for kind in ("normal", "saved_", "distance_", "bend_"))
"""Those of them that are no part of an encode or decode: what a normalization made, its statistics, and the way back
(`save_normalized`, `fold_masks`). A kernel that makes these beside its own results is none of ours."""

FUSED = "compute_and_encode"
"""How kernels are named that `fuse` makes of a chain and its encodes."""


@dataclass(frozen=True, slots=True)
class Step:
    """The kernels of one training step.

    Attributes:
        forward, backward: launches in order.
        outputs: buffers that the forward returns.
        payloads: those among them that hold codes, scales or bits.
    """

    forward: tuple[Kernel, ...]
    backward: tuple[Kernel, ...]
    outputs: frozenset[str]
    payloads: frozenset[str]


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes of a step minus those of plain Inductor's.

    Attributes:
        payload_nbytes: payloads written in the forward and read in the backward.
        unshared_nbytes: read by kernels that do nothing but encode, from tensors that only libraries touch besides.
        shared_nbytes: read by such kernels from tensors that another generated kernel writes or reads; one kernel for
            both would not read them again.
        operand_nbytes: written by generated kernels of the backward for libraries to read: decoded or rebuilt operands.
        saved_nbytes: saved only in full, written by generated kernels for the backward alone and read by its generated
            kernels: negative where payloads take their place.
        other_nbytes: everything else: intermediate results, copies, what is read again to recompute.
    """

    payload_nbytes: int
    unshared_nbytes: int
    shared_nbytes: int
    operand_nbytes: int
    saved_nbytes: int
    other_nbytes: int

    @property
    def nbytes(self) -> int:
        """The whole difference."""
        return self.least_nbytes + self.shared_nbytes + self.other_nbytes

    @property
    def least_nbytes(self) -> int:
        """What remains of the difference without what fusion of generated kernels could save."""
        return self.payload_nbytes + self.unshared_nbytes + self.operand_nbytes + self.saved_nbytes


def compare(ours: Step, plain: Step) -> Parts:
    """Split the difference of two steps of one model."""
    unshared, shared = _encode_reads(ours)
    payload = sum(_payload_bytes(ours))
    operand = sum(_operand_bytes(ours.backward)) - sum(_operand_bytes(plain.backward))
    saved = sum(_saved_bytes(ours)) - sum(_saved_bytes(plain))
    known = payload + unshared + shared + operand + saved
    return Parts(payload, unshared, shared, operand, saved, _total(ours) - _total(plain) - known)


def is_coding(name: str) -> bool:
    """Whether a node of this name is part of an encode or decode."""
    return name.startswith(OURS) and not name.startswith(VALUES)


def is_payload(name: str) -> bool:
    """Whether codes, scales or bits are handed over under this name: `actcomp_<number>_<field>`."""
    return name.startswith(OURS) and name.removeprefix(OURS).split("_")[0].isdecimal()


def is_alone(kernel: Kernel) -> bool:
    """Whether it computes nothing but parts of encodes or decodes."""
    if kernel.name.startswith(FUSED):
        return False
    return not kernel.library and bool(kernel.origins) and all(map(is_coding, kernel.origins))


def _total(step: Step) -> int:
    return sum(kernel.nbytes for kernel in (*step.forward, *step.backward))


def _payload_bytes(step: Step) -> Iterator[int]:
    for kernel in step.forward:
        yield from (size for buffer, size in kernel.writes.items() if buffer in step.payloads)
    for kernel in step.backward:
        yield from (size for buffer, size in kernel.reads.items() if is_payload(buffer))


def _encode_reads(step: Step) -> tuple[int, int]:
    """Bytes that encodes read by themselves: of tensors that only libraries touch besides, and of others."""
    others = [kernel for kernel in step.forward if not kernel.library and not is_alone(kernel)]
    touched = {buffer for kernel in others for buffer in (*kernel.reads, *kernel.writes)}
    unshared = shared = 0
    for kernel in filter(is_alone, step.forward):
        for buffer, size in kernel.reads.items():
            if buffer in touched:
                shared += size
            elif buffer not in step.payloads:
                unshared += size
    return unshared, shared


def _operand_bytes(backward: Sequence[Kernel]) -> Iterator[int]:
    read = {buffer for kernel in backward if kernel.library for buffer in kernel.reads}
    for kernel in backward:
        if not kernel.library:
            yield from (size for buffer, size in kernel.writes.items() if buffer in read)


def _saved_bytes(step: Step) -> Iterator[int]:
    """Of saved tensors that are not encoded, as far as only the backward and generated kernels touch them."""
    read = {buffer for kernel in step.forward for buffer in kernel.reads}
    for kernel in step.forward:
        if not kernel.library:
            kept = (step.outputs - step.payloads) - read
            yield from (size for buffer, size in kernel.writes.items() if buffer in kept)
    made: Set[str] = {buffer for kernel in step.backward for buffer in kernel.writes}
    for kernel in step.backward:
        if not kernel.library:
            kept_reads = ((b, size) for b, size in kernel.reads.items() if b not in made and not is_payload(b))
            yield from (size for _, size in kept_reads)
