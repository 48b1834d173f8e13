"""The Triton kernels without a GPU: interpreted in another process, and traced into graphs here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from fxcompress import codecs, compat
from fxcompress.codecs import lowering
from fxcompress.codecs.affine import Affine
from fxcompress.codecs.base import Codec

pytest.importorskip("triton")

CASES = Path(__file__).with_name("interpreted.py")


def test_numerics_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", str(CASES)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 105


STORED = [
    (Affine(bits=2), torch.bfloat16, 256),
    (Affine(bits=4, zero_preserving=True, rounding="nearest"), torch.float32, 1000),
    (Affine(bits=8), torch.float16, 77),
    (codecs.make("block2d", height=16, width=24), torch.bfloat16, 768),
    (codecs.make("dual", height=16, width=24), torch.float32, 768),
    (codecs.make("valueset"), torch.bool, 192),
]


def traced(codec: Codec, dtype: torch.dtype, cols: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    kernels = lowering.find(codec, cols, dtype)
    assert kernels is not None
    with FakeTensorMode():
        return lowering.trace(kernels, torch.empty(3, 5, cols, dtype=dtype))


def result(gm: fx.GraphModule) -> list[torch.Tensor]:
    (output,) = gm.graph.find_nodes(op="output")
    return [node.meta["val"] for node in output.args[0]]


@pytest.mark.parametrize(("codec", "dtype", "cols"), STORED, ids=str)
def test_a_traced_codec_is_one_kernel_call(codec: Codec, dtype: torch.dtype, cols: int) -> None:
    encode, decode = traced(codec, dtype, cols)
    for gm in (encode, decode):
        assert len(compat.triton_nodes(gm.graph)) == 1
        others = [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]
        assert all("new_empty" in name or "getitem" in name or "triton" in name for name in others)
    fields = [((3, 5, *field.shape), field.dtype) for field in codec.fields(cols, dtype)]
    assert [(tuple(part.shape), part.dtype) for part in result(encode)] == fields
    assert [(tuple(rows.shape), rows.dtype) for rows in result(decode)] == [((3, 5, cols), dtype)]


def test_the_node_names_what_it_writes_and_nothing_else() -> None:
    encode, decode = traced(Affine(bits=2), torch.bfloat16, 128)
    (one,), (two,) = (compat.triton_nodes(gm.graph) for gm in (encode, decode))
    assert one.kwargs["tensors_to_clone"] == ["codes_ptr", "word_ptr"]
    assert two.kwargs["tensors_to_clone"] == ["y_ptr"]


def test_a_salt_is_put_into_a_traced_graph() -> None:
    encode, decode = traced(Affine(bits=2), torch.bfloat16, 128)
    for salt, seen in ((5, 5), (2**32 - 1, -1), (2**31, -(2**31))):
        (node,) = compat.triton_nodes(encode.graph)
        lowering.set_salt(node, salt)
        assert node.kwargs["kwargs"]["salt"] == seen
    (node,) = compat.triton_nodes(decode.graph)
    before = dict(node.kwargs)
    lowering.set_salt(node, 5)
    assert node.kwargs == before


@pytest.mark.parametrize(
    ("codec", "dtype", "cols"),
    [
        (Affine(bits=2), torch.float64, 128),
        (Affine(bits=2, group=48), torch.float32, 96),
        (Affine(bits=1, group=32), torch.float32, 96),
        (codecs.make("float8"), torch.float32, 128),
        (codecs.make("dual", height=8, width=12), torch.float32, 96),
        (codecs.make("dual", height=8, width=8, inner=2), torch.float32, 128),
        (codecs.make("dual", height=8, width=8, bits=1), torch.float32, 64),
        (codecs.make("dual", height=96, width=96), torch.float32, 9216),
        (codecs.make("block2d", height=12, width=16), torch.float32, 192),
        (codecs.make("block2d", height=16, width=16, inner=3), torch.float32, 768),
        (codecs.make("block2d", height=8, width=8, block=4), torch.float32, 64),
        (codecs.make("block2d", height=64, width=1), torch.float32, 64),
        (codecs.make("valueset"), torch.bool, 65),
        (codecs.make("valueset"), torch.int64, 128),
        (codecs.make("valueset", count=3), torch.uint8, 128),
    ],
    ids=str,
)
def test_what_the_kernels_do_not_take(codec: Codec, dtype: torch.dtype, cols: int) -> None:
    assert lowering.find(codec, cols, dtype) is None


def test_codecs_alone_do_not_import_triton() -> None:
    code = (
        "import sys, torch; before = 'triton' in sys.modules\n"
        "import fxcompress.codecs.lowering, fxcompress.codecs as c\n"
        "c.make('affine').encode(torch.ones(64), 1); assert before or 'triton' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
