"""What the reports' tables and sentences share."""

import pandas as pd
from rich.table import Table


def new_table(title: str, columns: list[str]) -> Table:
    """A table with these columns of numbers, aligned to the right."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


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
