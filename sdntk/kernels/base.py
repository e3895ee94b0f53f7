"""What every kernel of the library shares: calls that check their points, and blocks that do not.

A kernel is any function of two arrays of points, (n1, ...) and (n2, ...), that returns the (n1, n2)
array of g(x, x'). One of this library checks its points when it is called. Who evaluates many
blocks of the same points checks them once, with :func:`check_points`, and takes each block from
:func:`kernel_block`, which trusts them.

The author of a kernel writes :meth:`Kernel.pair`, the formula for one pair of points, or derives
from :class:`LibraryKernel` where blocks are not computed pair by pair. Both add and multiply.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from typing_extensions import TypeAliasType

from sdntk._arguments import (
    ArrayLike,
    as_points,
    as_real_array,
    every,
    is_traced,
    require_function,
    require_one_shape,
)
from sdntk.kernels.parameters import named_parameters, with_parameters

AnyKernel = TypeVar("AnyKernel")

#: A kernel: (n1, ...) and (n2, ...) arrays to an (n1, n2) array, NumPy or JAX.
KernelFunction = TypeAliasType("KernelFunction", Callable[[Any, Any], Any])


class LibraryKernel(abc.ABC):
    """A kernel whose call checks its points, and whose :meth:`block` trusts them.

    Kernels, other functions and positive numbers add and multiply to new kernels: see
    :mod:`sdntk.kernels.algebra`.
    """

    #: What a new value of a parameter must be: functions of its name and value.
    parameter_checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = {}
    #: NumPy leaves ``number * kernel`` to the kernel.
    __array_ufunc__ = None

    def __call__(self, x1: ArrayLike, x2: ArrayLike) -> Float[Array, "n1 n2"]:
        """g(x1_i, x2_j) for all pairs.

        Args:
            x1: points, shape (n1, ...).
            x2: points, shape (n2, ...), of the same coordinates.

        Raises:
            ValueError: the kernel does not take points of these shapes, or (unless traced) one is
                not finite or lies outside the kernel's domain.
        """
        points1, points2 = self.check("x1", x1), self.check("x2", x2)
        self.require_one_shape("x1", points1, "x2", points2)
        return self.block(points1, points2)

    def check(self, name: str, points: ArrayLike) -> Float[Array, "n ..."]:
        """``points`` as an array, or the error that says why this kernel does not take them."""
        return as_points(name, points)

    def coordinates(self, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Points in the shape in which the kernel's formula takes them."""
        return x

    def require_one_shape(
        self, name1: str, x1: Float[Array, "n1 ..."], name2: str, x2: Float[Array, "n2 ..."]
    ) -> None:
        """Refuse two sets of points, each of which :meth:`check` let pass, of different shapes."""
        require_one_shape(name1, self.coordinates(x1), name2, self.coordinates(x2))

    def precision(self, x: ArrayLike) -> float | Float[Array, ""]:
        """The largest error of a value g(x_i, x_j) beyond the rounding of its dtype.

        It bounds the error of the Gram matrix, divided by K as that is, in the spectral norm:
        eigenvalues up to it are not to be told from 0, so it is a ``rank_tolerance`` for
        :func:`sdntk.decompose`. For kernels that lose digits it is an estimate from above.
        :func:`sdntk.distill` asks for it by itself.

        Args:
            x: the points, shape (K, ...); of traced ones the estimate is traced.
        """
        self.check("x", x)
        return 0.0

    @abc.abstractmethod
    def block(
        self, x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."]
    ) -> Float[Array, "n1 n2"]:
        """g(x1_i, x2_j) for all pairs of points that :meth:`check` let pass; compiled."""

    def diagonal(self, x: Float[Array, "n ..."]) -> Float[Array, " n"]:
        """g(x_i, x_i) of points that :meth:`check` let pass."""
        return _one_by_one(self, x)

    @property
    def has_known_leaves(self) -> bool:
        """Whether all that the values depend on are leaves; a function may close over tracers."""
        return True

    @property
    def parameters(self) -> dict[str, Any]:
        """The numbers that the kernel depends on, by name; those of a part of it under the part's
        name and two underscores, as in scikit-learn.

        A derivative by a kernel is a kernel that holds the derivatives, under the same names:
        ``jax.grad(loss)(kernel).parameters["k1__length_scale"]``.

        Example:
            >>> from sdntk.kernels import linear, rbf
            >>> (rbf(0.3) + 2.0 * linear()).parameters
            {'k1__length_scale': 0.3, 'k2__factor': 2.0}
        """
        return named_parameters(self)

    def replace(self: AnyKernel, **values: ArrayLike) -> AnyKernel:
        """The same kernel with other values of some of its :attr:`parameters`.

        Args:
            values: new values by name. May be traced.

        Raises:
            ValueError: there is no parameter of a name, or its value is none that the kernel takes.

        Example:
            >>> from sdntk.kernels import linear, rbf
            >>> (rbf(0.3) + 2.0 * linear()).replace(k1__length_scale=0.5)
            rbf(0.5) + 2.0 * linear()
        """
        return with_parameters(self, values)

    # The algebra is imported where it is used, since sums of kernels are kernels themselves.

    def __add__(self, other: Any) -> "LibraryKernel":
        from sdntk.kernels import algebra

        return algebra.add(self, other)

    def __radd__(self, other: Any) -> "LibraryKernel":
        from sdntk.kernels import algebra

        # Where sum() of kernels starts.
        return self if type(other) is int and other == 0 else algebra.add(other, self)

    def __mul__(self, other: Any) -> "LibraryKernel":
        from sdntk.kernels import algebra

        return algebra.multiply(self, other)

    def __rmul__(self, other: Any) -> "LibraryKernel":
        from sdntk.kernels import algebra

        return algebra.multiply(other, self)

    def __pow__(self, exponent: Any) -> "LibraryKernel":
        from sdntk.kernels import algebra

        return algebra.power(self, exponent)


