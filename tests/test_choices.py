"""The study of choices (benchmarks/choice_study.py): its rules and its tables.

Must hold: the ten folds choose what scikit-learn's search over KernelRidge chooses; a rule whose
name says GCV has the smallest GCV of all that it may choose from; no single fit of the grid beats
hindsight; one-shot weights are never behind the single fit by what they minimise; labels of
images are wrong as often as they should be; a run that is stopped resumes; the kept ratios are
those of the kept splits.
"""

from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import KFold
from typer import Typer
from typer.testing import CliRunner

import sdntk
from benchmarks import choice_data, choice_study, choice_tables, choices
from benchmarks.choice_study import Setting

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def problem():
    return choice_data.tabular("diabetes", 60, 0)


@pytest.fixture(scope="module")
def found(problem):
    folds = choices.parts(problem, choices.FOLDS)
    spectrum = sdntk.decompose(problem.kernel.values[:60] / 60)
    return dict(choices.predictions(problem, spectrum, folds))


@pytest.mark.slow
def test_ten_folds_choose_what_kernel_ridges_choose(problem, found):
    """KernelRidge divides nothing by K, so in folds of 54 its alpha is another multiplier; hence
    by hand, with one multiplier in all folds.
    """
    values, y = np.asarray(problem.kernel.values), np.asarray(problem.y)
    errors = np.zeros(len(choices.MULTIPLIERS))
    for kept, left in KFold(10).split(y):
        for number, c in enumerate(choices.MULTIPLIERS):
            ridge = KernelRidge(kernel="precomputed", alpha=c * len(kept))
            ridge.fit(values[np.ix_(kept, kept)], y[kept])
            errors[number] += np.sum((ridge.predict(values[np.ix_(left, kept)]) - y[left]) ** 2)
    best = choices.MULTIPLIERS[np.argmin(errors)]
    ridge = KernelRidge(kernel="precomputed", alpha=best * 60).fit(values[:60], y)
    np.testing.assert_allclose(
        found[choices.REFERENCE], ridge.predict(values[60:]), rtol=1e-8, atol=1e-8
    )


def test_gcv_chooses_by_gcv(problem, found):
    spectrum = sdntk.decompose(problem.kernel.values[:60] / 60)
    chains = [
        sdntk.distill_spectrum(spectrum, problem.y, multiplier=c, rounds=choices.ROUNDS)
        for c in choices.MULTIPLIERS
    ]
    values = np.stack([sdntk.selection.gcv(run) for run in chains])
    number, t = np.unravel_index(np.argmin(values), values.shape)
    assert t > 0, "else this test would tell little"
    best = chains[number].fits[t].predict_from(problem.cross)
    np.testing.assert_allclose(found["multiplier and round, GCV"], best, rtol=1e-10, atol=1e-10)
    single = chains[int(np.argmin(values[:, 0]))].fits[0].predict_from(problem.cross)
    np.testing.assert_allclose(found["one fit, GCV"], single, rtol=1e-10, atol=1e-10)

    weights, least = choices._one_shot(spectrum, problem.y, choices.MULTIPLIERS, 2)
    assert (np.asarray(least) <= values[:, 0] * (1 + 1e-10)).all()
    np.testing.assert_allclose(np.sum(weights, axis=1), 1)


def test_nothing_beats_hindsight(problem, found):
    errors = {rule: problem.errors(predicted)["squared_error"] for rule, predicted in found.items()}
    for rule in ("one fit, GCV", choices.REFERENCE):
        assert errors["one fit, hindsight"] <= errors[rule] * (1 + 1e-10)
    for rule in ("round, GCV", "round, SURE", "round, 10 folds"):
        best = errors["tolerance and round, hindsight"]
        assert best <= errors[f"tolerance and {rule}"] * (1 + 1e-10)


def test_images_have_wrong_labels_to_learn_from_and_right_ones_to_be_judged_by():
    clean, noisy = choice_data.images("digits", 50, 0, (0.0, 0.4)).values()
    classes = [
        np.argmax(np.asarray(problem.y) + problem.offset, axis=1) for problem in (clean, noisy)
    ]
    assert np.sum(classes[0] != classes[1]) == 20
    for problem in (clean, noisy):
        assert problem.errors(problem.y_test) == {"squared_error": 0, "wrong": 0}
        assert problem.errors(-problem.y_test)["wrong"] == 1
        np.testing.assert_allclose(np.mean(problem.y, axis=0), 0, atol=1e-12)


