"""Records of an experiment: tidy tables (Parquet and CSV) and the resolved configuration, written
as the work proceeds.

Every write is atomic, so a run that is killed leaves whole files, from which it can be resumed.
"""

import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd


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
        >>> folder = tempfile.TemporaryDirectory()
        >>> records = Records(folder.name, {"seeds": 2})
        >>> records.add("rounds", [{"seed": 0, "accuracy": 0.5}])
        >>> Records(folder.name, {"seeds": 2})["rounds"].to_dict("records")
        [{'seed': 0, 'accuracy': 0.5}]
        >>> folder.cleanup()
    """

    def __init__(self, folder: str | Path, configuration: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.configuration = json.loads(json.dumps(dict(configuration)))
        config = self.folder / "config.json"
        if config.exists():
            self._require_same(config)

    @classmethod
    def open(cls, folder: str | Path) -> "Records":
        """The records that lie in a folder.

        Raises:
            ValueError: there are none.
        """
        return cls(folder, _configuration(Path(folder) / "config.json"))

    def __getitem__(self, table: str) -> pd.DataFrame:
        """A table as it stands; empty if nothing was added yet."""
        file = self.folder / f"{table}.parquet"
        return pd.read_parquet(file) if file.exists() else pd.DataFrame()

    def add(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of one table, on disk when this returns."""
        self.put(table, pd.concat([self[table], pd.DataFrame(list(rows))], ignore_index=True))

    def put(self, table: str, frame: pd.DataFrame) -> None:
        """A whole table, in place of what there was."""
        self.keep_configuration()
        # The Parquet file last: by it a resumed run knows what is done.
        _replace(self.folder / f"{table}.csv", lambda path: frame.to_csv(path, index=False))
        _replace(self.folder / f"{table}.parquet", lambda path: frame.to_parquet(path, index=False))

    def keep_configuration(self) -> None:
        """Write ``config.json`` if there is none yet: to be done before anything else goes into the
        folder.
        """
        config = self.folder / "config.json"
        if not config.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            record = {"configuration": self.configuration, "environment": environment()}
            _replace(config, lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))

    def _require_same(self, config: Path) -> None:
        theirs = _configuration(config)
        differs = [
            f"{name} ({theirs.get(name)}, now {self.configuration.get(name)})"
            for name in sorted({*theirs, *self.configuration})
            if theirs.get(name) != self.configuration.get(name)
        ]
        if differs:
            raise ValueError(
                f"{self.folder} holds records of another configuration: {'; '.join(differs)} "
                "differ. Choose another folder, or delete this one."
            )


def with_rows(table: pd.DataFrame, rows: pd.DataFrame, *, by: list[str]) -> pd.DataFrame:
    """A table with these rows in place of those that have the same values in the columns ``by``.

    A run that was killed may have written part of its tables, and then writes the same rows again.

    Example:
        >>> table = pd.DataFrame({"seed": [0, 1], "accuracy": [0.5, 0.6]})
        >>> rows = pd.DataFrame({"seed": [1, 2], "accuracy": [0.7, 0.8]})
        >>> with_rows(table, rows, by=["seed"]).to_dict("list")
        {'seed': [0, 1, 2], 'accuracy': [0.5, 0.7, 0.8]}
    """
    kept = table
    if len(table) and len(rows):
        replaced = pd.MultiIndex.from_frame(table[by]).isin(pd.MultiIndex.from_frame(rows[by]))
        kept = table[~replaced]
    # pandas would take the dtypes of empty tables into account.
    parts = [part for part in (kept, rows) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else rows


def _configuration(config: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(config.read_text())["configuration"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{config} is not the configuration of records ({error!r}). Choose another folder."
        ) from None


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside the file, bring it to the disk, and rename: the file is the old or the new one,
    never half of it.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
        if os.name == "posix":  # the renaming, too, must reach the disk
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except BaseException:
        os.unlink(name)
        raise


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