@jax.jit
def _one_by_one(kernel: LibraryKernel, x: Float[Array, "n ..."]) -> Float[Array, " n"]:
    return lax.map(lambda point: kernel.block(point[None], point[None])[0, 0], x)


class Kernel(LibraryKernel):
    """A kernel given by its value for one pair of points, compiled, and batched over both
    arguments.

    Coordinates beyond the first axis of the points are flattened to one vector.
    """

    #: Whether points are single numbers; then arrays of shape (n,) and (n, 1) are both welcome.
    one_dimensional: ClassVar[bool] = False
    #: The interval that points must come from, if any.
    domain: ClassVar[tuple[float, float] | None] = None

    @abc.abstractmethod
    def pair(self, x: Float[Array, "*p"], t: Float[Array, "*p"]) -> Float[Array, ""]:
        """g(x, t) for one pair of points, shape () for one-dimensional kernels and (p,) for the
        others.
        """

    def check(self, name: str, points: ArrayLike) -> Float[Array, "n ..."]:
        """``points`` as an array, checked for their shape and for the kernel's domain."""
        x = super().check(name, points)
        if self.one_dimensional and x.size != len(x):
            raise ValueError(
                f"{name} must hold single numbers, shape (n,) or (n, 1), for "
                f"{type(self).__name__}, a kernel on the line; its shape is {x.shape}."
            )
        if self.domain is not None and not is_traced(x):
            self._check_domain(name, x, *self.domain)
        return x

    def _check_domain(self, name: str, x: Float[Array, "n ..."], low: float, high: float) -> None:
        if not every(lambda x: (x >= low) & (x <= high), x):
            worst = next(
                value for value in np.asarray(x).ravel().tolist() if not low <= value <= high
            )
            raise ValueError(
                f"{name} must lie in [{low:g}, {high:g}], the domain of {type(self).__name__}; "
                f"it holds {worst:g}."
            )

    def coordinates(self, x: Float[Array, "n ..."]) -> Float[Array, "n *p"]:
        """Points as vectors, or as numbers for a kernel on the line."""
        return x.reshape(-1) if self.one_dimensional else x.reshape(len(x), -1)

    def block(
        self, x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."]
    ) -> Float[Array, "n1 n2"]:
        """g(x1_i, x2_j) for all pairs of points that :meth:`check` let pass; compiled."""
        return _all_pairs(self, x1, x2)

    def diagonal(self, x: Float[Array, "n ..."]) -> Float[Array, " n"]:
        """g(x_i, x_i) of points that :meth:`check` let pass."""
        return jax.vmap(self.pair)(*[self.coordinates(x)] * 2)


