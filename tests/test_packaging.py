import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fxcompress

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)


def test_the_package_list_is_the_folders():
    folders = [path.parent for path in (ROOT / "fxcompress").rglob("__init__.py") if "passes" not in path.parts]
    found = [".".join(folder.relative_to(ROOT).parts) for folder in folders]
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted([*found, "fxcompress.passes"])


def test_every_folder_with_code_is_a_package():
    for path in [*(ROOT / "fxcompress").rglob("*.py"), *(ROOT / "passes").rglob("*.py")]:
        assert (path.parent / "__init__.py").exists(), path


def test_every_public_name_is_there():
    for name in fxcompress.__all__:
        assert getattr(fxcompress, name) is not None
        assert name in dir(fxcompress)
    with pytest.raises(AttributeError, match="no attribute 'actcmp'"):
        fxcompress.actcmp  # noqa: B018


def test_the_version_is_the_project_files():
    assert fxcompress.__version__ == PROJECT["project"]["version"]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "passes").glob("*.py")))
def test_every_pass_is_importable_by_its_one_name(name: str):
    module = importlib.import_module("fxcompress.passes" if name == "__init__" else f"fxcompress.passes.{name}")
    assert Path(str(module.__file__)).resolve().parent == ROOT / "passes"


def test_passes_cannot_be_imported_by_another_name(tmp_path: Path):
    inside = python("import passes", ROOT)
    assert inside.returncode and "import fxcompress.passes" in inside.stderr
    outside = python("import passes", tmp_path)
    assert outside.returncode and "No module named 'passes'" in outside.stderr


def test_types_are_shipped():
    assert (ROOT / "fxcompress" / "py.typed").exists()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["fxcompress"]


def test_the_link_to_passes_is_a_relative_link():
    link = ROOT / "fxcompress" / "passes"
    if not link.is_symlink():
        pytest.skip("this checkout has no symbolic links")
    assert str(link.readlink()) == "../passes"


def test_entry_points_lead_somewhere():
    project = PROJECT["project"]
    for target in [*project["scripts"].values(), *project["entry-points"]["torch_dynamo_backends"].values()]:
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
