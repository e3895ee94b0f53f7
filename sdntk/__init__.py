"""sdntk: self-distillation in Hilbert space and, through neural tangent kernels, in neural networks."""

from sdntk import architectures, bounds, datasets, filters, kernels
from sdntk.distillation import Distillation, distill, distill_spectrum
from sdntk.gram import gram
from sdntk.gram_store import GramStore
from sdntk.multiplier import Multiplier, Status, solve_multiplier
from sdntk.spectrum import PrecisionWarning, Spectrum, decompose

__version__ = "0.1.0"

__all__ = [
    "Distillation",
    "GramStore",
    "Multiplier",
    "PrecisionWarning",
    "Spectrum",
    "Status",
    "architectures",
    "bounds",
    "datasets",
    "decompose",
    "distill",
    "distill_spectrum",
    "filters",
    "gram",
    "kernels",
    "solve_multiplier",
]
