import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fxcompress.cli import main
from fxcompress.cli.target import load_factory, parse_options
from fxcompress.errors import OptionError
from fxcompress.inputs import InputSpec, parse_input
from fxcompress.options import Options
from fxcompress.plan import Plan
from fxcompress.plan_io import dumps, load, loads, save

MODEL = """
import torch

class Gate(torch.nn.Module):
    def forward(self, x, *, scale=1.0):
        return x.relu() * scale

def mlp():
    layers = [torch.nn.Linear(64, 64), Gate(), torch.nn.Linear(64, 64), Gate(), torch.nn.Linear(64, 8)]
    return torch.nn.Sequential(*layers)

def with_args():
    return mlp(), (torch.randn(32, 64),)

def with_kwargs():
    return Gate(), (torch.randn(32, 64, requires_grad=True),), {"scale": 2.0}

def frozen():
    return mlp().requires_grad_(False), (torch.randn(32, 64),)

class Eager(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = mlp()

    @torch.compiler.disable
    def forward(self, x):
        return self.layers(x)

def no_module():
    return 3

def alone():
    return (mlp(),)

def needs_width(width):
    return torch.nn.Linear(width, width)

def wrong_kwargs():
    return mlp(), (), [1]

def plain():
    return Plain(), (torch.randn(32, 64),)

class Plain(torch.nn.Module):
    def forward(self, x):
        return 5

model = torch.nn.Linear(64, 64)

def broken():
    raise RuntimeError("the model is broken")

number = 3
"""
CASE = ["--input", "f32[128,64]", "--option", "min_bytes=1024", "--option", "inner=aot_eager"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch) -> str:
    (tmp_path / "cli_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    monkeypatch.delitem(sys.modules, "cli_model", raising=False)
    torch._dynamo.reset()  # or sizes that an earlier test saw differ become symbolic here
    return "cli_model"


@pytest.fixture
def file(plan: Plan, tmp_path: Path) -> str:
    save(tmp_path / "p.json", plan)
    return str(tmp_path / "p.json")


def test_show_prints_tables_or_the_very_file(file: str, plan: Plan, capsys):
    assert main(["show", file]) == 0
    assert "h.*.mlp (x12)" in capsys.readouterr().out
    assert main(["show", "--json", file]) == 0
    assert capsys.readouterr().out == dumps(plan)
    assert main(["show", "-q", file]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["show", "-v", file]) == 0
    assert "leaf gradient" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["show", "missing.json"], ["diff", "missing.json", "missing.json"], ["show", "."]])
def test_a_file_that_is_no_plan_is_status_2_and_one_line(argv: list[str], capsys):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("fxcompress: ") and err.count("\n") == 1


