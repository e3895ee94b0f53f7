"""A progress bar with the time left, shown to people only: on a terminal or in a notebook, once work has taken seconds."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

#: Work that ends sooner than this shows nothing.
SECONDS_BEFORE_SHOWING = 2.0
#: Steps may be minutes apart; the time left is estimated from all that came within this many seconds.
ESTIMATE_FROM = 24 * 3600.0

_a_bar_is_shown = False

_T = TypeVar("_T")


def track(steps: Iterable[_T], description: str, total: int) -> Iterator[_T]:
    """The steps, one by one, while a bar on standard error shows how many of ``total`` are done and the time left.

    One bar at a time: work inside of work that shows one is silent.
    """
    global _a_bar_is_shown
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    bar = Progress(
        *columns, console=console, transient=True, speed_estimate_period=ESTIMATE_FROM,
        disable=not (console.is_terminal or console.is_jupyter),
    )  # fmt: skip
    started, showing = time.monotonic(), False
    task = bar.add_task(description, total=total)
    try:
        for step in steps:
            yield step
            bar.advance(task)
            if not showing and not _a_bar_is_shown and time.monotonic() - started > SECONDS_BEFORE_SHOWING:
                showing = _a_bar_is_shown = True
                bar.start()
    finally:
        if showing:
            bar.stop()
            _a_bar_is_shown = False
