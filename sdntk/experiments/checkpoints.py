"""Checkpoints: the arrays of a pytree on disk, by orbax, so that work killed at any moment is
resumed where it was.
"""

import contextlib
import io
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

_T = TypeVar("_T")

#: States of quick work are not written oftener: to do so much again costs less than to write them.
SECONDS_BETWEEN_STATES = 2.0


class Checkpoints:
    """The last states of one piece of work in one folder.

    Only arrays are kept. A pytree of the same structure, made anew by the same code, says where
    they belong; a state of other shapes or dtypes is refused.

    Args:
        folder: where; made when it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self._saved_at = time.monotonic()

    @property
    def last(self) -> int | None:
        """The number of the last whole state; None when there is none."""
        number = self.manager.latest_step()
        return None if number is None else int(number)

    def save_if_due(self, state: Any) -> None:
        """:meth:`save`, where the last state is :data:`SECONDS_BETWEEN_STATES` old: what a kill
        loses is done again in that time.
        """
        if time.monotonic() - self._saved_at >= SECONDS_BETWEEN_STATES:
            self.save(state)
            self._saved_at = time.monotonic()

    def save(self, state: Any) -> None:
        """A state, on disk when this returns; the one before the last is forgotten.

        States are numbered 0, 1, ... as they come; which piece of work each is, it says itself.
        """
        number = 0 if self.last is None else self.last + 1
        arrays = {str(i): _as_numpy(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        try:
            with _quiet():
                self.manager.save(number, args=ocp.args.PyTreeSave(arrays), force=True)
        except Exception as error:  # of orbax, tensorstore or the system, in many classes
            raise OSError(
                f"a state could not be written to {self.folder}: {_first_line(error)}. The one "
                "before it is whole, and the same command resumes there."
            ) from error

    def restore(self, like: _T) -> _T:
        """The last state, in the structure of ``like``.

        Raises:
            ValueError: the state on disk has other leaves, shapes or dtypes.
        """
        leaves, structure = jax.tree.flatten(like)
        template = {str(i): _as_numpy(leaf) for i, leaf in enumerate(leaves)}
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template)
        arguments = ocp.args.PyTreeRestore(item=template, restore_args=kinds)
        try:
            with _quiet():
                alike = self._shapes() == {name: _shape(leaf) for name, leaf in template.items()}
                stored = self.manager.restore(self.last, args=arguments) if alike else None
        except Exception as error:  # a damaged state may raise anything
            raise self._refused() from error
        if stored is None:
            raise self._refused()
        restored = [_like(stored[str(i)], leaf) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, restored)

    def _shapes(self) -> dict[str, Any]:
        """What the last state claims to hold, before any of it is read."""
        state = self.manager.directory / str(self.last) / "default"
        stored = ocp.PyTreeCheckpointHandler().metadata(state).tree
        return {name: _shape(leaf) for name, leaf in stored.items()}

    def _refused(self) -> ValueError:
        return ValueError(
            f"{self.folder} holds the state of other work, or is damaged; choose another folder, "
            "or delete this one."
        )

    def close(self, *, delete: bool = False) -> None:
        """Save no more states; with ``delete``, remove those there are."""
        self.manager.close()
        if delete:
            shutil.rmtree(self.folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what orbax logs of an error, and what its threads, still at work then, complain of:
    the error is raised too.
    """
    logger = logging.getLogger("absl")
    level, hook = logger.level, sys.unraisablehook
    logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda _: None
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                yield
            except Exception:
                time.sleep(1)  # until they have ended
                raise
    finally:
        logger.setLevel(level)
        sys.unraisablehook = hook


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _as_numpy(leaf: Any) -> np.ndarray:
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _shape(leaf: Any) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of an array, or of what orbax says about one."""
    return tuple(leaf.shape), str(leaf.dtype)


def _like(stored: np.ndarray, leaf: Any) -> Any:
    """A stored array as what the leaf is: keys, a JAX array or a NumPy array."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(jax.numpy.asarray(stored), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array):
        return jax.numpy.asarray(stored)
    return stored


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