def test_diff_tells_by_its_status(file: str, plan: Plan, tmp_path: Path, capsys):
    other = str(tmp_path / "q.json")
    save(other, replace(plan, torch_version="other"))
    assert main(["diff", file, file]) == 0
    assert capsys.readouterr().out == "the plans are equal\n"
    assert main(["diff", file, other]) == 1
    assert 'first difference: torch_version: "2.13.0" → "other"' in capsys.readouterr().out
    assert main(["diff", "--json", file, other]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["schema_version"] == 5 and not content["equal"] and content["changes"] == []


def test_diff_states_changes_in_json(file: str, plan: Plan, tmp_path: Path, capsys):
    graph = plan.graphs[0]
    other = str(tmp_path / "q.json")
    save(other, replace(plan, graphs=(replace(graph, decisions=graph.decisions[1:]),)))
    assert main(["diff", "--json", file, other]) == 1
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert change["tensor"] == "addmm" and change["nbytes_before"] == 4352 and change["nbytes_after"] is None


@pytest.mark.parametrize(
    "argv", [[], ["nonsense"], ["show"], ["explain", "--input"], ["verify", "m:f", "--max-error", "x"]]
)
def test_wrong_usage_is_status_2(argv: list[str], capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: fxcompress" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, words",
    [
        (["explain", "nowhere:f"], ["no module 'nowhere'"]),
        (["explain", "cli_model.inner:f"], ["cli_model.inner:f", "no module"]),
        (["explain", "cli_model"], ["expected module:factory"]),
        (["explain", ".x:f"], ["expected module:factory"]),
        (["explain", "cli_model:mpl"], ["no 'mpl'", "'mlp'"]),
        (["explain", "cli_model:number"], ["a int cannot be called"]),
        (["explain", "cli_model:no_module"], ["int", "nn.Module"]),
        (["explain", "cli_model:alone"], ["a tuple of 1", "(module, args)"]),
        (["explain", "cli_model:needs_width"], ["no argument", "'width'"]),
        (["explain", "cli_model:model", *CASE], ["Linear", "not a factory"]),
        (["explain", "cli_model:wrong_kwargs"], ["list", "keyword arguments", "dict"]),
        (["explain", "cli_model:mlp"], ["Sequential.forward got 0 inputs", "'input'", "--input"]),
        (["verify", "cli_model:mlp", "--option", "inner=aot_eager"], ["got 0 inputs", "--input"]),
        (["verify", "cli_model:with_args", "--input", "f32[8,64]", "--input", "f32[8]"], ["got 2 inputs", "too many"]),
        (["explain", "cli_model:plain"], ["took no graph from Plain", "graph_breaks"]),
        (["explain", "cli_model:mlp", "--input", "f33[8]"], ["f33", "'f32'"]),
        (["explain", "cli_model:mlp", "--option", "bits"], ["name=value"]),
        (["explain", "cli_model:mlp", "--option", "bits=3"], ["1, 2, 4, 8"]),
        (["explain", "cli_model:mlp", "--option", "bits=2", "--option", "bits=4"], ["given twice"]),
        (["verify", "cli_model:mlp", "--max-error", "nan"], ["--max-error"]),
        (["verify", "cli_model:with_args", "--per-tensor"], ["--per-tensor", "max_error"]),
        *[([name, "cli_model:mlp", "-o", "no/p"], ["no/p", "no folder"]) for name in ("plan", "report", "calibrate")],
    ],
)
def test_bad_input_is_status_2_and_one_line(model: str, argv: list[str], words: list[str], capsys):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("fxcompress: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_an_error_of_the_users_model_is_shown_in_full_and_is_no_failed_check(model: str, capsys):
    assert main(["explain", f"{model}:broken"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1] == "fxcompress: the model, or PyTorch, raised RuntimeError: the model is broken"


def test_a_warning_is_one_line_without_a_place_in_our_sources(model: str, capsys, monkeypatch, tmp_path: Path):
    (tmp_path / "rules.toml").write_text('[[rule]]\nlayer = "zzz*"\nkeep = true\n')
    monkeypatch.setenv("FXCOMPRESS_CONFIG", "rules.toml")
    assert main(["explain", f"{model}:with_args", *CASE, "--quiet"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("fxcompress: warning: rule 1 (layer=zzz* keep=True) matches no saved tensor")
    assert err.count("\n") == 1


def test_explain_plan_show_and_diff_agree(model: str, capsys):
    assert main(["explain", f"{model}:mlp", *CASE]) == 0
    explained = capsys.readouterr().out
    assert "affine 8b" in explained and "128x64" in explained and "cli_model.py" in explained, explained
    assert main(["plan", f"{model}:mlp", *CASE, "-o", "p.json"]) == 0
    planned = capsys.readouterr()
    assert planned.out == explained and "p.json: 1 graphs" in planned.err
    assert main(["show", "p.json"]) == 0
    assert capsys.readouterr().out == explained
    assert main(["explain", "--json", f"{model}:mlp", *CASE]) == 0
    assert loads(capsys.readouterr().out) == load("p.json")
    assert main(["plan", "-q", f"{model}:mlp", *CASE, "-o", "q.json"]) == 0
    assert main(["diff", "p.json", "q.json"]) == 0


@pytest.mark.parametrize("name", ["with_args", "with_kwargs"])
def test_factories_may_bring_their_arguments(model: str, name: str, capsys):
    assert main(["explain", f"{model}:{name}", "--option", "inner=aot_eager", "--option", "min_bytes=0"]) == 0
    assert "32x64" in capsys.readouterr().out


def test_a_model_without_gradients_is_named_as_such(model: str, capsys):
    assert main(["explain", f"{model}:frozen"]) == 2
    assert "no graph saves anything" in capsys.readouterr().err


def test_verify_passes_within_the_limit_and_fails_beyond_it(model: str, capsys):
    assert main(["verify", f"{model}:mlp", *CASE]) == 0
    assert "whole gradient  relative error" in capsys.readouterr().out
    assert main(["verify", "--json", f"{model}:mlp", *CASE, "--max-error", "0", "--bisect"]) == 1
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert content["gradient_rel_error"] > 0 and content["loss"] == content["loss_plain"]
    assert content["compressed"] >= 2 and "affine" in content["culprit"]
    assert "failed: the whole gradient's relative error" in err


def test_verify_finds_no_error_without_lossy_codecs(model: str, capsys):
    assert main(["verify", "--json", f"{model}:mlp", *CASE, "--option", "lossy=false", "--max-error", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["gradient_rel_error"] == 0


def test_verify_fails_where_no_graph_was_planned(model: str, capsys):
    assert main(["verify", f"{model}:Eager", *CASE]) == 1
    assert "failed: nothing was checked, for actcomp planned no graph" in capsys.readouterr().err


def test_env_names_what_a_bug_report_needs(capsys):
    status = main(["env", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert {"python", "torch", "triton", "fxcompress", "backend", "compiler", "cuda", "cache"} <= set(
        content["environment"]
    )
    assert status == (1 if content["problems"] else 0)
    assert main(["env"]) == status
    assert torch.__version__.partition("+")[0] in capsys.readouterr().out


def test_env_reports_a_missing_compiler_and_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert main(["env"]) == 1
    out = capsys.readouterr().out
    assert "problem: no C++ compiler" in out and "not writable" in out


def run(argv: list[str], **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fxcompress", *argv], capture_output=True, text=True, **more)  # type: ignore[call-overload, no-any-return]


def test_an_ascii_terminal_gets_text_and_no_exception(file: str):
    done = run(["show", file], env={"PYTHONIOENCODING": "ascii", "PATH": ""}, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0 and "?" in done.stdout


def test_a_reader_that_leaves_early_is_no_error(file: str):
    command = f"{sys.executable} -m fxcompress show --json {file}; echo $? >&2"
    done = subprocess.run(["bash", "-c", f"({command}) | true"], capture_output=True, text=True)
    assert done.stderr.strip() == "0"


@pytest.mark.parametrize(
    "text, spec",
    [
        ("f32[8,1024]", InputSpec("f32", (8, 1024))),
        (" bf16[ 8 , 2 ] ", InputSpec("bf16", (8, 2))),
        ("i64[8,128]<32000", InputSpec("i64", (8, 128), 32000)),
        ("f64[]", InputSpec("f64", ())),
        ("bool[0]", InputSpec("bool", (0,))),
    ],
)
def test_input_specifications(text: str, spec: InputSpec):
    assert parse_input(text) == spec
    made = spec.make()
    assert tuple(made.shape) == spec.shape


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f32",
        "f32[8",
        "f32[8,]",
        "f32[-1]",
        "f32[a]",
        "f9[8]",
        "f32[8]<3",
        "i64[8]<0",
        "i32[1]<4294967296",
        "f32[8] x",
    ],
)
def test_wrong_input_specifications(text: str):
    with pytest.raises(OptionError):
        parse_input(text)


def test_made_inputs_keep_their_bounds_and_fake_ones_take_no_memory():
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    made = InputSpec("i32", (1000,), 3).make()
    assert made.dtype == torch.int32 and int(made.min()) == 0 and int(made.max()) == 2
    assert int(InputSpec("i64", (1000,)).make().max()) == 1
    fake = InputSpec("f32", (2**20, 2**20)).make(fake=FakeTensorMode())
    assert isinstance(fake, FakeTensor) and fake.shape == (2**20, 2**20)


def test_options_are_read_from_pairs(monkeypatch):
    monkeypatch.setenv("FXCOMPRESS_SEED", "3")
    assert parse_options(["bits=2", "lossy=no"]) == Options(bits=2, lossy=False, seed=3)


def test_a_factory_may_stand_inside_something():
    assert load_factory("torch:nn.Identity") is torch.nn.Identity
