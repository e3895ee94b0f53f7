"""Warnings that name the user's line, not one of this library, and old names that still work."""

import functools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

_F = TypeVar("_F", bound=Callable[..., Any])

_PACKAGE = str(Path(__file__).parent) + os.sep
#: Frames between this library and its user that are neither's: checks of types, transformations.
_BETWEEN = ("jax", "jaxtyping", "beartype", "contextlib", "functools")


def warn(message: str, category: type[Warning]) -> None:
    """Warn, naming the line from which this library was called.

    Python's default filter shows a warning once for each line of code. If all pointed to one line
    of this library, only the first cause of a process would be shown.
    """
    level = 2  # 1 is this function
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


def renamed_arguments(**renamed: str) -> Callable[[_F], _F]:
    """A decorator for functions some of whose keyword arguments had other names.

    Args:
        renamed: the new name by the old one.
    """

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def with_old_names(*args: Any, **kwargs: Any) -> Any:
            for old, new in renamed.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(f"{new} and {old}, its old name, must not both be given.")
                warn_renamed(f"argument {old} of {function.__name__}", new)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return cast(_F, with_old_names)

    return decorate
