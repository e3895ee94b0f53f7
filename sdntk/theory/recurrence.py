"""The recurrence of self-distillation: a pure function of (d, z, tolerance or multiplier, rounds).

Round t fits the targets z_t = P_t z_0 with a multiplier c_t that the tolerance asks for, A_t = D
(c_t I + D)^-1, and hands its predictions on: z_{t+1} = A_t z_t (Mobahi et al. 2020, eqs. 29, 30).
All of a round is in its filter, so the state that goes from round to round is the filter. jit, vmap
over labels and tolerances, and differentiation work.

:func:`solve_rounds` is the recurrence itself, for any form that targets may take: in an eigenbasis
they are a filter on the eigenvalues (:func:`distill_to_tolerance`), where there is none, vectors.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sdntk._arguments import (
    MOST_ROUNDS,
    ArrayLike,
    as_choice,
    as_count,
    as_positive,
    as_round_weights,
)
from sdntk._linalg import safe_sqrt
from sdntk._mapping import map_items
from sdntk._pytrees import pytree
from sdntk.theory import filters, units
from sdntk.theory.mixing import collapse_is_final, mix_targets, weights_handed_on
from sdntk.theory.multiplier import Multiplier, Status, solve, support_of, without_root

#: "separate": each output has its own multiplier and its own collapse; "joint": one for all.
Outputs = Literal["separate", "joint"]

_Targets = TypeVar("_Targets")


@pytree
class ChainSpec:
    """What is asked of a chain: a tolerance or a multiplier for every round, and how many rounds.

    Attributes:
        radius: s = sqrt(K eps), the norm of the residuals that the tolerance eps allows in every
            round, shape () or (Q,), in the labels' unit; None if the multiplier is given. Of joint
            outputs, sqrt(K Q eps).
        multiplier: c of every round, likewise; None if the tolerance is given.
        ground_truth_weight: alpha, any number; or one for each later round, shape (T - 1,).
        rounds: T.
        joint: whether all outputs share one multiplier.
    """

    radius: Any  # shape () or (Q,); None if the multiplier is given
    multiplier: Float[Array, "*Q"] | None
    ground_truth_weight: Float[Array, "*t"]
    rounds: int = dataclasses.field(metadata={"static": True})
    joint: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def checked(
        cls,
        labels: Float[Array, "K *Q"],
        *,
        tolerance: ArrayLike | None,
        multiplier: ArrayLike | None,
        rounds: int,
        ground_truth_weight: ArrayLike,
        outputs: Outputs,
    ) -> "ChainSpec":
        """What was asked for, checked against the labels.

        Raises:
            ValueError, TypeError: each names the argument.
        """
        rounds = as_count("rounds", rounds, at_least=1, at_most=MOST_ROUNDS)
        joint = as_choice("outputs", outputs, get_args(Outputs)) == "joint"
        shape, dtype = () if joint else labels.shape[1:], labels.dtype
        alpha = as_round_weights("ground_truth_weight", ground_truth_weight, rounds, dtype=dtype)
        if tolerance is not None and multiplier is None:
            eps = as_positive("tolerance", tolerance, shape, dtype=dtype)
            s = units.radius(eps, num_residuals(labels, len(labels), joint=joint))
            return cls(s, None, alpha, rounds, joint)
        if multiplier is not None and tolerance is None:
            c = as_positive("multiplier", multiplier, shape, dtype=dtype)
            return cls(None, c, alpha, rounds, joint)
        given = "neither" if tolerance is None else "both"
        raise ValueError(f"exactly one of tolerance and multiplier must be given; {given} was.")

    def in_unit(self, unit: Float[Array, "*Q"]) -> "ChainSpec":
        """The same, asked of labels in another unit."""
        if self.radius is None:
            return self
        return dataclasses.replace(self, radius=self.radius / unit)

    @property
    def weights(self) -> Float[Array, " T"]:
        """alpha_{t+1} of every round t: how it is mixed into the targets of the next."""
        return weights_handed_on(self.ground_truth_weight, self.rounds)


def num_residuals(labels: Float[Array, "m *Q"], num_points: int, *, joint: bool) -> int:
    """How many residuals a training loss averages over, for labels of K points, rotated or not."""
    return num_points * labels.shape[1] if joint and labels.ndim == 2 else num_points


@pytree
class MultiplierPath:
    """The multiplier of every round, and how it was found; each of shape (T,) or (T, Q).

    Attributes:
        multipliers: c_t; infinity where collapsed, nan once infeasible.
        status: a :class:`sdntk.Status`.
        iterations: Newton steps that the multiplier took.
    """

    multipliers: Float[Array, "T *Q"]
    status: Int[Array, "T *Q"]
    iterations: Int[Array, "T *Q"]


class _State(NamedTuple):
    """What goes from round to round."""

    targets: Any
    last: Float[Array, ""]  # c_{t-1}, and before it c_{t-2}: 0 where there is none
    last_but_one: Float[Array, ""]
    status: Int[Array, ""]

    @property
    def guess(self) -> Float[Array, ""]:
        """At c_t. Multipliers grow about geometrically: extrapolate linearly in log c."""
        extrapolated = self.last * (self.last / self.last_but_one)
        return jnp.where(self.last_but_one > 0, extrapolated, self.last)

    def goes_on(self, final: Bool[Array, ""]) -> Bool[Array, ""]:
        """Whether there is a next round to solve: not after an infeasible one, nor after a
        collapsed one where that is final.
        """
        may_wake = (self.status == Status.COLLAPSED) & ~final
        return (self.status == Status.ACTIVE) | may_wake


def solve_rounds(
    first_targets: _Targets,
    solve_round: Callable[[_Targets, Float[Array, ""]], Multiplier],
    next_targets: Callable[[_Targets, Multiplier, Float[Array, ""]], _Targets],
    weights: Float[Array, " T"],
    dtype: Any,
) -> MultiplierPath:
    """Every round solved, its multiplier warm-started from the two rounds before.

    The chain stops working at the first round that is infeasible, and at the first that has
    collapsed where :func:`sdntk.theory.mixing.collapse_is_final` says that none will be active
    again; otherwise each round's state is decided afresh.

    Args:
        first_targets: of round 0, a pytree.
        solve_round: targets and a guess (0 where there is none) to the round's multiplier.
        next_targets: targets, their multiplier and a weight alpha to the targets of the following
            round; what it makes of an infeasible round is never looked at.
        weights: alpha_{t+1} of every round t (:func:`sdntk.theory.mixing.weights_handed_on`).
        dtype: of the multipliers.
    """
    final = collapse_is_final(weights)

    def solved_round(state: _State, weight: Float[Array, ""]) -> tuple[_State, MultiplierPath]:
        found = solve_round(state.targets, state.guess)
        c = jnp.where(found.status == Status.ACTIVE, found.value, 0)
        targets = next_targets(state.targets, found, weight)
        following = _State(targets, c, state.last, found.status)
        return following, MultiplierPath(found.value, found.status, found.iterations)

    def ended_round(state: _State, _: Any) -> tuple[_State, MultiplierPath]:
        c = without_root(state.status).astype(dtype)
        return state, MultiplierPath(c, state.status, jnp.int32(0))

    def one_round(state: _State, weight: Float[Array, ""]) -> tuple[_State, MultiplierPath]:
        return lax.cond(state.goes_on(final), solved_round, ended_round, state, weight)

    zero = jnp.zeros((), dtype)
    start = _State(first_targets, zero, zero, jnp.int32(Status.ACTIVE))
    return lax.scan(one_round, start, weights)[1]


class _Filter(NamedTuple):
    """The filter P_t of a round's targets."""

    support: Float[Array, " m"]  # where d_k > 0
    null: Float[Array, ""]  # where d_k = 0, hence A_t = 0: P_0 = 1, then alpha_t


