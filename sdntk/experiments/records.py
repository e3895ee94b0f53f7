"""Records of an experiment: tidy tables (Parquet and CSV) and the resolved configuration, written
as the work proceeds.

Every write is atomic, so a run that is killed leaves whole files, from which it can be resumed. Of
a table the Parquet file counts; the CSV is made from it, for people. One process at a time writes:
see :func:`sdntk._folders.hold`.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import reprlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd

from sdntk import _atomic, _folders
from sdntk._warnings import warn
from sdntk.experiments import tables
from sdntk.experiments.tables import Columns, Mark

#: No configuration takes as many bytes.
_MOST_BYTES = 1_000_000


class Records:
    """The records of one configuration in one folder.

    Args:
        folder: where ``config.json`` and the tables ``NAME.parquet`` and ``NAME.csv`` lie; made
            with the first of them.
        configuration: every setting that the results depend on, as JSON can hold it.

    Raises:
        ValueError: the folder holds records of another configuration, or a config.json that is
            none.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> records = Records(folder.name, {"seeds": 2})
        >>> records.add("rounds", [{"seed": 0, "accuracy": 0.5}])
        >>> Records(folder.name, {"seeds": 2})["rounds"].to_dict("records")
        [{'seed': 0, 'accuracy': 0.5}]
        >>> folder.cleanup()
    """

    def __init__(self, folder: str | Path, configuration: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.configuration: dict[str, Any] = _plain(json.dumps(dict(configuration)))
        if self._config.exists():
            self._require_same()

    @classmethod
    def open(cls, folder: str | Path) -> "Records":
        """The records that lie in a folder.

        Raises:
            ValueError: there are none.
        """
        return cls(folder, _configuration(Path(folder) / "config.json"))

    def __getitem__(self, table: str) -> pd.DataFrame:
        """A table as it stands; empty if nothing was added yet."""
        return self.read(table)

    def read(self, table: str, columns: Columns | None = None) -> pd.DataFrame:
        """A table as it stands, with these columns; empty if nothing was added yet.

        Raises:
            ValueError: its file holds something else: other columns, the rows of another table or
                of another configuration; or it is damaged.
        """
        file = self._file(table, "parquet")
        if not file.exists():
            return tables.empty(columns or {})
        # Versions up to 0.2 wrote no marks: their tables are known by the config.json beside them.
        return tables.read(file, self._mark(table), columns, unmarked=self._config.exists())

    def add(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of one table, on disk when this returns."""
        self.put(table, pd.concat([self[table], pd.DataFrame(list(rows))], ignore_index=True))

    def put(self, table: str, frame: pd.DataFrame) -> None:
        """A whole table, in place of what there was; what is there already is not written again.

        So a finished run can be shown from a disk that is read-only, and a CSV that was edited is
        made anew. An empty table needs no file.
        """
        file, text = self._file(table, "parquet"), _as_csv(frame)
        if frame.empty and not file.exists():
            return
        if not self._holds(table, text):
            self.keep_configuration()
            self._write_csv(table, text)
            # The Parquet file last: by it a resumed run knows what is done.
            mark = self._mark(table)
            _atomic.replace(file, lambda opened: tables.write(opened, frame, mark))
        elif not _has_content(self._file(table, "csv"), text):
            self._restore_csv(table, text)

    def keep_configuration(self) -> None:
        """Write ``config.json`` if there is none yet: to be done before anything else goes into the
        folder.

        Raises:
            ValueError: the folder holds states of networks, of whose settings nothing is known.
        """
        if self._config.exists():
            return
        states = self.folder / "checkpoints"
        if states.is_dir() and any(states.iterdir()):
            raise ValueError(
                f"{states} holds states of unknown settings, since there is no config.json beside "
                "it. Delete it, or choose another folder."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"configuration": self.configuration, "environment": environment()}
        text = json.dumps(record, indent=1) + "\n"
        _atomic.replace(self._config, lambda opened: opened.write(text.encode()))

    @property
    def _config(self) -> Path:
        return self.folder / "config.json"

    def _file(self, table: str, ending: str) -> Path:
        if not re.fullmatch(r"\w{1,100}", table):
            raise ValueError(
                f"table must be a name of at most 100 letters, digits and _; got {table!r:.120}."
            )
        return self.folder / f"{table}.{ending}"

    def _mark(self, table: str) -> Mark:
        settings = json.dumps(self.configuration, sort_keys=True).encode()
        return Mark(table, hashlib.sha256(settings).hexdigest())

    def _holds(self, table: str, text: bytes) -> bool:
        """Whether the Parquet file has these rows."""
        try:
            return self._file(table, "parquet").exists() and _as_csv(self[table]) == text
        except ValueError:  # damaged
            return False

    def _write_csv(self, table: str, text: bytes) -> None:
        _atomic.replace(self._file(table, "csv"), lambda opened: opened.write(text))

    def _restore_csv(self, table: str, text: bytes) -> None:
        file = self._file(table, "csv")
        message = f"{file} was not what {table}.parquet holds, which counts"
        try:
            self._write_csv(table, text)
            warn(f"{message}; it has been written again.", UserWarning)
        except OSError as error:
            if not _folders.is_read_only(error):
                raise
            warn(f"{message}; it cannot be written again ({error}).", UserWarning)

    def _require_same(self) -> None:
        theirs = _configuration(self._config)
        differs = [
            f"{name} ({reprlib.repr(theirs.get(name))}, now "
            f"{reprlib.repr(self.configuration.get(name))})"
            for name in sorted({*theirs, *self.configuration})
            if theirs.get(name) != self.configuration.get(name)
        ]
        if differs:
            raise ValueError(
                f"{self.folder} holds records of another configuration: {'; '.join(differs)} "
                "differ. Choose another folder, or delete this one."
            )
        self.configuration = theirs  # 1 and 1.0 are equal, and their checksums are not


