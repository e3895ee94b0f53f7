"""The paper's example (Mobahi et al. 2020, section 4), distilled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdntk import kernels
from sdntk.datasets import mobahi_example, mobahi_truth
from sdntk.distillation import Distillation, distill

DEFAULT_TOLERANCE = 0.045
#: With fresh noise the floor is another; this far above it lies the default tolerance of the
#: authors' labels, too.
DEFAULT_MARGIN = 0.003


@dataclasses.dataclass(frozen=True)
class Illustration:
    """The example's run, and what it was run on."""

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
        seed: draws fresh noise; the authors' own labels if left out.
    """
    x, y = mobahi_example(None if seed is None else jax.random.key(seed))
    if tolerance is None:
        ends = (float(y[0]) ** 2 + float(y[-1]) ** 2) / len(
            y
        )  # every function of the space is 0 there: the floor
        tolerance = DEFAULT_TOLERANCE if seed is None else ends + DEFAULT_MARGIN
    run = distill(kernels.cubic_spline(), x, y, tolerance=tolerance, rounds=rounds)
    x_plot = jnp.linspace(0, 1, 201)
    return Illustration(tolerance, seed, x, y, x_plot, run, np.asarray(run.predict(x_plot)))


def effective_basis_functions(diagonals: Float[Array, "T K"]) -> Float[np.ndarray, " T"]:
    """(sum B)^2 / sum B^2: how many basis functions each filter spreads over; 0 for the zero
    filter.
    """
    b = np.asarray(diagonals)
    return np.asarray(b.sum(axis=1) ** 2 / np.maximum((b**2).sum(axis=1), np.finfo(b.dtype).tiny))
