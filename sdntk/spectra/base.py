"""The interface of a spectrum: eigenvalues d and the map y -> z into their basis and back.

Whoever uses a spectrum asks for no class: chains (:func:`sdntk.distill_spectrum`), fits
(:func:`sdntk.fit_filter`) and predictions go through :class:`AbstractSpectrum` alone. A new way to
a spectrum is one new file with one subclass, of :class:`Eigenbasis` where it has eigenvalues (or
Ritz values) and coordinates on their vectors, of :class:`AbstractSpectrum` where it has not.
"""

import abc
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdntk import _archive
from sdntk._arguments import (
    ArrayLike,
    DTypeLike,
    as_columns,
    as_labels,
    as_parameter,
    is_traced,
    require_every,
)
from sdntk.theory import filters
from sdntk.theory.recurrence import ChainSpec, MultiplierPath, run_chain
from sdntk.theory.units import in_unit, unit_of


class PrecisionWarning(UserWarning):
    """Rounding may reach the digits that matter; the message names the cause."""


class ErrorBounds(NamedTuple):
    """Bounds on relative errors, each of shape (T,) or (T, Q); infinite where nothing is known.

    Attributes:
        multipliers: |c_t - c| / c, c the multiplier of the exact chain.
        fitted: |f_t - f| / |f| on the training points; with joint outputs, of all together. 0 where
            collapsed.
    """

    multipliers: Float[Array, "T *Q"]
    fitted: Float[Array, "T *Q"]


class AbstractSpectrum(abc.ABC):
    """What every spectrum of a Gram matrix G of K points can do, in a basis of m vectors.

    Attributes:
        eigenvalues: d, shape (m,); those that are rounding are exactly zero.
        machine_epsilon: relative rounding of the Gram matrix.
        matrix: G, for derivatives only; None unless G was traced.
    """

    eigenvalues: Any
    machine_epsilon: float
    matrix: Any

    # ---- what it is of ----

    @property
    @abc.abstractmethod
    def num_points(self) -> int:
        """K."""

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """Of what is computed with it."""

    @property
    def rank(self) -> Array:
        """The number of nonzero eigenvalues."""
        return jnp.sum(self.eigenvalues > 0)

    @property
    @abc.abstractmethod
    def largest(self) -> Float[Array, ""]:
        """d_max, or a bound on it."""

    # ---- the map into its basis, and G there ----

    @abc.abstractmethod
    def rotate(self, y: Float[Array, "K *Q"]) -> Float[Array, "m *Q"]:
        """Rotated labels z = V y, in the basis (Mobahi et al. 2020, eq. 19)."""

    @abc.abstractmethod
    def unrotate(self, z: Float[Array, "m *P"]) -> Float[Array, "K *P"]:
        """Labels y = V^T z, back from the basis, all axes behind the first carried along."""

    @abc.abstractmethod
    def apply(self, v: Float[Array, "m *P"]) -> Float[Array, "m *P"]:
        """G in the basis, times v."""

    @abc.abstractmethod
    def resolvent(self, c: Float[Array, "*Q"], u: Float[Array, "m *P"]) -> Float[Array, "m *P"]:
        """(c I + G)^-1 u in the basis; c is a scalar, or one for each column."""

    @abc.abstractmethod
    def floor(self, y: ArrayLike) -> Float[Array, "*Q"]:
        """The training loss that no function of this space can go below, shape () or (Q,)."""

    # ---- values on points ----

    @property
    def has_basis_on_points(self) -> bool:
        """Whether :meth:`unrotate` is a product, and not a pass over the points: then fitted values
        are computed with a chain, else on demand.
        """
        return True

    @property
    def dual_points(self) -> Any:
        """The points of dual coefficients where they are not the training points."""
        return None

    def as_duals(self, z: Float[Array, "m *P"]) -> Float[Array, "n *P"]:
        """Dual coefficients, on the points or on :attr:`dual_points`, of those in the basis, all
        axes behind the first carried along.
        """
        return self.unrotate(z)

    # ---- chains ----

    def check_chain(self, chain: ChainSpec) -> None:  # noqa: B027 (most refuse none)
        """Refuse a chain of which it could not say what it is worth.

        Raises:
            ValueError: names the argument.
        """

    @abc.abstractmethod
    def multiplier_path(self, z: Float[Array, "m *Q"], chain: ChainSpec) -> MultiplierPath:
        """Multiplier and status of every round of a chain that starts from rotated labels z, both
        in a unit in which labels are about 1.
        """

    @property
    @abc.abstractmethod
    def multipliers_are_constant(self) -> bool:
        """Whether the multipliers of :meth:`multiplier_path` have no derivatives, so that the
        equation which they solve has to give them theirs.
        """

    def filters(
        self, multipliers: Float[Array, "T *Q"], chain: ChainSpec
    ) -> Float[Array, "T m *Q"] | None:
        """The filter of every round, for multipliers that are infinite where collapsed and nan once
        infeasible; None where there are no eigenvectors.
        """
        return None

    def error_bounds(
        self, z: Float[Array, "m *Q"], path: MultiplierPath, chain: ChainSpec
    ) -> ErrorBounds | None:
        """How far a chain on this spectrum is from that on G at most; None where it is exact."""
        return None

    # ---- what a chain and its messages need to know ----

    @property
    def has_all_eigenvalues(self) -> bool:
        """Whether ``eigenvalues`` are all of G that are not zero, so that their filter has its
        trace.
        """
        return True

    @property
    def has_eigenvectors(self) -> bool:
        """Whether a filter of the eigenvalues can be applied in its basis."""
        return False

    def eigenvalues_for(self, z: Float[Array, "m *Q"]) -> Float[Array, "m *q"]:
        """d, as a run with these rotated labels shows it."""
        return self.eigenvalues

    def without_null_space(self, duals: Float[Array, "m *P"]) -> Float[Array, "m *P"]:
        """Dual coefficients in the basis, without those that add nothing but rounding."""
        return duals

    def describe_floor(self) -> str:
        """For a message: why there are labels that no function comes close to."""
        return f"{self._describe_null_space()} eigenvalues of the Gram matrix are zero"

    def _describe_null_space(self) -> str:
        return f"{self.num_points - int(self.rank)} of {self.num_points}"

    def __repr__(self) -> str:
        shown = [f"{self.num_points} points"]
        if is_traced(self):
            shown.append("traced")
        else:
            shown += [f"rank {int(self.rank)}", f"largest eigenvalue {float(self.largest):.4g}"]
        return f"{type(self).__name__}({', '.join(shown)})"

    def save(self, path: str | Path) -> None:
        """Write the spectrum to a file, from which :func:`sdntk.load` reads it again.

        Args:
            path: the file, NumPy's .npz; one that is there is replaced.
        """
        _archive.save(path, self)

    def with_constant_basis(self) -> "AbstractSpectrum":
        """The same, but for derivatives: those of a traced matrix go through the matrix alone."""
        if self.matrix is None:
            return self
        constant: Any = lax.stop_gradient(self)
        moved: AbstractSpectrum = dataclasses.replace(constant, matrix=self.matrix)
        return moved


