"""`sdntk ntk`, its parts.

Accuracies and losses: against scikit-learn's KernelRidge, class by class, at the recorded
multipliers. The split: disjoint, balanced, as noisy as asked. Resuming: a run that stops between
two seeds, or between two tables of one, ends with the tables of an undisturbed one. The comparison
and the verdict: on tables made by hand. The command: in a process of its own, on digits with the
neural tangent kernel.
"""

import itertools

import jax
import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from sklearn.kernel_ridge import KernelRidge

from sdntk import _memory, datasets
from sdntk.experiments import kernel_classification
from sdntk.experiments.kernel_classification import (
    Experiment,
    run,
    split_of,
)
from sdntk.experiments.records import Records
from sdntk.experiments.single_fits import compare_with_single_fits
from sdntk.kernels import matern
from sdntk.reports import kernel_classification as classification_report
from sdntk.reports.plotting import save_figures
from sdntk.spectra.krylov import AccuracyError

KERNEL = matern(0.5, 10.0)
SMALL = Experiment(train=100, held_out=50, test=60, tolerances=(0.05, 0.3), rounds=6, seeds=(0, 1))


@pytest.fixture(scope="module")
def digits():
    return datasets.digits(jax.random.key(0))


@pytest.fixture(scope="module")
def records(digits, tmp_path_factory):
    records = Records(
        tmp_path_factory.mktemp("run"),
        {
            "dataset": "digits",
            "kernel": "Matern",
            "seeds": [0, 1],
            "train": 100,
            "label_noise": 0.2,
        },
    )
    assert list(run(digits, KERNEL, SMALL, records)) == [0, 1]
    return records


def test_the_split_is_disjoint_balanced_and_as_noisy_as_asked(digits):
    split, again, other = (split_of(digits, SMALL, seed) for seed in (0, 0, 1))
    assert split.x_train.shape == (100, 8, 8, 1)
    assert split.x_held_out.shape == (50, 8, 8, 1)
    assert split.x_test.shape == (60, 8, 8, 1)
    np.testing.assert_array_equal(np.bincount(split.clean_labels), np.full(10, 10))
    shapes = [images.reshape(len(images), -1) for images in (split.x_held_out, digits.train_images)]
    held_out, known = (
        (a - a.mean(1, keepdims=True)) / a.std(1, keepdims=True) for a in shapes
    )  # standardised or not
    clean_held_out = digits.train_labels[np.argmax(held_out @ known.T, axis=1)]
    np.testing.assert_array_equal(np.bincount(clean_held_out), np.full(10, 5))
    assert (
        np.sum(split.noisy_labels != split.clean_labels)
        + np.sum(split.held_out_labels != clean_held_out)
        == 30
    )  # of 150 labels a fifth
    rows = {image.tobytes() for image in split.x_train}
    assert not rows & {image.tobytes() for image in split.x_held_out}
    np.testing.assert_array_equal(split.noisy_labels, again.noisy_labels)
    assert (split.noisy_labels != other.noisy_labels).any()
    np.testing.assert_array_equal(split.test_labels, digits.test_labels[:60])
    assert abs(split.x_train.mean()) < 1e-12  # standardised by the training images alone


