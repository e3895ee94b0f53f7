"""The result of a chain of rounds on a spectrum, the object that users see."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdntk._arguments import ArrayLike, is_traced
from sdntk._pytrees import pytree
from sdntk._summary import rounds_as_frame, rounds_as_text, span
from sdntk.spectra.base import AbstractSpectrum, ErrorBounds
from sdntk.spectra.choose import Method
from sdntk.spectra.degrees_of_freedom import (
    ChainOnSpectrum,
    multiplier_responses,
    traces_of_filters,
)
from sdntk.spectra.fit import Predictor, SpectralFit, kernel_name
from sdntk.spectra.mixed import as_weights, mix_filters, mix_numbers, mix_rounds
from sdntk.spectra.padding import compiled_rounds, padded_weight, trimmed
from sdntk.spectra.replay import replay, unrotate_rounds
from sdntk.theory.multiplier import Status
from sdntk.theory.units import (
    linearly,
)


@pytree
class Distillation(Predictor):
    """Every round of a chain of self-distillation: K points, Q outputs, T rounds.

    The axis Q is there when the labels have one; with ``outputs="joint"`` the outputs share one
    multiplier, so what belongs to a round (all but ``fitted`` and predictions) has no axis Q.

    Attributes:
        multipliers: c_t, shape (T,) or (T, Q), in the units of G; nan where the round is not
            active.
        status: a :class:`sdntk.Status` for each round, same shape, int32.
        active_rounds: rounds before the first that is not active, shape () or (Q,). Weights outside
            [0, 1], or that increase, may make later ones active again.
        filters: the diagonal of B_t (eq. 45), shape (T, K) or (T, K, Q); 0 where collapsed. None on
            the tridiagonal path.
        training_loss: mean squared distance of f_t to round t's own targets, shape (T,) or (T, Q);
            equals the tolerance in an active round. With "joint", the mean is over points and
            outputs.
        norms: the RKHS norm of f_t, shape (T,) or (T, Q); with "joint", of all outputs together.
        iterations: Newton steps that each multiplier took, shape (T,) or (T, Q).
        spectrum: the decomposed Gram matrix.
        rotated_labels: z_0 = V y_0, shape (K,) or (K, Q).
        ground_truth_weight: alpha as it was given, shape () or (T - 1,).
        known_fitted: :attr:`fitted`, where they came with the run; None on a Nystrom spectrum.
        error_bounds: of a Krylov run, how far multipliers and fitted values are from the exact
            chain's at most.
        kernel: the kernel, if known (then :meth:`predict` works).
        x: the training points, if known; of a Nystrom run the landmarks, which tell predictions.
        method: how the spectrum was computed, a :class:`sdntk.Method`; None where it was given.
        method_reason: why by this method, in words; transformations forget it.

    Krylov runs have M Ritz vectors in place of K eigenvectors: ``filters`` are (T, M) or (T, M, Q).
    """

    multipliers: Float[Array, "T *Q"]
    status: Int[Array, "T *Q"]
    active_rounds: Int[Array, "*Q"]
    filters: Any  # (T, K), (T, K, Q) or None
    known_fitted: Float[Array, "T K *P"] | None
    training_loss: Float[Array, "T *Q"]
    norms: Float[Array, "T *Q"]
    iterations: Int[Array, "T *Q"]
    spectrum: AbstractSpectrum
    rotated_labels: Float[Array, "m *P"]
    ground_truth_weight: Float[Array, "*t"]
    error_bounds: ErrorBounds | None = None
    kernel: Any = None
    x: Float[Array, "K ..."] | None = None
    method: Method | None = dataclasses.field(default=None, metadata={"static": True})
    method_reason: str = dataclasses.field(default="", metadata={"dropped": True})

    @property
    def eigenvalues(self) -> Float[Array, "m *Q"]:
        """Eigenvalues d, shape (K,), ascending, with those that are rounding set to zero; of Krylov
        runs Ritz values, (M,) or (M, Q).
        """
        return self.spectrum.eigenvalues_for(self.rotated_labels)

    @functools.cached_property
    def fitted(self) -> Float[Array, "T K *P"]:
        """Fitted values f_t on the training points, shape (T, K) or (T, K, Q); 0 where collapsed,
        nan once infeasible. On a Nystrom spectrum they take a pass over the points, when first
        asked for.
        """
        if self.known_fitted is not None:
            return self.known_fitted
        self.require_one()
        coordinates = jnp.moveaxis(self.fitted_coordinates, 1, 0)
        return jnp.moveaxis(linearly(self.spectrum.unrotate, coordinates), 0, 1)

    @property
    def fitted_coordinates(self) -> Float[Array, "T m *P"]:
        """V f_t, fitted values in the basis of the spectrum."""
        return trimmed(_replay(*self._to_replay())[0], len(self.status))

    @property
    def targets(self) -> Float[Array, "T K *P"]:
        """Each round's own targets, y_0 first and then alpha_t y_0 + (1 - alpha_t) f_{t-1}, shape
        (T, K) or (T, K, Q); nan after an infeasible round.
        """
        return trimmed(_replayed_targets(*self._to_replay()), len(self.status))

    @property
    def degrees_of_freedom(self) -> Float[Array, "T *Q"]:
        """Degrees of freedom df_t = sum_k d f_t(x_k)/d y_k, shape (T,) or (T, Q); with "joint",
        those of all outputs together.

        With a multiplier df_t = tr F_t. A tolerance, taken as a number that does not depend on the
        labels, chooses multipliers by the labels, and they count as well (docs/theory.md, section
        9). 0 where collapsed, nan once infeasible.

        Raises:
            ValueError: a Krylov run, which knows no trace, or several runs, stacked by
                ``jax.vmap``. :func:`sdntk.selection.degrees_of_freedom` has the former, and those
                of tolerances that are a fraction of the labels' mean square.

        Example:
            >>> from sdntk import datasets, distill, kernels
            >>> x, y = datasets.mobahi_example()
            >>> run = distill(kernels.cubic_spline(), x, y, tolerance=0.045, rounds=5)
            >>> run.degrees_of_freedom.round(2).tolist()
            [7.42, 3.35, 2.24, 1.83, 0.0]
        """
        if not self.spectrum.has_all_eigenvalues:
            raise ValueError(
                "a Krylov run knows no trace, hence no degrees of freedom: "
                "sdntk.selection.degrees_of_freedom(run, key=...) estimates them by random probes."
            )
        chain = self.with_known_multipliers()
        traces = traces_of_filters(self.spectrum.eigenvalues, chain)
        return trimmed(traces, len(self.status)) + self.multiplier_responses(relative=False)

    def multiplier_responses(self, *, relative: bool) -> Float[Array, "T *Q"]:
        """What degrees of freedom have beyond tr F_t, of the same shape: 0 where multipliers were
        given.

        Args:
            relative: whether the tolerance is a fraction of the labels' mean square.
        """
        chosen = self.iterations > 0  # a multiplier that is given takes no steps
        if not is_traced(chosen) and not chosen.any():
            return jnp.zeros_like(self.multipliers)
        responses = multiplier_responses(self.with_known_multipliers(), relative=relative)
        return jnp.where(chosen, trimmed(responses, len(self.status)), 0)

    def with_known_multipliers(self) -> ChainOnSpectrum:
        """The chain as its spectrum, labels and multipliers, these for a number of rounds that few
        others share.
        """
        self.require_one()
        return ChainOnSpectrum(*self._to_replay())

    def compute_duals(self) -> Float[Array, "T K *P"]:
        """Dual coefficients a_t = V^T (c_t I + D)^-1 z_t, shape (T, K) or (T, K, Q): f_t(x) = g_x^T
        a_t (Prop. 1). 0 where collapsed; of a Nystrom run those of its landmarks.
        """
        return trimmed(_replayed_duals(*self._to_replay()), len(self.status))

    @property
    def fits(self) -> list[SpectralFit]:
        """Every round as a fit, with ``fitted``, ``dual_coefficients`` and ``predict``; with its
        degrees of freedom, where eigenvectors are known.
        """
        self.require_one()
        spectrum, nothing = self.spectrum, [None] * len(self.status)
        known = spectrum.has_eigenvectors and spectrum.has_all_eigenvalues
        filters, df = self.filters, self.degrees_of_freedom if known else nothing
        fitted, duals = _replay(*self._to_replay())
        # An iteration over arrays is one program; indices would be one for each.
        rounds = zip(nothing if filters is None else filters, df, fitted, duals, strict=False)
        return [
            SpectralFit(
                spectrum=spectrum,
                fitted_coordinates=of_round,
                dual_coordinates=spectrum.without_null_space(duals_of_round),
                filter=filter_of_round,
                kernel=self.kernel,
                x=self.x,
                degrees_of_freedom=df_of_round,
            )
            for filter_of_round, df_of_round, of_round, duals_of_round in rounds
        ]

    def mix(self, weights: ArrayLike) -> SpectralFit:
        """The fit f = sum_j w_j f_j, a mixture of the rounds.

        Of a plain chain with one multiplier (no ground truth mixed in) its filter is sum_j w_j
        A^{j+1}, A = D (c I + D)^-1, and every chain with any ground-truth weights, one for each
        round or not, twicing and iterated Tikhonov are such mixtures. :mod:`sdntk.mixing` finds the
        best weights. They may be traced, and differentiated with respect to.

        Args:
            weights: w, any real numbers, shape (T,), or (T, Q) for weights of each output. They
                need not have the sum 1. A round of weight 0 does not count, even if it was
                infeasible (nan).

        Returns:
            A :class:`sdntk.SpectralFit`, as each of ``run.fits`` is.

        Raises:
            ValueError, TypeError: weights of another shape, nan or inf; several runs, stacked by
                ``jax.vmap``.

        Source: docs/theory.md, section 8.

        Example:
            Twicing, 1 - (1 - A)^2 = 2 A - A^2:

            >>> from sdntk import distill, filters, kernels
            >>> x = jnp.linspace(0, 1, 20)
            >>> run = distill(kernels.rbf(0.3), x, jnp.sin(6 * x), multiplier=0.01, rounds=2)
            >>> twice = run.mix([2.0, -1.0])
            >>> by_filter = filters.iterated_tikhonov(run.eigenvalues, 0.01, 2)
            >>> bool(jnp.allclose(twice.filter, by_filter)), twice.predict([0.25]).round(2).tolist()
            (True, [0.97])
        """
        self.require_one()
        outputs = self.rotated_labels.shape[1:]
        w = as_weights(weights, len(self.status), outputs, self.rotated_labels.dtype)
        fitted, duals = mix_rounds(*self._to_replay(), w)
        return SpectralFit(
            spectrum=self.spectrum,
            fitted_coordinates=fitted,
            dual_coordinates=duals,
            filter=None if self.filters is None else mix_filters(self.filters, w),
            kernel=self.kernel,
            x=self.x,
            degrees_of_freedom=self._mixed_degrees_of_freedom(w),
        )

    def _mixed_degrees_of_freedom(self, w: Float[Array, "T *q"]) -> Float[Array, "*Q"] | None:
        """sum_j w_j df_j, where they are known: of joint outputs, for weights common to all."""
        if not self.spectrum.has_all_eigenvalues or w.ndim > self.status.ndim:
            return None
        return mix_numbers(self.degrees_of_freedom, w)

    def to_frame(self) -> Any:
        """The rounds as a tidy pandas table.

        Returns:
            A row for each round (and output, where outputs have multipliers of their own) with the
            columns round (, output), status, multiplier, training_loss, norm and iterations; of a
            Krylov run also multiplier_error and fitted_error, bounds on relative errors.

        Example:
            >>> from sdntk import datasets, distill, kernels
            >>> x, y = datasets.mobahi_example()
            >>> run = distill(kernels.cubic_spline(), x, y, tolerance=0.045, rounds=5)
            >>> run.to_frame()[["round", "status"]].tail(2).values.tolist()
            [[3, 'active'], [4, 'collapsed']]
        """
        self.require_one()
        columns = {
            "status": self._status_names(),
            "multiplier": self.multipliers,
            "training_loss": self.training_loss,
            "norm": self.norms,
            "iterations": self.iterations,
        }
        if self.error_bounds is not None:
            columns["multiplier_error"] = self.error_bounds.multipliers
            columns["fitted_error"] = self.error_bounds.fitted
        return rounds_as_frame(columns)

    def __repr__(self) -> str:
        try:
            return self._as_text()
        except Exception:  # transformations put anything in place of arrays
            return f"{type(self).__name__}(leaves that are no arrays)"

    def _as_text(self) -> str:
        if self._is_stacked:
            return f"Distillation({len(self.status)} runs, stacked)"
        rounds, points = len(self.status), self.spectrum.num_points
        parts = [f"{points} points", f"{rounds} rounds"]
        if self.rotated_labels.ndim == 2:
            outputs = self.rotated_labels.shape[1]
            parts.insert(1, f"{outputs} outputs" if outputs > 1 else "1 output")
        if self.kernel is not None:
            parts.append(kernel_name(self.kernel))
        if self.method is not None:
            parts.append(self.method.value)
        title = f"Distillation({', '.join(parts)})"
        if is_traced(self):
            return f"{title[:-1]}, traced)"
        if not self.status.is_fully_addressable:
            return f"{title[:-1]}, of several processes)"
        return rounds_as_text(
            title,
            {
                "status": [_in_words(np.atleast_1d(names)) for names in self._status_names()],
                "multiplier": [span(row) for row in np.asarray(self.multipliers)],
                "training loss": [span(row) for row in np.asarray(self.training_loss)],
                "norm": [span(row) for row in np.asarray(self.norms)],
            },
        )

    @property
    def _is_stacked(self) -> bool:
        """Whether these are several runs, as ``jax.vmap`` stacks them: the weight of one is a
        number, or one for each round but the first.
        """
        shape = jnp.shape(self.ground_truth_weight)
        return len(shape) > 1 or (len(shape) == 1 and shape[0] != len(self.status) - 1)

    def require_one(self) -> None:
        """Refuse several runs in one.

        Raises:
            ValueError: several runs, stacked by ``jax.vmap``.
        """
        if self._is_stacked:
            raise ValueError(
                "this run holds several, stacked by jax.vmap: take one of them, such as "
                "jax.tree.map(lambda leaf: leaf[0], run)."
            )

    def save(self, path: str | Path) -> None:
        """Write the run to a file, from which :func:`sdntk.load` reads it again.

        A kernel that is no kernel of this library is left out.

        Args:
            path: the file, NumPy's .npz; one that is there is replaced.

        Raises:
            ValueError: several runs, stacked by ``jax.vmap``.
        """
        self.require_one()
        super().save(path)

    def _status_names(self) -> np.ndarray:
        names = np.array([status.name.lower() for status in Status])
        return names[np.asarray(self.status)]

    @property
    def _points_axis(self) -> int:
        return 1

    def _to_replay(self) -> tuple[AbstractSpectrum, Array, Array, Array]:
        """The arguments of :func:`replay`, for a number of rounds that few others share."""
        spectrum, z, weight = self.spectrum, self.rotated_labels, self.ground_truth_weight
        if is_traced(self) or not self.multipliers.is_fully_addressable:
            c = jnp.where(self.status == Status.COLLAPSED, jnp.inf, self.multipliers)
            return spectrum, z, c, weight
        # On the host, where nothing is compiled.
        multipliers = np.asarray(self.multipliers)
        rounds = compiled_rounds(len(multipliers))
        missing, weight = rounds - len(multipliers), padded_weight(weight, rounds)
        further = np.full((missing, *multipliers.shape[1:]), np.inf, multipliers.dtype)
        collapsed = np.asarray(self.status) == Status.COLLAPSED
        known = np.where(collapsed, np.inf, multipliers)
        return spectrum, z, jax.device_put(np.concatenate([known, further])), weight


def _in_words(names: np.ndarray) -> str:
    """The status of a round: of all outputs, or how many are active."""
    if (names == names.flat[0]).all():
        return str(names.flat[0])
    return f"{(names == 'active').sum()} of {names.size} active"


@jax.jit
def _replay(spectrum: AbstractSpectrum, z: Array, c: Array, weight: Array) -> tuple[Array, Array]:
    """The fits and duals of every round."""

    def of(z: Array) -> tuple[Array, Array]:
        rounds = replay(spectrum, z, c, weight)
        return rounds.fitted, rounds.duals

    fitted, duals = linearly(of, z)
    return fitted, duals


@jax.jit
def _replayed_targets(spectrum: AbstractSpectrum, z: Array, c: Array, weight: Array) -> Array:
    def of(z: Array) -> Array:
        return unrotate_rounds(spectrum, replay(spectrum, z, c, weight).targets)

    return linearly(of, z)


@jax.jit
def _replayed_duals(spectrum: AbstractSpectrum, z: Array, c: Array, weight: Array) -> Array:
    def of(z: Array) -> Array:
        duals = replay(spectrum, z, c, weight).duals
        duals = jnp.moveaxis(jax.vmap(spectrum.without_null_space)(duals), 1, 0)
        return jnp.moveaxis(spectrum.as_duals(duals), 0, 1)

    return linearly(of, z)
