"""Self-distillation of a kernel machine: :func:`distill` in one call, :func:`distill_spectrum` on a
decomposition.
"""

import dataclasses
import warnings
from typing import Any, Literal, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from sdntk import _memory
from sdntk._arguments import (
    ArrayLike,
    as_float_array,
    as_labels,
    as_points,
    format_number,
    is_traced,
)
from sdntk._linalg import matmul, safe_sqrt
from sdntk.gram_matrices.compute import gram
from sdntk.kernels import Kernel, KernelFunction
from sdntk.spectra import tridiagonal
from sdntk.spectra.base import Eigenbasis, ErrorBounds, PrecisionWarning
from sdntk.spectra.choose import AnySpectrum, _spectrum
from sdntk.spectra.krylov_spectrum import KrylovSpectrum, chain_error_bounds
from sdntk.spectra.tridiagonal import TridiagonalSpectrum
from sdntk.theory import filters
from sdntk.theory.fits import Fits, fits
from sdntk.theory.multiplier import Status
from sdntk.theory.recurrence import Chain, run_chain

Outputs = Literal["separate", "joint"]

#: Predictions are made so many bytes of the cross-Gram matrix at a time.
CROSS_BYTES = 2**28

#: machine_eps * d_max / c above which a multiplier is not to be trusted: it is then off by about
#: this fraction.
PRECISION_TOLERANCE = 1e-3


