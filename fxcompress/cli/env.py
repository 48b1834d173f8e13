"""Print the versions, compilers and devices that matter here: put this into bug reports.

Exit status 1 if something is missing that the backend needs.
"""

import argparse
import importlib.metadata
import os
import platform
import shutil
import tempfile

from fxcompress.cli.output import print_json

MISSING = "not found"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """`env` takes no arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Run `env`."""
    facts = {"python": platform.python_version(), "platform": platform.platform(), **_versions()}
    problems = []
    if facts["torch"] == MISSING:
        problems.append("torch is not installed")
    else:
        facts.update(_torch_facts())
        problems += _problems(facts)
    if args.json:
        print_json({"environment": facts, "problems": problems})
        return 1 if problems else 0
    if not args.quiet:
        for name, value in facts.items():
            print(f"{name:<12}  {value}")
    for problem in problems:
        print(f"problem: {problem}")
    return 1 if problems else 0


def _versions() -> dict[str, str]:
    found = {}
    for name in ("fxcompress", "torch", "triton", "networkx", "rich"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = MISSING
    return found


def _torch_facts() -> dict[str, str]:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "backend": "actcomp listed" if "actcomp" in torch.compiler.list_backends() else "actcomp not listed",
        "compiler": _cpp_compiler(),
        "cuda": ", ".join(devices) or "no device",
        "cache": _cache_folder(),
    }


def _cpp_compiler() -> str:
    # Inductor is not asked: where it finds no compiler it raises, and on some machines it downloads one.
    for name in (os.environ.get("CXX"), "g++", "clang++", "cl"):
        if name and (path := shutil.which(name)):
            return path
    return MISSING


def _cache_folder() -> str:
    from fxcompress import compat

    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or compat.default_cache_dir()
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return f"{folder} (writable)"
    except OSError as error:
        return f"{folder} (not writable: {error.strerror})"


def _problems(facts: dict[str, str]) -> list[str]:
    problems = []
    if facts["backend"] != "actcomp listed":
        problems.append("torch.compile does not list the backend actcomp: is fxcompress installed in this Python?")
    if facts["compiler"] == MISSING:
        problems.append("no C++ compiler: Inductor cannot compile for CPUs; install g++ or set CXX")
    if "(writable)" not in facts["cache"]:
        problems.append(f"Inductor's cache folder {facts['cache']}; set TORCHINDUCTOR_CACHE_DIR")
    return problems