@jax.jit
def _all_pairs(
    kernel: Kernel, x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."]
) -> Float[Array, "n1 n2"]:
    rows, columns = kernel.coordinates(x1), kernel.coordinates(x2)
    return jax.vmap(lambda x: jax.vmap(lambda t: kernel.pair(x, t))(columns))(rows)


def check_points(kernel: KernelFunction, name: str, points: ArrayLike) -> Float[Array, "n ..."]:
    """``points`` as an array that ``kernel`` takes: finite and, for one of this library, of its
    shape and in its domain.

    Raises:
        TypeError: ``kernel`` is not callable, ``points`` are not real numbers. ValueError: no
            points, nan or inf, or points that the kernel does not take.
    """
    require_function("kernel", kernel, "two arrays of points")
    if isinstance(kernel, LibraryKernel):
        return kernel.check(name, points)
    return as_points(name, points)


def kernel_block(
    kernel: KernelFunction, x1: Float[Any, "n1 ..."], x2: Float[Any, "n2 ..."]
) -> Float[Array, "n1 n2"]:
    """g(x1_i, x2_j) for all pairs of points that :func:`check_points` let pass.

    Nothing is checked but shape and dtype of what the kernel returns, and nothing is divided by
    the number of points.

    Example:
        >>> kernel_block(lambda x, t: x[:, None] * t[None, :], jnp.ones(2), jnp.ones(3)).shape
        (2, 3)
    """
    block = kernel.block if isinstance(kernel, LibraryKernel) else kernel
    return _as_values(block(x1, x2), (len(x1), len(x2)))


def kernel_diagonal(kernel: KernelFunction, x: Float[Array, "n ..."]) -> Float[Array, " n"]:
    """g(x_i, x_i) of points that :func:`check_points` let pass."""
    if isinstance(kernel, LibraryKernel):
        return kernel.diagonal(x)
    return jnp.concatenate([kernel_block(kernel, one[None], one[None])[0] for one in x])


def kernel_precision(kernel: KernelFunction, x: Float[Array, "K ..."]) -> float | Float[Array, ""]:
    """:meth:`LibraryKernel.precision`; 0 of a function, of which nothing is known."""
    return kernel.precision(x) if isinstance(kernel, LibraryKernel) else 0.0


def as_pytree_kernel(kernel: KernelFunction | None) -> Any:
    """A kernel that may stand in a pytree: the library's are pytrees, any other function is wrapped
    as one without leaves.
    """
    if kernel is None or not jax.tree_util.all_leaves([kernel]):
        return kernel
    return jax.tree_util.Partial(kernel)


def _as_values(values: Any, shape: tuple[int, int]) -> Float[Array, "n1 n2"]:
    """What a kernel returned, as a floating-point array, checked for its shape and dtype."""
    values = jnp.asarray(as_real_array("the kernel's values", values))
    if values.shape != shape:
        raise ValueError(
            f"kernel must return shape {shape} for {shape[0]} and {shape[1]} points; it returned "
            f"{values.shape}."
        )
    if jnp.issubdtype(values.dtype, jnp.floating):
        return values
    return values.astype(jnp.result_type(float))
