"""How networks are trained, and the state of a group of networks in training."""

import dataclasses
import enum
from dataclasses import field
from typing import Any

import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from sdntk._arguments import (
    as_count,
    as_flag,
    as_number,
    require_function,
    require_type,
)
from sdntk._pytrees import pytree
from sdntk.training.adapters import ApplyFn
from sdntk.training.augmentation import Augment
from sdntk.training.losses import Loss, squared_error
from sdntk.training.optimisers import GaussNewton


class Stop(enum.IntEnum):
    """Why a network's training ended."""

    STEPS = 0
    LOSS = 1
    STATIONARY = 2
    DIVERGED = 3
    PATIENCE = 4


#: Stands in place of a :class:`Stop` while a network is still training.
RUNNING = -1


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How one round is trained. Hashable: rounds with equal settings share their compiled code.

    Attributes:
        loss: one of :mod:`sdntk.losses`, or a function of the same form: outputs and targets, both
            of shape (n, Q), to one number for each point, shape (n,).
        optimiser: any optax optimiser, such as ``optax.adam(1e-3)``, ``optax.adamw(1e-3)`` (weight
            decay) or ``optax.sgd(0.1)``. With all points in every step also ``optax.lbfgs()`` and
            :func:`sdntk.optimisers.gauss_newton`.
        steps: the largest number of steps, at least 1.
        batch_size: points per step, drawn without replacement in every epoch; None for all points.
            Points that do not fill a last batch are left out of that epoch.
        until_loss: stop a network once its mean loss over all points, without the penalty, is at
            most this; None for no such rule.
        until_stationary: stop a network once the norm of the gradient of the whole objective over
            all points is at most this; None for no such rule.
        patience: stop a network once none of its last so many looks at the validation points has
            had the smallest loss so far, and keep its weights of that moment; None for no such
            rule. For :func:`sdntk.train` and :func:`sdntk.distill_networks` with ``validation``.
        check_every: steps from one look, the evaluation of these rules, to the next.
        centred: train f(x) - f_0(x), where f_0 is the network at its initial weights. (f_0 is a
            draw of a Gaussian process that is no part of the kernel's prediction.)
        augment: applied to the points of a step, such as
            :func:`sdntk.training.augmentation.crop_and_flip`; targets are not changed, and the
            stopping rules are evaluated on the points themselves.

    Raises:
        TypeError, ValueError: a setting of another type or out of range, or settings that exclude
            each other.

    Example:
        >>> TrainingConfig(steps=200, until_loss=1e-2).check_every
        10
    """

    loss: Loss = squared_error
    optimiser: optax.GradientTransformation = field(default_factory=lambda: optax.adam(1e-3))
    steps: int = 1000
    batch_size: int | None = None
    until_loss: float | None = None
    until_stationary: float | None = None
    check_every: int = 10
    centred: bool = False
    augment: Augment | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        require_function("loss", self.loss, "outputs and targets", compiled=True)
        require_type(
            "optimiser", self.optimiser, optax.GradientTransformation, "an optax optimiser"
        )
        if self.augment is not None:
            require_function("augment", self.augment, "a key and points", compiled=True)
        settings: dict[str, Any] = {"centred": as_flag("centred", self.centred)}
        for name in ("steps", "check_every", "batch_size", "patience"):
            count = getattr(self, name)
            if count is not None or name in ("steps", "check_every"):
                settings[name] = as_count(name, count, at_least=1)
        for name in ("until_loss", "until_stationary"):
            limit = getattr(self, name)
            if limit is not None:
                settings[name] = as_number(name, limit, lambda x: x >= 0, "must be at least 0")
        for name, value in settings.items():  # plain values: an array would not be hashable
            object.__setattr__(self, name, value)
        gauss_newton = isinstance(self.optimiser, GaussNewton)
        if self.augment is not None and (self.centred or gauss_newton):
            raise ValueError("augment must be None with centred networks, or with gauss_newton.")
        if gauss_newton and (self.loss is not squared_error or self.batch_size is not None):
            raise ValueError("loss must be squared_error, and batch_size None, with gauss_newton.")

    @property
    def has_stopping_rule(self) -> bool:
        """Whether networks may stop before all steps are taken."""
        return self.until_loss is not None or self.until_stationary is not None


@pytree
class TrainState:
    """What changes from step to step. Every leaf has a leading axis s, one entry per network,
    except within a step, which handles a single network.

    Attributes:
        params, model_state: the trained numbers, and all others (batch statistics, say).
        opt_state: the optimiser's.
        key: the network's own; it shuffles and augments its points.
        permutation: the order of the points in this epoch; None without batches.
        step: steps that the network has taken.
        stop: :data:`RUNNING`, or a :class:`Stop`.
        loss: mean loss of the last step's points, or of all points if they were checked since.
        grad_norm: as of the last check over all points; nan before.
    """

    params: Any
    model_state: Any
    opt_state: Any
    key: Key[Array, "*s"]
    permutation: Int[Array, "*s K"] | None
    step: Int[Array, "*s"]
    stop: Int[Array, "*s"]
    loss: Float[Array, "*s"]
    grad_norm: Float[Array, "*s"]


@pytree
class Objective:
    """The constants of a round's objective, mean loss(f - f_0, y) + penalty |theta - theta_0|^2.

    Attributes:
        targets: y, an entry per network.
        initial_params: theta_0, an entry per network; None where neither penalty nor centring needs
            them.
        initial_outputs: f_0 on the points, an entry per network; None for networks that are not
            centred, whose f_0 is left out.
        penalty: one number for all networks.
    """

    targets: Float[Array, "*s K Q"]
    initial_params: Any
    initial_outputs: Float[Array, "*s K Q"] | None
    penalty: Float[Array, ""]


@pytree
class TrainingRun:
    """A group of networks in training, which take their steps together. Its leaves are arrays only,
    so it can be checkpointed and resumed.

    Attributes:
        state, objective: what changes from step to step, and what does not.
        steps_taken: by the group; a network that stopped has taken fewer.
        apply_fn: the networks' outputs as a function of their numbers.
    """

    state: TrainState
    objective: Objective
    steps_taken: np.int64
    apply_fn: ApplyFn = field(metadata={"static": True})
