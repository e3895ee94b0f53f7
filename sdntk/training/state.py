"""How networks train, and the state of a group of networks in training."""

import dataclasses
import enum
from dataclasses import field
from typing import Any

import optax
from jaxtyping import Array, Float, Int, Key

from sdntk._arguments import as_count
from sdntk._pytrees import pytree
from sdntk.training.augmentation import Augment
from sdntk.training.ensemble import Modes
from sdntk.training.losses import Loss, squared_error
from sdntk.training.optimisers import GaussNewton


class Stop(enum.IntEnum):
    """Why a network's training ended."""

    STEPS = 0
    LOSS = 1
    STATIONARY = 2
    DIVERGED = 3


@dataclasses.dataclass(frozen=True)
class Training:
    """How a round is trained. Hashable, so that rounds with equal settings are compiled once.

    Attributes:
        loss: of :mod:`sdntk.losses`, or a function like them.
        optimiser: any optax optimiser: ``optax.adam(1e-3)``, ``optax.adamw`` (weight decay),
            ``optax.sgd``; with all points in every step ``optax.lbfgs()`` and
            :func:`sdntk.optimisers.gauss_newton`.
        steps: the most steps.
        batch_size: points in a step, drawn without replacement in every epoch; all when None.
        until_loss: stop a network once its mean loss over all points, the penalty left out, is at
            most this.
        until_stationary: stop a network once the gradient's norm, of the whole objective over all
            points, is at most this.
        check_every: steps from one look at loss and gradient over all points to the next.
        centred: train f(x) - f_0(x), f_0 the network at its initial weights (the Gaussian process
            that it starts from is no part of the kernel's prediction).
        augment: what is done to the points of a step, such as
            :func:`sdntk.training.augmentation.crop_and_flip`; their targets stay.
            Looks at all points see them as they are.
    """

    loss: Loss = squared_error
    optimiser: Any = field(default_factory=lambda: optax.adam(1e-3))
    steps: Any = 1000
    batch_size: Any = None
    until_loss: Any = None
    until_stationary: Any = None
    check_every: Any = 10
    centred: bool = False
    augment: Augment | None = None

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "check_every",
            *(["batch_size"] if self.batch_size is not None else []),
        ):
            as_count(name, getattr(self, name), at_least=1)
        for name in ("until_loss", "until_stationary"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(
                    self, name, float(value)
                )  # hashable, whatever kind of number it was
                if not value >= 0:
                    raise ValueError(f"{name} must be at least 0; got {value}.")
        if not isinstance(self.optimiser, optax.GradientTransformation):
            raise TypeError(
                f"optimiser must be an optax optimiser; got {type(self.optimiser).__name__}."
            )
        if self.augment is not None and (self.centred or isinstance(self.optimiser, GaussNewton)):
            raise ValueError("augment must be None with centred networks, or with gauss_newton.")
        if isinstance(self.optimiser, GaussNewton) and (
            self.loss is not squared_error or self.batch_size is not None
        ):
            raise ValueError("loss must be squared_error, and batch_size None, with gauss_newton.")


#: In place of a :class:`Stop` while a network trains.
_TRAINS = -1


@pytree
class _Moving:
    """What changes in training. Leaves have a leading axis s, a network each, but where one is
    looked at alone.
    """

    params: Any
    rest: Any
    optimiser: Any
    key: Key[Array, "*s"]
    order: Int[Array, "*s K"] | None  # of the points in this epoch, where they come in batches
    steps: Int[Array, "*s"]
    stop: Int[Array, "*s"]
    loss: Float[Array, "*s"]
    stationarity: Float[Array, "*s"]


@pytree
class _Fixed:
    """What does not. Leaves have a leading axis s, too."""

    targets: Float[Array, "*s K Q"]
    initial: Any  # the weights at initialisation, where the penalty or centring wants them
    offset: Float[Array, "*s K Q"] | None  # the initial outputs of centred networks


@pytree
class Course:
    """A group of networks in training: nothing but numbers, and so kept and gone on with as it
    is.
    """

    moving: _Moving
    fixed: _Fixed
    penalty: Float[Array, ""]
    taken: Any  # steps of the group, an integer
    modes: Modes = field(metadata={"static": True})
