"""Kernels of neural networks: infinitely wide ones in closed form, and finite ones from their
Jacobians.

The closed forms and the Jacobian contractions are neural-tangents' (Novak et al. 2020, 2022). Here
its functions become kernels of this library: of two arrays of points alone, compiled, with shapes
checked, in one fixed precision.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from dataclasses import field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdntk._arguments import (
    ARRAYS,
    ArrayLike,
    as_choice,
    as_count,
    as_points,
    as_real_array,
    leaves_of,
    require_function,
    require_type,
)
from sdntk._pytrees import pytree
from sdntk.architectures import (
    Activation,
    Architecture,
    AveragePool,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Layer,
)
from sdntk.kernels._neural_tangents import load_neural_tangents
from sdntk.kernels.base import LibraryKernel
from sdntk.kernels.precision import measured_precision
from sdntk.kernels.recursion import keeps_digits, vector_kernel
from sdntk.kernels.structured import quickest_exact

#: How an empirical kernel is computed: neural-tangents' number, or the quickest that is exact.
Implementation = int | Literal["auto"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, repr=False)
class InfiniteWidth(LibraryKernel):
    """The kernel that :func:`ntk` and :func:`nngp` return; equal, and compiled once, for equal
    descriptions.
    """

    network: Architecture | Callable[..., Any]
    get: Literal["ntk", "nngp"]

    def __post_init__(self) -> None:
        if not callable(self.network) and not isinstance(self.network, Architecture):
            raise TypeError(
                "kernel_fn must be an sdntk.architectures.Architecture or the kernel_fn, the "
                "last of the three functions, of a neural_tangents.stax network; got "
                f"{type(self.network).__name__}."
            )
        if not isinstance(self.network, Hashable):
            raise TypeError(
                f"kernel_fn must be hashable, to be compiled once; {type(self.network).__name__} "
                "is not."
            )
        load_neural_tangents()

    def check(self, name: str, points: ArrayLike) -> Float[Array, "n ..."]:
        """``points`` as an array, which an architecture with convolutions takes as images."""
        x = super().check(name, points)
        smallest = self._smallest_image
        if smallest is None:
            return x
        if x.ndim != 4 or x.shape[1] < smallest[0] or x.shape[2] < smallest[1]:
            raise ValueError(
                f"{name} must be images, shape (n, height, width, channels), of at least "
                f"{smallest[0]} x {smallest[1]} pixels for this architecture; its shape is "
                f"{x.shape}."
            )
        return x

    def coordinates(self, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Points as vectors for an architecture that takes vectors, else as they are."""
        flat = isinstance(self.network, Architecture) and self._smallest_image is None
        return x.reshape(len(x), -1) if flat else x

    def block(
        self, x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."]
    ) -> Float[Array, "n1 n2"]:
        """The kernel for all pairs of points that :meth:`check` let pass; see :func:`ntk`."""
        return _infinite_width(self, x1, x2)

    def precision(self, x: ArrayLike) -> float | Float[Array, ""]:
        """The largest error of a value beyond rounding: 0 for vectors, measured at some of the
        points for convolutions, stax networks and a ReLU behind another activation, whose values
        near angle 0 are right to the root of rounding.
        """
        points = self.check("x", x)
        exact = isinstance(self.network, Architecture) and keeps_digits(self.network)
        return 0.0 if exact else measured_precision(self, points)

    @property
    def _smallest_image(self) -> tuple[int, int] | None:
        """What an architecture with convolutions asks for; None for all others."""
        return self.network.smallest_image if isinstance(self.network, Architecture) else None

    def __repr__(self) -> str:
        return f"{self.get}({self.network!r})"


