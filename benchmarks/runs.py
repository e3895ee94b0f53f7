"""The runs of a study: a folder for each, shared among any number of processes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import typer
from filelock import FileLock, Timeout

from sdntk._folders import hold

Run = TypeVar("Run")


def chosen(runs: dict[str, Run], names: list[str] | None) -> dict[str, Run]:
    """Those whose names begin with one of ``names``; all where none are given."""
    found = {name: run for name, run in runs.items() if name.startswith(tuple(names or [""]))}
    if not found:
        known = ", ".join(runs)
        raise typer.BadParameter(f"no run's name begins with {' or '.join(names or [])}: {known}")
    return found


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether a run's folder is this process's; where another one is at work on it, leave it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(f"{folder}.lock").acquire(blocking=False))
        except Timeout:
            yield False
            return
        stack.enter_context(hold(folder))
        yield True
