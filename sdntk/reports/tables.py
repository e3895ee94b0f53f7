"""Cells of tables."""

import pandas as pd


def mean_and_deviation(values: pd.Series) -> str:
    """For a table: mean ± standard deviation, or the one value there is."""
    mean, deviation = values.mean(), values.std(ddof=0)
    return f"{mean:.4g} ± {deviation:.2g}" if deviation > 1e-12 * abs(mean) else f"{mean:.4g}"
