"""Rounds for people: a short text for ``repr``, and a tidy table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: A text has at most so many rows of rounds; of more, the middle ones are left out.
MOST_ROWS = 12


def rounds_as_text(title: str, columns: Mapping[str, Sequence[str]]) -> str:
    """A title, a line of headings, and a line for each round, the middle ones left out of many.

    Args:
        title: the first line.
        columns: cells, one for each round, by heading.
    """
    rounds = len(next(iter(columns.values())))
    shown = list(range(rounds))
    if rounds > MOST_ROWS:
        shown = [*range(MOST_ROWS // 2), -1, *range(rounds - MOST_ROWS // 2 + 1, rounds)]
    rows = [["round", *columns]]
    for t in shown:
        if t < 0:
            rows.append(["..."] + [""] * len(columns))
        else:
            rows.append([str(t), *(cells[t] for cells in columns.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([title, *lines])


def span(values: Any, format_: str = ".4g") -> str:
    """One number, or from the smallest to the largest of several; "-" where there is none."""
    flat = np.ravel(values)
    finite = flat[np.isfinite(flat)]
    if finite.size == 0:
        return "-"
    low, high = format(finite.min(), format_), format(finite.max(), format_)
    return low if low == high else f"{low} .. {high}"


def rounds_as_frame(columns: Mapping[str, Any]) -> Any:
    """A tidy pandas table: a row for each round, and for each output where there are several.

    Args:
        columns: arrays of shape (T,) or (T, Q), by name.
    """
    import pandas as pd  # takes as long to import as JAX

    arrays = {name: np.asarray(values) for name, values in columns.items()}
    rounds, *outputs = next(iter(arrays.values())).shape
    if not outputs:
        return pd.DataFrame({"round": np.arange(rounds), **arrays})
    index = {
        "round": np.repeat(np.arange(rounds), outputs[0]),
        "output": np.tile(np.arange(outputs[0]), rounds),
    }
    return pd.DataFrame(index | {name: values.ravel() for name, values in arrays.items()})
