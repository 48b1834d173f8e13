"""What must be quick must not import torch: names, help, and reading plans. Each case is its own process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fxcompress.plan import Plan
from fxcompress.plan_io import save

HEAVY = ("torch", "triton", "networkx", "rich", "numpy")
SCRIPT = """
import contextlib, io, json, sys
before = set(sys.modules)
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    {code}
print(json.dumps(sorted({{name.partition('.')[0] for name in set(sys.modules) - before}})))
"""


def imported(code: str) -> set[str]:
    """Return the top-level packages that running `code` in a fresh process imports."""
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(code=code)], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "code",
    [
        "import fxcompress",
        "import fxcompress as fx; fx.__version__; fx.Options(bits=2); fx.Plan; fx.OptionError",
        "import fxcompress; dir(fxcompress)",
        "from fxcompress.cli import main; main(['--help'])",
        "from fxcompress.cli import main; main(['--version'])",
        "from fxcompress.cli import main; main(['explain', '--help'])",
        "from fxcompress.cli import main; main(['verify', '--help'])",
        "from fxcompress.cli import main; main(['maxbatch', '--help'])",
        "from fxcompress.cli import main; main(['report', '--help'])",
        "from fxcompress.cli import main; main(['report', 'm:f'])",
        "from fxcompress.cli import main; main(['maxbatch', 'm:f', '--memory', 'much'])",
        "import fxcompress.report.page, fxcompress.report.perfetto, fxcompress.report.memory_viz",
        "from fxcompress.cli import main; main(['explain', 'm:f', '--option', 'btis=2'])",
        "from fxcompress.cli import main; main([])",
    ],
)
def test_nothing_heavy_is_imported(code: str):
    assert not imported(code).intersection(HEAVY)


def test_plans_are_read_without_torch(plan: Plan, tmp_path: Path):
    path = str(tmp_path / "p.json")
    save(path, plan)
    for argv in (["show", path], ["diff", path, path]):
        assert imported(f"from fxcompress.cli import main; main({argv})").intersection(HEAVY) == {"rich"}
        assert not imported(f"from fxcompress.cli import main; main({[*argv, '--json']})").intersection(HEAVY)


def test_the_measure_itself_sees_an_import():
    assert "rich" in imported("import rich")


@pytest.mark.parametrize("name", ["bounds", "ledger", "pipeline", "ranges", "sensitivity"])
def test_what_the_docs_call_is_there_once_the_package_is_imported(name: str):
    code = f"import fxcompress; fxcompress.{name}.__doc__; sys.modules['fxcompress.{name}']"
    assert "fxcompress" in imported(code)