def test_test_points_are_not_looked_at(monkeypatch):
    x, y = choice_data.table("diabetes", None)
    order = choice_data.random_order(jax.random.key(0), len(y))
    before = choice_data.tabular("diabetes", 60, 0)
    x, y = x.copy(), y.copy()
    x[order[60:]] *= 3
    y[order[60:]] += 1e3
    monkeypatch.setattr(choice_data, "table", lambda *_: (x, y))
    after = choice_data.tabular("diabetes", 60, 0)
    np.testing.assert_array_equal(after.y, before.y)
    assert after.offset == before.offset
    np.testing.assert_array_equal(after.kernel.values[:60], before.kernel.values[:60])
    assert (np.asarray(after.kernel.values[60:]) != np.asarray(before.kernel.values[60:])).any()


def test_ratios_and_their_summary_by_hand():
    """Errors twice and half the reference's, with a spread; and one that is sometimes above it."""
    spread = np.exp([-0.1, 0.0, 0.1])
    rules = {choices.REFERENCE: np.ones(3), "twice": 2 * spread, "half": spread / 2, "same": spread}
    splits = pd.DataFrame(
        {"dataset": "d", "kernel": "k", "train": 9, "noise_rate": 0.0, "seed": seed, "rule": rule}
        | {"error": value}
        for rule, values in rules.items()
        for seed, value in enumerate(values)
    )
    table = choice_tables.ratios(splits).set_index("rule")
    np.testing.assert_allclose(table.loc[["twice", "half", "same"], "ratio"], [2, 0.5, 1])
    reach = np.exp(4.302653 * 0.1 / np.sqrt(3))  # t of two degrees of freedom
    np.testing.assert_allclose(table["high"] / table["ratio"], reach, rtol=1e-6)
    np.testing.assert_allclose(table["ratio"] / table["low"], reach, rtol=1e-6)
    assert table["verdict"].tolist() == ["worse", "better", "no evidence"]
    summary = choice_tables.summary(table.reset_index()).set_index("rule")
    assert summary["better"].tolist() == [0, 1, 0]
    assert summary["worse"].tolist() == [1, 0, 0]
    np.testing.assert_allclose(summary["mean ratio"], [2, 0.5, 1])
    kept = choice_tables.summary(pd.read_csv(choice_study.KEPT / "ratios.csv"))
    in_file = pd.read_csv(choice_study.KEPT / "summary.csv")
    assert kept[["rule", "better", "worse"]].equals(in_file[["rule", "better", "worse"]])
    np.testing.assert_allclose(kept["mean ratio"], in_file["mean ratio"], atol=2e-4)


def test_sure_takes_the_noise_that_the_single_fit_leaves(problem, found):
    spectrum, y = sdntk.decompose(problem.kernel.values[:60] / 60), problem.y
    tuned = sdntk.tune(spectrum, y, multipliers=choices.MULTIPLIERS)
    left = np.asarray(y - tuned.single_fit.fitted)
    variance = left @ left / (60 - float(np.sum(tuned.single_fit.filter)))
    by_hand = sdntk.tune(spectrum, y, criterion="sure", noise_variance=variance).fit
    np.testing.assert_allclose(
        found["tolerance and round, SURE"], by_hand.predict_from(problem.cross), rtol=1e-8
    )


def test_weights_of_folds_are_least_squares(problem, found):
    values, y = np.asarray(problem.kernel.values), np.asarray(problem.y)

    def rounds_of(c, kept, left):
        ridge = np.linalg.inv(values[np.ix_(kept, kept)] + c * len(kept) * np.eye(len(kept)))
        duals = ridge @ y[kept]
        return [
            values[np.ix_(left, kept)] @ d
            for d in (duals, ridge @ (values[np.ix_(kept, kept)] @ duals))
        ]

    best = (np.inf, 0.0, 0.0)
    for c in choices.MULTIPLIERS:
        out = np.concatenate([rounds_of(c, *f) for f in KFold(10).split(y)], axis=1)
        xi = (y - out[0]) @ (out[1] - out[0]) / np.sum((out[1] - out[0]) ** 2)
        best = min(best, (np.sum((y - out[0] - xi * (out[1] - out[0])) ** 2), c, xi))
    _, c, xi = best
    first, second = rounds_of(c, np.arange(60), np.arange(60, len(values)))
    expected = (1 - xi) * first + xi * second
    np.testing.assert_allclose(found["10-fold weights, 2 rounds"], expected, rtol=1e-5, atol=1e-5)


