"""Kernels g(x, x'): Green's functions of differential operators, stationary kernels, and kernels of
networks.

Anything that maps arrays of points (n1, ...) and (n2, ...) to an (n1, n2) array is a kernel, a
lambda too.
"""

from sdntk.kernels._neural_tangents import load_neural_tangents
from sdntk.kernels.base import Kernel, KernelFunction
from sdntk.kernels.green import brownian_bridge, brownian_motion, cubic_spline, periodic_spline
from sdntk.kernels.neural import empirical_ntk, nngp, ntk, tangent_kernel
from sdntk.kernels.stationary import matern, rbf

__all__ = [
    "Kernel",
    "KernelFunction",
    "brownian_bridge",
    "brownian_motion",
    "cubic_spline",
    "empirical_ntk",
    "load_neural_tangents",
    "matern",
    "nngp",
    "ntk",
    "periodic_spline",
    "rbf",
    "tangent_kernel",
]
