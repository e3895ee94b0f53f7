"""The study of the estimator beside a tuned KernelRidge (benchmarks/estimator_study.py).

Must hold: the reference is what GridSearchCV chooses; a split's errors are those of predictions on
test points with right labels; a run resumes; the kept ratios are those of the kept splits, and the
page's table is the kept one.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV
from typer import Typer
from typer.testing import CliRunner

from benchmarks import choice_data, choice_study, choice_tables, estimator_study
from benchmarks.choice_study import Setting
from sdntk import SelfDistilledClassifier, SelfDistilledRegressor

pytestmark = pytest.mark.slow
DIABETES, DIGITS = Setting("diabetes", "matern", 40), Setting("digits", "ntk", 60)


@pytest.fixture(scope="module")
def data():
    return next(estimator_study.data_of(DIABETES, 0, None))[1]


def test_the_reference_is_what_a_grid_search_chooses(data):
    [(model, chosen)] = estimator_study.tuned_kernel_ridges([data])
    centred = data.y - data.y.mean()
    grid = [
        {"gamma": [gamma], "alpha": alphas} for gamma, alphas in estimator_study._grid(data).items()
    ]
    search = GridSearchCV(
        KernelRidge(kernel="rbf"), grid, cv=10, scoring="neg_mean_squared_error"
    ).fit(data.x, centred)
    assert search.best_params_ == chosen
    np.testing.assert_allclose(search.predict(data.x_test), model.predict(data.x_test), rtol=1e-10)


def errors_of(data):
    [(model, _)] = estimator_study.tuned_kernel_ridges([data])
    return {rule: error for rule, error, _ in estimator_study.predictions(data, model)}


def test_several_labels_on_the_same_points_have_each_its_own_reference():
    noisy = [data for _, data in estimator_study.data_of(DIGITS, 1, None)]
    together = [chosen for _, chosen in estimator_study.tuned_kernel_ridges(noisy)]
    alone = [estimator_study.tuned_kernel_ridges([one])[0][1] for one in noisy]
    assert together == alone


def test_points_in_the_span_keep_their_distances():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 50))
    shorter = estimator_study.in_span(x, 8)
    assert shorter.shape == (30, 9)
    np.testing.assert_allclose(cdist(shorter, shorter[:8]), cdist(x, x[:8]), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sdntk.UndecidedWarning")
def test_errors_are_of_right_labels(data):
    found = errors_of(data)
    model = SelfDistilledRegressor(length_scale="auto").fit(data.x, data.y)
    by_hand = np.mean((model.predict(data.x_test) - data.y_test) ** 2)
    assert found["auto"] == pytest.approx(by_hand, rel=1e-9)

    for noise, images in estimator_study.data_of(DIGITS, 0, None):
        assert np.mean(images.y != images.y_test[:60]) > 0 or noise == 0
        found = errors_of(images)
        model = SelfDistilledClassifier(tolerance=0.01).fit(images.x, images.y)
        wrong = np.mean(model.predict(images.x_test) != images.y_test)
        assert found["tolerance of 1%, rounds chosen"] == pytest.approx(wrong)


def test_a_run_resumes_and_is_gathered(tmp_path, monkeypatch):
    monkeypatch.setattr(choice_study, "settings", lambda: iter([DIABETES]))
    monkeypatch.setattr(estimator_study, "KEPT", tmp_path / "kept")
    app = Typer()
    app.command()(estimator_study.main)

    def run(*arguments):
        result = CliRunner().invoke(app, ["--out", str(tmp_path / "runs"), *arguments])
        assert result.exit_code == 0, result.output
        return pd.read_csv(tmp_path / "runs" / "diabetes_40" / "splits.csv")

    two, three = run("--splits", "2"), run("--splits", "3")
    pd.testing.assert_frame_equal(three[three["seed"] < 2].reset_index(drop=True), two)
    run("--gather")
    ratios = pd.read_csv(tmp_path / "kept" / "ratios.csv").set_index("rule")
    errors = three.pivot(index="seed", columns="rule", values="error")
    by_hand = np.exp(np.log(errors["auto"] / errors[estimator_study.REFERENCE]).mean())
    assert ratios.loc["auto", "ratio"] == pytest.approx(by_hand, abs=1e-4)


def test_the_kept_ratios_are_those_of_the_kept_splits_and_on_the_page():
    wide = pd.read_csv(estimator_study.KEPT / "splits.csv")
    splits = wide.melt([*choice_tables.SETTING, "seed"], var_name="rule", value_name="error")
    again = choice_tables.ratios(splits.dropna(), estimator_study.REFERENCE)
    kept = pd.read_csv(estimator_study.KEPT / "ratios.csv")
    both = kept.merge(again, on=[*choice_tables.SETTING, "rule"], suffixes=("", "_again"))
    assert len(both) == len(kept)
    for column in ("ratio", "low", "high"):
        np.testing.assert_allclose(both[column], both[f"{column}_again"], rtol=1e-3)

    page = (Path(__file__).parent.parent / "docs" / "does_it_pay.md").read_text()
    auto = kept[kept["rule"] == "auto"]
    assert len(auto) == 21, "six tables of two sizes, three data sets of images with three noises"
    for row in auto.itertuples():
        where = f"{row.dataset}, {row.train}"
        if row.dataset in choice_data.IMAGES:
            where += f", {row.noise_rate:.0%} wrong"
        assert f"| {where} | {row.ratio:.3f} ({row.low:.3f} to {row.high:.3f}) |" in page