def test_a_table_of_words_and_gaps(tmp_path):
    (tmp_path / "Hitters.csv").write_text("Hits,League,Salary\n1,A,2\n3,N,\n5,N,6\n7,A,8\n")
    x, y = choice_data.table("Hitters", tmp_path)
    assert x.tolist() == [[1, 1, 0], [5, 0, 1], [7, 1, 0]]
    assert y.tolist() == [2, 6, 8]
    with pytest.raises(ValueError, match="--tables FOLDER"):
        choice_data.table("Wage", None)


@pytest.mark.long
def test_a_run_resumes_and_is_gathered(tmp_path, monkeypatch):
    monkeypatch.setattr(choice_study, "settings", lambda: iter([Setting("diabetes", "matern", 40)]))
    monkeypatch.setattr(choice_study, "KEPT", tmp_path / "kept")
    app = Typer()
    app.command()(choice_study.main)

    def run(*options):
        result = CliRunner().invoke(app, ["--out", str(tmp_path / "runs"), *options])
        assert result.exit_code == 0, result.output
        return result.output

    run("--splits", "2")
    file = tmp_path / "runs" / "diabetes_matern_40" / "splits.csv"
    two = pd.read_csv(file)
    run("--splits", "3")
    three = pd.read_csv(file)
    pd.testing.assert_frame_equal(three[three["seed"] < 2], two)
    assert three["seed"].unique().tolist() == [0, 1, 2]
    none = CliRunner().invoke(app, ["--out", str(tmp_path / "runs"), "--gather"])
    assert "no run is finished" in none.output  # of 50 splits
    assert "one fit, GCV" in run("--gather", "--splits", "3")
    assert {path.suffix for path in (tmp_path / "kept").iterdir()} == {".csv", ".json", ".png"}
    ratios = pd.read_csv(tmp_path / "kept" / "ratios.csv")
    errors = three.pivot(index="seed", columns="rule", values="squared_error")
    by_hand = np.exp(np.log(errors["one fit, GCV"] / errors[choices.REFERENCE]).mean())
    assert ratios.set_index("rule").loc["one fit, GCV", "ratio"] == pytest.approx(by_hand, abs=1e-4)


def test_the_kept_ratios_are_those_of_the_kept_splits():
    wide = pd.read_csv(choice_study.KEPT / "splits.csv")
    splits = wide.melt([*choice_tables.SETTING, "seed"], var_name="rule", value_name="error")
    again = choice_tables.ratios(splits)
    kept = pd.read_csv(choice_study.KEPT / "ratios.csv")
    few = kept[kept["splits"] < choice_study.SPLITS]
    assert set(few["dataset"]) == {"Wage"}, "equal points with other labels: 1% is infeasible"
    assert few["rule"].str.startswith("tolerance of 1%").all()
    assert len(kept.groupby(choice_tables.SETTING)) == 12 + 9
    keys = [*choice_tables.SETTING, "rule"]
    both = kept.merge(again, on=keys, suffixes=("", "_again"))
    assert len(both) == len(kept)
    for column in ("ratio", "low", "high"):
        np.testing.assert_allclose(both[column], both[f"{column}_again"], atol=2e-4)


def test_the_pages_table_is_the_kept_summary():
    page = (Path(__file__).parent.parent / "docs" / "does_it_pay.md").read_text()
    summary = pd.read_csv(choice_study.KEPT / "summary.csv")
    for row in summary.to_dict("records"):
        dataset, train, kernel, noise = row["largest at"].split(", ")
        where = f"{dataset}, {train}" + (f", {noise}" if kernel == "ntk" else "")
        numbers = f"{row['mean ratio']:.3f} | {row['smallest']:.3f} | {row['largest']:.3f}"
        shown = f"| {row['rule']} | {numbers} ({where}) | {row['better']} | {row['worse']} |"
        assert shown in page
