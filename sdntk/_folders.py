"""Folders that one process at a time writes to."""

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the only process at work in a folder; wait while another is, and say which.

    The lock is the kernel's and ends with its process, however that ends, so none is ever stale.
    Within one process it can be taken again. A folder that cannot be written to needs no lock.
    """
    owner = folder / ".owner"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", mode=0o666, is_singleton=True)  # for other users too
        _acquire(lock, owner)
    except OSError as error:
        if not is_read_only(error) or _may_write(folder):
            raise
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        if lock.lock_counter == 1:
            stack.callback(owner.unlink, missing_ok=True)
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield


def _acquire(lock: FileLock, owner: Path) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        message = f"{owner.parent} is in use by {_read_owner(owner)}; waiting for its end."
        Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
        lock.acquire()


def _read_owner(owner: Path) -> str:
    """Who has the lock, as far as it has said so yet."""
    try:
        with owner.open(errors="replace") as file:
            return file.read(200) or "another process"
    except OSError:
        return "another process"


def _may_write(folder: Path) -> bool:
    """Whether files could be made there, so that who cannot have the lock may do harm."""
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=".")
    except OSError:
        return False
    os.close(handle)
    os.unlink(name)
    return True


def is_read_only(error: OSError) -> bool:
    """Whether it says that nothing may be written there."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