class Eigenbasis(AbstractSpectrum):
    """What eigenvalues, or Ritz values, and coordinates on their vectors say alone."""

    eigenvalues: Float[Array, " m"]

    @property
    def dtype(self) -> Any:
        """Of what is computed with it."""
        return self.eigenvalues.dtype

    @property
    def largest(self) -> Float[Array, ""]:
        """d_max."""
        return jnp.max(self.eigenvalues)

    def apply(self, v: Float[Array, "m *P"]) -> Float[Array, "m *P"]:
        """G in its eigenbasis, D v."""
        v = as_columns("v", v, len(self.eigenvalues), self.dtype)
        return as_column(self.eigenvalues, v) * v

    def resolvent(self, c: Float[Array, "*Q"], u: Float[Array, "m *P"]) -> Float[Array, "m *P"]:
        """(c I + D)^-1 u; c is a scalar, or one for each column."""
        c, u = as_shifted(c, u, len(self.eigenvalues), self.dtype)
        shift = c[None] if c.ndim else c
        return u / (shift + as_column(self.eigenvalues, u))

    def floor(self, y: ArrayLike) -> Float[Array, "*Q"]:
        """The floor (1/K) sum over {d_k = 0} of z_k^2: the training loss that no function of this
        space can go below.

        A tolerance is feasible when it exceeds the floor. Shape () or (Q,), in the labels' units
        squared.
        """
        labels = as_labels("y", y, self.num_points, dtype=self.dtype)
        unit = unit_of(labels, joint=False)
        z = self.rotate(in_unit(labels, unit))
        null = as_column(self.eigenvalues, z) <= 0
        return jnp.sum(jnp.where(null, z, 0) ** 2, axis=0) / self.num_points * unit * unit

    def multiplier_path(self, z: Float[Array, "m *Q"], chain: ChainSpec) -> MultiplierPath:
        """The recurrence on the eigenvalues; constant where the matrix has the derivatives."""
        d = self.eigenvalues
        if self.multipliers_are_constant:
            d = lax.stop_gradient(d)
        return run_chain(d, z, chain)

    @property
    def multipliers_are_constant(self) -> bool:
        """Where G was traced."""
        return self.matrix is not None

    def filters(
        self, multipliers: Float[Array, "T *Q"], chain: ChainSpec
    ) -> Float[Array, "T m *Q"]:
        """The diagonal of B_t (eq. 45), or with ground truth mixed in its like."""
        return _filters(self.eigenvalues, multipliers, chain.ground_truth_weight)

    @property
    def has_eigenvectors(self) -> bool:
        """Its basis is theirs."""
        return True

    def without_null_space(self, duals: Float[Array, "m *P"]) -> Float[Array, "m *P"]:
        """Zero where d = 0; as they are where G was traced, whose rank may change."""
        if self.matrix is not None:
            return duals
        return jnp.where(as_column(self.eigenvalues, duals) > 0, duals, 0)


@jax.jit
def _filters(
    d: Float[Array, " m"], multipliers: Float[Array, "T *Q"], weight: Float[Array, "*t"]
) -> Float[Array, "T m *Q"]:
    infeasible = jnp.isnan(multipliers)  # and all after it
    c = jnp.where(infeasible, jnp.inf, multipliers)
    values = filters.distillation(d, c, weight)[0]
    return jnp.where(jnp.expand_dims(infeasible, 1), jnp.nan, values)


def as_shifted(
    c: ArrayLike, u: ArrayLike, num_rows: int, dtype: DTypeLike
) -> tuple[Float[Array, "*Q"], Float[Array, "m *P"]]:
    """The arguments of a resolvent, checked: a shift, or one for each column, and vectors."""
    vectors = as_columns("u", u, num_rows, dtype)
    shift = as_parameter("c", c)
    require_every("c", shift, lambda c: c > 0, "must be positive")
    if shift.shape not in ((), vectors.shape[1:2]):
        raise ValueError(
            f"c must be a scalar or have shape {vectors.shape[1:2]}, one number for each column; "
            f"its shape is {shift.shape}."
        )
    return shift, vectors


def as_column(d: Float[Array, " m"], like: Float[Array, "m *P"]) -> Float[Array, "m *p"]:
    """Eigenvalues d with as many axes as ``like`` has, to be multiplied with its columns."""
    return d.reshape(-1, *(1 for _ in like.shape[1:]))
