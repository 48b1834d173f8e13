"""Find the largest batch whose training step fits a memory, with and without compression.

Nothing is allocated and nothing compiled: the model is traced with fake tensors at a few batch sizes. Counted are
parameters and buffers, gradients, the optimizer's state, inputs, and the predicted peak of forward and backward, which
is a model. Not counted: the working memory of the optimizer's step, fragmentation, the device's context; leave room.

The batch is B in --input, as "f32[B,3,32,32]"; without --input, the leading size that the factory's inputs share.
Variants: plain (PyTorch's own cut), actcomp (under the options), budget (with what the memory leaves as budget: slow).
Exit status 1 if not even a batch of 1 fits.

example: fxcompress maxbatch bench.models.zoo:gpt2 --memory 256MiB
"""

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from fxcompress.cli.output import note, print_json
from fxcompress.cli.target import add_target, load_factory, parse_options
from fxcompress.errors import OptionError, nearest
from fxcompress.inputs import check_templates
from fxcompress.option_rules import parse_bytes

if TYPE_CHECKING:
    from fxcompress.maxbatch import Answer, MaxBatch, Probe

OPTIMIZERS = ("adamw", "sgd", "none")
VARIANTS = ("plain", "actcomp", "budget")


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `maxbatch`."""
    add_target(parser)
    parser.add_argument("--memory", metavar="BYTES", required=True, help='what a step may take, as "24GiB"')
    parser.add_argument(
        "--optimizer", choices=OPTIMIZERS, default="adamw",
        help="whose state is counted: adamw (two tensors per parameter, the default), sgd (with momentum: one), none",
    )  # fmt: skip
    parser.add_argument(
        "--variants", metavar="NAMES", default="plain,actcomp", help=f"of {','.join(VARIANTS)} (default: plain,actcomp)"
    )


def run(args: argparse.Namespace) -> int:
    """Run `maxbatch`."""
    memory_bytes, variants = _memory(args.memory), _variants(args.variants)
    options = parse_options(args.option)
    check_templates(args.input)
    factory = load_factory(args.target)
    from fxcompress.maxbatch import max_batch

    result = max_batch(
        factory,
        memory_bytes,
        inputs=args.input,
        options=options,
        optimizer=args.optimizer,
        variants=variants,
        progress=(lambda text: note(text, args)) if args.verbose else lambda text: None,
    )
    if args.json:
        print_json(_to_json(result))
    elif not args.quiet:
        from fxcompress.report.batch import print_max_batch
        from fxcompress.report.table import make_console

        print_max_batch(result, make_console(sys.stdout))
    return 0 if all(answer.largest for answer in result.answers) else 1


def _memory(text: str) -> int:
    try:
        return parse_bytes(int(text) if text.isdecimal() else text)
    except ValueError:
        raise OptionError(f'--memory {text!r}: expected a byte count such as "24GiB"') from None


def _variants(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in VARIANTS:
            raise OptionError(f"--variants: unknown variant {name!r}: {nearest(name, VARIANTS)}")
    return names


def _to_json(result: "MaxBatch") -> dict[str, object]:
    return {
        "memory_bytes": result.memory_bytes,
        "optimizer": result.optimizer,
        "varied": result.varied,
        "answers": [_answer_to_json(answer) for answer in result.answers],
        "skipped": [{"variant": variant, "reason": reason} for variant, reason in result.skipped],
    }


def _answer_to_json(answer: "Answer") -> dict[str, object]:
    return {
        "variant": answer.variant,
        "batch": answer.largest.batch if answer.largest else 0,
        "largest": _probe_to_json(answer.largest),
        "next": _probe_to_json(answer.next),
        "traces": answer.traces,
    }


def _probe_to_json(probe: "Probe | None") -> dict[str, object] | None:
    if probe is None:
        return None
    return {"batch": probe.batch, "total_bytes": probe.footprint.total_bytes, **asdict(probe.footprint)}
