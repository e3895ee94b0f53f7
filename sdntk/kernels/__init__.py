"""Kernels g(x, x'): Green's functions of differential operators, and stationary kernels.

Anything that maps arrays of points (n1, ...) and (n2, ...) to an (n1, n2) array is a kernel, a lambda too.
"""

from sdntk.kernels._base import Kernel, KernelFunction
from sdntk.kernels.green import brownian_bridge, brownian_motion, cubic_spline, periodic_spline
from sdntk.kernels.stationary import matern, rbf

__all__ = [
    "Kernel",
    "KernelFunction",
    "brownian_bridge",
    "brownian_motion",
    "cubic_spline",
    "matern",
    "periodic_spline",
    "rbf",
]
