"""Classification by self-distillation, in scikit-learn's form."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from sdntk.estimators.base import SelfDistilled


class SelfDistilledClassifier(ClassifierMixin, SelfDistilled):  # type: ignore[misc]
    """Classification by :class:`SelfDistilledRegressor` on the classes as labels: an indicator of
    each class, or -1 and 1 of two; the largest output wins.

    Parameters and attributes are the regressor's. ``center=True`` takes the frequencies of the
    classes off, so that a collapsed fit predicts the most frequent class. Chosen is by squared
    error, against labels that may be wrong; what wrong labels do to a fit, and rounds against it:
    docs/does_it_pay.md.

    Attributes:
        classes_: shape (C,), sorted.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = load_iris(return_X_y=True)
        >>> model = SelfDistilledClassifier(length_scale=2.0).fit(x, y)
        >>> model.predict(x[:2]).tolist(), model.score(x, y) > 0.95
        ([0, 0], True)
    """

    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any = None,
    ) -> "SelfDistilledClassifier":
        """Fit.

        Args:
            X: points, as :meth:`SelfDistilledRegressor.fit` takes them.
            y: classes, numbers or words, shape (K,).
            sample_weight: w_i >= 0, shape (K,).

        Raises:
            ValueError, TypeError: each names the parameter; fewer than two classes.

        Warns:
            UndecidedWarning, PrecisionWarning: as the regressor does.
        """
        x, classes = self._checked(X, y)
        check_classification_targets(classes)
        classes = column_or_1d(classes, warn=True)
        self.classes_, numbers = np.unique(classes, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y must hold at least 2 classes; it holds 1 class.")
        labels = np.eye(len(self.classes_))[numbers]
        if len(self.classes_) == 2:
            labels = labels[:, 1:] - labels[:, :1]
        self._fit(x, labels, classes, sample_weight)
        return self

    def _for_labels(self, values: Float[np.ndarray, "*n Q"]) -> Float[np.ndarray, "*m"]:
        return values[..., 0] if len(self.classes_) == 2 else values

    def decision_function(self, X: Any) -> Float[np.ndarray, "n *Q"]:  # noqa: N803
        """Outputs f(X): shape (n, C), or (n,) of two classes, positive for the second."""
        return self._for_labels(self._final_outputs(X))

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The classes of the largest outputs, shape (n,)."""
        return self._largest(self._final_outputs(X))

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n C"]:  # noqa: N803
        """Estimates of the classes' probabilities, shape (n, C).

        Least squares estimate P(class | x), but for numbers below 0, above 1, or of another sum;
        what is returned is the nearest vector of probabilities. They are not calibrated.
        """
        return _as_probabilities(self._final_outputs(X))

    def staged_predict(self, X: Any) -> Iterator[np.ndarray]:  # noqa: N803
        """The classes that every round predicts, from the first to the last."""
        for outputs in self._staged_outputs(X):
            yield self._largest(outputs)

    def staged_predict_proba(self, X: Any) -> Iterator[Float[np.ndarray, "n C"]]:  # noqa: N803
        """Every round's :meth:`predict_proba`."""
        for outputs in self._staged_outputs(X):
            yield _as_probabilities(outputs)

    def _largest(self, outputs: Float[np.ndarray, "n Q"]) -> np.ndarray:
        if len(self.classes_) == 2:
            return self.classes_[(outputs[:, 0] > 0).astype(int)]
        return self.classes_[np.argmax(outputs, axis=1)]


def _as_probabilities(outputs: Float[np.ndarray, "n Q"]) -> Float[np.ndarray, "n C"]:
    """The nearest vectors of probabilities, max(f_c - s, 0) with the s that makes their sum 1."""
    if outputs.shape[1] == 1:  # f is the second class's probability less the first one's
        second = np.clip((1 + outputs[:, 0]) / 2, 0, 1)
        return np.stack([1 - second, second], axis=1)
    descending = -np.sort(-outputs, axis=1)
    shifts = (np.cumsum(descending, axis=1) - 1) / np.arange(1, outputs.shape[1] + 1)
    last = np.sum(descending > shifts, axis=1) - 1
    return np.maximum(outputs - np.take_along_axis(shifts, last[:, None], axis=1), 0)