@no_type_check  # in the tests: transformations rebuild pytrees with leaves of other shapes
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Distillation:
    """Every round of a chain of self-distillation: K points, Q outputs, T rounds.

    The axis Q is there when the labels have one; with ``outputs="joint"`` the outputs share one
    multiplier, so what belongs to a round (all but ``fitted`` and predictions) has no axis Q.

    Attributes:
        multipliers: c_t, shape (T,) or (T, Q), in the units of G; nan where the round is not
            active.
        status: a :class:`sdntk.Status` for each round, same shape, int32.
        active_rounds: rounds before collapse, shape () or (Q,).
        filters: the diagonal of B_t (eq. 45), shape (T, K) or (T, K, Q); 0 once collapsed. None on
            the tridiagonal path.
        fitted: f_t on the training points, shape (T, K) or (T, K, Q); 0 once collapsed.
        training_loss: mean squared distance of f_t to round t's own targets, shape (T,) or (T, Q);
            equals the tolerance in an active round. With "joint", the mean is over points and
            outputs.
        norms: the RKHS norm of f_t, shape (T,) or (T, Q); with "joint", of all outputs together.
        iterations: Newton steps that each multiplier took, shape (T,) or (T, Q).
        spectrum: the decomposed Gram matrix.
        rotated_labels: z_0 = V y_0, shape (K,) or (K, Q).
        ground_truth_weight: alpha.
        error_bounds: of a Krylov run, how far multipliers and fitted values are from the exact
            chain's at most.
        kernel: the kernel, if known (then :meth:`predict` works).
        x: the training points, if known.
        method: how the spectrum was had, in words: "dense", "tridiagonal" or "krylov", and why.

    Krylov runs have M Ritz vectors in place of K eigenvectors: ``filters`` are (T, M) or (T, M, Q).
    """

    multipliers: Float[Array, "T *Q"]
    status: Int[Array, "T *Q"]
    active_rounds: Int[Array, "*Q"]
    filters: Any  # Float[Array, "T K *Q"]
    fitted: Float[Array, "T K *P"]
    training_loss: Float[Array, "T *Q"]
    norms: Float[Array, "T *Q"]
    iterations: Int[Array, "T *Q"]
    spectrum: AnySpectrum
    rotated_labels: Float[Array, "m *P"]
    ground_truth_weight: Float[Array, ""]
    error_bounds: ErrorBounds | None = None
    kernel: Any = None
    x: Float[Array, "K ..."] | None = None
    method: str = dataclasses.field(default="", metadata={"static": True})

    @property
    def eigenvalues(self) -> Float[Array, "m *Q"]:
        """d, shape (K,), ascending, with those that are rounding set to zero; of Krylov runs Ritz
        values, (M,) or (M, Q).
        """
        d = self.spectrum.eigenvalues
        several = isinstance(self.spectrum, KrylovSpectrum) and self.rotated_labels.ndim == 2
        return jnp.broadcast_to(d[:, None], self.rotated_labels.shape) if several else d

    @property
    def targets(self) -> Float[Array, "T K *P"]:
        """Each round's own targets, y_0 first and then alpha y_0 + (1 - alpha) f_{t-1}, shape (T,
        K) or (T, K, Q).
        """
        return _targets(self)

    @property
    def dual_coefficients(self) -> Float[Array, "T K *P"]:
        """a_t = V^T (c_t I + D)^-1 z_t, shape (T, K) or (T, K, Q): f_t(x) = g_x^T a_t (Prop. 1). 0
        once collapsed.
        """
        return _dual_coefficients(self)

    def predict(self, x_new: ArrayLike) -> Float[Array, "T n *P"]:
        """Every round's f_t at new points.

        Args:
            x_new: points, shape (n, ...).

        Returns:
            f_t(x_new), shape (T, n) or (T, n, Q).

        Raises:
            ValueError: bad points, or a run that does not know its kernel (use
                :meth:`predict_from`).
        """
        if self.kernel is None or self.x is None:
            raise ValueError(
                "this run knows no kernel, since distill_spectrum was given a spectrum only: "
                "use run.predict_from(sdntk.gram(kernel, x_new, x))."
            )
        new = as_points("x_new", x_new)
        rows = max(1, CROSS_BYTES // _memory.matrix_bytes((1, len(self.x)), self.x.dtype))
        blocks = [new[start : start + rows] for start in range(0, len(new), rows)]
        return jnp.concatenate(
            [self.predict_from(gram(self.kernel, block, self.x)) for block in blocks], axis=1
        )

    def predict_from(self, cross_gram: ArrayLike) -> Float[Array, "T n *P"]:
        """Every round's f_t at new points, given ``gram(kernel, x_new, x)``, shape (n, K) (eqs. 16,
        44).
        """
        num_points = self.spectrum.num_points
        cross = as_float_array("cross_gram", cross_gram, dtype=self.rotated_labels.dtype)
        if cross.ndim != 2 or cross.shape[1] != num_points:
            raise ValueError(
                f"cross_gram must have shape (n, {num_points}), as gram(kernel, x_new, x) has; "
                f"its shape is {cross.shape}."
            )
        dual = jnp.moveaxis(self.dual_coefficients, 1, 0)
        rounds_and_outputs = dual.shape[1:]
        values = matmul(cross, dual.reshape(num_points, -1)).reshape(-1, *rounds_and_outputs)
        return jnp.moveaxis(values, 0, 1)


def distill(
    kernel: KernelFunction,
    x: ArrayLike,
    y: ArrayLike,
    *,
    tolerance: ArrayLike | None = None,
    multiplier: ArrayLike | None = None,
    rounds: int,
    ground_truth_weight: ArrayLike = 0.0,
    outputs: Outputs = "separate",
    rank_tolerance: ArrayLike | None = None,
    method: Any = "dense",
    accuracy: Any = 1e-6,
) -> Distillation:
    """Train a kernel machine on its own predictions, round after round.

    Round t solves  f_t = argmin R(f)  subject to  (1/K) sum_k (f(x_k) - (y_t)_k)^2 <= tolerance
    and hands y_{t+1} = f_t(x_1..x_K) to the next (Mobahi et al. 2020, eqs. 4, 27-31), until no
    function but 0 is needed.

    Args:
        kernel: g(x, x'), from :mod:`sdntk.kernels` or any function of (n1, ...) and (n2, ...)
            arrays to (n1, n2).
        x: training points, shape (K, ...).
        y: labels y_0, shape (K,) or (K, Q); integers and booleans are converted.
        tolerance: eps > 0, the mean squared error of each round against its targets; a scalar, or
            one for each output.
        multiplier: c > 0 in place of the tolerance, the same in each round (scikit-learn's
            ``alpha`` is K c).
        rounds: T >= 1; round 0 is ordinary training, so these are t = 0..T-1.
        ground_truth_weight: alpha in [0, 1]; round t's targets are alpha y_0 + (1 - alpha) f_{t-1}.
        outputs: "separate", each output with its own multiplier and its own collapse (the paper's,
            section 3.6), or "joint", one multiplier for all and the loss averaged over points and
            outputs.
        rank_tolerance: see :func:`sdntk.decompose`.
        method: "dense", by an eigendecomposition; "tridiagonal", as exact and, of many points,
            quicker, but without eigenvectors, hence without ``filters``; "krylov", by products with
            the Gram matrix alone, as many as its accuracy asks for; or "auto": dense up to 2,000
            points, of traced arguments and with a rank tolerance, else krylov. Where the Krylov
            method does not reach its accuracy, and memory allows it, the dense one takes over.
            ``run.method`` says which it was, and why.
        accuracy: of the Krylov method: the largest relative error of every c_t and f_t;
            ``run.error_bounds`` holds what was achieved.

    Returns:
        A :class:`Distillation`.

    Raises:
        ValueError, TypeError: bad input, each named; an infeasible tolerance, with the smallest
            feasible one. (Under jit an infeasible chain is a status, and its multipliers and fitted
            values are nan.) AccuracyError: the Krylov method does not reach its accuracy, and the
            dense one does not fit into memory.

    Warns:
        PrecisionWarning: float32, or a multiplier so small against d_max that rounding decides it.

    Example:
        The paper's example (section 4), which collapses after four rounds:

        >>> from sdntk import datasets, distill, kernels
        >>> x, y = datasets.mobahi_example()
        >>> run = distill(kernels.cubic_spline(), x, y, tolerance=0.045, rounds=5)
        >>> [f"{c:.5e}" for c in run.multipliers[:4].tolist()], int(run.active_rounds)
        (['2.70525e-06', '8.76276e-05', '2.73755e-04', '7.90018e-04'], 4)
        >>> run.predict([0.25]).shape
        (5, 1)
    """
    points = as_points("x", x)
    chain: dict[str, Any] = {
        "tolerance": tolerance,
        "multiplier": multiplier,
        "rounds": rounds,
        "ground_truth_weight": ground_truth_weight,
        "outputs": outputs,
    }
    spectrum, how = _spectrum(kernel, points, y, chain, method, accuracy, rank_tolerance)
    run = distill_spectrum(spectrum, y, **chain)
    # A run is a pytree, so its kernel must be one: the library's are, any other function is wrapped
    # as one without leaves.
    known = kernel if isinstance(kernel, Kernel) else jax.tree_util.Partial(kernel)
    return dataclasses.replace(run, kernel=known, x=points, method=how)


def distill_spectrum(
    spectrum: AnySpectrum,
    y: ArrayLike,
    *,
    tolerance: ArrayLike | None = None,
    multiplier: ArrayLike | None = None,
    rounds: int,
    ground_truth_weight: ArrayLike = 0.0,
    outputs: Outputs = "separate",
) -> Distillation:
    """:func:`distill` on a decomposition that is at hand, for many label sets and tolerances on one
    Gram matrix.

    Arguments, result, errors and warnings are those of :func:`distill`. It may be jitted, vmapped
    over labels and tolerances, and differentiated with respect to labels, tolerance and multiplier;
    with respect to the Gram matrix, when it was decomposed under the same transformation,
    eigenvalues may coincide as they like (first derivatives only).

    Example:
        >>> from sdntk import datasets, decompose, distill_spectrum, gram, kernels
        >>> x, y = datasets.mobahi_example()
        >>> spectrum = decompose(gram(kernels.cubic_spline(), x))
        >>> run = lambda eps: distill_spectrum(spectrum, y, tolerance=eps, rounds=9)
        >>> jax.vmap(lambda eps: run(eps).active_rounds)(jnp.array([0.042, 0.045, 0.1])).tolist()
        [5, 4, 2]
    """
    if not isinstance(spectrum, AnySpectrum):
        raise TypeError(
            "spectrum must be what decompose(G), tridiagonalise(G) or krylov(products, y, ...) "
            "returns; got "
            f"{type(spectrum).__name__}."
        )
    labels = as_labels("y", y, spectrum.num_points, dtype=spectrum.dtype)
    chain = Chain.of(
        labels,
        tolerance=tolerance,
        multiplier=multiplier,
        rounds=rounds,
        ground_truth_weight=ground_truth_weight,
        outputs=outputs,
    )
    z = spectrum.rotate(labels)
    # The spectrum goes round the jitted part, not through it: what is large is not copied.
    known = spectrum
    if spectrum.matrix is not None:  # derivatives are the matrix's
        known = dataclasses.replace(lax.stop_gradient(spectrum), matrix=spectrum.matrix)
    found = _distill(known, z, chain)
    c = found.pop("c")
    diagonals = (
        _filters(spectrum.eigenvalues, c, chain) if isinstance(spectrum, Eigenbasis) else None
    )
    alpha = chain.ground_truth_weight
    run = Distillation(
        **found, filters=diagonals, spectrum=spectrum, rotated_labels=z, ground_truth_weight=alpha
    )
    if not is_traced(run):
        _raise_if_infeasible(run, labels, chain.level)
        _warn_if_imprecise(run)
    return run


@jax.jit
def _distill(spectrum: AnySpectrum, z: Float[Array, "m *P"], chain: Chain) -> dict[str, Any]:
    """What the chain adds to the spectrum and its labels, attributes of :class:`Distillation`."""
    alpha, terms = chain.ground_truth_weight, chain.terms(spectrum.num_points, z)
    s2 = terms * chain.level if chain.by_tolerance else None
    if isinstance(spectrum, TridiagonalSpectrum):
        path = tridiagonal.trajectory(spectrum, z, chain, terms)
    else:
        d = (
            spectrum.eigenvalues
            if spectrum.matrix is None
            else lax.stop_gradient(spectrum.eigenvalues)
        )
        path, s2 = run_chain(d, z, chain, terms), s2 if spectrum.matrix is not None else None
    found = fits(spectrum, z, path.multipliers, alpha, s2)
    c, active = found.multipliers, path.status == Status.ACTIVE
    rows = c.reshape(len(c), 1, *c.shape[1:], *(1 for _ in range(z.ndim - c.ndim)))
    residuals = jnp.where(
        jnp.isinf(rows), found.targets, jnp.where(jnp.isinf(rows), 1, rows) * found.duals
    )
    over = 1 if c.ndim == z.ndim else (1, 2)
    return {
        "c": c,
        "multipliers": jnp.where(active, c, jnp.nan),
        "status": path.status,
        "active_rounds": jnp.sum(active, axis=0, dtype=jnp.int32),
        "fitted": _unrotate(spectrum, found.fitted),
        "training_loss": jnp.sum(residuals**2, axis=over) / terms,
        "norms": safe_sqrt(jnp.sum(found.duals * found.fitted, axis=over) / spectrum.num_points),
        "iterations": path.iterations,
        "error_bounds": chain_error_bounds(spectrum, path, chain)
        if isinstance(spectrum, KrylovSpectrum)
        else None,
    }


@jax.jit
def _filters(
    d: Float[Array, " m"], multipliers: Float[Array, "T *Q"], chain: Chain
) -> Float[Array, "T m *Q"]:
    """Apart from the rest, whose derivatives do not need those of eigenvalues."""
    return filters.distillation(d, multipliers, chain.ground_truth_weight)[0]


def _unrotate(spectrum: AnySpectrum, z: Float[Array, "T m *P"]) -> Float[Array, "T K *P"]:
    """All rounds and outputs back from the eigenbasis in one matrix product."""
    return jnp.moveaxis(spectrum.unrotate(jnp.moveaxis(z, 1, 0)), 0, 1)


@jax.jit
def _targets(run: Distillation) -> Float[Array, "T K *P"]:
    return _unrotate(run.spectrum, _fits(run).targets)


@jax.jit
def _dual_coefficients(run: Distillation) -> Float[Array, "T K *P"]:
    duals = _fits(run).duals
    if run.spectrum.matrix is None and isinstance(run.spectrum, Eigenbasis):
        # What the null space of G adds to f is 0, but for rounding over c.
        kept = run.spectrum.eigenvalues > 0
        duals = jnp.where(kept.reshape(1, -1, *(1 for _ in duals.shape[2:])), duals, 0)
    return _unrotate(run.spectrum, duals)


def _fits(run: Distillation) -> Fits:
    return fits(run.spectrum, run.rotated_labels, _with_infinity(run), run.ground_truth_weight)


def _with_infinity(run: Distillation) -> Float[Array, "T *Q"]:
    """The multipliers as the recurrence has them: infinite in a collapsed round."""
    return jnp.where(run.status == Status.COLLAPSED, jnp.inf, run.multipliers)


def _raise_if_infeasible(
    run: Distillation, labels: Float[Array, "K *P"], level: Float[Array, "*Q"]
) -> None:
    infeasible = np.asarray(run.status == Status.INFEASIBLE).any(axis=0)
    if not infeasible.any():
        return
    floor = np.asarray(run.spectrum.floor(labels))
    first = int(np.argmax(infeasible))
    worst = float(floor[first] if infeasible.ndim else floor.mean())
    asked = float(np.ravel(level)[first])
    which = f" for output {first}" if infeasible.ndim else ""
    null = f"{run.spectrum.num_points - int(run.spectrum.rank)} of {run.spectrum.num_points}"
    if isinstance(run.spectrum, KrylovSpectrum):
        steps = int(run.spectrum.steps)
        null = f"as far as {steps} Lanczos steps tell, some of {run.spectrum.num_points}"
    raise ValueError(
        f"tolerance {format_number(asked)} is infeasible{which}: no function of this space comes "
        "closer to the labels than "
        f"a mean squared error of {format_number(worst)}, because {null} eigenvalues of the Gram "
        "matrix are zero. The "
        f"smallest feasible tolerance lies just above {format_number(worst)}."
    )


def _warn_if_imprecise(run: Distillation) -> None:
    multipliers = np.asarray(run.multipliers)[np.asarray(run.status) == Status.ACTIVE]
    if multipliers.size == 0:
        return
    c_min, d_max, eps = (
        float(multipliers.min()),
        float(run.spectrum.largest),
        run.spectrum.machine_epsilon,
    )
    ratio = eps * d_max / c_min if c_min > 0 else np.inf
    if ratio > PRECISION_TOLERANCE:
        warnings.warn(
            f"multipliers are not to be trusted: machine_eps * d_max / c = {eps:.1e} * "
            f"{d_max:.1e} / {c_min:.1e} = "
            f"{ratio:.1e}, about the fraction by which rounding moves the smallest multiplier. "
            "Remedy: a larger tolerance, "
            + ("or float64." if eps > 1e-10 else "or a kernel whose spectrum falls more slowly."),
            PrecisionWarning,
            stacklevel=3,
        )
