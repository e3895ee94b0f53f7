"""Dang, Patil and Rinaldo 2026: the best weight xi of the teacher's predictions, and what it gains,
in the proportional limit, beside the library on designs of a few hundred points.

The library's Gram matrix X X^T/n and multiplier lambda are the ridge lambda on X^T X/n; a fit's
parameter is X^T (dual coefficients)/n, and its risk at new points (theta - beta)^T Sigma
(theta - beta) + sigma^2.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk import mixing
from sdntk.distillation import distill_spectrum
from sdntk.experiments.papers.findings import (
    Finding,
    Quantity,
    holds,
    in_order,
    mean_and_error,
    ratio_and_error,
    simulated,
)
from sdntk.experiments.papers.proportional_limit import Design, Risks, limits
from sdntk.gram_matrices.compute import gram
from sdntk.spectra.dense import Spectrum, decompose

RIDGES = 0.02, 0.05, 0.15, 0.5, 1.5, 5.0
TABLED = 0.05, 0.5
DRAWS = 60


def designs() -> tuple[Design, ...]:
    """An isotropic one with fewer features than points, and one whose covariance decays, with more."""
    rng = np.random.default_rng(0)
    decaying = np.geomspace(4, 0.04, 300)
    return (
        Design("isotropic, p/n = 1/2", 400, np.ones(200), _unit(rng.normal(size=200)), 0.8),
        Design("decaying, p/n = 3/2", 200, decaying, _unit(rng.normal(size=300)), 0.5),
    )


def _unit(signal: np.ndarray) -> np.ndarray:
    return signal / np.linalg.norm(signal)


@dataclasses.dataclass(frozen=True)
class Simulation:
    """A design's risks on draws of points and noise, at every ridge.

    Attributes:
        design: what is drawn from.
        risks: of each draw, shape (n, ridges).
        one_shot: the weight that :func:`sdntk.mixing.one_shot` chose, likewise.
        reached: the risk of that mixture, likewise.
    """

    design: Design
    risks: Risks
    one_shot: Float[np.ndarray, "n r"]
    reached: Float[np.ndarray, "n r"]

    def best_weight(self) -> tuple[np.ndarray, np.ndarray]:
        """The weight that is best on the mean over draws, at every ridge, and its error."""
        r = self.risks
        return ratio_and_error(r.teacher - r.cross, r.teacher + r.student - 2 * r.cross)

    def least(self) -> tuple[np.ndarray, np.ndarray]:
        """The risk with that weight, and its error."""
        r, (xi, _) = self.risks, self.best_weight()
        mixed = (1 - xi) ** 2 * r.teacher + 2 * xi * (1 - xi) * r.cross + xi**2 * r.student
        return mean_and_error(mixed)


@dataclasses.dataclass(frozen=True)
class Proportional(Finding):
    """Limits and simulations by design.

    Attributes:
        ridges: lambda of the curves, shape (m,).
        curves: the limits there, of arrays (m,), for each design.
        simulations: for each design, at :data:`RIDGES`.
    """

    ridges: Float[np.ndarray, " m"]
    curves: tuple[Risks, ...]
    simulations: tuple[Simulation, ...]


def run() -> Proportional:
    """Limits by the formulas, and the library on draws."""
    ridges = np.geomspace(0.01, 10, 100)
    simulations = tuple(simulate(design, DRAWS) for design in designs())
    curves = tuple(limits_at(s.design, ridges) for s in simulations)
    return Proportional(
        in_order([row for s in simulations for row in _rows(s)]), ridges, curves, simulations
    )


def limits_at(design: Design, ridges: Float[np.ndarray, " m"]) -> Risks:
    """The limits at several ridges."""
    each = [limits(design, float(ridge)) for ridge in ridges]
    fields = ("teacher", "cross", "student")
    return Risks(*(np.array([getattr(risks, name) for risks in each]) for name in fields))


def simulate(design: Design, draws: int, seed: int = 0) -> Simulation:
    """Risks of the library's teachers and students on draws of points and noise."""
    found = [_of_draw(design, key) for key in jax.random.split(jax.random.key(seed), draws)]
    teacher, cross, student, xi, reached = (np.array(values) for values in zip(*found, strict=True))
    return Simulation(design, Risks(teacher, cross, student), xi, reached)


def _of_draw(design: Design, key: Array) -> tuple[np.ndarray, ...]:
    of_points, of_noise = jax.random.split(key)
    s, beta = jnp.asarray(design.eigenvalues), jnp.asarray(design.signal)
    x = jax.random.normal(of_points, (design.points, len(s))) * jnp.sqrt(s)
    y = x @ beta + design.noise * jax.random.normal(of_noise, (design.points,))
    spectrum = decompose(gram(lambda a, b: a @ b.T, x))
    variance = jnp.asarray(design.noise**2)
    return tuple(np.asarray(v) for v in _risks(spectrum, x, y, s, beta, variance, RIDGES))


@partial(jax.jit, static_argnames="ridges")
def _risks(
    spectrum: Spectrum,
    x: Float[Array, "n p"],
    y: Float[Array, " n"],
    s: Float[Array, " p"],
    beta: Float[Array, " p"],
    variance: Float[Array, ""],
    ridges: tuple[float, ...],
) -> tuple[Float[Array, " r"], ...]:
    """R, C, R_pd, the weight of one shot and its risk, at every ridge."""

    def at(ridge: Float[Array, ""]) -> tuple[Float[Array, ""], ...]:
        chain = distill_spectrum(spectrum, y, multiplier=ridge, rounds=2)
        xi = mixing.one_shot(chain).weights[1]
        first, second = chain.compute_duals() @ x / len(x) - beta[None]

        def risk(a: Float[Array, " p"], b: Float[Array, " p"]) -> Float[Array, ""]:
            return jnp.sum(s * a * b) + variance

        mixed = first + xi * (second - first)
        pairs = (first, first), (first, second), (second, second), (mixed, mixed)
        teacher, cross, student, reached = (risk(*pair) for pair in pairs)
        return teacher, cross, student, xi, reached

    return jax.vmap(at)(jnp.asarray(ridges))


def _rows(simulation: Simulation) -> list[Quantity]:
    rows = []
    for ridge in TABLED:
        i = RIDGES.index(ridge)
        limit = limits(simulation.design, ridge)
        where = f"{simulation.design.name}, lambda {ridge}"
        xi, xi_error = simulation.best_weight()
        least, least_error = simulation.least()
        for name, letter in (("teacher", "R"), ("cross", "C"), ("student", "R_pd")):
            mean, error = mean_and_error(getattr(simulation.risks, name)[:, i])
            rows.append(
                simulated(f"{letter}, {where}", getattr(limit, name), float(mean), float(error))
            )
        rows += [
            simulated(f"xi*, {where}", float(limit.best_weight), float(xi[i]), float(xi_error[i])),
            simulated(f"R*, {where}", float(limit.least), float(least[i]), float(least_error[i])),
            _one_shot_row(simulation, i, limit, where),
        ]
    return rows


def _one_shot_row(simulation: Simulation, i: int, limit: Risks, where: str) -> Quantity:
    mean, error = mean_and_error(simulation.one_shot[:, i])
    return simulated(
        f"xi of one shot, {where}", float(limit.best_weight), float(mean), float(error)
    )
