"""Which networks have exact tangent kernels by structured derivatives, told from their programs.

Structured derivatives (Novak et al. 2022, section 3.3) split df/dw at the operations that take the
weights w: df/dw = df/dy dy/dw, where dy/dw has a known sparse structure and is never formed. So a
kernel costs about as many forward passes as it has points, where Jacobians cost a weight for every
output and pair of points. But the structure is known for some operations only, and it is the
operation's, not the weight's: a weight that is used twice in different ways has none.

The rule here reads the linearised program of one point, which depends on shapes alone: no numbers
are computed, and what it says holds under jit, vmap and grad.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jaxtyping import Array

from sdntk.kernels._neural_tangents import load_neural_tangents, structure_of

#: Operations on a weight whose structured derivatives tests compare with Jacobians.
KNOWN_OPERATIONS = frozenset(
    {
        *("broadcast_in_dim", "concatenate", "convert_element_type", "conv_general_dilated"),
        *("copy", "div", "dot_general", "mul", "neg", "reduce_sum", "reshape", "squeeze"),
        *("transpose",),
    }
)

#: neural-tangents' numbers.
JACOBIANS, STRUCTURED = 1, 3
#: So many networks are remembered.
REMEMBERED = 256


def quickest_exact(
    outputs: Callable[..., Any], function: Hashable, weights: Any, constants: Any, point: Array
) -> int:
    """The number of neural-tangents' quickest implementation that is exact for a network.

    Args:
        outputs: (weights, constants, x) to the outputs (n, Q) that count.
        function: what, with the shapes of the numbers, decides ``outputs``: it is remembered by
            that.
        weights: any pytree of arrays, traced or not; only shapes and dtypes are looked at.
        constants: likewise, without derivatives.
        point: one point, with its axis, shape (1, ...).

    Example:
        >>> outputs = lambda w, _, x: x @ w
        >>> quickest_exact(outputs, "dense", jax.numpy.ones((2, 3)), None, jax.numpy.ones((1, 2)))
        3
    """
    leaves, structure = jax.tree.flatten((weights, constants, point))
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in map(_array, leaves))
    return _decide(_ByFunction(outputs, function), shapes, structure)


def _array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") else jax.numpy.asarray(leaf)


class _ByFunction:
    """A function that equals another one if what decides both is equal."""

    def __init__(self, call: Callable[..., Any], function: Hashable) -> None:
        self.call, self.function = call, function

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByFunction) and self.function == other.function

    def __hash__(self) -> int:
        return hash(self.function)


@functools.lru_cache(REMEMBERED)
def _decide(outputs: _ByFunction, shapes: tuple[Any, ...], structure: Any) -> int:
    weights, constants, point = jax.tree.unflatten(structure, shapes)
    leaves, of_weights = jax.tree.flatten(weights)

    def by_leaves(leaves: list[Array], constants: Any, x: Array) -> Any:
        return outputs.call(jax.tree.unflatten(of_weights, leaves), constants, x)

    try:
        known = _is_known(_linear_program(by_leaves, leaves, constants, point))
        if known:  # whatever else it cannot do, it says when it is traced
            jax.eval_shape(_structured(by_leaves), leaves, constants, point)
    except Exception:
        # The program may be any code. What is wrong with it shows when its Jacobians are asked for.
        return JACOBIANS
    return STRUCTURED if known else JACOBIANS


def _linear_program(f: Callable[..., Any], leaves: list[Any], constants: Any, point: Any) -> Any:
    """The program of the derivative of ``f`` by its leaves, as structured derivatives read it."""
    programs = []

    def linearise(leaves: list[Array], constants: Any, x: Array) -> None:
        with jax.disable_jit():  # the rules know operations, not calls
            _, derivative = jax.linearize(lambda weights: f(weights, constants, x), leaves)
            programs.append(jax.make_jaxpr(derivative)(leaves).jaxpr)

    jax.eval_shape(linearise, leaves, constants, point)
    return programs[0]


def _is_known(program: Any) -> bool:
    """Whether every weight goes into operations of one known structure, and nowhere else."""
    weights = list(program.invars)
    linear = set(weights)
    structures: dict[Any, Any] = {}
    for equation in program.eqns:
        operands = [v for v in equation.invars if not hasattr(v, "val")]  # no literals
        if len(equation.outvars) != 1 or not linear.intersection(operands):
            return False
        linear.update(equation.outvars)
        for index, operand in enumerate(equation.invars):
            if operand not in operands or operand not in weights:
                continue
            if equation.primitive.name not in KNOWN_OPERATIONS:
                return False
            structure = structure_of(equation, index)
            # Equal ones have the same axes in the same places, so that pairs of uses contract.
            if structure is None or structures.setdefault(operand, structure) != structure:
                return False
    return not any(hasattr(out, "val") or out in weights for out in program.outvars)


def _structured(f: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(leaves: list[Array], constants: Any, x: Array) -> Any:
        kernel_fn = load_neural_tangents().empirical_ntk_fn(
            lambda leaves, x: f(leaves, constants, x),
            trace_axes=(-1,),
            vmap_axes=0,
            implementation=STRUCTURED,
        )
        return kernel_fn(x, None, leaves)

    return kernel
