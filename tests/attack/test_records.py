"""Folders of records and of networks' states that are damaged, swapped, foreign or hand-made.

Must hold: the command that finds one either refuses it and names the file, or heals it and ends
with the records of a folder that was left alone; no traceback, no allocation above 100 MB.
"""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorstore as ts
from experiments import test_network_classification as networks

from sdntk.experiments import checkpoints
from sdntk.experiments.checkpoints import Checkpoints
from sdntk.reports import kernel_classification

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*was not what:UserWarning")]

NTK = (
    *("ntk", "--train", "20", "--held-out", "10", "--test", "10", "--depth", "1", "--seeds", "2"),
    *("--rounds", "2", "--tolerance", "0.3", "--out", "run"),
)
TABLES = "rounds", "classes", "single_fits", "comparison"
DEEP = "[" * 100_000 + "]" * 100_000
MOST_BYTES = 100_000_000


@pytest.fixture
def records(command, tmp_path, monkeypatch):
    """A finished run of two seeds, beside one with another tolerance."""
    monkeypatch.setattr(kernel_classification, "plot", lambda _: {})
    assert command(*NTK).returncode == 0
    assert command(*NTK[:-2], "--rounds", "3", "--out", "other").returncode == 0
    return tmp_path / "run"


def peak(function):
    """What a function returns, and how far memory grew beyond what it was (Linux)."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    clear.write_text("5")
    resident, high = (
        lambda name=name: 1024 * int(status.read_text().split(f"{name}:")[1].split()[0])
        for name in ("VmRSS", "VmHWM")
    )
    before = resident()
    return function(), high() - before


def unmarked(file, frame):
    """A table as version 0.3 wrote it."""
    frame.to_parquet(file, index=False)


def edit(change, table="rounds"):
    def craft(folder):
        file = folder / f"{table}.parquet"
        unmarked(file, change(pd.read_parquet(file)))

    return craft


def with_metadata(key, value):
    def craft(folder):
        file = folder / "rounds.parquet"
        table = pq.read_table(file)
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, key: value}), file)

    return craft


def truncate(name, share):
    return lambda folder: os.truncate(folder / name, int(share * (folder / name).stat().st_size))


def write(name, content):
    content = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(content)


def delete(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def in_place(name, make):
    """Something else where a file was."""

    def craft(folder):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return craft


def swap(folder):
    a, b, between = (folder / name for name in ("rounds.parquet", "single_fits.parquet", "x"))
    a.rename(between)
    b.rename(a)
    between.rename(b)


def moved_and_linked(folder):
    (folder / "rounds.parquet").rename(folder / "elsewhere")
    (folder / "rounds.parquet").symlink_to(folder / "elsewhere")


def as_version_0_3(folder):
    for name in TABLES:
        edit(lambda frame: frame, name)(folder)


def many_rows(folder):
    """Ten million rows of zeros in a file of kilobytes."""
    file = folder / "rounds.parquet"
    frame = pd.read_parquet(file)
    zeros = pd.DataFrame(np.zeros((100_000, frame.shape[1])), columns=frame.columns)
    table = pa.Table.from_pandas(zeros.astype(frame.dtypes), preserve_index=False)
    with pq.ParquetWriter(file, table.schema) as writer:
        for _ in range(100):
            writer.write_table(table)
    assert file.stat().st_size < 1_000_000


def long_text(folder):
    """A megabyte of text in each of ten thousand rows, kept once."""
    file = folder / "classes.parquet"
    table = pq.read_table(file).take(pa.array(np.zeros(10_000, int)))
    text = pa.DictionaryArray.from_arrays(np.zeros(10_000, np.int32), ["x" * 1_000_000])
    index = table.schema.get_field_index("status")
    # Without Arrow's own schema the column is plain text to who reads it.
    pq.write_table(table.set_column(index, "status", text), file, store_schema=False)
    assert file.stat().st_size < 1_000_000


REFUSED = {
    "a truncated table": truncate("rounds.parquet", 0.5),
    "a table without its last byte": truncate("classes.parquet", 0.9999),
    "an empty file": truncate("single_fits.parquet", 0),
    "swapped tables": swap,
    "a table of another run": lambda folder: shutil.copy(
        folder.parent / "other" / "rounds.parquet", folder
    ),
    "text for a table": write("rounds.parquet", "seed,round\n0,0\n"),
    "a pickle for a table": write("rounds.parquet", pickle.dumps({"seed": [0]})),
    "a folder for a table": in_place("rounds.parquet", Path.mkdir),
    "a pipe for a table": in_place("rounds.parquet", os.mkfifo),
    "an endless device": in_place("rounds.parquet", lambda file: file.symlink_to("/dev/zero")),
    "seeds in float": edit(lambda frame: frame.astype({"seed": float})),
    "seeds as text": edit(lambda frame: frame.astype({"seed": str})),
    "times for losses": edit(lambda frame: frame.assign(train_loss=pd.Timestamp("2026-01-01"))),
    "lists for losses": edit(lambda frame: frame.assign(train_loss=[[0.5]] * len(frame))),
    "gaps in the seeds": edit(
        lambda frame: frame.assign(seed=frame["seed"].where(frame.index > 0).astype("Int64"))
    ),
    "a column less": edit(lambda frame: frame.drop(columns="test_loss")),
    "a column more": edit(lambda frame: frame.assign(more=1)),
    "no column": edit(lambda frame: frame[[]], "classes"),
    "many rows in a small file": many_rows,
    "long text in a small file": long_text,
    "a nested mark": with_metadata(b"sdntk", DEEP),
    "a mark that is none": with_metadata(b"sdntk", b"\xff"),
    "a mark without a checksum": with_metadata(b"sdntk", b'{"table": "rounds"}'),
    "a nested configuration": write("config.json", DEEP),
    "a nested setting": write("config.json", '{"configuration": {"train": ' + DEEP + "}}"),
    "a huge integer": write("config.json", '{"configuration": {"train": 1' + 5000 * "0" + "}}"),
    "nan for a setting": write("config.json", '{"configuration": {"train": NaN}}'),
    "a list of settings": write("config.json", '{"configuration": [["train", 20]]}'),
    "bytes for a configuration": write("config.json", b"\xff\xfe\x00"),
    "a configuration of a gigabyte": lambda folder: os.truncate(folder / "config.json", 10**9),
    "a folder for the configuration": in_place("config.json", Path.mkdir),
    "a configuration of other settings": lambda folder: shutil.copy(
        folder.parent / "other" / "config.json", folder
    ),
    "a folder for the lock": in_place(".lock", Path.mkdir),
    "a link for the lock": in_place(".lock", lambda file: file.symlink_to("config.json")),
    "tables of version 0.3 without a configuration": lambda folder: (
        as_version_0_3(folder),
        delete("config.json")(folder),
    ),
}
HEALED = {
    **{f"{name} deleted": delete(f"{name}.parquet") for name in TABLES},
    "tables without CSV": delete(*(f"{name}.csv" for name in TABLES)),
    "an edited CSV": lambda folder: (folder / "rounds.csv").write_text("seed,round\n"),
    "a link for a CSV": in_place("rounds.csv", lambda file: file.symlink_to("/dev/zero")),
    "a dangling link": in_place("rounds.parquet", lambda file: file.symlink_to("nowhere")),
    "a link in a circle": in_place("rounds.parquet", lambda file: file.symlink_to(file.name)),
    "a table elsewhere": moved_and_linked,
    "the configuration deleted": delete("config.json"),
    "a damaged table that is derived": truncate("comparison.parquet", 0.5),
    "tables of version 0.3": as_version_0_3,
    "a round less": edit(lambda frame: frame[1:]),
    "a seed more": edit(lambda frame: pd.concat([frame, frame.assign(seed=7)])),
    "a seed of 63 bits": edit(lambda frame: frame.assign(seed=2**63 - 1)),
    "rounds beyond all": edit(lambda frame: frame.assign(round=10**18)),
    "nan for tolerances": edit(lambda frame: frame.assign(tolerance=np.nan)),
    "rows in another order": edit(lambda frame: frame[::-1]),
    "a deleted owner": write(".owner", b"\xff" * 10**6),
}


def tables(folder):
    """Of Parquet and CSV."""
    parquet = {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    return parquet | {f"{name}.csv": pd.read_csv(folder / f"{name}.csv") for name in TABLES}


def test_folders_of_records(records, command, score):
    whole, wrong = tables(records), []
    shutil.copytree(records, records.parent / "whole")
    for name, craft in {**REFUSED, **HEALED}.items():
        shutil.rmtree(records)
        shutil.copytree(records.parent / "whole", records)
        craft(records)
        done, grown = peak(lambda: command(*NTK))
        said = " ".join(done.stderr.split())
        if name in REFUSED:
            is_named = said.startswith("error: run") or str(records) in said
            is_right = done.returncode == 2 and is_named and len(said) < 2000
        else:
            is_right = done.returncode == 0 and all(
                table.equals(whole[part]) for part, table in tables(records).items()
            )
        if not is_right or "Traceback" in said or grown > MOST_BYTES:
            wrong.append((name, done.returncode, said, grown))
    score("damaged and hand-made folders of records", len(REFUSED) + len(HEALED), len(wrong))
    assert not wrong


def test_single_bits(records, command, size, score):
    """A bit is flipped in a table: the table is refused, or what it says is what it said."""
    generator, wrong, tried = np.random.default_rng(0), [], size(10, 300)
    whole = tables(records)
    for _ in range(tried):
        file = records / f"{TABLES[generator.integers(3)]}.parquet"
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[generator.integers(len(flipped))] ^= 1 << int(generator.integers(8))
        file.write_bytes(flipped)
        done = command(*NTK)
        is_refused = done.returncode == 2 and file.name in done.stderr.replace("\n", "")
        if not is_refused and not (
            done.returncode == 0
            and all(table.equals(whole[part]) for part, table in tables(records).items())
        ):
            wrong.append((file.name, done))
        file.write_bytes(content)
    score("tables with one bit flipped", tried, len(wrong))
    assert not wrong


def state_of(folder):
    """The last state of the networks."""
    return max(folder.glob("checkpoints/*/*"), key=lambda path: int(path.name)) / "default"


def large_array(folder):
    """In place of the first array one of 8e18 bytes, of which nothing is stored."""
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": f"file://{state_of(folder)}/", "path": "0/"},
        "metadata": {"shape": [10**9, 10**9], "chunks": [10**9, 1], "dtype": "<f8"},
    }
    ts.open(spec, create=True, delete_existing=True).result()


STATES = {
    "an empty description": lambda folder: (state_of(folder) / "_METADATA").write_text(""),
    "a nested description": lambda folder: (state_of(folder) / "_METADATA").write_text(DEEP),
    "no description": lambda folder: (state_of(folder) / "_METADATA").unlink(),
    "no manifest": lambda folder: (state_of(folder) / "manifest.ocdbt").unlink(),
    "a damaged manifest": lambda folder: (state_of(folder) / "manifest.ocdbt").write_text("junk"),
    "truncated data": lambda folder: [
        os.truncate(file, 7) for file in state_of(folder).rglob("d/*") if file.is_file()
    ],
    "a state without arrays": lambda folder: shutil.rmtree(state_of(folder)),
    "a large array": large_array,
    "no configuration": lambda folder: (folder / "config.json").unlink(),
}


# Threads of orbax may complain that a failed read is over, after it was told.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_states_of_networks(tmp_path, monkeypatch, score):
    save, saved = Checkpoints.save, []

    def save_and_die(self, state):
        save(self, state)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_STATES", 0)
    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        networks.go(tmp_path / "whole")
    wrong = []
    for name, craft in STATES.items():
        folder = tmp_path / name.replace(" ", "_")
        shutil.copytree(tmp_path / "whole", folder)
        craft(folder)

        def refusal(folder=folder):
            try:
                networks.go(folder)
            except (ValueError, OSError) as error:
                return str(error)

        said, grown = peak(refusal)
        if said is None or str(folder) not in said or grown > MOST_BYTES:
            wrong.append((name, said, grown))
    score("damaged and hand-made states of networks", len(STATES), len(wrong))
    assert not wrong