def ntk(kernel_fn: Architecture | Callable[..., Any]) -> InfiniteWidth:
    """The neural tangent kernel of an infinitely wide network, in closed form.

    Theta(x, x') = lim E[<df(x)/dw, df(x')/dw>] as the widths grow, f one output and w all weights
    in the NTK parameterisation. A network trained by gradient descent on the squared loss follows
    kernel regression with it.

    Values are computed in the default floating-point type, whatever that of the points: float64
    with jax_enable_x64 on. For vectors they are right to rounding at any angle and norm. Those of
    convolutional and stax networks are neural-tangents', which loses half of the digits where
    points nearly coincide: about 2e-8 on a ReLU network's diagonal (2.5e-4 in float32). What they
    are good for, ``kernel.precision(x)`` says, and :func:`sdntk.distill` goes by it.

    Source: Jacot et al. 2018; images and stax networks by neural-tangents (Novak et al. 2020),
    vectors as in docs/numerics.md, "Angles".

    Args:
        kernel_fn: an :class:`~sdntk.architectures.Architecture`, or the kernel_fn of a
            ``neural_tangents.stax`` network, which is called as kernel_fn(x1, x2, "ntk").

    Returns:
        A kernel: points (n1, ...) and (n2, ...) to (n1, n2). An architecture with convolutions or
        pools takes images (n, height, width, channels), another one points of any shape, which it
        flattens. A stax network takes what its first layer takes. The kernel works under jit, vmap
        and grad.

    Raises:
        TypeError: ``kernel_fn`` is neither.
        ImportError: neural-tangents is missing.
        ValueError: on the call, the points have a shape that the network does not take, or the
            network's output is not one vector for each point.

    Example:
        >>> from sdntk.architectures import fully_connected
        >>> kernel = ntk(fully_connected(depth=3))
        >>> values = kernel(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0]]))
        >>> [round(float(v), 4) for v in values[:, 0]]  # |x|^2 weight_std^2/2 for each layer
        [4.0, 1.0604]
    """
    return InfiniteWidth(kernel_fn, "ntk")


def nngp(kernel_fn: Architecture | Callable[..., Any]) -> InfiniteWidth:
    """The covariance K(x, x') = lim E[f(x) f(x')] of an infinitely wide network at initialisation,
    in closed form.

    The kernel of the Gaussian process that the network's output becomes (NNGP); regression with it
    is what training the readout alone does. Arguments, result, precision and errors are those of
    :func:`ntk`.

    Source: Lee et al. 2018, *Deep Neural Networks as Gaussian Processes*.

    Example:
        >>> from sdntk.architectures import fully_connected
        >>> kernel = nngp(fully_connected(depth=1))
        >>> values = kernel(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]))
        >>> round(float(values[0, 0]), 6)  # 1/pi
        0.31831
    """
    return InfiniteWidth(kernel_fn, "nngp")


@jax.jit
def _infinite_width(
    kernel: InfiniteWidth, x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."]
) -> Float[Array, "n1 n2"]:
    network = kernel.network
    rows, columns = (kernel.coordinates(x).astype(jnp.result_type(float)) for x in (x1, x2))
    if isinstance(network, Architecture) and network.smallest_image is None:
        return vector_kernel(network, rows, columns, kernel.get)
    kernel_fn = _stax(network) if isinstance(network, Architecture) else network
    with jax.default_matmul_precision("highest"):
        values = kernel_fn(rows, columns, kernel.get)
    if jnp.shape(values) != (len(x1), len(x2)):
        raise ValueError(
            "kernel_fn must return one number for each pair of points, shape "
            f"{(len(x1), len(x2))}; its shape is {jnp.shape(values)}. A stax network on images "
            "must have Flatten or GlobalAvgPool before its last Dense."
        )
    return values


def _stax(architecture: Architecture) -> Callable[..., Any]:
    """The kernel_fn of a description; its widths, which do not matter for it, are 1."""
    stax = load_neural_tangents().stax
    activations = {"relu": stax.Relu, "erf": stax.Erf, "gelu": stax.Gelu, "sin": stax.Sin}

    def build(layer: Layer) -> Any:
        match layer:
            case Dense(weight_std, bias_std):
                return stax.Dense(1, weight_std, bias_std)
            case Conv(filter_shape, weight_std, bias_std):
                return stax.Conv(1, filter_shape, padding="SAME", W_std=weight_std, b_std=bias_std)
            case Activation(name):
                return activations[name]()
            case AveragePool(window):
                return stax.AvgPool(window, strides=window)
            case GlobalAveragePool():
                return stax.GlobalAvgPool()
            case Flatten():
                return stax.Flatten()

    _, _, kernel_fn = stax.serial(*map(build, architecture.layers))
    return kernel_fn


