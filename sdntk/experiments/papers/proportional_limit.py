"""Risks of a ridge fit and of its student where points and features are many alike (Dang, Patil and
Rinaldo 2026; docs/theory.md, section 8).

p features with a covariance of eigenvalues s and n points, gamma = p/n; labels x . beta + noise of
standard deviation sigma; ridge lambda on X^T X/n. As n and p grow the risks at new points, noise
included, tend to numbers that the covariance and the signal's coordinates in its basis determine.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq


@dataclasses.dataclass(frozen=True)
class Design:
    """A regression at random points.

    Attributes:
        name: for tables.
        points: n.
        eigenvalues: s of the features' covariance, shape (p,).
        signal: beta in its basis, shape (p,).
        noise: sigma.
    """

    name: str
    points: int
    eigenvalues: Float[np.ndarray, " p"]
    signal: Float[np.ndarray, " p"]
    noise: float

    @property
    def ratio(self) -> float:
        """Gamma = p/n."""
        return len(self.eigenvalues) / self.points


@dataclasses.dataclass(frozen=True)
class Risks:
    """Risks of teacher and student, and what mixing them gains; numbers, or arrays of one shape.

    Attributes:
        teacher: R.
        cross: C, the expected product of the errors of both.
        student: R_pd, trained on nothing but the teacher's predictions.
    """

    teacher: Any
    cross: Any
    student: Any

    @property
    def best_weight(self) -> Any:
        """xi* = (R - C)/(R + R_pd - 2 C)."""
        return (self.teacher - self.cross) / self._curvature

    @property
    def least(self) -> Any:
        """R* = R - (R - C)^2/(R + R_pd - 2 C)."""
        return self.teacher - (self.teacher - self.cross) ** 2 / self._curvature

    @property
    def _curvature(self) -> Any:
        return self.teacher + self.student - 2 * self.cross


class Limit(NamedTuple):
    """What a design and a ridge tend to.

    Attributes:
        risks: of teacher and student.
        rho: (1 - h_0)/(1 - h_1), h_0 and h_1 the limits of tr A/n and tr A^2/n.
    """

    risks: Risks
    rho: float

    @property
    def weight_of_one_shot(self) -> float:
        """xi*/rho, what the weight of :func:`sdntk.mixing.one_shot` tends to."""
        return self.risks.best_weight / self.rho


def effective_ridge(design: Design, ridge: float) -> float:
    """Kappa, the root of kappa = lambda + gamma kappa mean(s/(s + kappa))."""
    s, gamma = design.eigenvalues, design.ratio

    def excess(kappa: float) -> float:
        return kappa - ridge - gamma * kappa * float(np.mean(s / (s + kappa)))

    return float(brentq(excess, 0.0, ridge + gamma * float(s.mean()), xtol=1e-15, rtol=1e-14))


def limit_of(design: Design, ridge: float) -> Limit:
    """What R, C and R_pd tend to: docs/theory.md, section 8, in its letters."""
    s, gamma, variance = design.eigenvalues, design.ratio, design.noise**2
    kappa = effective_ridge(design, ridge)
    t2, t3, t4 = (gamma * np.mean(s**2 / (s + kappa) ** k) for k in (2, 3, 4))
    q2, q3, q4 = (np.sum(design.signal**2 * s / (s + kappa) ** k) for k in (2, 3, 4))
    b = 1 / (1 - t2)
    u2, u3, u4 = t2 * b, t3 * b**3, t4 * b**4 + 2 * t3**2 * b**5
    E = kappa - b * ridge + b**2 * kappa * ridge * t3  # noqa: N806 (theory's name)
    squared = (kappa * ridge) ** 2
    a2 = b * E**2 + b**4 * squared * t4 + b**5 * squared * t3**2
    a3, a4 = 2 * b**2 * kappa * ridge * E, b**3 * squared
    teacher = kappa**2 * b * q2 + variance * (u2 + 1)
    cross = (
        2 * kappa**2 * b * q2
        - kappa * b * E * q2
        - kappa**2 * b**2 * ridge * q3
        + variance * (u2 - ridge * u3 + 1)
    )
    student = (
        4 * kappa**2 * b * q2
        - 4 * kappa * b * E * q2
        - 4 * kappa**2 * b**2 * ridge * q3
        + a2 * q2
        + a3 * q3
        + a4 * q4
        + variance * (u2 - 2 * ridge * u3 + ridge**2 * u4 + 1)
    )
    risks = Risks(float(teacher), float(cross), float(student))
    # 1 - h_0 = lambda/kappa, dkappa/dlambda = b and h_1 = h_0 + lambda dh_0/dlambda.
    return Limit(risks, float(1 / (2 - b * ridge / kappa)))
