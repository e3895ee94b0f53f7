"""Estimators as scikit-learn's own tools take them (sdntk/estimators/).

Must hold: every check of ``sklearn.utils.estimator_checks`` passes for both estimators and their
main settings, none is expected to fail, and all that KernelRidge passes are among them. Pickle,
joblib in two processes (without a warning), clone, set_params, GridSearchCV over rounds and
tolerances, cross_val_predict, StackingRegressor, TransformedTargetRegressor, a Pipeline, and
precomputed kernels sliced by cross-validation.
"""

import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import StackingRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_estimator,
    estimator_checks_generator,
    parametrize_with_checks,
)

import sdntk
from sdntk import SelfDistilledClassifier, SelfDistilledRegressor

MAIN = [
    SelfDistilledRegressor(),
    SelfDistilledRegressor(kernel="matern", tolerance=0.2, rounds=1),
    SelfDistilledRegressor(kernel="precomputed"),
    SelfDistilledRegressor(multiplier=1e-3, weights=[0.5, 0.5], outputs="joint"),
    SelfDistilledClassifier(),
    SelfDistilledClassifier(kernel="laplace", criterion="gcv"),
]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = np.sin(X[:, 0]) + 0.3 * RNG.normal(size=60)


pytestmark = pytest.mark.usefixtures("as_users_call")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sdntk.UndecidedWarning")  # checks are of few points
@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")  # and of matrices of rank 3
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(MAIN)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore")
def test_all_checks_that_kernel_ridge_passes_are_among_them():
    results = check_estimator(KernelRidge(), on_fail=None, on_skip=None)
    theirs = {result["check_name"] for result in results if result["status"] == "passed"}
    for estimator in MAIN[:2]:
        ours = {check.func.__name__ for _, check in estimator_checks_generator(estimator)}
        assert theirs <= ours


# ---- tools ----


def test_pickled_and_cloned_it_predicts_the_same():
    model = SelfDistilledRegressor(kernel="matern").fit(X, Y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert again.table_.equals(model.table_)
    np.testing.assert_array_equal(again.single_fit_.predict(X), model.single_fit_.predict(X))
    new = clone(model)
    assert not hasattr(new, "rounds_")
    np.testing.assert_array_equal(new.fit(X, Y).predict(X), model.predict(X))


def test_a_grid_over_rounds_and_tolerances():
    grid = {"rounds": [1, 3], "tolerance": [0.1, 0.3, 0.6]}
    search = GridSearchCV(SelfDistilledRegressor(), grid, cv=3).fit(X, Y)
    by_hand = [
        np.mean(cross_val_score(SelfDistilledRegressor(rounds=t, tolerance=eps), X, Y, cv=3))
        for t in (1, 3)
        for eps in (0.1, 0.3, 0.6)
    ]
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], by_hand, rtol=1e-12)
    assert search.best_estimator_.get_params()["rounds"] == search.best_params_["rounds"]


def test_a_pipeline_and_cross_val_predict():
    model = make_pipeline(StandardScaler(), SelfDistilledRegressor(rounds=2, tolerance=0.3))
    predicted = cross_val_predict(model, 100 * X, Y, cv=KFold(4))
    for kept, left in KFold(4).split(X):
        mean, deviation = X[kept].mean(axis=0), X[kept].std(axis=0)
        alone = SelfDistilledRegressor(rounds=2, tolerance=0.3)
        alone.fit((X[kept] - mean) / deviation, Y[kept])
        np.testing.assert_allclose(
            predicted[left], alone.predict((X[left] - mean) / deviation), rtol=1e-9, atol=1e-12
        )


def test_stacked_and_with_transformed_targets():
    one = SelfDistilledRegressor(rounds=2, tolerance=0.3)
    stack = StackingRegressor([("kernel", one), ("line", Ridge())], cv=3).fit(X, Y)
    assert stack.score(X, Y) > 0.5
    transformed = TransformedTargetRegressor(one, func=np.exp, inverse_func=np.log)
    by_hand = np.log(clone(one).fit(X, np.exp(Y)).predict(X))
    np.testing.assert_allclose(transformed.fit(X, Y).predict(X), by_hand, rtol=1e-12)


def test_cross_validation_slices_a_precomputed_matrix():
    kernel = sdntk.kernels.matern(1.5, 1.0)
    one = {"rounds": 3, "tolerance": 0.3}
    precomputed = SelfDistilledRegressor("precomputed", **one)
    scores = cross_val_score(precomputed, np.asarray(kernel(X, X)), Y, cv=4)
    np.testing.assert_allclose(
        scores, cross_val_score(SelfDistilledRegressor(kernel, **one), X, Y, cv=4), rtol=1e-9
    )


def test_kernels_of_scikit_learn_functions_and_names_are_the_same():
    one = {"rounds": 2, "tolerance": 0.3}
    by_name = SelfDistilledRegressor("rbf", length_scale=1.5, **one).fit(X, Y).predict(X)
    for kernel in (
        RBF(1.5),
        ConstantKernel(2.0) * RBF(1.5),  # a tolerance knows no factor
        sdntk.kernels.rbf(1.5),
        lambda a, b: np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / 4.5),
    ):
        other = SelfDistilledRegressor(kernel, **one).fit(X, Y).predict(X)
        np.testing.assert_allclose(other, by_name, rtol=1e-7, atol=1e-9)


def test_data_frames_lists_and_sparse_points():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    model = SelfDistilledRegressor(rounds=2, tolerance=0.3).fit(X, Y)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    named = SelfDistilledRegressor(rounds=2, tolerance=0.3).fit(frame, pd.Series(Y))
    assert named.feature_names_in_.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(named.predict(frame), model.predict(X))
    sparse = scipy_sparse.csr_array(X)
    again = SelfDistilledRegressor(rounds=2, tolerance=0.3).fit(sparse, Y)
    np.testing.assert_array_equal(again.predict(sparse), model.predict(X))
    listed = SelfDistilledRegressor(rounds=2, tolerance=0.3).fit(X.tolist(), Y.tolist())
    np.testing.assert_array_equal(listed.predict(X.tolist()), model.predict(X))


@pytest.mark.slow
def test_two_processes_with_the_flag_off_say_nothing_and_agree():
    """joblib's workers know nothing of this process's flags."""
    code = textwrap.dedent(
        """
        import warnings
        warnings.simplefilter("error")
        import numpy as np
        from sklearn.model_selection import GridSearchCV
        import jax, sdntk
        rng = np.random.default_rng(0)
        x = rng.normal(size=(60, 3))
        y = np.sin(x[:, 0]) + 0.3 * rng.normal(size=60)
        grid = {"rounds": [1, 3], "tolerance": [0.1, 0.3]}
        scores = [
            GridSearchCV(sdntk.SelfDistilledRegressor(kernel="matern"), grid, cv=3, n_jobs=jobs)
            .fit(x, y).cv_results_["mean_test_score"].tolist()
            for jobs in (1, 2)
        ]
        assert scores[0] == scores[1], scores
        assert not jax.config.jax_enable_x64
        print(scores[0])
        """
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