@pytree
class EmpiricalNTK(LibraryKernel):
    """The kernel that :func:`empirical_ntk` returns: a pytree whose leaves are the network's
    numbers.
    """

    params: Any
    constants: tuple[Any, ...]
    apply_fn: Callable[..., Any] = field(metadata={"static": True})
    output: int | None = field(default=None, metadata={"static": True})
    implementation: Implementation = field(default="auto", metadata={"static": True})

    def block(
        self, x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."]
    ) -> Float[Array, "n1 n2"]:
        """The kernel for all pairs, points taken as they are; see :func:`empirical_ntk`."""
        return _empirical(self._decided(x1), x1, x2)

    def by_outputs(self, x: Float[Array, "n ..."]) -> Float[Array, "nQ nQ"]:
        """J J^T at the points, J the Jacobian of their outputs in row-major order, without a mean
        over these; see :func:`tangent_kernel`.
        """
        values = _empirical(self._decided(x), x, None, trace_axes=())  # (n, n, Q, Q)
        size = values.shape[0] * values.shape[2]
        return values.transpose(0, 2, 1, 3).reshape(size, size)

    def _decided(self, x: Float[Array, "n ..."]) -> "EmpiricalNTK":
        """The same, by an implementation that is one of neural-tangents'."""
        if self.implementation != "auto":
            return self
        function = (self.apply_fn, self.output)
        chosen = quickest_exact(self._outputs, function, self.params, self.constants, x[:1])
        return dataclasses.replace(self, implementation=chosen)

    def outputs(self, params: Any, x: Float[Array, "n ..."]) -> Float[Array, "n q"]:
        """The outputs that count, as a function of the parameters."""
        return self._outputs(params, self.constants, x)

    def _outputs(
        self, params: Any, constants: tuple[Any, ...], x: Float[Array, "n ..."]
    ) -> Float[Array, "n q"]:
        values = self.apply_fn(params, *constants, x)
        if jnp.ndim(values) != 2 or len(values) != len(x):
            raise ValueError(
                f"apply_fn must return outputs of shape (n, Q), here ({len(x)}, Q), for points "
                f"of shape {x.shape}; it returned shape {jnp.shape(values)}."
            )
        if self.output is None:
            return values
        if self.output >= values.shape[1]:
            raise ValueError(
                f"output must be below {values.shape[1]}, the number of outputs; got {self.output}."
            )
        return values[:, self.output, None]

    def __repr__(self) -> str:
        size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(self.params))
        options = f"output={self.output}, implementation={self.implementation!r}"
        return f"EmpiricalNTK({self.apply_fn}, {size:,} parameters, {options})"


def empirical_ntk(
    apply_fn: Callable[..., Any],
    params: Any = None,
    *,
    output: int | None = None,
    implementation: Implementation = "auto",
) -> EmpiricalNTK:
    """The neural tangent kernel of a finite network at its present parameters, from its Jacobians.

        Theta(x, x') = (1/Q) sum_q <df_q(x)/dw, df_q(x')/dw>,

    the mean over the outputs, as neural-tangents has it; with ``output=q`` that output's alone,

        Theta_q(x, x') = <df_q(x)/dw, df_q(x')/dw>.

    Each point passes through the network as a batch of one, so values do not depend on how points
    are grouped into blocks; the network must treat the points of a batch independently, in
    evaluation mode. Precision is that of the network. New parameters for the same function compile
    nothing anew, and :func:`jax.vmap` over a kernel whose leaves are stacked gives the kernels of
    an ensemble.

    Source: Jacot et al. 2018; Novak et al. 2022, *Fast Finite Width Neural Tangent Kernel*.

    Args:
        apply_fn: the network: a Flax NNX module that maps (n, ...) to (n, Q), or a function
            apply_fn(params, x) that does. Of a module a copy in evaluation mode is taken: its
            ``nnx.Param`` are the parameters w; all other state, batch statistics among it, is held
            constant.
        params: the parameters, any pytree of arrays; left out with a module.
        output: the output q whose kernel is wanted, from 0; the mean over all when left out.
        implementation: how, the values being the same: 1 contracts Jacobians, 2 uses NTK-vector
            products, 3 structured derivatives (hundreds of times quicker on dense layers, but they
            read the program, know JAX's common operations only, and may be wrong of others), 0
            whichever of them XLA says costs fewest operations. "auto": 3 where the program of the
            network shows that it is exact, every parameter in operations of one structure that it
            knows, else 1, which asks least of the network.

    Returns:
        A kernel: points (n1, ...) and (n2, ...), as the network takes them, to (n1, n2).

    Raises:
        TypeError: ``apply_fn`` is neither, or ``params`` are missing or superfluous.
        ValueError: ``output`` or ``implementation`` is out of range; on the call, outputs are not
            of shape (n, Q).
        ImportError: neural-tangents is missing.

    Example:
        >>> kernel = empirical_ntk(lambda w, x: x @ w, jnp.ones((2, 3)))  # Theta = <x, x'>
        >>> kernel(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
        [[11.0, 2.0]]
    """
    # Here, since few need it and it takes a third of the time of importing this library.
    from flax import nnx

    load_neural_tangents()
    implementation = _as_implementation(implementation)
    output = None if output is None else as_count("output", output, at_least=0)
    if isinstance(apply_fn, nnx.Module):
        if params is not None:
            raise TypeError("params must be left out with a module, which holds its own.")
        copy: Any = nnx.clone(apply_fn)
        copy.eval()
        graph, weights, *constants = nnx.split(copy, nnx.Param, ...)
        return EmpiricalNTK(
            weights, tuple(constants), _Module(graph, type(copy).__name__), output, implementation
        )
    require_function("apply_fn", apply_fn, "(params, x) or a Flax NNX module", compiled=True)
    if params is None:
        raise TypeError(
            "params must be given with a function apply_fn: its parameters, a pytree of arrays."
        )
    _check_params(params)
    return EmpiricalNTK(params, (), apply_fn, output, implementation)


