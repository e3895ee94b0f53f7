"""The paper's example (Mobahi et al. 2020, section 4), distilled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk import kernels
from sdntk.datasets import mobahi_example, mobahi_truth
from sdntk.distillation import Distillation, distill

#: With the authors' labels.
DEFAULT_TOLERANCE = 0.045
#: With fresh noise, above the labels' floor; :data:`DEFAULT_TOLERANCE` lies as far above theirs.
DEFAULT_MARGIN = 0.003


@dataclasses.dataclass(frozen=True)
class Illustration:
    """The example's chain and its data.

    Attributes:
        tolerance: eps.
        seed: of fresh noise; None for the authors' labels.
        x: training points. y: their labels.
        x_plot: points to plot at.
        run: the chain.
        fits: its predictions at ``x_plot``.
    """

    tolerance: float
    seed: int | None
    x: Float[Array, " K"]
    y: Float[Array, " K"]
    x_plot: Float[Array, " n"]
    run: Distillation
    fits: Float[np.ndarray, "T n"]

    @property
    def truth(self) -> Float[np.ndarray, " n"]:
        """sin(2 pi x) on the plotted points."""
        return np.asarray(mobahi_truth(self.x_plot))

    @property
    def test_error(self) -> Float[np.ndarray, " T"]:
        """Mean squared distance of f_t to the true function on the plotted points."""
        return np.mean((self.fits - self.truth) ** 2, axis=1)


def illustrate(
    tolerance: float | None = None, rounds: int = 6, seed: int | None = None
) -> Illustration:
    """Distil the paper's example.

    Args:
        tolerance: eps; 0.045 with the authors' labels, and 0.003 above the labels' floor with fresh
            noise, if left out.
        rounds: T.
        seed: of fresh noise; the authors' own labels if left out.

    Raises:
        ValueError: no fit reaches the tolerance, or ``rounds`` is not positive.
    """
    key = None if seed is None else jax.random.key(seed)
    x, y = mobahi_example(key)
    if tolerance is None:
        tolerance = DEFAULT_TOLERANCE
        if seed is not None:
            # Every function of the space is 0 at both ends.
            floor = (float(y[0]) ** 2 + float(y[-1]) ** 2) / len(y)
            tolerance = floor + DEFAULT_MARGIN
    run = distill(kernels.cubic_spline(), x, y, tolerance=tolerance, rounds=rounds)
    x_plot = jnp.linspace(0, 1, 201)
    return Illustration(tolerance, seed, x, y, x_plot, run, np.asarray(run.predict(x_plot)))


def effective_basis_functions(diagonals: Float[Array, "T K"]) -> Float[np.ndarray, " T"]:
    """(sum B)^2 / sum B^2: how many basis functions each filter spreads over; 0 for the zero
    filter.
    """
    b = np.asarray(diagonals)
    return np.asarray(b.sum(axis=1) ** 2 / np.maximum((b**2).sum(axis=1), np.finfo(b.dtype).tiny))
