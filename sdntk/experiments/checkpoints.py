"""Checkpoints: the numbers of a pytree on disk, by orbax, so that work killed at any moment goes on
where it was.
"""

import shutil
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

_T = TypeVar("_T")


class Checkpoints:
    """The last states of one piece of work in one folder.

    Only numbers are kept. A pytree of the same structure, made anew by the same code, says where
    they belong; a state of other shapes or dtypes is refused.

    Args:
        folder: where; made when it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def last(self) -> int | None:
        """The step of the last whole state; None when there is none."""
        step = self.manager.latest_step()
        return None if step is None else int(step)

    def save(self, step: int, state: Any) -> None:
        """A state, on disk when this returns; the one before the last is forgotten."""
        numbers = {str(i): _as_numpy(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        self.manager.save(step, args=ocp.args.PyTreeSave(numbers), force=True)

    def restore(self, like: _T) -> _T:
        """The last state, in the structure of ``like``.

        Raises:
            ValueError: the state on disk has other leaves, shapes or dtypes.
        """
        leaves, structure = jax.tree.flatten(like)
        refused = ValueError(
            f"{self.folder} holds the state of other work; choose another folder, or delete this "
            "one."
        )
        template = {str(i): _as_numpy(leaf) for i, leaf in enumerate(leaves)}
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template)
        try:
            stored = self.manager.restore(
                self.last, args=ocp.args.PyTreeRestore(item=template, restore_args=kinds)
            )
        except (ValueError, KeyError, TypeError) as error:
            raise refused from error
        for name, leaf in template.items():
            if (
                np.shape(stored[name]) != leaf.shape
                or getattr(stored[name], "dtype", None) != leaf.dtype
            ):
                raise refused
        return jax.tree.unflatten(
            structure, [_like(stored[str(i)], leaf) for i, leaf in enumerate(leaves)]
        )

    def close(self, *, delete: bool = False) -> None:
        """No more states; with ``delete``, none at all."""
        self.manager.close()
        if delete:
            shutil.rmtree(self.folder)


def _as_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _like(numbers: np.ndarray, leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jax.numpy.asarray(numbers), impl=jax.random.key_impl(leaf))
    return jax.numpy.asarray(numbers) if isinstance(leaf, jax.Array) else numbers


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
