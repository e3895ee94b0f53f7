"""Kernel against network.

Must hold: the gap falls with the root of the width, here over small widths and few points
(benchmarks/results/comparison* hold the real ones); halving the optimiser's tolerance changes no
gap by more than 2%; every column is what it says, worked out here a second time from the networks
and from scikit-learn's KernelRidge; a folder is resumed, and another comparison's is refused.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from sklearn.kernel_ridge import KernelRidge

import sdntk
from sdntk import datasets, losses
from sdntk.architectures import fully_connected
from sdntk.experiments import comparison
from sdntk.experiments.comparison import TO_THE_OPTIMUM, compare_widths, gap_exponents
from sdntk.kernels import empirical_ntk, ntk
from sdntk.training.optimisers import gauss_newton
from sdntk.training.rounds import distill_networks
from sdntk.training.state import TrainingConfig

ERF = fully_connected(2, activation="erf")
COLUMNS = {
    "width",
    "seed",
    "round",
    "multiplier",
    "collapsed",
    "gap_train",
    "gap_test",
    "loss_over_tolerance",
    "agreement_train",
    "agreement_test",
    "accuracy_train",
    "accuracy_test",
    "kernel_accuracy_train",
    "kernel_accuracy_test",
    "stationarity",
    "steps",
    "stop",
    "kernel_change",
    "kernel_error_initial",
    "kernel_error",
}


@pytest.fixture(scope="module")
def data():
    digits = datasets.digits(jax.random.key(0))
    (rows,) = datasets.balanced_subsets(digits.train_labels, [30], jax.random.key(1))
    x, x_test = datasets.standardise(digits.train_images[rows], digits.test_images[:40])
    y, y_test = (
        datasets.one_hot(labels, 10, centred=True)
        for labels in (digits.train_labels[rows], digits.test_labels[:40])
    )
    return x, y, x_test, y_test


def tolerance(data, fraction):
    return fraction * float(np.mean(np.square(data[1])))


@pytest.fixture(scope="module")
def table(data):
    return compare_widths(
        ERF, *data, tolerance=tolerance(data, 0.2), rounds=3, widths=(64, 512), seeds=2
    )


@pytest.mark.slow
def test_a_row_for_each_width_seed_and_round(table):
    assert set(table.columns) == COLUMNS
    keys = table[["width", "seed", "round"]].itertuples(index=False, name=None)
    assert sorted(keys) == [
        (width, seed, t) for width in (64, 512) for seed in (0, 1) for t in (0, 1, 2)
    ]
    assert table["collapsed"].tolist() == (table["round"] == 2).tolist()
    active = table[~table["collapsed"]]
    assert not active.isna().any().any()
    assert (active["stop"] == "stationary").all()
    assert (active["stationarity"] <= 1e-7).all()
    assert table.loc[table["collapsed"], "gap_train"].isna().all()


@pytest.mark.slow
def test_the_gap_and_the_kernel_approach_infinite_width(table):
    means = table[~table["collapsed"]].groupby(["round", "width"]).mean(numeric_only=True)
    for t in (0, 1):
        for column in ("gap_train", "gap_test", "kernel_error", "kernel_error_initial"):
            assert 0.2 < means.loc[(t, 512), column] / means.loc[(t, 64), column] < 0.6, (
                column
            )  # in theory 1/sqrt(8) = 0.35
        assert (
            means.loc[(t, 512), "kernel_change"] < 0.3 * means.loc[(t, 64), "kernel_change"]
        )  # in theory 1/8
        assert abs(means.loc[(t, 512), "loss_over_tolerance"] - 1) < 0.15
    fitted = gap_exponents(table)
    assert fitted["round"].tolist() == [0, 1, 2]
    assert fitted["points"].tolist() == [4, 4, 0]
    assert all(-0.7 < exponent < -0.3 for exponent in fitted["exponent"][:2])
    assert np.isnan(fitted["exponent"][2])


@pytest.mark.slow
def test_halving_the_tolerance_of_the_optimiser_changes_no_gap(data, table):
    halved = TrainingConfig(
        optimiser=gauss_newton(), centred=True, until_stationary=5e-8, steps=100, check_every=1
    )
    again = compare_widths(
        ERF,
        *data,
        tolerance=tolerance(data, 0.2),
        rounds=2,
        widths=(64, 512),
        seeds=2,
        training=halved,
    )
    both = again.merge(table, on=["width", "seed", "round"])
    assert len(both) == 8
    for gap in ("gap_train", "gap_test"):
        np.testing.assert_allclose(both[f"{gap}_x"], both[f"{gap}_y"], rtol=0.02)


def test_every_column_is_what_it_says(data, table):
    """Round 1 of the second network of width 64, from its chain and scikit-learn."""
    x, y, x_test, y_test = map(jnp.asarray, data)
    rows = table.query("width == 64 and seed == 1").set_index("round")
    kernel, K, c = ntk(ERF), 30, rows["multiplier"]
    G, cross = kernel(x, x), kernel(x_test, x)
    fits, targets = [], np.asarray(y)
    for t in (0, 1):  # theory.md, section 2: f_t is ridge regression with alpha = K c_t on f_{t-1}
        ridge = KernelRidge(alpha=K * c[t], kernel="precomputed").fit(G, targets)
        assert np.mean((ridge.predict(G) - targets) ** 2) == pytest.approx(
            tolerance(data, 0.2), rel=1e-6
        )
        targets = ridge.predict(G)
        fits.append((targets, ridge.predict(cross)))
    build = functools.partial(
        comparison._network, architecture=ERF, point_shape=(8, 8, 1), width=64, num_outputs=10
    )
    key = jax.random.fold_in(jax.random.key(1), 64)[None]
    *_, done = distill_networks(
        build, key, x, y, TO_THE_OPTIMUM, rounds=2, penalties=[c[0] / 10, c[1] / 10]
    )
    row, ensemble = rows.loc[1], done.trained.ensemble
    for name, points, labels, kernels in (
        ("train", x, y, fits[1][0]),
        ("test", x_test, y_test, fits[1][1]),
    ):
        outputs, labels = np.asarray(ensemble.outputs(points)[0]), np.asarray(labels)
        assert row[f"gap_{name}"] == pytest.approx(
            np.linalg.norm(outputs - kernels) / np.linalg.norm(kernels), rel=1e-6
        )
        assert row[f"agreement_{name}"] == np.mean(outputs.argmax(1) == kernels.argmax(1))
        assert row[f"accuracy_{name}"] == np.mean(outputs.argmax(1) == labels.argmax(1))
        assert row[f"kernel_accuracy_{name}"] == np.mean(kernels.argmax(1) == labels.argmax(1))
    loss = np.mean(np.square(ensemble.outputs(x)[0] - done.targets[0]))
    assert row["loss_over_tolerance"] == pytest.approx(loss / tolerance(data, 0.2), rel=1e-6)
    kernels = []
    for weights in (ensemble.initial_params, ensemble.params):
        one, state = (
            jax.tree.map(lambda leaf: leaf[0], tree) for tree in (weights, ensemble.model_state)
        )
        network = lambda w, x, state=state: ensemble.apply_fn(w, state, x)  # noqa: E731
        kernels.append(empirical_ntk(network, one)(x, x))
    distance = lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b)  # noqa: E731
    assert row["kernel_change"] == pytest.approx(distance(kernels[1], kernels[0]), rel=1e-6)
    assert row["kernel_error_initial"] == pytest.approx(distance(kernels[0], G), rel=1e-6)
    assert row["kernel_error"] == pytest.approx(distance(kernels[1], G), rel=1e-6)


def test_exponents_of_a_power_law():
    frame = pd.DataFrame(
        [
            {"width": n, "seed": s, "round": 0, "gap_test": 2 * n**-0.4 * (1 + 0.01 * (-1) ** s)}
            for n in (8, 64, 512)
            for s in (0, 1)
        ]
    )
    (fit,) = gap_exponents(frame, "gap_test").to_dict("records")
    assert fit["exponent"] == pytest.approx(-0.4, abs=1e-9)
    assert fit["intercept"] == pytest.approx(np.log(2), abs=1e-3)
    assert 0 < fit["standard_error"] < 0.01


@pytest.mark.slow
def test_a_folder_is_resumed_and_another_comparison_refused(data, tmp_path, monkeypatch):
    options = {"tolerance": tolerance(data, 0.4), "rounds": 2, "seeds": 1}
    first = compare_widths(ERF, *data, widths=[16], out=tmp_path, **options)
    ran = []
    run_width = comparison._run_width
    monkeypatch.setattr(
        comparison,
        "_run_width",
        lambda *arguments: ran.append(arguments[3]) or run_width(*arguments),
    )
    both = compare_widths(ERF, *data, widths=[16, 32], out=tmp_path, **options)
    assert ran == [32]
    pd.testing.assert_frame_equal(both[both["width"] == 16], first)
    assert pd.read_csv(tmp_path / "comparison.csv").shape == both.shape == (4, len(COLUMNS))
    assert json.loads((tmp_path / "config.json").read_text())["configuration"]["rounds"] == 2
    fits = pd.read_parquet(tmp_path / "fits.parquet")
    assert fits.groupby(["width", "round"]).size().to_dict() == {(16, 0): 400, (32, 0): 400}
    with pytest.raises(ValueError, match="another configuration: data"):
        compare_widths(ERF, data[0] + 1, *data[1:], widths=[16], out=tmp_path, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.ones(30)}, r"y and y_test must have shapes \(K, Q\) and \(n, Q\)"),
        ({"y_test": np.ones((3, 10))}, r"y_test must have shape \(40\,\)"),
        ({"widths": [0]}, "widths must be at least 1"),
        ({"widths": []}, "widths must hold at least one"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"widths": [16, 16]}, "none twice"),
        ({"training": TrainingConfig()}, "training must have centred=True"),
        (
            {"training": TrainingConfig(centred=True, loss=losses.soft_cross_entropy)},
            "loss squared_error",
        ),
        (
            {"training": TrainingConfig(centred=True), "out": "somewhere"},
            "out must be None unless the optimiser is gauss_newton",
        ),
    ],
)
def test_bad_input(data, change, message):
    arguments = (
        dict(zip(("x", "y", "x_test", "y_test"), data, strict=True)) | {"tolerance": 0.01} | change
    )
    with pytest.raises(ValueError, match=message):
        compare_widths(ERF, **arguments)


@pytest.mark.slow
def test_the_command(command, tmp_path):
    """Tables and figures from one command; it resumes from what is there, and says what
    it found.
    """
    options = (
        "--train",
        "20",
        "--test",
        "30",
        "--seeds",
        "1",
        "--tolerance",
        "0.5",
        "--rounds",
        "2",
        "--out",
        "out",
    )
    done = command("compare", "--widths", "16,32", *options)
    assert done.returncode == 0, done.stderr
    assert "Round 0, training points: gap ~ width^(-" in done.stdout
    assert "2 of 2 trainings reached the gradient norm asked for" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "comparison.csv",
        "comparison.parquet",
        "config.json",
        "fits.parquet",
        "gaps.png",
        "fits.png",
        "accuracy.png",
    }
    configuration = json.loads((tmp_path / "out" / "config.json").read_text())["configuration"]
    assert (configuration["dataset"], configuration["train"], configuration["label_noise"]) == (
        "digits",
        20,
        0.0,
    )
    refused = command("compare", "--widths", "16,16", *options)
    assert refused.returncode == 2
    assert "none twice" in refused.stderr


def test_two_points_have_no_standard_error():
    frame = pd.DataFrame({"round": 0, "width": [16, 64], "gap_train": [0.4, 0.2]})
    (fit,) = gap_exponents(frame).to_dict("records")
    assert fit["exponent"] == pytest.approx(-0.5)
    assert np.isnan(fit["standard_error"])


def test_no_round_is_active(data):
    frame = compare_widths(ERF, *data, tolerance=1.0, rounds=1, widths=[16], seeds=1)
    assert frame["collapsed"].tolist() == [True]
    assert "gap_train" in frame


def test_the_old_names_warn_and_work():
    frame = pd.DataFrame({"round": 0, "width": [16, 64], "gap_train": [0.4, 0.2]})
    with pytest.warns(DeprecationWarning, match=r"sdntk\.exponents has been renamed"):
        assert sdntk.exponents(frame)["points"].tolist() == [2]
    with pytest.warns(DeprecationWarning, match=r"sdntk\.compare has been renamed"):
        assert sdntk.compare is compare_widths
