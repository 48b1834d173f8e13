"""The backend itself: what it compiles, says, records and refuses. Slow tests go through Inductor."""

import logging
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress import ledger, plan_io
from fxcompress.errors import UnsupportedGraphError

FAST = {"inner": "aot_eager", "min_bytes": 64}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    ledger.clear()
    yield
    torch._dynamo.reset()
    ledger.clear()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh())


def step(backend: str, options: dict[str, object] | None = None, **more: object) -> list[torch.Tensor]:
    torch._dynamo.reset()
    model = net()
    torch.manual_seed(1)
    torch.compile(model, backend=backend, options=options, **more)(torch.randn(32, 64)).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def encoded() -> int:
    return sum(d.codec not in ("keep", "shared") for graph in fxcompress.reports() for d in graph.decisions)


def close(a: list[torch.Tensor], b: list[torch.Tensor], within: float) -> bool:
    return all(float((x - y).norm() / x.norm()) <= within for x, y in zip(a, b, strict=True))


def test_it_compresses_and_reports():
    plain, ours = step("aot_eager"), step("actcomp", {**FAST, "bits": 8})
    assert close(plain, ours, 0.02)
    (graph,) = fxcompress.reports()
    assert encoded() >= 3
    assert graph.saved_bytes_after < graph.saved_bytes_before / 3


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_the_limit_is_read_from_the_environment(monkeypatch, limit: int):
    monkeypatch.setenv("FXCOMPRESS_LIMIT", str(limit))
    step("actcomp", FAST)
    assert encoded() == limit


def test_a_wrong_limit_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("FXCOMPRESS_LIMIT", "many")
    with pytest.raises(Exception, match="environment variable for option 'limit': found 'many'"):
        step("actcomp", FAST)


SCRIPT = textwrap.dedent(
    """
    import torch
    from torch import nn
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.Tanh())
    options = {"inner": "aot_eager", "min_bytes": 64}
    torch.compile(model, backend="actcomp", options=options)(torch.randn(32, 64)).sum().backward()
    """
)


def run_script(script: str = SCRIPT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("TORCH")}
    return subprocess.run([sys.executable, "-c", script], env={**env, **environment}, capture_output=True, text=True)


def test_torch_logs_show_what_was_done():
    loud, quiet = run_script(TORCH_LOGS="+fxcompress"), run_script()
    assert loud.returncode == quiet.returncode == 0, loud.stderr
    assert "saved tensors encoded, saved bytes" in loud.stderr and "find_peak" in loud.stderr
    assert "fxcompress" not in quiet.stderr


def test_a_structured_trace_holds_the_plan(tmp_path: Path):
    result = run_script(TORCH_TRACE=str(tmp_path))
    assert result.returncode == 0, result.stderr
    (file,) = tmp_path.glob("*.log")
    text = file.read_text()
    assert '"name": "actcomp_plan"' in text
    payload = text[text.index('"name": "actcomp_plan"') :].split("\n", 1)[1].split("\nV", 1)[0]
    plan = plan_io.loads(textwrap.dedent(payload.replace("\t", "")))
    assert len(plan.graphs) == 1


def test_the_log_line_is_made_only_if_someone_reads_it(caplog):
    with caplog.at_level(logging.INFO, logger="fxcompress"):
        step("actcomp", FAST)
    assert any("saved tensors encoded" in record.getMessage() for record in caplog.records)


def refuse(monkeypatch) -> None:
    def raise_unsupported(joint: object) -> None:
        raise UnsupportedGraphError("node: for the test")

    monkeypatch.setattr("fxcompress.rewrite_joint.refuse_unsupported", raise_unsupported)


def test_an_unsupported_graph_compiles_unchanged_with_one_warning_and_is_counted(monkeypatch):
    plain = step("aot_eager")
    refuse(monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = step("actcomp", FAST)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
    assert [str(w.message) for w in caught if "actcomp" in str(w.message)] == [
        "actcomp: a graph is compiled unchanged: node: for the test"
    ]
    assert ledger.unchanged() == ["node: for the test"]
    assert not fxcompress.reports()


def test_strict_raises_instead(monkeypatch):
    refuse(monkeypatch)
    with pytest.raises(Exception, match="node: for the test"):
        step("actcomp", {**FAST, "strict": True})


def test_passes_can_be_left_out():
    assert close(step("aot_eager"), step("actcomp", {**FAST, "bits": 8, "disable_passes": ["rebuild_weights"]}), 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"lossy": False}, {"bits": 8}], ids=["exact", "8 bit"])
