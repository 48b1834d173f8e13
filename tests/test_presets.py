"""Presets are options: each expands, says where it comes from, and gives way to what is given beside it."""

import json
from pathlib import Path

import pytest

from fxcompress.cli import main
from fxcompress.errors import OptionError
from fxcompress.options import DEFAULTS, Options, from_mapping
from fxcompress.presets import PRESETS

STATIC = [name for name, preset in PRESETS.items() if not preset.made_by]


@pytest.mark.parametrize("name", STATIC)
def test_a_preset_is_its_options(name: str) -> None:
    options = from_mapping({"preset": name})
    assert options == Options(**PRESETS[name].options)  # type: ignore[arg-type]
    assert options != Options() and from_mapping(options.to_dict()) == options


def test_what_is_given_beside_a_preset_replaces_its_options(monkeypatch, tmp_path: Path) -> None:
    assert from_mapping({"bits": 4, "preset": "division"}) == from_mapping({"codec": "dual", "operand_bits": 2,
                                                                             "rounding": "stochastic"})  # fmt: skip
    config = tmp_path / "fx.toml"
    config.write_text('[options]\npreset = "division"\nseed = 7\n')
    monkeypatch.setenv("FXCOMPRESS_CONFIG", str(config))
    monkeypatch.setenv("FXCOMPRESS_OPERAND_BITS", "4")
    options = from_mapping()
    assert (options.codec, options.bits, options.operand_bits, options.seed) == ("dual", 2, 4, 7)
    monkeypatch.setenv("FXCOMPRESS_PRESET", "mesa")
    assert from_mapping().group == "head"


@pytest.mark.parametrize(
    "given, words",
    [
        ({"preset": "gact"}, ["'gact-l1'"]),
        ({"preset": "divison"}, ["did you mean 'division'"]),
        ({"preset": 3}, ["unknown preset 3"]),
        ({"presets": "mesa"}, ["'preset'"]),
        ({"preset": "gact-l2"}, ["measuring", "calibrate"]),
        ({"preset": "mesa", "plan": "p.json"}, ["plan", "group"]),
    ],
)
def test_a_wrong_preset_is_refused_with_a_hint(given, words) -> None:
    with pytest.raises(OptionError) as caught:
        from_mapping(given)
    assert all(word in str(caught.value) or "'bits'" in str(caught.value) for word in words), caught.value


def test_the_command_prints_source_options_and_deviations(capsys) -> None:
    assert main(["presets", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)["presets"]
    assert set(content) == set(PRESETS)
    for name, shown in content.items():
        assert shown["source"] and len(shown["deviations"]) >= 4
        assert set(shown["options"]) <= set(DEFAULTS) and bool(shown["options"]) != bool(shown["made_by"]), name
    assert main(["presets", "division"]) == 0
    text = capsys.readouterr().out
    assert "Dual Activation Precision" in text and "codec=dual" in text and "gact" not in text
    assert main(["presets", "divison"]) == 2
    assert "did you mean 'division'" in capsys.readouterr().err


def test_explain_takes_a_preset(capsys) -> None:
    assert main(["explain", "bench.models.zoo:cnn", "--option", "preset=division", "--option", "inner=aot_eager"]) == 0
    assert "dual" in capsys.readouterr().out