@pytest.mark.slow
def test_every_measurement_is_scikit_learns(digits, records):
    """Round 0 of each class is a KernelRidge with alpha = K c; later rounds fit the predictions
    before.
    """
    split = split_of(digits, SMALL, 1)
    K, flat = 100, split.x_train.reshape(100, -1)
    new = np.concatenate([split.x_held_out, split.x_test]).reshape(110, -1)
    G, cross = np.asarray(KERNEL(flat, flat)), np.asarray(KERNEL(new, flat))
    classes = records["classes"].query("seed == 1 and tolerance == 0.05")
    rounds = records["rounds"].query("seed == 1 and tolerance == 0.05").set_index("round")
    one_hot = np.eye(10)
    targets, active = (
        one_hot[split.noisy_labels] - 0.1,
        rounds.index[rounds["active_classes"] == 10],
    )
    assert len(active) >= 3
    for t in active:
        c = classes[classes["round"] == t].sort_values("class")["multiplier"].to_numpy()
        fits = [
            KernelRidge(alpha=K * c[q], kernel="precomputed").fit(G, targets[:, q])
            for q in range(10)
        ]
        fitted, outputs = (np.stack([fit.predict(M) for fit in fits], axis=1) for M in (G, cross))
        row = rounds.loc[t]
        assert row["train_accuracy"] == pytest.approx(
            np.mean(fitted.argmax(1) == split.clean_labels)
        )
        assert row["noisy_train_accuracy"] == pytest.approx(
            np.mean(fitted.argmax(1) == split.noisy_labels)
        )
        assert row["held_out_accuracy"] == pytest.approx(
            np.mean(outputs[:50].argmax(1) == split.held_out_labels)
        )
        assert row["test_accuracy"] == pytest.approx(
            np.mean(outputs[50:].argmax(1) == split.test_labels)
        )
        assert row["train_loss"] == pytest.approx(
            np.mean((fitted - one_hot[split.clean_labels] + 0.1) ** 2), rel=1e-9
        )
        assert row["test_loss"] == pytest.approx(
            np.mean((outputs[50:] - one_hot[split.test_labels] + 0.1) ** 2), rel=1e-9
        )
        np.testing.assert_allclose(
            np.mean((fitted - targets) ** 2, axis=0),
            0.05 * np.mean((one_hot[split.noisy_labels] - 0.1) ** 2, axis=0),
            rtol=1e-9,
        )
        assert row["training_loss"] == pytest.approx(np.mean((fitted - targets) ** 2), rel=1e-9)
        targets = fitted


def test_the_tables_are_tidy_and_whole(records):
    rounds, classes, singles = (records[name] for name in ("rounds", "classes", "single_fits"))
    assert not rounds.duplicated(["seed", "tolerance", "round"]).any()
    assert len(rounds) == 2 * 2 * 6
    assert not classes.duplicated(["seed", "tolerance", "round", "class"]).any()
    assert len(classes) == 2 * 2 * 6 * 10
    assert set(classes["status"]) == {"active", "collapsed"}
    assert classes.loc[classes["status"] == "collapsed", "multiplier"].isna().all()
    active = classes[classes["status"] == "active"].groupby(["seed", "tolerance", "round"]).size()
    counted = rounds.set_index(["seed", "tolerance", "round"])["active_classes"]
    assert active.reindex(counted.index, fill_value=0).equals(counted.astype(int))
    assert set(singles["tolerance"]) == {*kernel_classification.SINGLE_FITS, 0.05, 0.3}
    first = rounds[rounds["round"] == 0].drop(columns=["round"]).reset_index(drop=True)
    same = singles.drop(columns=["round"]).merge(first[["seed", "tolerance"]])
    pd.testing.assert_frame_equal(same, first, rtol=1e-12)  # round 0 of a chain is a single fit


def tables(records):
    return {name: records[name] for name in ("rounds", "classes", "single_fits", "comparison")}


@pytest.mark.parametrize("lost", [(), ("single_fits",), ("single_fits", "classes")])
def test_a_run_that_was_killed_is_resumed(digits, records, tmp_path, lost):
    """Between seeds, and between the tables of one seed: the tables it had not yet written are
    missing seed 1.
    """
    resumed = Records(tmp_path, records.configuration)
    for seed in run(digits, KERNEL, SMALL, resumed):
        if seed == 0:
            before = tables(resumed)
            if not lost:
                break
    for name in lost:
        resumed.put(name, before[name])
    assert list(run(digits, KERNEL, SMALL, Records(tmp_path, records.configuration))) == [0, 1]
    for name, table in tables(records).items():
        key = [column for column in ("seed", "tolerance", "round", "class") if column in table]
        pd.testing.assert_frame_equal(
            table.sort_values(key, ignore_index=True),
            resumed[name].sort_values(key, ignore_index=True),
        )


def test_finished_seeds_are_not_run_again(digits, records, monkeypatch):
    monkeypatch.setattr(kernel_classification, "split_of", None)
    assert list(run(digits, KERNEL, SMALL, records)) == [0, 1]