def test_inductor(options: dict[str, object]):
    plain, ours = step("inductor"), step("actcomp", {"min_bytes": 64, **options})
    assert close(plain, ours, 1e-6 if "lossy" in options else 0.02)
    assert len(fxcompress.reports()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs"])
def test_inductor_modes(mode: str):
    plain = step("inductor", mode=mode)
    torch._dynamo.reset()
    assert close(plain, step("actcomp", {"min_bytes": 64, "bits": 8, "mode": mode}), 0.02)
    assert encoded() == 2, "the argument of GELU and the output of ReLU; all else is rebuilt or the caller's"


CACHED = textwrap.dedent(
    """
    import hashlib, sys, torch, fxcompress
    from torch import nn
    from torch._dynamo.utils import counters
    def step(bits):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.Tanh())
        options = {"min_bytes": 64, "bits": bits, "operand_bits": bits}
        torch.compile(model, backend="actcomp", options=options)(torch.randn(32, 64)).square().sum().backward()
        return hashlib.sha256(b"".join(p.grad.numpy().tobytes() for p in model.parameters())).hexdigest()
    print(step(8), step(4))
    widths = [dict(d.params)["bits"] for g in fxcompress.reports() for d in g.decisions if d.codec == "affine"]
    print(widths, file=sys.stdout)
    print(counters["aot_autograd"]["autograd_cache_hit"])
    """
)


@pytest.mark.slow
def test_caches_serve_the_same_gradients_and_the_report_and_never_other_options(tmp_path: Path):
    cold = run_script(CACHED, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    warm = run_script(CACHED, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert cold.returncode == warm.returncode == 0, cold.stderr[-3000:] + warm.stderr[-3000:]
    digests, widths, hits = cold.stdout.splitlines()
    assert len(set(digests.split())) == 2, "other options, other graph"
    assert warm.stdout.splitlines()[:2] == [digests, widths]
    assert hits == "0" and warm.stdout.splitlines()[2] == "2"


INDUCTOR = SCRIPT.replace('"inner": "aot_eager", ', "")


@pytest.mark.slow
def test_a_missing_compiler_is_inductors_own_clear_error(tmp_path: Path):
    result = run_script(INDUCTOR, TORCHINDUCTOR_CACHE_DIR=str(tmp_path), CXX="/nonexistent/c++")
    assert result.returncode != 0
    assert "InvalidCxxCompiler" in result.stderr, result.stderr[-3000:]
    assert "fxcompress/" not in result.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_directory_without_write_permission_is_inductors_own_error(tmp_path: Path):
    tmp_path.chmod(0o500)
    result = run_script(INDUCTOR, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert result.returncode != 0 and "Permission denied" in result.stderr


def test_a_report_that_cannot_be_kept_beside_the_cache_is_no_error(monkeypatch, tmp_path: Path, caplog):
    """Only the copy of the report is lost, and the log says so."""
    (tmp_path / "fxcompress").write_text("a file where a folder should be")
    monkeypatch.setattr("fxcompress.compat.compile_cache_dir", lambda: str(tmp_path))
    step("actcomp", FAST)
    (graph,) = fxcompress.reports()
    gm = torch.fx.symbolic_trace(nn.Identity())
    options = fxcompress.Options(inner="aot_eager")
    with caplog.at_level(logging.INFO, logger="fxcompress"), ledger.recorded(gm, [], "digest", options):
        ledger.record(graph, options)
    assert any("is not kept beside the compile cache" in record.getMessage() for record in caplog.records)


def test_limits_of_what_is_computed_where_it_is_read_are_wider_on_a_gpu_only() -> None:
    from fxcompress.inductor_settings import settings
    from fxcompress.options import Options
    from fxcompress.passes.realize import FOR_GPU

    here, gpu = (settings(Options(), on_gpu=on_gpu) for on_gpu in (False, True))
    assert not set(FOR_GPU) & set(here) and FOR_GPU.items() <= gpu.items()
    assert all(hasattr(torch._inductor.config, name) for name in gpu)
