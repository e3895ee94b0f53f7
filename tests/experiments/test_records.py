"""Records: what was written can be read by others, is never half there, and belongs to one
configuration.
"""

import json
from pathlib import Path

import pandas as pd
import pytest

from sdntk.experiments import records
from sdntk.experiments.records import Records

ROWS = [{"seed": 0, "round": t, "accuracy": 0.1 + 0.2 * t} for t in range(3)]


def test_tables_are_the_same_in_parquet_and_csv(tmp_path):
    written = Records(tmp_path / "run", {"seeds": (0, 1), "nested": {"layers": [1, 2]}})
    assert written["rounds"].empty
    written.add("rounds", ROWS[:2])
    written.add("rounds", ROWS[2:])
    expected = pd.DataFrame(ROWS)
    pd.testing.assert_frame_equal(written["rounds"], expected)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run" / "rounds.csv"), expected)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / "rounds.parquet"), expected)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["configuration"] == {"seeds": [0, 1], "nested": {"layers": [1, 2]}}
    assert {"date", "device", "versions", "x64"} <= config["environment"].keys()
    pd.testing.assert_frame_equal(
        Records(tmp_path / "run", {"seeds": [0, 1], "nested": {"layers": [1, 2]}})["rounds"],
        expected,
    )


def test_another_configuration_is_refused_and_named(tmp_path):
    Records(tmp_path, {"rounds": 99})  # writes nothing yet: a first try that fails must not decide
    Records(tmp_path, {"rounds": 10, "train": 100}).add("rounds", ROWS)
    with pytest.raises(
        ValueError, match=r"another configuration: new \(None, now 1\); rounds \(10, now 5\) differ"
    ):
        Records(tmp_path, {"rounds": 5, "train": 100, "new": 1})


def test_records_are_opened_without_their_configuration(tmp_path):
    with pytest.raises(ValueError, match="is not the configuration of records"):
        Records.open(tmp_path)
    Records(tmp_path / "run", {"rounds": 10}).keep_configuration()
    opened = Records.open(tmp_path / "run")
    assert opened.configuration == {"rounds": 10}
    assert opened["rounds"].empty
    with pytest.raises(ValueError, match="another configuration"):
        Records(tmp_path / "run", {"rounds": 9})


@pytest.mark.parametrize("content", ["", "[]", "{}", "no json"])
def test_a_config_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json is not the configuration of records"):
        Records(tmp_path, {})


def test_a_write_that_fails_leaves_the_old_table(tmp_path, monkeypatch):
    written = Records(tmp_path, {})
    written.add("rounds", ROWS)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def breaks_off(path, _):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", breaks_off)
    with pytest.raises(OSError, match="disk full"):
        written.add("rounds", ROWS)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_environment_does_without_neural_tangents(monkeypatch):
    assert records.environment()["versions"]["neural-tangents"] == "0.6.5"
    version = records.importlib.metadata.version

    def missing(name):
        if name == "neural-tangents":
            raise records.importlib.metadata.PackageNotFoundError
        return version(name)

    monkeypatch.setattr(records.importlib.metadata, "version", missing)
    assert "neural-tangents" not in records.environment()["versions"]
