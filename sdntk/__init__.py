"""sdntk: self-distillation in Hilbert space and, through neural tangent kernels, in neural networks."""

import importlib
from typing import TYPE_CHECKING, Any

from sdntk import architectures, bounds, datasets, filters, kernels
from sdntk.distillation import Distillation, distill, distill_spectrum
from sdntk.gram import gram
from sdntk.gram_store import GramStore
from sdntk.krylov import KrylovSpectrum
from sdntk.krylov_bounds import ErrorBounds
from sdntk.krylov_steps import AccuracyError, krylov
from sdntk.multiplier import Multiplier, Status, solve_multiplier
from sdntk.products import Products, products
from sdntk.spectrum import PrecisionWarning, Spectrum, decompose
from sdntk.tridiagonal import TridiagonalSpectrum, tridiagonalise

if TYPE_CHECKING:
    from sdntk import losses, networks, optimisers
    from sdntk.comparison import compare, exponents
    from sdntk.network_distillation import distill_networks
    from sdntk.training import Stop, Trained, Training, train

__version__ = "0.1.0"

__all__ = [
    "AccuracyError",
    "Distillation",
    "ErrorBounds",
    "GramStore",
    "KrylovSpectrum",
    "Multiplier",
    "PrecisionWarning",
    "Products",
    "Spectrum",
    "Status",
    "Stop",
    "Trained",
    "Training",
    "TridiagonalSpectrum",
    "architectures",
    "bounds",
    "compare",
    "datasets",
    "decompose",
    "distill",
    "distill_networks",
    "distill_spectrum",
    "exponents",
    "filters",
    "gram",
    "kernels",
    "krylov",
    "losses",
    "networks",
    "optimisers",
    "products",
    "solve_multiplier",
    "train",
    "tridiagonalise",
]

#: The networks' side is imported on use: Flax and optax take long to import.
_ON_USE = {
    "Stop": "sdntk.training",
    "Trained": "sdntk.training",
    "Training": "sdntk.training",
    "compare": "sdntk.comparison",
    "distill_networks": "sdntk.network_distillation",
    "exponents": "sdntk.comparison",
    "losses": "",
    "networks": "",
    "optimisers": "",
    "train": "sdntk.training",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_USE:
        raise AttributeError(f"module 'sdntk' has no attribute {name!r}")
    module = _ON_USE[name]
    return getattr(importlib.import_module(module), name) if module else importlib.import_module(f"sdntk.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_USE})
