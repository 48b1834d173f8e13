"""faults.md, section Plans, caches, environment: what comes from files, the process and the machine."""

import errno
import gc
import json
import os
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import pytest
import torch
from step_pairs import EXACT, LOSSY, mlp, train
from torch import nn

from fxcompress import OptionError, Options, PlanError, ledger, pipeline, plan_io
from fxcompress.partition import ActcompPartitioner

STOCHASTIC = {**LOSSY, "bits": 4, "operand_bits": 4}


def net(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return mlp(width, nn.GELU(), nn.Dropout(0.2), nn.Linear(width, width), nn.Tanh())


def step(options: dict[str, object], width: int = 64, rows: int = 16) -> list[torch.Tensor]:
    torch._dynamo.reset()
    model = net(width)
    torch.manual_seed(1)
    torch.compile(model, backend="actcomp", options=options)(torch.randn(rows, width)).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    step({**STOCHASTIC, "save_plan": str(path)})
    return path


def replay(path: Path) -> dict[str, object]:
    return {"inner": "aot_eager", "plan": str(path)}


def test_a_replayed_plan_gives_the_same_gradients(stored: Path):
    assert all(torch.equal(a, b) for a, b in zip(step(STOCHASTIC), step(replay(stored)), strict=True))


@pytest.mark.parametrize(("width", "rows"), [(32, 16), (64, 8)])
def test_a_plan_of_another_model_or_shape_is_refused(stored: Path, width: int, rows: int):
    with pytest.raises(Exception, match="no plan for this graph") as caught:
        step(replay(stored), width, rows)
    assert "make a new plan" in str(caught.value)


EDITS = {
    "older version": (lambda c: c.update(schema_version=0), "schema_version"),
    "wrong type": (lambda c: c["graphs"][0].update(decisions="all"), "expected a list"),
    "missing": (lambda c: c["graphs"][0].pop("fingerprint"), "missing"),
    "unknown field": (lambda c: c.update(exec="rm"), "unknown field"),
    "renamed tensor": (lambda c: _tensor(c).update(name="other"), "decision 0"),
    "other shape": (lambda c: _tensor(c).update(shape=[1, 2]), "shape is"),
    "other need": (lambda c: _tensor(c).update(need="statistic"), "need is"),
    "dropped decision": (lambda c: c["graphs"][0]["decisions"].pop(), "decides on"),
}


def _tensor(content: dict) -> dict:
    return content["graphs"][0]["decisions"][0]["tensor"]


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_plan_is_refused_naming_the_difference(stored: Path, name: str):
    content = json.loads(stored.read_text())
    edit, message = EDITS[name]
    edit(content)
    stored.write_text(json.dumps(content))
    with pytest.raises(Exception, match=message):
        step(replay(stored))


HOSTILE_CODECS = {
    "unknown codec": {"codec": "../../evil"},
    "unknown parameter": {"params": {"bits": 8, "__class__": "x"}},
    "wrong width": {"params": {"bits": 3, "group": 128, "rounding": "nearest", "zero_preserving": False}},
    "huge group": {"params": {"bits": 8, "group": 2**40, "rounding": "nearest", "zero_preserving": False}},
    "wrong type": {"params": {"bits": "8", "group": 128, "rounding": "nearest", "zero_preserving": False}},
    "value set": {"codec": "valueset", "params": {"lo": 0, "step": 1, "count": 2}},
    "keeps all": {"codec": "keep", "params": {}},
    "shared without owner": {"codec": "shared", "params": {}},
}


@pytest.mark.parametrize("name", HOSTILE_CODECS)
def test_a_hostile_codec_is_refused_or_right(stored: Path, name: str):
    """Whatever a file asks for: our error family, or gradients that are not worse than the codec says."""
    content = json.loads(stored.read_text())
    (target,) = [d for d in content["graphs"][0]["decisions"] if d["tensor"]["name"] == "tanh"]
    assert target["codec"] == "affine"
    target.update(HOSTILE_CODECS[name])
    stored.write_text(json.dumps(content))
    plain = step({**EXACT})
    try:
        ours = step(replay(stored))
    except Exception as error:
        assert any(kind in str(error) for kind in ("PlanError", "OptionError")), error
    else:
        assert all(float((a - b).norm() / a.norm()) < 0.3 for a, b in zip(plain, ours, strict=True))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x80\x04", "null", '{"schema_version": 1}'])
def test_what_is_no_plan_is_refused_before_anything_compiles(tmp_path: Path, text: str):
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(Exception, match=r"plan\.json"):
        step(replay(path))


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_is_a_clear_error_and_the_good_file_stays(stored: Path, monkeypatch, call: str):
    before = stored.read_bytes()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(Exception, match="plan cannot be written: No space left on device"):
        step({**STOCHASTIC, "bits": 8, "save_plan": str(stored)})
    assert stored.read_bytes() == before
    assert list(stored.parent.iterdir()) == [stored]


def test_unknown_options_are_refused_with_the_nearest_name():
    with pytest.raises(Exception, match="did you mean 'bits'"):
        step({"inner": "aot_eager", "bitz": 4})
    with pytest.raises(OptionError, match="custom_partitioner_fn"):
        Options(inductor={"custom_partitioner_fn": None})  # type: ignore[arg-type]


def test_the_cache_key_covers_options_plan_and_sources(stored: Path, monkeypatch):
    keys = {
        ActcompPartitioner(options).uuid()
        for options in (Options(), Options(bits=8), Options(seed=1), Options(lossy=False), Options(plan=str(stored)))
    }
    content = json.loads(stored.read_text())
    content["graphs"][0]["decisions"][0]["reason"] = "another"
    stored.write_text(json.dumps(content))
    keys.add(ActcompPartitioner(Options(plan=str(stored))).uuid())
    monkeypatch.setattr("fxcompress.partition.source_digest", lambda: "another version")
    keys.add(ActcompPartitioner(Options()).uuid())
    assert len(keys) == 7
    assert ActcompPartitioner(Options(save_plan="a")).uuid() == ActcompPartitioner(Options(save_plan="b")).uuid()


SCRIPT = textwrap.dedent(
    """
    import hashlib, sys, torch
    from torch import nn
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.2), nn.Linear(64, 64), nn.Tanh())
    options = {"inner": "aot_eager", "min_bytes": 64, "bits": 2, "operand_bits": 2, "save_plan": sys.argv[1]}
    fast = torch.compile(model, backend="actcomp", options=options)
    for _ in range(2):
        fast(torch.randn(16, 64)).square().sum().backward()
    digest = hashlib.sha256(b"".join(p.grad.numpy().tobytes() for p in model.parameters()))
    print(digest.hexdigest())
    """
)


def _run(path: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return result.stdout.strip()


def test_gradients_and_plans_are_bit_equal_in_other_processes_and_under_other_hash_seeds(tmp_path: Path):
    paths = [tmp_path / f"{seed}.json" for seed in ("0", "1", "4711")]
    digests = {_run(path, PYTHONHASHSEED=path.stem) for path in paths}
    assert len(digests) == 1
    assert len({path.read_bytes() for path in paths}) == 1


def test_no_triton_is_needed(tmp_path: Path):
    """Without Triton installed everything works; ours is not the import that fails."""
    blocked = "import sys; sys.modules['triton'] = None\n" + SCRIPT
    command = [sys.executable, "-c", blocked, str(tmp_path / "plan.json")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_gradients_are_bit_equal_after_a_resume(tmp_path: Path):
    """A checkpoint of model, optimizer and random state continues as the uninterrupted run does."""

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        fast = torch.compile(model, backend="actcomp", options=STOCHASTIC)
        for _ in range(count):
            optimizer.zero_grad()
            fast(torch.randn(16, 64)).square().sum().backward()
            optimizer.step()

    through = net()
    optimizer = torch.optim.AdamW(through.parameters())
    torch.manual_seed(5)
    steps(through, optimizer, 2)
    state = (through.state_dict(), optimizer.state_dict(), torch.get_rng_state())
    torch.save(state, tmp_path / "checkpoint.pt")
    steps(through, optimizer, 2)
    torch._dynamo.reset()
    resumed = net()
    again = torch.optim.AdamW(resumed.parameters())
    weights, moments, random_state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed.load_state_dict(weights)
    again.load_state_dict(moments)
    torch.set_rng_state(random_state)
    steps(resumed, again, 2)
    assert all(torch.equal(a, b) for a, b in zip(through.parameters(), resumed.parameters(), strict=True))


def _live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())


def test_a_thousand_steps_hold_no_more_tensors_than_a_hundred():
    model = mlp(16, nn.GELU())
    fast = torch.compile(model, backend="actcomp", options={**STOCHASTIC, "min_bytes": 64})
    counts = []
    for i in range(1000):
        fast(torch.randn(16, 16)).sum().backward()
        model.zero_grad()
        if i in (100, 999):
            counts.append(_live_tensors())
    assert counts[1] <= counts[0]
    assert len(ledger.reports()) == 1


def test_deleted_models_leave_nothing_behind():
    left = []
    for i in range(30):
        model = mlp(8 + i, nn.GELU())
        fast = torch.compile(model, backend="actcomp", options=STOCHASTIC)
        y = fast(torch.randn(16, 8 + i))
        y.sum().backward()
        left += [weakref.ref(model), weakref.ref(model[0].weight), weakref.ref(y)]
        del model, fast, y
        torch._dynamo.reset()
    gc.collect()
    assert not [ref for ref in left if ref() is not None]
    assert len(ledger.reports()) == 30


def test_decodes_stand_next_to_their_use_and_not_at_the_top(monkeypatch):
    """The last gradient product of a deep net comes after the first, and decodes are spread between them."""
    results = []
    original = pipeline.run
    monkeypatch.setattr(pipeline, "run", lambda *a, **k: results.append(original(*a, **k)) or results[-1])
    deep = nn.Sequential(*(m for _ in range(8) for m in (nn.Linear(64, 64), nn.GELU())))
    train(lambda: (deep, (torch.randn(64, 64),)), "actcomp", LOSSY)
    (result,) = results
    nodes = [node for node in result.bw.graph.nodes if node.op == "call_function"]
    place = {node: i for i, node in enumerate(nodes)}
    payloads = [node for node in result.bw.graph.nodes if node.op == "placeholder" and node.name.endswith("_codes")]
    first_use = sorted(place[min(node.users, key=place.__getitem__)] for node in payloads)
    assert len(first_use) >= 8
    products = sorted(i for node, i in place.items() if "mm" in str(node.target))
    before_first_product = sum(i < products[0] for i in first_use)
    assert before_first_product <= 2
    assert first_use[-1] > products[-4]
    assert result.plan.peak_after.backward_peak_bytes <= result.plan.peak_before.backward_peak_bytes


def test_reports_are_plain_data_and_plan_files_json_only(stored: Path):
    assert json.loads(stored.read_text())["schema_version"] == 5
    assert plan_io.load(stored).graphs
    stored.write_bytes(b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(PlanError, match="not a JSON plan"):
        plan_io.load(stored)
