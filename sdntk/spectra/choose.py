"""The spectrum by the method asked for, or by the one that suits, and why it was that one."""

import enum
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

from jaxtyping import Array, Float

from sdntk import _memory
from sdntk._arguments import ArrayLike, as_choice, as_parameter, every, is_traced
from sdntk.gram_matrices.compute import compute_gram
from sdntk.gram_matrices.linear_operator import GramOperator
from sdntk.gram_matrices.tiled_operator import tiled_operator
from sdntk.kernels.base import KernelFunction, LibraryKernel, kernel_precision
from sdntk.spectra.base import AbstractSpectrum
from sdntk.spectra.dense import as_rank_tolerance, decompose_checked
from sdntk.spectra.krylov import AccuracyError, as_rtol, krylov, refuse_traced
from sdntk.spectra.matrix import GramMatrix, in_full_precision
from sdntk.spectra.nystrom import nystrom
from sdntk.spectra.tridiagonal import tridiagonalise_checked

#: What may be asked for.
MethodName = Literal["dense", "tridiagonal", "krylov", "nystrom", "auto"]

#: Up to so many points an eigendecomposition takes about a second, and ``method="auto"`` takes it.
DENSE_POINTS = 2000


class Method(enum.StrEnum):
    """How a spectrum was computed.

    DENSE
        An eigendecomposition of the Gram matrix.
    TRIDIAGONAL
        A reduction to tridiagonal form: exact, without eigenvectors.
    KRYLOV
        Lanczos steps from products with the Gram matrix, to an accuracy asked for.
    NYSTROM
        Landmarks: exact for the kernel as far as their functions reach.
    """

    DENSE = "dense"
    TRIDIAGONAL = "tridiagonal"
    KRYLOV = "krylov"
    NYSTROM = "nystrom"


class Choice(NamedTuple):
    """A spectrum, its method, and why it was this one."""

    spectrum: AbstractSpectrum
    method: Method
    reason: str


def choose_spectrum(
    kernel: KernelFunction,
    x: Float[Array, "K ..."],
    y: ArrayLike,
    *,
    method: MethodName,
    rtol: float,
    rank_tolerance: ArrayLike | None,
    chain: dict[str, Any],
    landmarks: Any = None,
    key: Array | None = None,
) -> Choice:
    """The spectrum of a kernel's Gram matrix for a chain.

    Args:
        kernel: g.
        x: points that the kernel takes.
        y: labels, which the Krylov method starts from.
        method: see :func:`sdntk.distill`.
        rtol: of the Krylov method.
        rank_tolerance: of the dense method.
        chain: what else :func:`krylov` wants to know of the chain, its keyword arguments.
        landmarks: of the Nystrom method.
        key: likewise.
    """
    as_choice("method", method, get_args(MethodName))
    rtol = as_rtol(rtol)
    if method == "auto":

        def traced() -> bool:
            return is_traced(_leaves(kernel, x), x, y, chain)

        asked = _suitable(len(x), rank_tolerance is not None, traced, lambda: _unproved(**chain))
    else:
        asked = _Asked(Method(method), "as asked for")
    if asked.method is not Method.DENSE and rank_tolerance is not None:
        raise ValueError(
            f'rank_tolerance must be left out unless method is "dense"; it is "{asked.method}".'
        )

    if (asked.method is Method.NYSTROM) != (landmarks is not None):
        raise ValueError(
            'landmarks must be given for method="nystrom", a number or points, and for no other.'
        )
    if key is not None and asked.method is not Method.NYSTROM:
        raise ValueError('key must be left out unless method is "nystrom".')
    if asked.method is Method.NYSTROM:
        return Choice(nystrom(kernel, x, y, landmarks=landmarks, key=key), *asked)

    def matrix_of_kernel() -> GramMatrix:
        return in_full_precision(compute_gram(kernel, x), kernel_precision(kernel, x))

    def dense() -> AbstractSpectrum:
        matrix = matrix_of_kernel()
        if rank_tolerance is None:
            return decompose_checked(matrix)
        return decompose_checked(matrix, as_rank_tolerance(rank_tolerance, matrix.values.dtype))

    if asked.method is Method.DENSE:
        return Choice(dense(), *asked)
    if asked.method is Method.TRIDIAGONAL:
        return Choice(tridiagonalise_checked(matrix_of_kernel()), *asked)
    refuse_traced(_leaves(kernel, x), x, y, chain)
    chosen = krylov_or_dense(
        lambda: tiled_operator(kernel, x), dense, y, num_points=len(x), rtol=rtol, **chain
    )
    if chosen.method is Method.KRYLOV:
        return chosen._replace(reason=asked.reason)
    return chosen


class _Asked(NamedTuple):
    method: Method
    reason: str


def _suitable(
    num_points: int,
    rank_tolerance: bool,
    traced: Callable[[], bool],
    unproved: Callable[[], bool],
) -> _Asked:
    """What ``method="auto"`` takes."""
    if num_points <= DENSE_POINTS:
        return _Asked(Method.DENSE, f"{num_points} points are few")
    many = f"{num_points} points are many"
    if rank_tolerance:
        return _Asked(Method.DENSE, f"{many}, but rank_tolerance is given")
    if traced():
        return _Asked(Method.DENSE, f"{many}, but traced")
    if unproved():
        return _Asked(Method.DENSE, f"{many}, but ground_truth_weight leaves [0, 1]")
    return _Asked(Method.KRYLOV, many)


def _unproved(
    *, tolerance: ArrayLike | None, ground_truth_weight: ArrayLike, **_others: Any
) -> bool:
    """Whether the Krylov method would refuse the weights of the chain."""
    alpha = as_parameter("ground_truth_weight", ground_truth_weight)
    return tolerance is not None and not every(lambda a: (a >= 0) & (a <= 1), alpha)


def krylov_or_dense(
    operator: Callable[[], GramOperator],
    dense: Callable[[], AbstractSpectrum],
    y: ArrayLike,
    *,
    num_points: int,
    **options: Any,
) -> Choice:
    """The Krylov spectrum; the dense one where that does not reach its accuracy.

    Both are given by functions, so that no memory is held for the one that is not needed.

    Args:
        operator: makes the Gram matrix as an operator.
        dense: makes the dense spectrum.
        y: labels.
        num_points: K.
        options: of :func:`krylov`.

    Raises:
        AccuracyError: and the dense spectrum does not fit into memory.
    """
    try:
        spectrum = krylov(operator(), y, **options)
        return Choice(spectrum, Method.KRYLOV, f"{int(spectrum.steps)} steps")
    except AccuracyError as error:
        # The traceback would keep tiles and Lanczos vectors in memory.
        failed = error.with_traceback(None)
    if not _memory.dense_path_fits(num_points):
        raise failed
    return Choice(dense(), Method.DENSE, f"the Krylov method failed ({failed})")


def _leaves(kernel: KernelFunction, x: Float[Array, "K ..."]) -> Any:
    """What tells whether a kernel is traced: one that is none of the library's may close over
    tracers.
    """
    known = not callable(kernel)
    if isinstance(kernel, LibraryKernel):
        known = kernel.has_known_leaves
    return kernel if known or is_traced(x) else kernel(x[:1], x[:1])
