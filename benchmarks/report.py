"""What a benchmark leaves behind: a table to read, and JSON with the machine, the versions and
every single run.
"""

import json
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from sdntk.experiments.records import environment

RESULTS = Path(__file__).parent / "results"


def record_name(claim: str, *, quick: bool) -> str:
    """Of a claim's files: runs on another kind of device, and quick ones, overwrite no others."""
    backend = jax.default_backend()
    return claim + ("" if backend == "cpu" else f"_{backend}") + ("_quick" if quick else "")


def write(
    name: str, title: str, settings: dict[str, Any], rows: list[dict[str, Any]]
) -> list[Path]:
    """Print the rows, and write results/<name>.md and .json; every row has the same keys, the
    columns.
    """
    RESULTS.mkdir(exist_ok=True)
    record = {"title": title, "environment": environment(), "settings": settings, "rows": rows}
    as_json, as_text = RESULTS / f"{name}.json", RESULTS / f"{name}.md"
    as_json.write_text(json.dumps(record, indent=1) + "\n")
    as_text.write_text(_markdown(record))
    show(title, rows)
    return [as_json, as_text]


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    if not rows:
        print(f"{title}: none at these sizes")
        return
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=160).print(table)


def _markdown(record: dict[str, Any]) -> str:
    env, rows = record["environment"], record["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
    lines = [
        f"# {record['title']}",
        "",
        f"{env['date']}; {env['platform']}: {env['device']}, {env['machine']}, {env['cores']} "
        "cores; "
        f"Python {env['python']}, {versions}; x64 {'on' if env['x64'] else 'off'}.",
        "",
        "Settings: "
        + ", ".join(f"{key} {value}" for key, value in record["settings"].items())
        + ".",
        "",
        "| " + " | ".join(rows[0]) + " |",
        "|" + "---|" * len(rows[0]),
        *("| " + " | ".join(_cell(value) for value in row.values()) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
