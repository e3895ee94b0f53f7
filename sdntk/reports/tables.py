"""What the reports' tables and sentences share."""

import functools
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from rich.table import Table

from sdntk import _atomic


def new_table(title: str, columns: list[str]) -> Table:
    """A table with these columns of numbers, aligned to the right."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def save_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write each table as ``folder/NAME.csv``; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, frame in tables.items():
        path = folder / f"{name}.csv"
        _atomic.replace(path, functools.partial(frame.to_csv, index=False))
        paths.append(path)
    return paths


def mean_and_deviation(values: pd.Series) -> str:
    """For a table: mean ± standard deviation, or the one value there is."""
    mean, deviation = values.mean(), values.std(ddof=0)
    if deviation > 1e-12 * abs(mean):
        return f"{mean:.4g} ± {deviation:.2g}"
    return f"{mean:.4g}"


def over_seeds(count: int) -> str:
    """What lines and areas of a figure are, for its title."""
    if count == 1:
        return "one seed"
    return f"mean and one standard deviation over {count} seeds"
