"""The recurrence of self-distillation in the eigenbasis: a pure function of (d, z, tolerance or
multiplier, rounds).

Round t fits the targets z_t = P_t z_0 with a multiplier c_t that the tolerance asks for, A_t = D
(c_t I + D)^-1, and hands its predictions on: z_{t+1} = A_t z_t (Mobahi et al. 2020, eqs. 29, 30).
All of a round is in its filter, so the state that goes from round to round is the filter. jit, vmap
over labels and tolerances, and differentiation work.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from sdntk._arguments import ArrayLike, as_count, as_positive, as_unit_interval
from sdntk._linalg import safe_sqrt
from sdntk.theory import filters
from sdntk.theory.multiplier import Status, range_part, solve


@no_type_check  # in the tests: transformations rebuild pytrees with leaves of other shapes
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """What every round did, each of shape (T,) or (T, Q).

    Attributes:
        multipliers: c_t; infinity once collapsed, nan once infeasible.
        status: a :class:`sdntk.Status`.
        iterations: Newton steps that the multiplier took.
    """

    multipliers: Float[Array, "T *Q"]
    status: Int[Array, "T *Q"]
    iterations: Int[Array, "T *Q"]


class _State(NamedTuple):
    targets: Float[Array, " m"]  # the filter P_t of this round's targets, on the range
    null_targets: Float[Array, ""]  # and on the null space, where A_t = 0: P_0 = 1, then alpha
    last: Float[Array, ""]  # c_{t-1}, and before it c_{t-2}: 0 when there is none
    last_but_one: Float[Array, ""]
    status: Int[Array, ""]


def distill_to_tolerance(
    d: Float[Array, " m"],
    z: Float[Array, " m"],
    s2: Float[Array, ""],
    ground_truth_weight: Float[Array, ""],
    rounds: int,
) -> Trajectory:
    """Every round solved to the radius s2 = s^2 = K eps, its multiplier warm-started from the two
    rounds before.

    The chain stops working at the first round that is not active: with weights in [0, 1] such a
    round is final, since alpha |z_0| never exceeds the targets alpha z_0 + (1 - alpha) F z_0 that
    were within s already.
    """
    alpha = ground_truth_weight
    of_range = range_part(d)
    z2, null2 = of_range.split(z)

    def active_round(state: _State) -> tuple[_State, Trajectory]:
        z2_t, null2_t = state.targets**2 * z2, state.null_targets**2 * null2
        # Multipliers grow about geometrically: extrapolate linearly in log c.
        guess = jnp.where(
            state.last_but_one > 0, state.last * (state.last / state.last_but_one), state.last
        )
        found = solve(of_range, z2_t, null2_t, s2, guess)
        targets = filters.mix(filters.ridge(of_range.d, found.value) * state.targets, alpha)
        step = Trajectory(found.value, found.status, found.iterations)
        return _State(targets, alpha, found.value, state.last, found.status), step

    def ended_round(state: _State) -> tuple[_State, Trajectory]:
        c = jnp.where(state.status == Status.COLLAPSED, jnp.inf, jnp.nan).astype(s2.dtype)
        return state, Trajectory(c, state.status, jnp.int32(0))

    def round_(state: _State, _: None) -> tuple[_State, Trajectory]:
        return lax.cond(state.status == Status.ACTIVE, active_round, ended_round, state)

    zero = jnp.zeros_like(s2)
    start = _State(jnp.ones_like(z), jnp.ones_like(s2), zero, zero, jnp.int32(Status.ACTIVE))
    return lax.scan(round_, start, None, length=rounds)[1]


def distill_with_multiplier(multiplier: Float[Array, "*Q"], rounds: int) -> Trajectory:
    """Every round with the same multiplier; such a chain never collapses."""
    shape = (rounds, *multiplier.shape)
    active = jnp.full(shape, Status.ACTIVE, jnp.int32)
    return Trajectory(jnp.broadcast_to(multiplier, shape), active, jnp.zeros(shape, jnp.int32))


@no_type_check  # in the tests: transformations rebuild pytrees with leaves of other shapes
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chain:
    """What a chain is asked for.

    Attributes:
        level: the tolerance of every round, or its multiplier, shape () or (Q,).
        ground_truth_weight: alpha.
        rounds: T.
        joint: whether all outputs share one multiplier.
        by_tolerance: whether ``level`` is a tolerance.
    """

    level: Float[Array, "*Q"]
    ground_truth_weight: Float[Array, ""]
    rounds: int = dataclasses.field(metadata={"static": True})
    joint: bool = dataclasses.field(metadata={"static": True})
    by_tolerance: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        labels: Float[Array, "K *Q"],
        *,
        tolerance: ArrayLike | None,
        multiplier: ArrayLike | None,
        rounds: Any,
        ground_truth_weight: ArrayLike,
        outputs: Any,
    ) -> "Chain":
        """What was asked for, checked.

        Raises:
            ValueError, TypeError: each names the argument.
        """
        rounds = as_count("rounds", rounds, at_least=1)
        if outputs not in ("separate", "joint"):
            raise ValueError(f'outputs must be "separate" or "joint"; got {outputs!r}.')
        if (tolerance is None) == (multiplier is None):
            given = "neither" if tolerance is None else "both"
            raise ValueError(f"exactly one of tolerance and multiplier must be given; {given} was.")
        shape = labels.shape[1:] if outputs == "separate" else ()
        alpha = as_unit_interval("ground_truth_weight", ground_truth_weight, dtype=labels.dtype)
        name, value = ("multiplier", multiplier) if tolerance is None else ("tolerance", tolerance)
        level = as_positive(name, value, shape, dtype=labels.dtype)  # type: ignore[arg-type]
        return cls(level, alpha, rounds, outputs == "joint", tolerance is not None)

    def terms(self, num_points: int, z: Float[Array, "m *Q"]) -> int:
        """The number of terms that the training loss averages over, for labels of K points, rotated
        or not.
        """
        return num_points * (z.shape[1] if self.joint and z.ndim == 2 else 1)


def run_chain(
    d: Float[Array, " m"], z: Float[Array, "m *Q"], chain: Chain, terms: int
) -> Trajectory:
    """The recurrence for rotated labels of one output or many."""
    if not chain.by_tolerance:
        return distill_with_multiplier(chain.level, chain.rounds)
    s2, alpha, rounds = terms * chain.level, chain.ground_truth_weight, chain.rounds
    if z.ndim == 1:
        return distill_to_tolerance(d, z, s2, alpha, rounds)
    if chain.joint:  # one multiplier for all outputs filters all alike
        return distill_to_tolerance(d, safe_sqrt(jnp.sum(z**2, axis=1)), s2, alpha, rounds)
    return map_outputs(lambda z, s2: distill_to_tolerance(d, z, s2, alpha, rounds), z, s2)


def map_outputs(chain: Callable[..., Trajectory], *arguments: Array) -> Trajectory:
    """``chain`` for each output, the last axis of every argument, stacked on the last axis of every
    result.

    On the CPU one after another, so that each output leaves its loops as soon as it can; side by
    side elsewhere.
    """
    by_output = tuple(jnp.moveaxis(argument, -1, 0) for argument in arguments)
    results: Trajectory = lax.platform_dependent(
        by_output,
        cpu=lambda items: lax.map(lambda item: chain(*item), items),
        default=lambda items: jax.vmap(lambda item: chain(*item))(items),
    )
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), results)
