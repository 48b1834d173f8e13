"""Private PyTorch names stand in `fxcompress/compat` and `bench/compat` and nowhere else but in tests."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOMES = tuple(ROOT / name for name in ("fxcompress/compat", "bench/compat"))
PRIVATE = re.compile(r"torch(\.\w+)*\._[a-zA-Z]\w*(\.\w+)*")
SOURCES = [
    path
    for folder in ("fxcompress", "passes", "bench", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not any(path.is_relative_to(home) for home in HOMES)
]


def private_names(source: str) -> Iterator[str]:
    """Dotted names below `torch` with a part that begins with one underscore: imported, read, or named in a string.

    Operators are stable under their names, private or not.
    """
    for node in ast.walk(ast.parse(source)):
        for name in _dotted(node):
            if PRIVATE.fullmatch(name) and not name.startswith("torch.ops."):
                yield name


def _dotted(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import():
            yield from (alias.name for alias in node.names)
        case ast.ImportFrom(module=str(module), level=0):
            yield from (f"{module}.{alias.name}" for alias in node.names)
        case ast.Attribute():
            yield ast.unparse(node)
        case ast.Constant(value=str(text)):
            yield text


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_of_torch_go_through_compat(path: Path) -> None:
    assert not sorted(set(private_names(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "import torch._inductor.config as config",
        "from torch import _dynamo",
        "from torch._subclasses.fake_tensor import FakeTensorMode",
        "from torch.fx._lazy_graph_module import _make_graph_module",
        "from torch.utils._pytree import tree_map",
        "from torch.nn.init import _no_grad_trunc_normal_",
        "def f(x): return isinstance(x, torch._ops.OpOverload)",
        "importlib.import_module('torch._functorch.config')",
    ],
)
def test_the_search_itself_sees_a_private_name(source: str) -> None:
    assert list(private_names(source))


@pytest.mark.parametrize(
    "source",
    ["torch.__version__", "torch.ops.aten._foo(x)", "'see torch._dynamo'", "import torchvision._meta", "x._base"],
)
def test_other_names_are_free(source: str) -> None:
    assert not list(private_names(source))