def with_rows(table: pd.DataFrame, rows: pd.DataFrame, *, by: list[str]) -> pd.DataFrame:
    """A table with these rows in place of those that have the same values in the columns ``by``,
    sorted by them: one order, whatever the order of work.

    A run that was killed may have written part of its tables, and then writes the same rows again.

    Example:
        >>> table = pd.DataFrame({"seed": [0, 2], "accuracy": [0.5, 0.6]})
        >>> rows = pd.DataFrame({"seed": [2, 1], "accuracy": [0.7, 0.8]})
        >>> with_rows(table, rows, by=["seed"]).to_dict("list")
        {'seed': [0, 1, 2], 'accuracy': [0.5, 0.8, 0.7]}
    """
    kept = table
    if len(table) and len(rows):
        replaced = pd.MultiIndex.from_frame(table[by]).isin(pd.MultiIndex.from_frame(rows[by]))
        kept = table[~replaced]
    # pandas would take the dtypes of empty tables into account.
    parts = [part for part in (kept, rows) if len(part)]
    if not parts:
        return rows
    return pd.concat(parts).sort_values(by, kind="stable", ignore_index=True)


def _plain(text: str) -> Any:
    """What JSON text says, nan and infinities by their names: unlike nan, a name equals itself."""
    return json.loads(text, parse_constant=str)


def _configuration(config: Path) -> dict[str, Any]:
    try:
        if not config.is_file() or config.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it must be a file of at most {_MOST_BYTES:,} bytes")
        configuration = _plain(config.read_text())["configuration"]
        if not isinstance(configuration, dict):
            raise TypeError("its configuration is none")
        return configuration
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{config} is not the configuration of records ({error!r}). Choose another folder."
        ) from None


def _as_csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, lineterminator="\n").encode()


def _has_content(file: Path, content: bytes) -> bool:
    is_whole = file.is_file() and file.stat().st_size == len(content)
    return is_whole and file.read_bytes() == content


def environment() -> dict[str, Any]:
    """What results and timings depend on beside the configuration: device, versions and date."""
    packages = (
        "sdntk",
        "jax",
        "jaxlib",
        "neural-tangents",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "scipy",
        "scikit-learn",
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "machine": _processor(),
        "cores": _cores(),
        "python": platform.python_version(),
        "versions": {name: version for name in packages if (version := _version(name))},
        "x64": jnp.result_type(float) == jnp.float64,
    }


def _cores() -> int | None:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # neural-tangents is an extra
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
