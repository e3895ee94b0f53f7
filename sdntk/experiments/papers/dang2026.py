"""Dang, Patil and Rinaldo 2026: the best weight xi of the teacher's predictions, and what it gains,
in the proportional limit, beside the library on designs of a few hundred points.

The library's Gram matrix X X^T/n and multiplier lambda are the ridge lambda on X^T X/n; a fit's
parameter is X^T (dual coefficients)/n, and its risk at new points (theta - beta)^T Sigma
(theta - beta) + sigma^2.

:func:`sdntk.mixing.one_shot` scales each round's residuals by its own degrees of freedom, r_j =
(y - f_j)/(1 - h_j), h_j = df_j/n. To leave a point out of teacher and student gives, since
f_1 = f_0 + lambda df_0/dlambda, the residuals e_0 = r_0 and e_1 = ((y - f_1) (1 - h_0) -
(y - f_0) (h_0 - h_1))/(1 - h_0)^2, hence

    r_1 = rho e_1 + (1 - rho) e_0,   rho = (1 - h_0)/(1 - h_1):

the mixture that one_shot gives the weight xi is left out as that of weight rho xi. So its weight
tends to xi*/rho, with 1/rho = 2 - b lambda/kappa in the limit, and rho times its weight to xi*. The
two are the same where degrees of freedom are a small part of n.
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
    mean_and_error,
    ratio_and_error,
    simulated,
)
from sdntk.experiments.papers.proportional_limit import Design, Limit, Risks, limit_of
from sdntk.gram_matrices.compute import gram
from sdntk.spectra.dense import Spectrum, decompose

RIDGES = 0.02, 0.05, 0.15, 0.5, 1.5, 5.0
TABLED = 0.05, 0.5
DRAWS = 50


def designs() -> tuple[Design, ...]:
    """An isotropic one with p < n, and one whose covariance decays, with p > n."""
    rng = np.random.default_rng(0)
    decaying = np.geomspace(4, 0.04, 300)
    return (
        Design("isotropic, p/n = 1/2", 300, np.ones(150), _unit(rng.normal(size=150)), 0.8),
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
        rho: (1 - df_0/n)/(1 - df_1/n), likewise.
        reached: the risk of that mixture, likewise.
        corrected: the risk of the mixture with rho times the weight, likewise.
    """

    design: Design
    risks: Risks
    one_shot: Float[np.ndarray, "n r"]
    rho: Float[np.ndarray, "n r"]
    reached: Float[np.ndarray, "n r"]
    corrected: Float[np.ndarray, "n r"]

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
        curves: the limits there, for each design.
        simulations: for each design, at :data:`RIDGES`.
    """

    ridges: Float[np.ndarray, " m"]
    curves: tuple[tuple[Limit, ...], ...]
    simulations: tuple[Simulation, ...]


def run() -> Proportional:
    """Limits by the formulas, and the library on draws."""
    ridges = np.geomspace(0.01, 10, 100)
    simulations = tuple(simulate(design, DRAWS) for design in designs())
    curves = tuple(tuple(limit_of(s.design, float(r)) for r in ridges) for s in simulations)
    return Proportional(
        tuple(row for s in simulations for row in _rows(s)), ridges, curves, simulations
    )


def simulate(design: Design, draws: int, seed: int = 0) -> Simulation:
    """Risks of the library's teachers and students on draws of points and noise."""
    found = [_of_draw(design, key) for key in jax.random.split(jax.random.key(seed), draws)]
    teacher, cross, student, *of_one_shot = (np.array(v) for v in zip(*found, strict=True))
    return Simulation(design, Risks(teacher, cross, student), *of_one_shot)


def _of_draw(design: Design, key: Array) -> tuple[np.ndarray, ...]:
    of_points, of_noise = jax.random.split(key)
    s, beta = jnp.asarray(design.eigenvalues), jnp.asarray(design.signal)
    x = jax.random.normal(of_points, (design.points, len(s))) * jnp.sqrt(s)[None]
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
    """R, C, R_pd, the weight of one shot, rho, and the risks of the mixtures with that weight
    and with rho times it, at every ridge.
    """

    def at(ridge: Float[Array, ""]) -> tuple[Float[Array, ""], ...]:
        chain = distill_spectrum(spectrum, y, multiplier=ridge, rounds=2)
        xi = mixing.one_shot(chain).weights[1]
        first, second = chain.compute_duals() @ x / len(x) - beta[None]

        def risk(a: Float[Array, " p"], b: Float[Array, " p"]) -> Float[Array, ""]:
            return jnp.sum(s * a * b) + variance

        def of_mixture(weight: Float[Array, ""]) -> Float[Array, ""]:
            mixed = first + weight * (second - first)
            return risk(mixed, mixed)

        rest = 1 - jnp.mean(chain.filters, axis=1)
        rho = rest[0] / rest[1]
        risks = risk(first, first), risk(first, second), risk(second, second)
        return *risks, xi, rho, of_mixture(xi), of_mixture(rho * xi)

    return jax.vmap(at)(jnp.asarray(ridges))


def _rows(simulation: Simulation) -> list[Quantity]:
    rows = []
    for ridge in TABLED:
        i = RIDGES.index(ridge)
        limit = limit_of(simulation.design, ridge)
        where = f"{simulation.design.name}, lambda {ridge}"
        drawn, risks = simulation.risks, limit.risks
        xi, least = simulation.best_weight(), simulation.least()
        for name, of_limit, (mean, error) in (
            ("R", risks.teacher, mean_and_error(drawn.teacher)),
            ("C", risks.cross, mean_and_error(drawn.cross)),
            ("R_pd", risks.student, mean_and_error(drawn.student)),
            ("xi*", risks.best_weight, xi),
            ("R*", risks.least, least),
        ):
            rows.append(simulated(f"{name}, {where}", of_limit, mean[i], error[i]))
        rows += _of_one_shot(simulation, i, limit, where)
    return rows


def _of_one_shot(simulation: Simulation, i: int, limit: Limit, where: str) -> list[Quantity]:
    weights, rho = simulation.one_shot[:, i], simulation.rho[:, i]
    rows = []
    for name, paper, drawn in (
        ("weight of one_shot, xi*/rho", limit.weight_of_one_shot, weights),
        ("rho times it, xi*", limit.risks.best_weight, rho * weights),
    ):
        mean, error = mean_and_error(drawn)
        rows.append(simulated(f"{name}, {where}", paper, mean, error))
    return rows
