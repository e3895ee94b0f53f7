"""What a regressor and a classifier that distil themselves share: parameters, checks, and what is
known after a fit.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import scipy.sparse
from jaxtyping import Float
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from sdntk._arguments import shown
from sdntk.estimators import chains, choosing
from sdntk.estimators.chains import Folds, padded, size_class
from sdntk.estimators.fitting import Chosen, Data, fit
from sdntk.estimators.gram_values import MOST_NEW, GramValues, candidates, require_symmetric
from sdntk.estimators.plan import Plan

#: Criteria by name; any other is a number of folds, or a splitter.
CRITERIA = ("auto", "gcv", "sure")
#: Labels beyond these have squares that are no numbers.
SMALLEST, LARGEST = 1e-150, 1e150


class SelfDistilled(BaseEstimator):  # type: ignore[misc]
    """Parameters, fit and predictions of both estimators.

    Whatever the flag jax_enable_x64 says, all is computed in float64, and the flag stays as it is.
    """

    def __init__(
        self,
        kernel: Any = "rbf",
        *,
        length_scale: Any = "median",
        kernel_params: Any = None,
        tolerance: Any = "auto",
        relative: Any = True,
        multiplier: Any = None,
        rounds: Any = "auto",
        weights: Any = None,
        criterion: Any = "auto",
        outputs: Any = "separate",
        center: Any = True,
        method: Any = "auto",
        landmarks: Any = 1000,
        random_state: Any = 0,
    ) -> None:
        self.kernel = kernel
        self.length_scale = length_scale
        self.kernel_params = kernel_params
        self.tolerance = tolerance
        self.relative = relative
        self.multiplier = multiplier
        self.rounds = rounds
        self.weights = weights
        self.criterion = criterion
        self.outputs = outputs
        self.center = center
        self.method = method
        self.landmarks = landmarks
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.pairwise = self._is_precomputed
        return tags

    @property
    def _is_precomputed(self) -> bool:
        return isinstance(self.kernel, str) and self.kernel == "precomputed"

    def _checked(self, x: Any, *args: Any, **how: Any) -> Any:
        """X, and y if it is there, as scikit-learn checks them: vectors for kernels by name. A
        sparse X is made dense.
        """
        by_name = isinstance(self.kernel, str)
        how |= {"accept_sparse": "csr", "ensure_2d": by_name, "allow_nd": not by_name}
        # Of a precomputed matrix the dtype tells how many digits it has.
        how["dtype"] = (np.float64, np.float32) if self._is_precomputed else np.float64
        checked = validate_data(self, x, *args, **how)
        x, *others = checked if args else (checked,)
        x = x.toarray() if scipy.sparse.issparse(x) else x
        return (x, *others) if others else x

    # ---- fit ----

    def _fit(
        self, x: Any, labels: Float[np.ndarray, "K Q"], classes: Any, sample_weight: Any
    ) -> None:
        """Choose what is open, and run the chain; folds are made for ``classes``."""
        plan = Plan.of(self)
        weights = _check_sample_weight(sample_weight, x, dtype=np.float64)  # not all are 0
        if (weights < 0).any():
            raise ValueError(
                f"sample_weight must be zero or positive; it reaches {weights.min():g}."
            )
        if self._is_precomputed:
            require_symmetric(x)
            if plan.method == "nystrom":
                raise ValueError('kernel must not be "precomputed" with method="nystrom".')
        folds = self._folds(x, classes, weights)
        largest = float(np.abs(labels).max())
        if largest > 0 and not SMALLEST < largest < LARGEST:
            raise ValueError(
                f"y must be 0 or reach between {SMALLEST:g} and {LARGEST:g}, so that squares are "
                f"numbers; it reaches {largest:g}. Multiply it by a number."
            )
        with jax.enable_x64(True):
            found = candidates(self.kernel, self.length_scale, self.kernel_params, x[weights > 0])
            kernels = {scale: GramValues.of(kernel, x) for scale, kernel in found.items()}
            data = Data(x, labels, weights, folds)
            self._take(fit(plan, kernels, data, "sure" if self.criterion == "sure" else "gcv"))

    def _folds(self, x: Any, classes: Any, weights: Float[np.ndarray, " K"]) -> Folds | None:
        """The folds by which is chosen, if it is by folds."""
        if self.method == "nystrom":
            if not isinstance(self.criterion, str) or self.criterion not in CRITERIA:
                raise ValueError(
                    'criterion must be "auto", "gcv" or "sure" with method="nystrom"; got '
                    f"{shown(self.criterion)}."
                )
            return None
        if not isinstance(self.criterion, str):
            return choosing.folds_of(
                self.criterion, x, classes, weights, classifier=is_classifier(self)
            )
        if self.criterion not in CRITERIA:
            raise ValueError(
                'criterion must be "auto", "gcv", "sure", a number of folds or a splitter of '
                f'scikit-learn; got "{self.criterion}".'
            )
        if self.criterion != "auto":
            return None
        return choosing.folds_of_points(self._keys(x, weights), weights)

    def _keys(self, x: Any, weights: Float[np.ndarray, " K"]) -> Float[np.ndarray, "K n"]:
        """Rows that are the same for equal points."""
        if not self._is_precomputed:
            return x.reshape(len(x), -1)
        # A matrix's rows and columns in another order, or a point twice, change neither of these.
        means = x @ weights / weights.sum()
        return np.round(
            np.column_stack([np.diagonal(x), means]) / np.abs(x).max(initial=1e-300), 10
        )

    def _take(self, chosen: Chosen) -> None:
        self._chosen, fit = chosen, chosen.fit
        self.rounds_ = len(fit.duals)
        self.tolerance_ = fit.level if fit.by == "tolerance" else None
        self.multipliers_ = fit.multipliers
        self.weights_ = fit.weights
        self.length_scale_ = fit.length_scale
        self.kernel_ = fit.gram_values.kernel
        self.X_fit_ = fit.gram_values.x
        self.dual_coef_ = self._for_labels(fit.of_fit(fit.duals))
        self.intercept_ = self._for_labels(fit.offset)
        self.degrees_of_freedom_ = fit.of_fit(fit.degrees_of_freedom)

    def _for_labels(self, values: Float[np.ndarray, "*n Q"]) -> Float[np.ndarray, "*m"]:
        """Values of every output, without their axis where labels had none."""
        return values

    @property
    def table_(self) -> Any:
        """A tidy table of all that was tried: a row for each length scale, level and round, with
        the columns ``length_scale`` (where there are several), ``tolerance`` or ``multiplier``,
        ``round``, ``active`` (the share of outputs that are), ``degrees_of_freedom`` (of all),
        ``training_error`` (mean over outputs), and the criterion.
        """
        import pandas as pd  # takes as long to import as JAX

        check_is_fitted(self)
        return pd.DataFrame(self._chosen.table)

    @property
    def single_fit_(self) -> Any:
        """The best single fit by the same criterion: an estimator of one round, fitted."""
        check_is_fitted(self)
        fit = self._chosen.single
        levels = {"tolerance": "auto", "multiplier": None, fit.by: fit.level}
        single = clone(self).set_params(rounds=1, weights=None, **levels)
        if fit.length_scale is not None:
            single.set_params(length_scale=fit.length_scale)
        for name in ("n_features_in_", "feature_names_in_", "classes_", "_one_dimensional"):
            if hasattr(self, name):
                setattr(single, name, getattr(self, name))
        single._take(self._chosen._replace(fit=fit))
        return single

    # ---- predictions ----

    def _outputs(self, x: Any, duals: Float[np.ndarray, "K *P"]) -> Float[np.ndarray, "n *P"]:
        """The sum over training points of k(x, x_i) b_i."""
        new = self._checked(x, reset=False)
        values = self._chosen.fit.gram_values
        if values.x is not None and new.shape[1:] != values.x.shape[1:]:
            raise ValueError(
                f"X must have the training points' shape {values.x.shape[1:]} behind its first "
                f"axis; its shape is {new.shape}."
            )
        parts = []
        with jax.enable_x64(True):
            larger = padded(duals, size_class(len(duals)), *duals.shape[1:])
            for start in range(0, len(new), MOST_NEW):
                some = new[start : start + MOST_NEW]
                parts.append(np.asarray(chains.predict(values.at(some), larger))[: len(some)])
        return np.concatenate(parts)

    def _final_outputs(self, x: Any) -> Float[np.ndarray, "n Q"]:
        check_is_fitted(self)
        fit = self._chosen.fit
        return self._outputs(x, fit.of_fit(fit.duals)) + fit.offset

    def _staged_outputs(self, x: Any) -> Iterator[Float[np.ndarray, "n Q"]]:
        check_is_fitted(self)
        fit = self._chosen.fit
        for predicted in np.moveaxis(self._outputs(x, np.moveaxis(fit.duals, 0, 1)), 1, 0):
            yield predicted + fit.offset
