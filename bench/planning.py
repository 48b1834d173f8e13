"""What share of a compilation planning takes: `python -m bench.planning`.

GPT-2's 12 layers at reduced width, compiled once by plain Inductor and once under actcomp, with empty caches. Planning
is what our partitioner takes more than PyTorch's does; our passes alone are stated apart.

With `--budget 50%`, processor seconds outside the kernel, on fake tensors, nothing compiled: of ranking the cuts of a
joint graph, in PyTorch's own cut, in its further cuts and in everything else; of our whole partition step, each start
of PyTorch's partitioner in it included; and of PyTorch's own partitioner alone, for the same joint graph, by default
and at `activation_memory_budget=0.5`. GPT-2 XL is `--layers 48 --width 1600 --context 1024 --budget 50%`. With
`--uncompiled`, the same at default options, where nothing is ranked.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import fx

from bench import measure
from bench.compat import around_partitioner, functorch_settings, min_cut_partition
from bench.models.gpt import GPT, GPTConfig
from bench.record import append_rows, environment
from bench.trial import Job, warm_up
from bench.variants import variants
from fxcompress import compat, partition, pipeline, rank_cuts, rewrite_joint
from fxcompress.options import Options
from fxcompress.partition import ActcompPartitioner
from fxcompress.passes.copy_graph import copy_graph
from fxcompress.passes.cut_within import cut_within
from fxcompress.roomy_stack import with_room
from fxcompress.trace import explain

TORCHS_OWN = {"torch_partitioner_s": 1.0, "torch_partitioner_at_half_s": 0.5}


def user_s() -> float:
    """Processor seconds outside the kernel: where the interpreter's stack grows and shrinks by a page at each call, by
    the luck of the call depth, the kernel's are as many again."""
    return os.times().user


class Stopwatch:
    """Seconds spent in wrapped functions, and calls of them, by a clock of the time module."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self.calls = 0.0, 0
        self._clock = clock

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += self._clock() - start
                self.calls += 1

        return timed


def measure_planning(config: GPTConfig, batch: int) -> dict[str, float]:
    """Compile one training step each way; returns seconds of ours as a whole, and of the partitioners."""
    torch.manual_seed(0)
    tokens = torch.randint(config.vocabulary, (batch, config.context))
    seconds = {}
    for name in ("plain", "actcomp"):
        torch.compiler.reset()
        job = Job(GPT(config), (tokens, tokens), {})
        variant = variants()[name]
        torchs, partitioner, passes = Stopwatch(), Stopwatch(), Stopwatch()
        call = partitioner.wrap(ActcompPartitioner.__call__)
        run = passes.wrap(pipeline.run)
        step = job.train_step(variant.compile(job.module))
        with (
            around_partitioner(torchs.wrap),
            patch.object(ActcompPartitioner, "__call__", call),
            patch.object(pipeline, "run", run),
            variant.compiling(),
        ):
            first_s = measure.timed(step)
        seconds[name] = first_s - min(measure.timed(step) for _ in range(3))
        if name == "plain":
            torch_partitioner_s = torchs.seconds
    return {
        "plain_compile_s": seconds["plain"],
        "compile_s": seconds["actcomp"],
        "torch_partitioner_s": torch_partitioner_s,
        "partitioner_s": partitioner.seconds,
        "passes_s": passes.seconds,
        "planning_s": partitioner.seconds - torch_partitioner_s,
    }


def measure_step(config: GPTConfig, batch: int, budget: str | None) -> dict[str, float]:
    """Plan one training step, by Inductor's rules; returns the size of its joint graph, how many joint graphs (numbers
    of chunks of logits) were ranked, how often PyTorch's partitioner was started, and processor seconds."""

    def case() -> tuple[GPT, tuple[torch.Tensor, torch.Tensor]]:
        tokens = torch.randint(config.vocabulary, (batch, config.context))
        return GPT(config), (tokens, tokens)

    default, further, ranking, whole, starts = (Stopwatch(user_s) for _ in range(5))
    nodes: list[int] = []
    graphs: list[fx.GraphModule] = []
    own_s: dict[str, float] = {}
    step = whole.wrap(rewrite_joint.rewritten_pair)

    def rewritten(gm: fx.GraphModule, request: Any) -> Any:
        nodes.append(len(gm.graph.nodes))
        own_s.update({name: _torchs_own_s(gm, request.cut, share) for name, share in TORCHS_OWN.items()})
        return step(gm, request)

    def ranked(gm: fx.GraphModule, info: Any, torch_choice: Callable[..., Any], *args: Any) -> Any:
        plain, more = default.wrap(torch_choice), further.wrap(torch_choice)
        graphs.append(gm)

        def choice(*, rebuild_more: bool, memory_budget: float | None = None) -> Any:
            choose = more if rebuild_more or memory_budget is not None else plain
            return choose(rebuild_more=rebuild_more, memory_budget=memory_budget)

        return ranking.wrap(cut_within)(gm, info, choice, *args)

    with (
        patch.object(rank_cuts, "cut_within", ranked),
        patch.object(partition, "rewritten_pair", rewritten),
        around_partitioner(starts.wrap),
    ):
        explain(case, options=Options(budget=budget))
    ours_s = ranking.seconds - default.seconds - further.seconds
    return {
        "nodes": nodes[0],
        "graphs": len(graphs),
        "torch_cut_s": default.seconds,
        "torch_further_cuts_s": further.seconds,
        "ranking_s": ours_s,
        "partition_s": whole.seconds,
        "torch_starts": starts.calls - 3 * len(TORCHS_OWN),
        **own_s,
    }


def _torchs_own_s(gm: fx.GraphModule, cut: compat.Cutter, share: float) -> float:
    """Processor seconds of PyTorch's own partitioner, at an activation budget, on a copy of a joint graph: the least of
    three, where the stack has room, as ours."""
    seconds = []
    for _ in range(3):
        copy, watch = copy_graph(gm), Stopwatch(user_s)
        with functorch_settings({"activation_memory_budget": share}):
            with_room(watch.wrap(min_cut_partition))(
                copy,
                cut.joint_inputs,
                num_fwd_outputs=cut.num_fwd_outputs,
                static_lifetime_input_indices=list(cut.static_lifetime_input_indices or []),
            )
        seconds.append(watch.seconds)
    return min(seconds)


def main() -> int:
    """Run and print; always 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--budget", help="rank cuts under this budget instead of compiling")
    parser.add_argument("--uncompiled", action="store_true", help="measure our partition step alone")
    parser.add_argument("--json", type=Path, help="append one JSON line to this file")
    arguments = parser.parse_args()
    config = GPTConfig(vocabulary=8192, layers=arguments.layers, width=arguments.width, context=arguments.context)
    if arguments.budget or arguments.uncompiled:
        seconds = measure_step(config, 4, arguments.budget)
        for name, value in seconds.items():
            print(f"{name:>20} {value:6.6g}")
    else:
        warm_up("inductor")
        seconds = measure_planning(config, batch=4)
        for name in ("torch_partitioner_s", "partitioner_s", "passes_s", "planning_s"):
            share = seconds[name] / seconds["compile_s"]
            print(f"{name:>20} {seconds[name]:6.2f} of {seconds['compile_s']:.1f} s to compile: {100 * share:.1f} %")
    if arguments.json:
        sizes = {"layers": config.layers, "width": config.width, "context": config.context}
        row = {"bench": "planning", **sizes, "budget": arguments.budget}
        append_rows(arguments.json, [{**row, **environment(), **seconds}])
    return 0


if __name__ == "__main__":
    sys.exit(main())
