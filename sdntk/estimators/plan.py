"""What an estimator's parameters ask for, checked."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from sklearn.utils import check_random_state

from sdntk._arguments import (
    MOST_ROUNDS,
    as_choice,
    as_count,
    as_flag,
    as_number,
    as_real_array,
    shown,
)
from sdntk.estimators.chains import Asked
from sdntk.spectra.choose import DENSE_POINTS
from sdntk.spectra.tridiagonal import runs_here

#: rounds="auto" looks at so many.
AUTO_ROUNDS = 10
#: weights="auto" mixes so many unless rounds says otherwise.
MIXED_ROUNDS = 2
ALL, FIRST, LAST = slice(None), slice(0, 1), slice(-1, None)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Parameters, resolved.

    Attributes:
        by: what levels are, "tolerance" or "multiplier".
        level: a number, or None for a grid.
        rounds: T of the chains that are run.
        candidates: which of them may be chosen: all, the last, or, since weights are for the level
            of the best single fit, the first.
        weights: of rounds, "auto", or None.
        relative: whether tolerances are fractions.
        joint: whether outputs share a level.
        center: whether the labels' mean is taken off.
        method: "dense", "tridiagonal", "nystrom" or "auto".
        landmarks: of "nystrom", how many; key: draws them.
    """

    by: str
    level: float | None
    rounds: int
    candidates: slice
    weights: Float[np.ndarray, " T"] | str | None
    relative: bool
    joint: bool
    center: bool
    method: str
    landmarks: int
    key: Array

    @classmethod
    def of(cls, estimator: Any) -> "Plan":
        """Of an estimator's parameters.

        Raises:
            ValueError, TypeError: each names the parameter.
        """
        weights = _weights(estimator.weights)
        by, level = _level(estimator.tolerance, estimator.multiplier, weights)
        rounds, candidates = _rounds(estimator.rounds, weights)
        relative = as_flag("relative", estimator.relative)
        method, landmarks = _method(estimator.method, estimator.landmarks, weights)
        random = _random(estimator.random_state)
        if by == "tolerance" and level is None and not relative:
            raise ValueError(
                'relative must be True for tolerance="auto": those that are tried are fractions.'
            )
        return cls(
            by=by,
            level=level,
            rounds=rounds,
            candidates=candidates,
            weights=weights,
            relative=relative,
            joint=as_choice("outputs", estimator.outputs, ("separate", "joint")) == "joint",
            center=as_flag("center", estimator.center),
            method=method,
            landmarks=landmarks,
            key=jax.random.key(random.randint(2**31)),
        )

    def asked(self, by: str, num_points: int) -> Asked:
        """What chains of so many points have in common; of many, without eigenvectors."""
        method = self.method
        if method == "auto":
            many = num_points > DENSE_POINTS and runs_here()
            method = "tridiagonal" if many else "dense"
        relative = self.relative and by == "tolerance"
        return Asked(by, relative, self.rounds, self.joint, self.center, method)

    @property
    def is_open(self) -> bool:
        """Whether levels or rounds are to be chosen."""
        return self.level is None or self.candidates == ALL


def _method(method: Any, landmarks: Any, weights: Any) -> tuple[str, int]:
    name = as_choice("method", method, ("auto", "dense", "tridiagonal", "nystrom"))
    count = as_count("landmarks", landmarks, at_least=1)
    if name == "nystrom" and _is_auto(weights):
        raise ValueError('weights must not be "auto" with method="nystrom": give them, or None.')
    return name, count


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


def _level(tolerance: Any, multiplier: Any, weights: Any) -> tuple[str, float | None]:
    if multiplier is None:
        if tolerance is None:
            raise ValueError('tolerance must be a positive number or "auto"; got None.')
        if _is_auto(tolerance):
            # One-shot weights are known for multipliers.
            return ("multiplier" if _is_auto(weights) else "tolerance"), None
        if _is_auto(weights):
            raise ValueError('weights="auto" is for multipliers: tolerance must be "auto".')
        expected = 'must be a positive number or "auto"'
        if isinstance(tolerance, str):
            raise ValueError(f'tolerance {expected}; got "{tolerance}".')
        return "tolerance", as_number("tolerance", tolerance, lambda eps: eps > 0, expected)
    if tolerance is not None and not _is_auto(tolerance):
        raise ValueError(
            f"only one of tolerance and multiplier may be given; both were: {shown(tolerance)} and "
            f"{shown(multiplier)}."
        )
    if _is_auto(multiplier):
        return "multiplier", None
    expected = 'must be a positive number, "auto" or None'
    if isinstance(multiplier, str):
        raise ValueError(f'multiplier {expected}; got "{multiplier}".')
    return "multiplier", as_number("multiplier", multiplier, lambda c: c > 0, expected)


def _rounds(rounds: Any, weights: Any) -> tuple[int, slice]:
    if _is_auto(rounds):
        if weights is None:
            return AUTO_ROUNDS, ALL
        return (MIXED_ROUNDS if _is_auto(weights) else len(weights)), FIRST
    if isinstance(rounds, str):
        raise ValueError(f'rounds must be a number or "auto"; got "{rounds}".')
    count = as_count("rounds", rounds, at_least=1, at_most=MOST_ROUNDS)
    if isinstance(weights, np.ndarray) and len(weights) != count:
        raise ValueError(
            f"weights must hold a number for each of the {count} rounds; they hold {len(weights)}."
        )
    return count, LAST if weights is None else FIRST


def _weights(weights: Any) -> Any:
    if weights is None or _is_auto(weights):
        return weights
    expected = 'weights must be "auto", None or one finite number for each round'
    if isinstance(weights, str):
        raise ValueError(f'{expected}; got "{weights}".')
    values = np.asarray(as_real_array("weights", weights))
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"{expected}; got {shown(weights)}.")
    return values.astype(np.float64)


def _random(random_state: Any) -> np.random.RandomState:
    try:
        return check_random_state(random_state)
    except (ValueError, TypeError):
        raise ValueError(
            "random_state must be a seed, an integer from 0 to 2**32 - 1, a "
            f"numpy.random.RandomState, or None; got {shown(random_state)}."
        ) from None
