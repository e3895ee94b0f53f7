"""One row per claim: what was measured, beside the goal that an issue stated for it."""

import json
from typing import Any

from benchmarks import report

#: Of each benchmark, the column that goals are about.
FIGURES = {
    "core": "fraction of one eigh",
    "gram": "fraction of the best nt.batch",
    "chains": "figure",
    "selection": "seconds over eigh's",
    "estimators": "seconds over KernelRidge's grid",
    "networks": "fraction of one after another",
    "rounds": "seconds over the faster loop's",
    "training": "seconds over the plain loop's",
    "cifar10": "figure",
    "nystrom": "figure",
}
#: Goals are upper limits, but for these.
AT_LEAST = {"Krylov path", "one product"}
#: How far a figure may fall behind its goal before ``--check`` fails, as a fraction.
SLACK = 0.2


def kept(*, quick: bool = False) -> dict[str, dict[str, Any]]:
    """The records that benchmarks left behind on this kind of device, by name."""
    paths = {
        name: report.RESULTS / f"{report.record_name(name, quick=quick)}.json" for name in FIGURES
    }
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def table(records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each figure that has a goal."""
    rows = []
    for name, record in records.items():
        for row in record["rows"]:
            if row["goal"] == "":
                continue
            figure, goal, at_least = (
                float(row[FIGURES[name]]),
                float(row["goal"]),
                row["what"] in AT_LEAST,
            )
            behind = (goal / figure if at_least else figure / goal) - 1
            rows.append(
                {
                    "benchmark": name,
                    "case": row.get("kernel") or row.get("network") or row.get("case") or "",
                    "K": row.get("K", ""),
                    "what": row["what"],
                    "figure": figure,
                    "goal": f"{'at least' if at_least else 'at most'} {goal:.3g}",
                    "met": "yes" if behind <= 0 else f"no, by {behind:.0%}",
                    "behind": behind,
                    "seconds (median)": row["seconds (median)"],
                    "date": record["environment"]["date"],
                }
            )
    return rows


def fallen_behind(rows: list[dict[str, Any]]) -> list[str]:
    """The claims that are behind their goal by more than the slack, in words."""
    return [
        f"{row['benchmark']}, {row['case']}, {row['what']}: {row['figure']:.3g}, goal {row['goal']}"
        for row in rows
        if not row["behind"] <= SLACK  # nan, too
    ]