@pytest.mark.slow
def test_joint_outputs_and_asymmetric_noise(digits, tmp_path):
    experiment = Experiment(
        train=60,
        held_out=30,
        test=50,
        tolerances=(0.1,),
        rounds=3,
        outputs="joint",
        noise_kind="asymmetric",
        noise_rate=0.1,
        unit_norm=True,
    )
    split = split_of(digits, experiment, 0)
    wrong = split.noisy_labels != split.clean_labels
    np.testing.assert_array_equal(split.noisy_labels[wrong], (split.clean_labels[wrong] + 1) % 10)
    np.testing.assert_allclose(np.linalg.norm(split.x_train.reshape(60, -1), axis=1), 1)
    records = Records(tmp_path, {})
    list(run(digits, matern(0.5, 1.0), experiment, records))
    assert set(records["classes"]["class"]) == {-1}
    assert set(records["rounds"]["active_classes"]) <= {0, 10}
    mean_square = np.mean((np.eye(10)[split.noisy_labels] - 0.1) ** 2)
    assert records["rounds"]["training_loss"][0] == pytest.approx(0.1 * mean_square, rel=1e-9)


def made_by_hand():
    columns = ["seed", "tolerance", "round", "held_out_accuracy", "test_accuracy", "active_classes"]
    rounds = pd.DataFrame(
        [
            (0, 0.1, 0, 0.5, 0.60, 10),
            (0, 0.1, 1, 0.7, 0.65, 10),
            (0, 0.1, 2, 0.7, 0.70, 0),
            (0, 0.2, 0, 0.6, 0.62, 10),
            (0, 0.2, 1, 0.8, 0.61, 10),
            (0, 0.2, 2, 0.1, 0.10, 0),
        ],
        columns=columns,
    )
    singles = pd.DataFrame(
        [(0, 0.1, 0, 0.5, 0.60, 10), (0, 0.4, 0, 0.75, 0.64, 10), (0, 0.5, 0, 0.7, 0.66, 10)],
        columns=columns,
    )
    return rounds, singles


def test_the_comparison_chooses_on_held_out_images_and_judges_on_test_images():
    table = compare_with_single_fits(*made_by_hand()).set_index("tolerance")
    assert table.loc["0.1", ["first_round", "best_round", "round"]].tolist() == [
        0.60,
        0.65,
        1,
    ]  # ties: the earlier round
    assert table.loc["0.2", ["first_round", "best_round", "round"]].tolist() == [0.62, 0.61, 1]
    assert table.loc["chosen", ["first_round", "best_round", "round"]].tolist() == [0.62, 0.61, 1]
    assert (table["single_fit"] == 0.64).all()
    assert (table["single_tolerance"] == 0.4).all()
    np.testing.assert_allclose(table["gain"], [0.01, -0.03, -0.03])
    np.testing.assert_allclose(table["hindsight_best_round"], [0.70, 0.62, 0.70])
    assert (table["hindsight_single_fit"] == 0.66).all()


def test_the_verdict_says_what_the_tables_say(tmp_path):
    rounds, singles = made_by_hand()
    records = Records(tmp_path, {})
    for name, table in (
        ("rounds", rounds),
        ("single_fits", singles),
        ("comparison", compare_with_single_fits(rounds, singles)),
    ):
        records.put(name, table)
    first, second, last = classification_report.verdict(records).splitlines()
    assert "At 0.1 " in first
    assert (
        "starts at 0.6000, rises by 0.1000 to round 2, and is 0.6500 in round 1; then all "
        "classes collapse in round 2" in first
    )
    assert "starts at 0.6200, does not rise, and is 0.6100 in round 1" in second
    assert "reach 0.6100 on test images" in last
    assert "0.6400: a gain of -0.0300 from distillation" in last


