import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.errors import OptionError
from fxcompress.option_rules import PASSES
from fxcompress.options import DEFAULTS, Options, as_options, from_mapping, parse_bytes, value_from_text
from fxcompress.trace import explain


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in DEFAULTS:
        monkeypatch.delenv(f"FXCOMPRESS_{name.upper()}", raising=False)
    monkeypatch.delenv("FXCOMPRESS_CONFIG", raising=False)


def test_defaults_need_no_thought():
    assert from_mapping() == from_mapping({}) == from_mapping(None) == Options()


@pytest.mark.parametrize(
    "given, words",
    [
        ({"btis": 2}, ["btis", "'bits'"]),
        ({"zzz": 2}, ["zzz", "valid names", "operand_bits"]),
        ({1: 2}, ["unknown option 1"]),
        ({"bits": 3}, ["'bits'", "found 3", "1, 2, 4, 8", "default 4"]),
        ({"bits": "4"}, ["'4' (str)"]),
        ({"bits": True}, ["True (bool)"]),
        ({"bits": 4.0}, ["4.0 (float)"]),
        ({"operand_bits": 1}, ["2, 4, 8"]),
        ({"codec": "afine"}, ["'affine', 'block2d', 'bounded', 'dual', 'float8'"]),
        ({"rounding": "up"}, ["stochastic"]),
        ({"codec": "bounded", "error_bound": 0}, ["2^-100"]),
        ({"codec": "bounded", "error_bound": float("nan")}, ["a number"]),
        ({"group": 24}, ["multiple of 16"]),
        ({"group": 1040}, ["16..1024"]),
        ({"group": "heads"}, ["multiple of 16", "'head'"]),
        ({"lossy": 1}, ["True or False"]),
        ({"loss_chunks": 1}, ["auto", "2..1024"]),
        ({"loss_chunks": -1}, ["0 (off)"]),
        ({"loss_chunks": True}, ["True (bool)"]),
        ({"loss_chunks": "many"}, ["auto"]),
        ({"min_bytes": "16K"}, ["16KiB"]),
        ({"min_bytes": -1}, ["byte count"]),
        ({"min_bytes": 10**5000}, ["a huge number"]),
        ({"seed": -1}, ["0..2^63-1"]),
        ({"inner": "eager"}, ["aot_eager"]),
        ({"mode": "fast"}, ["max-autotune", "None"]),
        ({"inductor": {"a": {"b": 1}}}, ["dotted"]),
        ({"inductor": {"a": [[1]]}}, ["lists of those"]),
        ({"inductor": {"a": float("nan")}}, ["numbers"]),
        ({"inductor": {1: 2}}, ["dotted"]),
        ({"inductor": 3}, ["a dict"]),
        ({"plan": ""}, ["a path"]),
        ({"save_plan": 3}, ["a path"]),
        ({"strict": None}, ["True or False"]),
        ({"disable_passes": [1]}, ["pass names", "pin_products"]),
        ({"disable_passes": ["pin_product"]}, ["unknown pass", "pin_products"]),
        ({"limit": -1}, ["≥ 0", "None"]),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(given, words):
    with pytest.raises(OptionError) as caught:
        from_mapping(given)
    assert all(word in str(caught.value) for word in words), caught.value
    if set(given) <= set(DEFAULTS):
        with pytest.raises(OptionError):
            Options(**given)


@pytest.mark.parametrize(
    "given, names",
    [
        ({"plan": "p.json", "bits": 2}, ["plan", "bits"]),
        ({"plan": "p.json", "lossy": False}, ["plan", "lossy"]),
        ({"inner": "aot_eager", "mode": "default"}, ["inner", "mode"]),
        ({"inner": "aot_eager", "inductor": {"a": 1}}, ["inner", "inductor"]),
        ({"codec": "float8", "bits": 2}, ["codec", "bits"]),
        ({"error_bound": 0.5}, ["codec", "error_bound"]),
        ({"adaptive": True, "codec": "dual"}, ["codec", "adaptive"]),
        ({"codec": "bounded", "rounding": "nearest"}, ["codec", "rounding"]),
        ({"inductor": {"custom_partitioner_fn": None}}, ["inductor", "custom_partitioner_fn"]),
    ],
)
def test_conflicts_name_both_options(given, names):
    with pytest.raises(OptionError) as caught:
        from_mapping(given)
    assert all(repr(name) in str(caught.value) for name in names)


def test_mode_comes_from_either_door_but_not_from_both():
    assert from_mapping(mode="max-autotune") == Options(mode="max-autotune")
    with pytest.raises(OptionError, match="given twice"):
        from_mapping({"mode": "default"}, mode="default")
    with pytest.raises(OptionError, match="'mode'"):
        from_mapping(mode="fast")


def test_every_door_takes_options_or_a_mapping(monkeypatch):
    assert as_options({"bits": 2}) == as_options(Options(bits=2)) == Options(bits=2)
    monkeypatch.setenv("FXCOMPRESS_BITS", "1")
    assert as_options(None) == Options(bits=1)
    with pytest.raises(OptionError, match="found 'bits=2', allowed: a mapping"):
        as_options("bits=2")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="did you mean 'bits'"):
        explain(lambda: None, options={"btis": 2})


def test_layers_lie_over_each_other(monkeypatch, tmp_path: Path):
    config = tmp_path / "fx.toml"
    config.write_text('[options]\nbits = 1\nseed = 1\nmin_bytes = "1KiB"\n[options.inductor]\n"triton.x" = [1, 2]\n')
    monkeypatch.setenv("FXCOMPRESS_CONFIG", str(config))
    monkeypatch.setenv("FXCOMPRESS_SEED", "2")
    monkeypatch.setenv("FXCOMPRESS_LIMIT", "5")
    monkeypatch.setenv("FXCOMPRESS_GROUP", "")
    options = from_mapping({"limit": 7})
    assert options == Options(bits=1, seed=2, limit=7, min_bytes=1024, inductor=(("triton.x", (1, 2)),))
    assert from_mapping({"limit": None}).limit is None


@pytest.mark.parametrize(
    "text, words",
    [
        ("[options]\nbtis = 1", ["fx.toml", "'bits'"]),
        ("bits = 1", ["fx.toml", "'bits'", "[options]"]),
        ("options = 3", ["[options]"]),
        ("[options", ["TOML"]),
        ("[options]\nbits = '1'", ["fx.toml", "'bits'", "'1'"]),
    ],
)
def test_a_bad_configuration_file_is_named(monkeypatch, tmp_path: Path, text: str, words: list[str]):
    config = tmp_path / "fx.toml"
    config.write_text(text)
    monkeypatch.setenv("FXCOMPRESS_CONFIG", str(config))
    with pytest.raises(OptionError) as caught:
        from_mapping()
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_missing_or_binary_configuration_file_is_named(monkeypatch, tmp_path: Path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.toml", "binary", "."):
        monkeypatch.setenv("FXCOMPRESS_CONFIG", str(tmp_path / name))
        with pytest.raises(OptionError, match="FXCOMPRESS_CONFIG"):
            from_mapping()


def test_a_misspelt_variable_is_an_error_and_a_foreign_one_is_not(monkeypatch):
    monkeypatch.setenv("FXCOMPRESS_SOMETHING_ELSE", "1")
    assert from_mapping() == Options()
    monkeypatch.setenv("FXCOMPRESS_BTIS", "2")
    with pytest.raises(OptionError, match="FXCOMPRESS_BITS"):
        from_mapping()


def test_a_wrong_variable_says_that_it_is_one(monkeypatch):
    monkeypatch.setenv("FXCOMPRESS_BITS", "three")
    with pytest.raises(OptionError, match="environment variable for option 'bits': found 'three'"):
        from_mapping({"bits": 2})


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("bits", "2", 2),
        ("lossy", "off", False),
        ("strict", "TRUE", True),
        ("min_bytes", "1.5KiB", 1536),
        ("limit", "none", None),
        ("limit", "0", 0),
        ("mode", "default", "default"),
        ("plan", "a=b.json", "a=b.json"),
        ("inductor", '{"max_autotune": true}', (("max_autotune", True),)),
        ("disable_passes", "outline, chunk_loss,outline", ("chunk_loss", "outline")),
    ],
)
def test_text_is_read_by_the_options_type(name: str, text: str, value: object):
    assert value_from_text(name, text) == value


