"""Kernels g(x, x'): Green's functions of differential operators, stationary kernels, kernels of
inner products and of networks; their sums and products.

Anything that maps arrays of points (n1, ...) and (n2, ...) to an (n1, n2) array is a kernel, a
lambda too.
"""

from sdntk.kernels._neural_tangents import load_neural_tangents
from sdntk.kernels.algebra import on_columns
from sdntk.kernels.base import Kernel, KernelFunction
from sdntk.kernels.dot_products import constant, linear, polynomial, white
from sdntk.kernels.green import brownian_bridge, brownian_motion, cubic_spline, periodic_spline
from sdntk.kernels.neural import empirical_ntk, nngp, ntk, tangent_kernel
from sdntk.kernels.stationary import laplace, matern, rbf

__all__ = [
    "Kernel",
    "KernelFunction",
    "brownian_bridge",
    "brownian_motion",
    "constant",
    "cubic_spline",
    "empirical_ntk",
    "laplace",
    "linear",
    "load_neural_tangents",
    "matern",
    "nngp",
    "ntk",
    "on_columns",
    "periodic_spline",
    "polynomial",
    "rbf",
    "tangent_kernel",
    "white",
]
