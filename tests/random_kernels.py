"""Random expressions of kernels, beside NumPy's arithmetic on the values of their atoms."""

import operator

import numpy as np
from hypothesis import strategies as st

from sdntk import kernels

# What is drawn is how a kernel is made: hypothesis does not let kernels be made while it draws.
lengths, factors = st.floats(0.2, 3.0), st.floats(0.01, 5.0)
atoms = st.one_of(
    st.tuples(st.just("rbf"), lengths),
    st.tuples(st.just("rbf"), st.lists(lengths, min_size=3, max_size=3)),
    st.tuples(st.just("matern"), st.sampled_from([0.5, 2.5]), lengths),
    st.tuples(st.just("laplace"), lengths),
    st.tuples(st.just("linear")),
    st.tuples(st.just("polynomial"), st.sampled_from([2, 3]), st.floats(0, 2)),
    st.tuples(st.just("constant"), factors),
    st.tuples(st.just("on"), st.integers(0, 2), st.just(("cubic_spline",))),
    st.tuples(st.just("on"), st.integers(0, 2), st.just(("periodic_spline", 2))),
    st.tuples(st.just("on"), st.integers(0, 2), st.tuples(st.just("rbf"), lengths)),
)
recipes = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from("+*"), inner, inner),
        st.tuples(st.sampled_from("+*"), inner, factors),
        st.tuples(st.sampled_from("+*"), factors, inner),
        st.tuples(st.just("^"), inner, st.integers(1, 3)),
    ),
    max_leaves=5,
)
OPERATORS = {"+": operator.add, "*": operator.mul, "^": operator.pow}


def made(recipe):
    """The kernel, and NumPy's way from the values of its atoms to its own."""
    if not isinstance(recipe, tuple):
        return recipe, lambda *_points: recipe
    name, *arguments = recipe
    if name in OPERATORS:
        (left, f), (right, g) = map(made, arguments)
        apply = OPERATORS[name]
        return apply(left, right), lambda x1, x2: apply(f(x1, x2), g(x1, x2))
    if name == "on":
        column, inner = arguments
        kernel = kernels.on_columns(made(inner)[0], [column])
    else:
        kernel = getattr(kernels, name)(*arguments)
    return kernel, lambda x1, x2: np.asarray(kernel(x1, x2))