def distill_to_tolerance(
    d: Float[Array, " m"],
    z: Float[Array, " m"],
    s: Float[Array, ""],
    ground_truth_weight: Float[Array, "*t"],
    rounds: int,
) -> MultiplierPath:
    """The recurrence in the eigenbasis: every round solved to the radius s = sqrt(K eps).

    Targets are filters: z_t = P_t z_0, P_{t+1} = alpha_{t+1} I + (1 - alpha_{t+1}) A_t P_t. After a
    collapsed round, where A_t = 0, P_{t+1} = alpha_{t+1} I.

    Args:
        d: eigenvalues.
        z: rotated labels of one output, in a unit in which the largest are about 1.
        s: sqrt(K eps), in the same unit.
        ground_truth_weight: alpha, or one for each later round, shape (T - 1,).
        rounds: T.
    """
    support = support_of(d)
    z2 = support.split(z)

    def solve_round(targets: _Filter, guess: Float[Array, ""]) -> Multiplier:
        z2_t = z2._replace(kept=targets.support**2 * z2.kept, null=targets.null**2 * z2.null)
        return solve(support, z2_t, s, guess)

    def next_targets(targets: _Filter, found: Multiplier, weight: Float[Array, ""]) -> _Filter:
        c = jnp.where(found.status == Status.ACTIVE, found.value, jnp.inf)
        fitted = filters.ridge(support.d, c) * targets.support
        return _Filter(mix_targets(1, fitted, weight), weight)

    first = _Filter(jnp.ones_like(z), jnp.ones_like(s))
    weights = weights_handed_on(ground_truth_weight, rounds)
    return solve_rounds(first, solve_round, next_targets, weights, s.dtype)


def distill_with_multiplier(multiplier: Float[Array, "*Q"], rounds: int) -> MultiplierPath:
    """Every round with the same multiplier; such a chain never collapses."""
    shape = (rounds, *multiplier.shape)
    active = jnp.full(shape, Status.ACTIVE, jnp.int32)
    return MultiplierPath(jnp.broadcast_to(multiplier, shape), active, jnp.zeros(shape, jnp.int32))


def run_chain(d: Float[Array, " m"], z: Float[Array, "m *Q"], chain: ChainSpec) -> MultiplierPath:
    """The recurrence in the eigenbasis, for rotated labels of one output or many, in their unit."""
    if chain.multiplier is not None:
        return distill_with_multiplier(chain.multiplier, chain.rounds)

    def of_one(z: Float[Array, " m"], s: Float[Array, ""]) -> MultiplierPath:
        return distill_to_tolerance(d, z, s, chain.ground_truth_weight, chain.rounds)

    if z.ndim == 1:
        return of_one(z, chain.radius)
    if chain.joint:  # one multiplier for all outputs filters all alike
        return of_one(safe_sqrt(jnp.sum(z**2, axis=1)), chain.radius)
    return map_outputs(of_one, z, chain.radius)


def map_outputs(chain: Callable[..., MultiplierPath], *arguments: Array) -> MultiplierPath:
    """``chain`` for each output: the last axis of every argument, and of every result."""
    by_output = tuple(jnp.moveaxis(argument, -1, 0) for argument in arguments)
    results: MultiplierPath = map_items(lambda item: chain(*item), by_output)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), results)