def _as_implementation(value: Any) -> Implementation:
    if isinstance(value, str):
        as_choice("implementation", value, ["auto"])
        return "auto"
    number = as_count("implementation", value, at_least=0)
    if number > 3:
        raise ValueError(f'implementation must be 0, 1, 2, 3 or "auto"; got {number}.')
    return number


def _check_params(params: Any) -> None:
    leaves = leaves_of(params)
    if not leaves:
        raise TypeError("params must be a pytree of arrays; it holds none.")
    for leaf in leaves:
        require_type("params", leaf, (*ARRAYS, float), "a pytree of arrays")
        dtype = as_real_array("params", leaf).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"params must be floating-point numbers; some have dtype {dtype}.")


def tangent_kernel(
    apply_fn: Callable[..., Any], params: Any, x: ArrayLike
) -> Float[Array, "nQ nQ"]:
    """J J^T of a network apply_fn(params, x) with outputs (n, Q), J their Jacobian in row-major
    order: not traced over q.

    By structured derivatives (Novak et al. 2022), which never form J, with a column for every
    weight, where they are known to be exact; else from J. The network must treat points
    independently.

    Args:
        apply_fn: the network, a function of (params, x); compiled once for the same function.
        params: its parameters, any pytree of arrays.
        x: points, shape (n, ...).

    Raises:
        TypeError, ValueError: not a hashable function, not a pytree of arrays, bad points, outputs
            that are not of shape (n, Q).

    Example:
        >>> x = jnp.array([[1.0, 2.0]])
        >>> tangent_kernel(lambda w, x: x @ w, jnp.ones((2, 2)), x).tolist()  # |x|^2 I
        [[5.0, 0.0], [0.0, 5.0]]
    """
    require_function("apply_fn", apply_fn, "(params, x)", compiled=True)
    _check_params(params)
    return EmpiricalNTK(params, (), apply_fn).by_outputs(as_points("x", x))


@dataclasses.dataclass(frozen=True)
class _Module:
    """A Flax NNX module as a function of its numbers, hashable by what it computes."""

    graph: Any = field(repr=False)
    name: str

    def __call__(self, params: Any, constants: Any, x: Array) -> Any:
        from flax import nnx

        return nnx.merge(self.graph, params, constants)(x)


@functools.partial(jax.jit, static_argnames="trace_axes")
def _empirical(
    kernel: EmpiricalNTK,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None,
    trace_axes: tuple[int, ...] = (-1,),
) -> Float[Array, "n1 n2 *QQ"]:
    """The kernel for all pairs, of x1 with itself where x2 is left out: the mean over outputs, or
    with no ``trace_axes`` that of each pair of them.
    """
    # All points at once, once: below each is a batch of one, where any network has one output row.
    jax.eval_shape(kernel.outputs, kernel.params, x1)
    # A list of leaves, as not every pytree is hashable by its contents.
    leaves, structure = jax.tree.flatten(kernel.params)

    def outputs(leaves: list[Array], x: Array) -> Array:
        return kernel.outputs(jax.tree.unflatten(structure, leaves), x)

    kernel_fn = load_neural_tangents().empirical_ntk_fn(
        outputs, trace_axes=trace_axes, vmap_axes=0, implementation=kernel.implementation
    )
    with jax.default_matmul_precision("highest"):
        return kernel_fn(x1, x2, leaves)
