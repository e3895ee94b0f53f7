"""A progress bar with the time left, shown to people only: on a terminal or in a notebook, once
work has taken seconds.
"""

import importlib.util
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

#: Work that ends sooner than this shows nothing.
SECONDS_BEFORE_SHOWING = 2.0
#: Steps may be minutes apart; the time left is estimated from all that came within this many
#: seconds.
ESTIMATE_FROM = 24 * 3600.0

_a_bar_is_shown = False

_T = TypeVar("_T")


class Bar:
    """A bar on standard error that shows how many of ``total`` steps are done, a note, and the time
    left.

    One bar at a time: work inside of work that shows one is silent.
    """

    def __init__(self, description: str, total: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self.progress = Progress(
            *columns,
            console=console,
            transient=True,
            speed_estimate_period=ESTIMATE_FROM,
            disable=not (console.is_terminal or _notebook_has_widgets(console)),
        )
        self.started, self.showing = time.monotonic(), False
        self.task = self.progress.add_task(description, total=total, note="")

    def __enter__(self) -> "Bar":
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """So many steps are done."""
        global _a_bar_is_shown
        self.progress.update(self.task, advance=count, note=note)
        if (
            not self.showing
            and not _a_bar_is_shown
            and time.monotonic() - self.started > SECONDS_BEFORE_SHOWING
        ):
            self.showing = _a_bar_is_shown = True
            self.progress.start()

    def __exit__(self, *_: object) -> None:
        global _a_bar_is_shown
        if self.showing:
            self.progress.stop()
            _a_bar_is_shown = False


def _notebook_has_widgets(console: Console) -> bool:
    """Without ipywidgets a notebook would show a warning in place of each bar."""
    return console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None


def track(steps: Iterable[_T], description: str, total: int) -> Iterator[_T]:
    """The steps, one by one, while a :class:`Bar` is shown."""
    with Bar(description, total) as bar:
        for step in steps:
            yield step
            bar.advance()
