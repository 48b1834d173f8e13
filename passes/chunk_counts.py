"""In how many chunks of tokens logits may be computed, and what that costs in seconds of a step.

`usual_count` is the rule without a budget; under one, `counts(region)` are the numbers to choose from, and `extra_s`
says what each costs. Read-only.
"""

from torch import fx

from fxcompress import costs
from fxcompress.passes import devices
from fxcompress.passes.alias import elements_in, hint, nbytes_of
from fxcompress.passes.loss_region import Region
from fxcompress.passes.ops import GEMMS, REDUCTIONS, op_name
from fxcompress.passes.write_chunk import is_product, sum_dtype

USUAL_MOST = 16
USUAL_LEAST_ROWS = 128
"""Tokens per chunk on a CPU, without a budget: with fewer, summing the weight's gradient takes as long as products."""
USUAL_LEAST_ROWS_ELSEWHERE = 2048
"""On an H200, GPT-2 medium with 8 · 1024 tokens: chunks of 1024 take 0.9 ms of 47 ms more than whole logits,
and those of 2048 peak 4 % higher (rows of `bench.device`, commits de206bd and af8a33b)."""
MOST = 64
LEAST_ROWS = 32
"""Tokens per chunk under a budget, where what chunks cost is weighed against what else it would take."""


def usual_count(region: Region) -> int:
    """A power of two, as many as leave each chunk enough tokens; 1 if there are too few for two."""
    least = USUAL_LEAST_ROWS if devices.is_on_cpu(region.start.meta["val"]) else USUAL_LEAST_ROWS_ELSEWHERE
    return max((1, *_powers(region, USUAL_MOST, least)))


def counts(region: Region) -> tuple[int, ...]:
    """The numbers of chunks that a budget chooses from, rising; 0 are whole logits."""
    return (0, *_powers(region, MOST, LEAST_ROWS))


def _powers(region: Region, most: int, least_rows: int) -> list[int]:
    tokens = hint(region.shape[0])
    found = [2]
    while 2 * found[-1] <= most:
        found.append(2 * found[-1])
    return [count for count in found if tokens >= count * least_rows]


def extra_s(region: Region, chunks: int) -> float:
    """Modelled seconds that `chunks` chunks take longer than whole logits.

    Each chunk reads every weight of the region again, reads and writes every sum over tokens, and calls its kernels.
    """
    if chunks == 0:
        return 0.0
    rates = costs.rates_of(region.start.meta["val"].device)
    products = [node for node in region.rows if op_name(node) in GEMMS]
    weights = sum(nbytes_of(arg.meta["val"]) for node in products for arg in _whole_operands(region, node))
    totals = [total.node.meta["val"] for total in region.sums if is_product(total)]
    sums = sum(elements_in(val.shape) * sum_dtype(val.dtype).itemsize for val in totals)
    reductions = [node for node in region.rows if op_name(node) in REDUCTIONS]
    calls = chunks * (len(products) + len(reductions) + len(region.sums))
    return ((chunks - 1) * (weights + 2 * sums)) / rates.bytes_per_s + calls * rates.call_s


def _whole_operands(region: Region, node: fx.Node) -> list[fx.Node]:
    """What every chunk reads as a whole."""
    return [arg for arg, read in region.reads[node].items() if read.rows is None and arg not in region.rows]
