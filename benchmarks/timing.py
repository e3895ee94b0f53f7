"""Timing: warm up, wait for the device, repeat, and keep every run."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of every counted run."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median, in seconds."""
        return float(np.median(self.seconds))

    @property
    def spread(self) -> tuple[float, float]:
        """Fastest and slowest run, in seconds."""
        return min(self.seconds), max(self.seconds)


def measure(run: Callable[[], Any], *, repeats: int, warm_up: bool = True) -> Timing:
    """Time ``run``, after one uncounted run that compiles; whatever it returns is waited for."""
    if warm_up:
        jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return Timing(tuple(seconds))


def take_turns(timed: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Each method once uncounted, then all of them in turn, ``repeats`` times."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(repeats + 1):
        for name, run in timed.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
