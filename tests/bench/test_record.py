"""Result rows and intervals."""

import json
import math
from pathlib import Path

import pytest

from bench.record import append_rows, environment, interval, ratio


def test_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert math.isnan(interval([1.0]).half_width)


def test_rows_are_json_lines_without_nan(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    append_rows(path, [{"a": math.nan, "runs": [{"loss": math.inf}]}, {"a": 1}])
    append_rows(path, [{"a": 2}])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"a": None, "runs": [{"loss": None}]}, {"a": 1}, {"a": 2}]


def test_environment_names_what_is_needed_to_repeat() -> None:
    assert {"commit", "torch", "python", "threads"} <= environment().keys()


def test_ratio_shows_a_dash_for_what_is_missing() -> None:
    assert ratio(3.0, 2.0) == "1.50x"
    assert ratio(None, 2.0) == ratio(3.0, 0) == ratio(3.0, None) == "–"
