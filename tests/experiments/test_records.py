"""Records: what was written can be read by others, is never half there, and belongs to one
configuration.
"""

import errno
import functools
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys

import pandas as pd
import pytest

from sdntk import _atomic, _folders
from sdntk.experiments import records
from sdntk.experiments.records import Records, with_rows

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

    def breaks_off(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", breaks_off)
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


def test_nan_in_a_configuration_is_equal_to_itself(tmp_path):
    settings = {"rtol": float("nan"), "most": [float("inf")], "nested": {"least": -float("inf")}}
    Records(tmp_path, settings).add("rounds", ROWS)
    assert len(Records(tmp_path, settings)["rounds"]) == 3
    with pytest.raises(ValueError, match=r"rtol \('NaN', now 0.1\) differ"):
        Records(tmp_path, settings | {"rtol": 0.1})


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "", "a/b", "..", "rounds.parquet", "a\0"])
def test_a_table_does_not_leave_the_folder(tmp_path, name):
    records = Records(tmp_path / "run", {})
    for use in (records.__getitem__, lambda name: records.put(name, pd.DataFrame(ROWS))):
        with pytest.raises(ValueError, match="table must be a name of at most 100 letters"):
            use(name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inner", ["", '{"configuration": '])
def test_a_nested_configuration_is_refused(tmp_path, inner):
    depth = 100_000
    (tmp_path / "config.json").write_text(inner + "[" * depth + "]" * depth + "}" * bool(inner))
    with pytest.raises(ValueError, match=r"config.json is not the configuration of records"):
        Records(tmp_path, {})


def test_what_is_there_is_not_written_again(tmp_path, monkeypatch):
    """So a finished run can be shown from a read-only disk."""
    Records(tmp_path, {}).put("rounds", pd.DataFrame(ROWS))
    monkeypatch.setattr(_atomic, "replace", None)  # whoever writes fails
    Records(tmp_path, {}).put("rounds", pd.DataFrame(ROWS))


def test_an_edited_csv_is_noticed_and_written_again(tmp_path):
    records = Records(tmp_path, {})
    records.put("rounds", pd.DataFrame(ROWS))
    (tmp_path / "rounds.csv").write_text("seed,round,accuracy\n0,0,0.99\n")
    with pytest.warns(UserWarning, match=r"rounds.csv was not what rounds.parquet holds"):
        records.put("rounds", records["rounds"])
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "rounds.csv"), pd.DataFrame(ROWS))


def test_tables_say_whose_they_are(tmp_path):
    records, other = Records(tmp_path / "a", {"train": 1}), Records(tmp_path / "b", {"train": 2})
    for name in ("rounds", "classes"):
        records.add(name, ROWS)
        other.add(name, ROWS)
    shutil.copy(tmp_path / "a" / "rounds.parquet", tmp_path / "a" / "classes.parquet")
    with pytest.raises(ValueError, match=r"classes.parquet does not .* it is of another table"):
        records["classes"]
    shutil.copy(tmp_path / "a" / "rounds.parquet", tmp_path / "b" / "rounds.parquet")
    with pytest.raises(ValueError, match=r"rounds.parquet does not .* of another configuration"):
        other["rounds"]
    pd.DataFrame(ROWS).to_parquet(tmp_path / "b" / "rounds.parquet")  # as version 0.3 wrote it
    assert len(other["rounds"]) == 3


def test_rows_come_in_one_order_whatever_the_order_of_work():
    rows = [pd.DataFrame({"seed": [seed] * 2, "round": [0, 1]}) for seed in range(3)]
    whole = pd.concat(rows, ignore_index=True)
    for order in itertools.permutations(rows):
        table = whole[:0]
        for part in order:
            table = with_rows(table, part, by=["seed"])
        pd.testing.assert_frame_equal(table, whole)


@pytest.mark.slow
def test_one_process_at_a_time_is_in_a_folder(tmp_path):
    """Another waits and says for whom; one that was killed leaves nothing to wait for."""
    program = """
import sys, time
from pathlib import Path
from sdntk import _atomic, _folders
from sdntk._folders import hold
with hold(Path(sys.argv[1])), hold(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(float(sys.argv[2]))
"""
    start = functools.partial(subprocess.Popen, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    arguments = sys.executable, "-c", program, tmp_path / "run"
    with start([*arguments, "600"], text=True) as first:
        assert first.stdout.readline() == "in\n"
        with start([*arguments, "0"], text=True) as second:
            said = second.stderr.readline()
            assert f"is in use by process {first.pid} on {socket.gethostname()}; waiting" in said
            first.kill()
            assert second.communicate()[0] == "in\n"
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_lock_that_may_not_be_opened_is_no_reason_to_go_without(tmp_path, monkeypatch):
    """As that of another user in a folder of all."""

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".lock"))

    monkeypatch.setattr(_folders, "_acquire", refused)
    with pytest.raises(PermissionError, match=r"\.lock"), _folders.hold(tmp_path):
        pass
    monkeypatch.setattr(_folders, "_may_write", lambda _: False)
    with _folders.hold(tmp_path):
        pass
