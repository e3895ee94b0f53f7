"""Regression by self-distillation, in scikit-learn's form."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import MultiOutputMixin, RegressorMixin

from sdntk.estimators.base import SelfDistilled


class SelfDistilledRegressor(MultiOutputMixin, RegressorMixin, SelfDistilled):  # type: ignore[misc]
    """Kernel ridge regression, retrained on its own predictions, for a Pipeline or GridSearchCV.

    Round t solves  f_t = argmin R(f)  subject to  sum_i w_i (f(x_i) - y_t,i)^2/W <= tolerance  for
    weights w_i of sum W, and hands y_{t+1,i} = f_t(x_i) to the next. How strongly it regularises,
    and how many rounds there are, it chooses itself by ten folds, unless told. Where to expect
    something of that: docs/does_it_pay.md.
    ``SelfDistilledRegressor(rounds=1, multiplier=alpha/K, center=False)`` is scikit-learn's
    KernelRidge.

    All is computed in float64, whatever the flag jax_enable_x64 says. Code is compiled for classes
    of sizes, so that clones, folds and grids do not compile anew.

    Args:
        kernel: a name, "rbf", "laplace", "matern" (nu 3/2), "linear", "polynomial" (degree 3, bias
            1) or "ntk" (fully connected, two hidden layers); a kernel of :mod:`sdntk.kernels` or of
            ``sklearn.gaussian_process.kernels``; a function of (n1, p) and (n2, p) arrays to an
            (n1, n2) array; or "precomputed": X is then the matrix k(x_i, x_j), of new points
            k(x, x_i).
        length_scale: of "rbf", "laplace" and "matern", in the units of X: a number, "median", the
            median distance between different training points, or "auto": 1/4 to 4 times that, by
            the criterion.
        kernel_params: other parameters of a kernel by name, such as {"nu": 2.5}, {"degree": 2,
            "bias": 0} or {"depth": 3}.
        tolerance: a positive number, or "auto": 40 of them are tried, 0.1% to 98%. Where most of
            these are infeasible, in spaces of few functions, multipliers are tried instead.
        relative: whether tolerances are fractions of the labels' mean square, about their mean
            where they are centred; of each output.
        multiplier: c in place of a tolerance (scikit-learn's alpha is c W), a positive number or
            "auto".
        rounds: T; or "auto", the best of up to 10.
        weights: None, the last round predicts; one number for each round, a mixture of rounds does;
            or "auto": of two rounds (or of ``rounds``) those of :func:`sdntk.mixing.held_out` where
            the criterion is folds, else of :func:`sdntk.mixing.one_shot`. Tolerance or multiplier
            are then those of the best single fit.
        criterion: by which is chosen. "auto": the squared error in ten folds, equal points together
            (of more than 2,000 points "gcv"); "gcv": generalised cross-validation, five to ten
            times as quick, but biased near interpolation; "sure" (with the variance of the noise
            that the best single fit by "gcv" leaves); a number of folds, or a splitter of
            scikit-learn. Of several outputs it is the mean: bring them to one scale.
        outputs: "separate", every output meets the tolerance by itself, or "joint".
        center: whether the labels' mean is taken off and added back to predictions, so that
            tolerances and collapse refer to the spread.
        method: "dense", "tridiagonal" (of many points quicker), "auto", dense up to 2,000; or
            "nystrom", of a hundred thousand points and more: functions of ``landmarks`` alone, by
            "gcv" or "sure". Points then need memory, but no matrix of their pairs does.
        landmarks: of "nystrom", how many of the points; all of fewer.
        random_state: draws them: a seed, a ``numpy.random.RandomState``, or None.

    Attributes:
        rounds_: the number of rounds.
        tolerance_: as it was given or chosen; None with a multiplier.
        multipliers_: c_t of every round, shape (T, Q), of joint outputs (T,); nan where collapsed.
        length_scale_, kernel_: of the kernel.
        weights_: of the rounds, or None.
        degrees_of_freedom_: of the fit, sum_i d f(x_i)/d y_i, without the mean's, for each output
            (of joint ones together).
        dual_coef_: b with f(x) = ``intercept_`` + sum_i k(x, x_i) b_i over ``X_fit_``, shape (K,)
            or (K, Q).
        intercept_: the labels' mean.
        X_fit_: the training points, or landmarks; None of a precomputed kernel.
        table_: all that was tried, as a pandas table.
        single_fit_: the best single fit by the same criterion, an estimator.

    Source: Mobahi et al. 2020; docs/theory.md, sections 8 and 9.

    Example:
        >>> x = np.random.default_rng(0).uniform(-3, 3, (200, 1))
        >>> y = np.sin(x[:, 0]) + 0.3 * np.random.default_rng(1).normal(size=200)
        >>> model = SelfDistilledRegressor().fit(x, y)
        >>> error = np.mean((model.predict(x) - np.sin(x[:, 0])) ** 2)
        >>> model.rounds_ >= 1, bool(error < 0.02)        # the noise has 0.09
        (True, True)
    """

    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any = None,
    ) -> "SelfDistilledRegressor":
        """Fit.

        Args:
            X: points, shape (K, p), of other kernels than those by name (K, ...); sparse ones are
                made dense.
            y: labels, shape (K,) or (K, Q).
            sample_weight: w_i >= 0, shape (K,). A point of weight 2 is two points, except in folds
                of your own; weights that are not all whole numbers say nothing of how many points
                there are.

        Raises:
            ValueError, TypeError: each names the parameter; a tolerance that is infeasible, with
                the smallest that is not.

        Warns:
            UndecidedWarning: what the criterion cannot tell (:func:`sdntk.tune`). PrecisionWarning:
                multipliers that rounding decides; an indefinite matrix.
        """
        x, labels = self._checked(X, y, multi_output=True, y_numeric=True)
        labels = np.asarray(labels, np.float64)
        self._one_dimensional = labels.ndim == 1
        self._fit(x, labels.reshape(len(labels), -1), labels, sample_weight)
        return self

    def _for_labels(self, values: Float[np.ndarray, "*n Q"]) -> Float[np.ndarray, "*m"]:
        return values[..., 0] if self._one_dimensional else values

    def predict(self, X: Any) -> Float[np.ndarray, "n *Q"]:  # noqa: N803
        """Predictions f(X), shape (n,) or (n, Q)."""
        return self._for_labels(self._final_outputs(X))

    def staged_predict(self, X: Any) -> Iterator[Float[np.ndarray, "n *Q"]]:  # noqa: N803
        """Predictions of every round, from the first to the last, which is what :meth:`predict`
        returns unless it mixes rounds.
        """
        for outputs in self._staged_outputs(X):
            yield self._for_labels(outputs)
