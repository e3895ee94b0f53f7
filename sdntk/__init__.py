"""sdntk: self-distillation in Hilbert space and, through neural tangent kernels, in neural
networks.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sdntk import architectures, datasets, kernels, mixing, selection
from sdntk._undecided import UndecidedWarning
from sdntk._warnings import warn_renamed
from sdntk.distillation import distill, distill_spectrum
from sdntk.gram_matrices.compute import gram
from sdntk.gram_matrices.operator import GramOperator, as_operator, kernel_operator
from sdntk.gram_matrices.operator import products as products  # an old name, which warns
from sdntk.gram_matrices.store import GramStore
from sdntk.retraining import Retraining, retrain
from sdntk.spectra.base import ErrorBounds, PrecisionWarning
from sdntk.spectra.chain import Distillation
from sdntk.spectra.choose import Method
from sdntk.spectra.dense import Spectrum, decompose
from sdntk.spectra.fit import SpectralFit, fit_filter
from sdntk.spectra.krylov import AccuracyError, krylov
from sdntk.spectra.krylov_spectrum import KrylovSpectrum
from sdntk.spectra.nystrom import NystromSpectrum, nystrom
from sdntk.spectra.tridiagonal import TridiagonalSpectrum, tridiagonalise
from sdntk.storage import load
from sdntk.theory import bounds, filters
from sdntk.theory.multiplier import Multiplier, Status, solve_multiplier
from sdntk.tuning import Tuning, tune

if TYPE_CHECKING:
    from sdntk import networks
    from sdntk.advice import Advice, advise
    from sdntk.estimators import SelfDistilledClassifier, SelfDistilledRegressor
    from sdntk.experiments.comparison import compare_widths, gap_exponents
    from sdntk.training import losses, optimisers
    from sdntk.training.course import TrainingResult
    from sdntk.training.rounds import distill_networks
    from sdntk.training.state import Stop, TrainingConfig
    from sdntk.training.train import train

__version__ = "0.3.0"

__all__ = [
    "AccuracyError",
    "Advice",
    "Distillation",
    "ErrorBounds",
    "GramOperator",
    "GramStore",
    "KrylovSpectrum",
    "Method",
    "Multiplier",
    "NystromSpectrum",
    "PrecisionWarning",
    "Retraining",
    "SelfDistilledClassifier",
    "SelfDistilledRegressor",
    "SpectralFit",
    "Spectrum",
    "Status",
    "Stop",
    "TrainingConfig",
    "TrainingResult",
    "TridiagonalSpectrum",
    "Tuning",
    "UndecidedWarning",
    "advise",
    "architectures",
    "as_operator",
    "bounds",
    "compare_widths",
    "datasets",
    "decompose",
    "distill",
    "distill_networks",
    "distill_spectrum",
    "filters",
    "fit_filter",
    "gap_exponents",
    "gram",
    "kernel_operator",
    "kernels",
    "krylov",
    "load",
    "losses",
    "mixing",
    "networks",
    "nystrom",
    "optimisers",
    "retrain",
    "selection",
    "solve_multiplier",
    "train",
    "tridiagonalise",
    "tune",
]

#: The networks' side and the estimators are imported on use: Flax, optax and scikit-learn take long
#: to import.
_ON_USE = {
    "Advice": "sdntk.advice",
    "SelfDistilledClassifier": "sdntk.estimators",
    "SelfDistilledRegressor": "sdntk.estimators",
    "Stop": "sdntk.training.state",
    "TrainingConfig": "sdntk.training.state",
    "TrainingResult": "sdntk.training.course",
    "advise": "sdntk.advice",
    "compare_widths": "sdntk.experiments.comparison",
    "distill_networks": "sdntk.training.rounds",
    "gap_exponents": "sdntk.experiments.comparison",
    "losses": "sdntk.training",
    "networks": "sdntk",
    "optimisers": "sdntk.training",
    "train": "sdntk.training.train",
}


_MODULES = {"losses", "networks", "optimisers"}
#: Old names: where the new one is, and what it is called.
_RENAMED: dict[str, tuple[str, str]] = {
    "Products": ("sdntk.gram_matrices.operator", "GramOperator"),
    "Trained": ("sdntk.training.course", "TrainingResult"),
    "Training": ("sdntk.training.state", "TrainingConfig"),
    "compare": ("sdntk.experiments.comparison", "compare_widths"),
    "exponents": ("sdntk.experiments.comparison", "gap_exponents"),
}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        module, new = _RENAMED[name]
        warn_renamed(f"sdntk.{name}", f"sdntk.{new}")
        return getattr(importlib.import_module(module), new)
    if name not in _ON_USE:
        raise AttributeError(f"module 'sdntk' has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(f"{_ON_USE[name]}.{name}")
    return getattr(importlib.import_module(_ON_USE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_USE})