@pytest.mark.parametrize(
    "name, text", [("bits", "x"), ("lossy", "maybe"), ("inductor", "{"), ("inductor", "[" * 100_000)]
)
def test_text_of_another_type_is_refused(name: str, text: str):
    with pytest.raises(OptionError, match=name):
        value_from_text(name, text)


VALUES = {
    "bits": st.sampled_from([1, 2, 4, 8]),
    "operand_bits": st.sampled_from([2, 4, 8]),
    "rounding": st.sampled_from(["stochastic", "nearest"]),
    "group": st.integers(0, 64).map(lambda n: 16 * n),
    "lossy": st.booleans(),
    "min_bytes": st.integers(0, 2**40),
    "seed": st.integers(0, 2**63 - 1),
    "mode": st.sampled_from([None, "default", "max-autotune"]),
    "inductor": st.dictionaries(st.text(max_size=5), st.booleans() | st.lists(st.integers(), max_size=3), max_size=3),
    "save_plan": st.none() | st.just("p.json"),
    "strict": st.booleans(),
    "disable_passes": st.lists(st.sampled_from(PASSES)),
    "limit": st.none() | st.integers(0, 100),
}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_options_survive_every_round_trip(values):
    options = from_mapping(values)
    assert from_mapping(options.to_dict()) == options
    assert pickle.loads(pickle.dumps(options)) == options
    assert hash(from_mapping(dict(reversed(values.items())))) == hash(options)
    assert json.loads(json.dumps(options.to_dict())) == options.to_dict()
    assert options.canonical() == from_mapping(options.to_dict()).canonical()