@pytest.mark.slow
def test_figures_show_every_chain_and_the_single_fit(records):
    figures = classification_report.plot(records)
    assert set(figures) == {"rounds", "single_fits", "multipliers"}
    legend = [text.get_text() for text in figures["rounds"].legends[0].get_texts()]
    assert len(legend) == 3
    assert legend[-1] == "one fit, tolerance chosen on held-out images"
    for figure in figures.values():
        for ax in figure.axes:
            assert ax.get_ylabel()
            assert ax.lines
    for path in save_figures(figures, records.folder):
        assert np.unique(image.imread(path)[..., :3].reshape(-1, 3), axis=0).shape[0] > 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerances": (1.5,)}, "tolerances must be fractions"),
        ({"test": 361}, "test must be from 1 to 360"),
        ({"train": 5000}, "train and held_out must be at most"),
        ({"noise_rate": 1.2}, "rate must lie between 0 and 1"),
        ({"seeds": ()}, "seeds must hold at least one"),
        ({"multipliers": (0.1,)}, "tolerances must hold at least one tolerance, or multipliers"),
        ({"tolerances": (), "multipliers": (0.0,)}, "multipliers must be positive"),
        ({"method": "nystrom"}, "landmarks must be given"),
        ({"landmarks": 10}, "landmarks must be given for method"),
    ],
)
def test_bad_settings_are_named(digits, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        list(run(digits, KERNEL, Experiment(**{**vars(SMALL), **change}), Records(tmp_path, {})))


@pytest.mark.slow
@pytest.mark.parametrize("outputs", ["separate", "joint"])
def test_the_krylov_method_records_the_same(digits, tmp_path, outputs):
    """From memory and from the disk, without held-out images: then rounds and tolerances are chosen
    by hindsight.
    """
    common = {**vars(SMALL), "held_out": 0, "seeds": (0,), "outputs": outputs}
    tables = {}
    for name in ("dense", "memory", "disk"):
        experiment = Experiment(**{**common, "method": "dense" if name == "dense" else "krylov"})
        settings = {
            "dataset": "digits",
            "kernel": "Matern",
            "seeds": [0],
            "train": 100,
            "label_noise": 0.2,
        }
        records = Records(tmp_path / name, settings)
        store = tmp_path / "tiles" if name == "disk" else None
        assert list(run(digits, KERNEL, experiment, records, store=store)) == [0]
        tables[name] = records
    assert (tmp_path / "tiles" / "seed0" / "zarr.json").exists()
    dense = tables["dense"]
    for name in ("memory", "disk"):
        rounds = tables[name]["rounds"]
        assert rounds["error_bound"].max() <= 1e-6
        assert rounds["held_out_accuracy"].isna().all()
        pd.testing.assert_frame_equal(
            rounds.drop(columns="error_bound"),
            dense["rounds"].drop(columns="error_bound"),
            rtol=1e-5,
        )
        fits = dense["single_fits"].query("tolerance >= 0.05").reset_index(drop=True)
        columns = ["tolerance", "test_accuracy", "train_loss", "test_loss"]
        pd.testing.assert_frame_equal(
            tables[name]["single_fits"][columns], fits[columns], rtol=1e-5
        )
        best = tables[name]["comparison"].query("tolerance == 'chosen'").iloc[0]
        assert best["best_round"] == rounds["test_accuracy"].max() == best["hindsight_best_round"]
    assert "chosen by hindsight on the test images" in classification_report.verdict(
        tables["memory"]
    )
    assert set(classification_report.plot(tables["memory"])) == {
        "rounds",
        "single_fits",
        "multipliers",
    }


@pytest.mark.parametrize("outputs", ["separate", "joint"])
@pytest.mark.slow_cases
def test_landmarks_at_all_images_record_the_same(digits, tmp_path, outputs):
    """By fixed multipliers, for which the tables have a column; and by tolerances."""
    for level in ({"multipliers": (1e-3, 0.1), "tolerances": ()}, {"tolerances": (0.3,)}):
        common = {**vars(SMALL), "seeds": (0,), "rounds": 3, "outputs": outputs, **level}
        tables = []
        for method in ({"method": "dense"}, {"method": "nystrom", "landmarks": 100}):
            records = Records(tmp_path / f"{len(level)}{method['method']}", {})
            list(run(digits, KERNEL, Experiment(**{**common, **method}), records))
            tables.append(records)
        name = "multiplier" if "multipliers" in level else "tolerance"
        exact, found = (of["rounds"].drop(columns="error_bound") for of in tables)
        assert set(exact[name]) == set(level.get("multipliers") or level["tolerances"])
        pd.testing.assert_frame_equal(exact, found, rtol=1e-7)
        exact, found = (of["single_fits"].set_index(name) for of in tables)
        assert len(found) > 8
        columns = ["test_accuracy", "train_loss"]
        pd.testing.assert_frame_equal(exact.loc[found.index, columns], found[columns], rtol=1e-6)


def test_multipliers_are_reported_as_such(digits, tmp_path):
    records = Records(
        tmp_path,
        {"dataset": "digits", "kernel": "M", "seeds": [0], "train": 100, "label_noise": 0.2},
    )
    experiment = Experiment(
        train=100, held_out=50, test=60, multipliers=(0.01,), rounds=4, seeds=(0,)
    )
    list(run(digits, KERNEL, experiment, records))
    assert "At c = 0.01 mean test accuracy" in classification_report.verdict(records)
    assert "Multiplier and round chosen" in classification_report.verdict(records)
    figures = classification_report.plot(records)
    assert figures["single_fits"].axes[0].get_xlabel() == "multiplier $c$"
    assert (records["classes"]["multiplier"] == 0.01).all()
    save_figures(figures, tmp_path)


@pytest.mark.slow
def test_where_the_krylov_method_fails_the_dense_one_takes_over(digits, tmp_path, monkeypatch):
    settings = {**vars(SMALL), "seeds": (0,), "rounds": 2}
    krylov = Experiment(**{**settings, "method": "krylov", "rtol": 1e-15})
    tables = [Records(tmp_path / name, {}) for name in ("dense", "krylov", "refused")]
    list(run(digits, KERNEL, Experiment(**{**settings, "method": "dense"}), tables[0]))
    with pytest.warns(
        UserWarning,
        match=r"An eigendecomposition takes over: the Krylov method failed \(accuracy 1e-15",
    ):
        list(run(digits, KERNEL, krylov, tables[1]))
    for name in ("rounds", "single_fits"):
        pd.testing.assert_frame_equal(tables[0][name], tables[1][name])
    monkeypatch.setattr(_memory, "dense_path_fits", lambda _: False)
    with pytest.raises(AccuracyError, match="accuracy 1e-15 was not reached"):
        list(run(digits, KERNEL, krylov, tables[2]))


def test_the_method_follows_the_number_of_images(monkeypatch):
    assert not SMALL.by_krylov
    monkeypatch.setattr(kernel_classification, "DENSE_IMAGES", 99)
    assert SMALL.by_krylov
    assert not Experiment(**{**vars(SMALL), "method": "dense"}).by_krylov


@pytest.mark.slow
def test_the_command(command, tmp_path):
    """Tables, configuration and figures from one command; it resumes from what is there, and
    refuses another's folder.
    """
    small = [
        "--train",
        "100",
        "--held-out",
        "50",
        "--test",
        "50",
        "--rounds",
        "3",
        "--depth",
        "1",
        "--out",
        "run",
    ]
    done = command("ntk", *small, "--seeds", "2", "--tolerance", "0.1", "--tolerance", "0.3")
    assert done.returncode == 0, done.stderr
    names = {file.name for file in (tmp_path / "run").iterdir()}
    parts = itertools.product(
        ("rounds", "classes", "single_fits", "comparison"), ("csv", "parquet")
    )
    assert names == {
        ".lock",
        "config.json",
        "rounds.png",
        "single_fits.png",
        "multipliers.png",
        *map(".".join, parts),
    }
    assert "Best round against best single fit" in done.stdout
    assert "a gain of" in done.stdout
    again = command("ntk", *small, "--seeds", "2", "--tolerance", "0.1", "--tolerance", "0.3")
    assert again.stdout == done.stdout
    other = command("ntk", *small, "--seeds", "3")
    assert other.returncode == 2
    assert "another configuration" in " ".join(other.stderr.split())
    missing = command("ntk", "--dataset", "cifar10", "--folder", "nowhere", "--out", "other")
    assert missing.returncode == 2
    assert "cifar-10-binary.tar.gz" in missing.stderr
    assert not (tmp_path / "other").exists()
