"""Files that are written whole or not at all, whenever the process ends."""

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

#: Writes a file's content to an opened file.
Fill = Callable[[BinaryIO], object]


def replace(path: Path, fill: Fill) -> None:
    """Write a file in place of the one that is there, if any."""
    with _beside(path, fill) as temporary:
        os.replace(temporary, path)
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Bring a renaming to the disk, where folders can be asked for that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network disks refuse, though all is written
            os.fsync(handle)
    finally:
        os.close(handle)


def create(path: Path, fill: Fill) -> None:
    """Write a file unless there is one: of many processes that try, one does."""
    with _beside(path, fill) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:  # a file system without links: there the last one wins
            os.replace(temporary, path)


def sweep(folder: Path) -> None:
    """Delete what killed processes have left behind in a folder that no process needs to write to;
    one that does all the same finds its temporary file gone.
    """
    for entry in [] if folder.is_symlink() else folder.glob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{32}", entry.name):
            entry.unlink(missing_ok=True)


@contextlib.contextmanager
def _beside(path: Path, fill: Fill) -> Iterator[Path]:
    """A new file of a name that no other process has, filled and brought to the disk."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except OSError as error:
        if error.errno is not None:  # a full disk does not say what was written
            error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