@given(st.dictionaries(st.sampled_from(sorted(DEFAULTS)) | st.text(), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)))  # fmt: skip
def test_any_value_is_taken_or_refused_but_never_crashes(values):
    try:
        options = from_mapping(values)
    except OptionError:
        return
    hash(options)
    options.canonical()


def test_the_cache_key_covers_everything_but_where_reports_go():
    base = Options()
    others = {
        "bits": 2, "operand_bits": 4, "codec": "float8", "rounding": "nearest", "group": 64, "lossy": False,
        "loss_chunks": 2, "min_bytes": 1, "seed": 1, "inner": "aot_eager", "mode": "default", "inductor": (("a", 1),),
        "plan": "p.json", "strict": True, "disable_passes": ("outline",), "limit": 1, "budget": "50%",
        "rules": [{"bits": 2}],
    }  # fmt: skip
    with_bound = {"error_bound": 0.1, "adaptive": True}
    limited = {"max_error": 0.1, "calibration": "errors.json"}
    assert set(others) | set(with_bound) | set(limited) | {"save_plan", "stats"} == set(DEFAULTS)
    keys = {base.canonical(), *(replace(base, **{name: value}).canonical() for name, value in others.items())}
    bounded = replace(base, codec="bounded")
    keys |= {bounded.canonical(), *(replace(bounded, **{name: with_bound[name]}).canonical() for name in with_bound)}
    by_head = replace(base, group="head")
    keys |= {by_head.canonical(), replace(by_head, stats="ema").canonical()}
    loose = replace(base, max_error=0.2)
    keys |= {loose.canonical(), *(replace(loose, **{name: limited[name]}).canonical() for name in limited)}
    assert len(keys) == 3 + len(others) + len(with_bound) + len(limited) + 2
    assert replace(base, save_plan="p.json").canonical() == base.canonical()


@pytest.mark.parametrize(
    "given, nbytes",
    [
        (123, 123), ("123", 123), ("0", 0), ("16KiB", 16384), ("16 kib", 16384), ("1.5GB", 1_500_000_000),
        ("8GiB", 8 * 2**30), ("2TB", 2 * 10**12), ("7B", 7), ("0.5MiB", 2**19),
    ],
)  # fmt: skip
def test_parse_bytes(given: object, nbytes: int):
    assert parse_bytes(given) == nbytes


@pytest.mark.parametrize(
    "given", ["8G", "-1", "1.5", "1.5B", "", "KiB", "1e9", "9" * 30, "٣KiB", "1PiB", True, 1.0, None, -1, 2**63]
)
def test_parse_bytes_refuses(given: object):
    with pytest.raises(ValueError):
        parse_bytes(given)
