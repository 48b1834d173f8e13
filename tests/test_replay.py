"""Replayed code: by hand, and against what the allocator was asked for when the compiled step ran."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import fxcompress
from bench import measure
from bench.models import loops
from bench.trial import Job
from fxcompress import compat
from fxcompress.backend import actcomp
from fxcompress.compat import FakeTensorMode
from fxcompress.compat.lowering import Lowered, lower
from fxcompress.compat.scheduler_passes import settings_undone
from fxcompress.inductor_settings import settings
from fxcompress.options import Options
from fxcompress.replay import replay
from fxcompress.trace import explain

CODE = """
async_compile.wait(globals())
def call(args):
    args.clear()
    buf0 = empty_strided_cpu((4, 2), (2, 1), torch.float32)
    buf1 = x; del x  # reuse
    del buf1
    buf2 = torch.ops.aten.convolution_backward.default(buf0, w)
    buf3 = buf2[0]
    buf4 = buf2[1]
    del buf2
    buf5 = reinterpret_tensor(buf3, (2, 2), (2, 1), 0); del buf3  # reuse
    del buf0
    return (buf4, buf5, )
"""


def test_a_replay_follows_allocations_views_and_results_of_calls() -> None:
    results = {"buf2": 0, "buf3": 16, "buf4": 64}
    moments = replay(CODE, {"x": ("s", 8)}, results, uncounted=["buf4"], workspace_nbytes={"buf2": 100})
    assert [moment.nbytes for moment in moments] == [40, 40, 32, 48, 48, 48, 48, 48, 16]
    assert max(moment.most_bytes for moment in moments) == 148


def test_the_only_result_of_a_call_is_counted_by_its_second_name() -> None:
    code = CODE.replace("buf3 = buf2[0]", "buf3 = buf2").replace("    buf4 = buf2[1]\n", "")
    moments = replay(code, {}, {"buf2": 0, "buf3": 16})
    assert [moment.nbytes for moment in moments] == [32, 32, 32, 48, 48, 48, 48, 16]


@pytest.mark.slow
def test_a_stated_peak_is_what_the_allocator_is_asked_for() -> None:
    torch.manual_seed(0)
    edges, degree, labels = loops.community_graph(communities=2, size=32)
    network = loops.GCN(inputs=64, width=128, layers=3, classes=2)
    job = Job(network.train(), (torch.randn(len(degree), 64), edges, degree, labels), {})
    compiled = torch.compile(job.module, backend=lambda gm, inputs: actcomp(gm, inputs, options={"budget": "76%"}))
    job.train_step(compiled)()
    (plan,) = fxcompress.reports()[-1:]
    found = measure.peak_bytes(job.gradient_step(compiled)).peak_bytes
    assert plan.peak_after.peak_bytes <= plan.fits[0].limit_bytes
    assert found == pytest.approx(plan.peak_after.peak_bytes, abs=256)


class Filters(nn.Module):
    """Convolutions of an image of one channel, whose peak stands where the last one's filters are the most of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 3, padding=1)
        self.inner = nn.Conv2d(32, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = F.max_pool2d(self.first(image).relu(), 2)
        return self.last(self.inner(maps).relu()).relu().mean()


def test_the_model_knows_of_filters_that_inductor_lays_out_anew() -> None:
    def peak_bytes(*disabled: str) -> int:
        options = Options(budget="1GiB", disable_passes=disabled)
        (graph,) = explain(lambda: (Filters(128), (torch.randn(4, 1, 8, 8),)), options=options).graphs
        return graph.peak_after.peak_bytes

    copied = 128 * 128 * 9 * 4
    assert peak_bytes() == pytest.approx(peak_bytes("replay_peak"), abs=copied // 100)


def test_a_row_of_loops_ends_where_its_operands_are_in_the_way() -> None:
    """Between calls of libraries, Inductor makes one function of all loops, which frees nothing until it returns."""

    def function(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        for _ in range(6):
            x = x.t().tanh().index_put((rows,), torch.zeros(()))  # stored, for it is written into
        return x

    def most_bytes(**options: object) -> int:
        with FakeTensorMode() as mode:
            inputs = [torch.empty(64, 64), torch.empty(64, dtype=torch.int64)]
            gm = make_fx(function, compat.inductor_decompositions())(*inputs)
        with mode:
            found = lower(gm, inputs, settings(Options(**options), on_gpu=False), is_backward=False)
        return max(moment.most_bytes for moment in replay(found.source, {}, found.result_nbytes))

    size = 64 * 64 * 4
    assert most_bytes(disable_passes=("order_launches",)) == 6 * size
    assert most_bytes() == 2 * size


def test_what_is_written_into_another_buffer_takes_no_memory() -> None:
    """As in Swin: into a tensor of fewer dimensions, whose strides the write has."""

    def function(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.as_strided_scatter(x.cumsum(0), rows + 1, (4, 96), (96, 1))

    with FakeTensorMode() as mode:
        inputs = [torch.empty(4 * 96 + 10), torch.empty(4, 96)]
        gm = make_fx(function, compat.inductor_decompositions())(*inputs)
    with mode:
        found = lower(gm, inputs, settings(Options(), on_gpu=False), is_backward=False)
    assert 0 in found.result_nbytes.values() and max(found.result_nbytes.values()) == 4 * len(inputs[0])


def test_what_plain_inductor_would_do_is_told_while_ours_compiles() -> None:
    from torch._inductor import config

    options = Options(budget="50%")
    before = {name: getattr(config, name) for name in settings(options, on_gpu=False)}
    with config.patch(settings(options, on_gpu=False)):
        assert {name: getattr(config, name) for name in before} != before
        with config.patch(settings_undone()):
            assert {name: getattr(config, name) for name in before} == before


def test_scalar_kernels_allocate_as_vectorized_ones() -> None:
    """A softmax, whose loops share an outer one and a buffer of their own, sums in place, a transposition."""

    def function(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores = ((x @ weight).relu() + x).softmax(-1)
        return scores.t().contiguous() @ x, torch.layer_norm(scores * 2 + x.exp(), (96,)).sum(0), scores.amax(1)

    def lowered(*, scalar: bool) -> Lowered:
        with FakeTensorMode() as mode:
            inputs = [torch.empty(96, 96), torch.empty(96, 96)]
            gm = make_fx(function, compat.inductor_decompositions())(*inputs)
        with mode:
            return lower(gm, inputs, settings(Options(), on_gpu=False), is_backward=False, scalar=scalar)

    full, short = lowered(scalar=False), lowered(scalar=True)
    assert len(short.source) < len(full.source) and "Vectorized" in full.source
    assert "Vectorized" in short.source, "kernels that share an outer loop are written in full"
    assert _wrapper(short) == _wrapper(full)
    assert (short.outputs, short.strides, short.result_nbytes) == (full.outputs, full.strides, full.result_nbytes)


def _wrapper(lowered: Lowered) -> str:
    """The code around the kernels."""
    return lowered.source.partition("async_compile.wait")[2]
