"""Warnings that name the user's line, not one of this library, and old names that still work."""

import sys
import warnings
from pathlib import Path
from types import FrameType

_PACKAGE = str(Path(__file__).parent)
#: Frames between this library and its user that are neither's: checks of types, transformations.
_BETWEEN = ("jax", "jaxtyping", "beartype", "contextlib", "functools")


def warn(message: str, category: type[Warning]) -> None:
    """Warn, naming the line from which this library was called.

    Python's default filter shows a warning once for each line of code. If all pointed to one line
    of this library, only the first cause of a process would be shown.
    """
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_ours(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_ours(frame: FrameType) -> bool:
    if frame.f_code.co_filename.startswith((_PACKAGE, "<@beartype")):
        return True
    module = frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in _BETWEEN


def warn_renamed(old: str, new: str) -> None:
    """Warn that ``old`` is an old name: it works until version 0.4."""
    message = f"{old} has been renamed to {new}; the old name goes in version 0.4."
    warn(message, DeprecationWarning)
