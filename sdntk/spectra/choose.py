"""The spectrum by the method asked for, or the one that suits."""

from typing import Any, Literal, get_args

from jaxtyping import Array, Float

from sdntk import _memory
from sdntk._arguments import ArrayLike, is_traced
from sdntk.gram_matrices.compute import gram
from sdntk.gram_matrices.products import products
from sdntk.kernels import Kernel, KernelFunction
from sdntk.kernels.neural import EmpiricalNTK, InfiniteWidth
from sdntk.spectra.dense import Spectrum, decompose
from sdntk.spectra.krylov import AccuracyError, krylov, refuse_traced
from sdntk.spectra.krylov_spectrum import KrylovSpectrum
from sdntk.spectra.tridiagonal import TridiagonalSpectrum, tridiagonalise

Method = Literal["dense", "tridiagonal", "krylov", "auto"]


AnySpectrum = Spectrum | TridiagonalSpectrum | KrylovSpectrum


#: Up to so many points an eigendecomposition takes about a second, and ``method="auto"`` takes it.
DENSE_POINTS = 2000


def _spectrum(
    kernel: KernelFunction,
    x: Float[Array, "K ..."],
    y: ArrayLike,
    chain: dict[str, Any],
    method: Any,
    accuracy: Any,
    rank_tolerance: ArrayLike | None,
) -> tuple[AnySpectrum, str]:
    """The spectrum by the method asked for, or that suits, and which it was and why."""
    if method not in get_args(Method):
        raise ValueError(
            f'method must be "dense", "tridiagonal", "krylov" or "auto"; got {method!r}.'
        )
    why = "as asked for"
    if method == "auto":
        method, why = "krylov", f"{len(x)} points are many"
        if len(x) <= DENSE_POINTS:
            method, why = "dense", f"{len(x)} points are few"
        elif rank_tolerance is not None:
            method, why = "dense", f"{why}, but rank_tolerance is given"
        elif is_traced(_leaves(kernel, x), x, y, chain):
            method, why = "dense", f"{why}, but traced"
    if method != "dense" and rank_tolerance is not None:
        raise ValueError(
            f'rank_tolerance must be left out unless method is "dense"; it is {method!r}.'
        )
    if method == "tridiagonal":
        return tridiagonalise(gram(kernel, x)), f"tridiagonal: {why}"
    if method == "krylov":
        refuse_traced(_leaves(kernel, x), x, y, chain)
        try:
            spectrum = krylov(products(kernel, x), y, **chain, accuracy=accuracy)
            return spectrum, f"krylov, {int(spectrum.steps)} steps: {why}"
        except AccuracyError as error:
            failed = error.with_traceback(
                None
            )  # which would keep tiles and Lanczos vectors in memory
        if not _memory.dense_path_fits(len(x)):
            raise failed
        why = f"the Krylov method failed ({failed})"
    return decompose(gram(kernel, x), rank_tolerance=rank_tolerance), f"dense: {why}"


def _leaves(kernel: KernelFunction, x: Float[Array, "K ..."]) -> Any:
    """What tells whether a kernel is traced: one that is none of the library's may close over
    tracers.
    """
    known = isinstance(kernel, Kernel | InfiniteWidth | EmpiricalNTK) or not callable(kernel)
    return kernel if known or is_traced(x) else kernel(x[:1], x[:1])
