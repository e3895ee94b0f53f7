"""The paper's experiments with deep networks, and early stopping.

Must hold: every preset starts, runs two steps and stops cleanly: figure 6, which has both networks
and early stopping, at the paper's full size in shapes (batch size aside), the others, which differ
in loss, targets and classes, with a small network. The presets' settings are those of theory.md,
section 6. A network stopped early is the one that a training of its own, told to stop at that loss,
gives; killed, it is resumed and ends with the same table. Data: subset, noise and scale as asked
for. Verdicts and figures say what the tables say.
"""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from experiments.test_network_classification import CHAIN, Network, problem
from matplotlib import image

from sdntk.datasets import Dataset
from sdntk.experiments import early_stopping, kernel_tables, network_classification
from sdntk.experiments import paper_figures as network_experiment
from sdntk.experiments.checkpoints import Checkpoints
from sdntk.experiments.network_runs import Group
from sdntk.experiments.paper_figures import FIGURES, Experiment, experiments, prepare
from sdntk.experiments.records import Records
from sdntk.reports import network_classification as network_report
from sdntk.reports.plotting import save_figures
from sdntk.training.state import TrainingConfig
from sdntk.training.train import train

#: One process for all figures: what they share is compiled once. Figures 4 and 7 have the same
#: settings.
TWO_STEPS = """
import sys, numpy as np
import sdntk.cli as cli
from sdntk.datasets import Dataset
def images(dataset, folder, download):
    rng, classes = np.random.default_rng(0), {"cifar10": 10, "cifar100": 100}[dataset.value]
    pictures = lambda: rng.integers(0, 256, (classes, 32, 32, 3), np.uint8)
    labels, names = np.arange(classes, dtype=np.int32), tuple(map(str, range(classes)))
    return Dataset(dataset.value, pictures(), labels, pictures(), labels, names)
cli.load_named = images
out = sys.argv[-1]
small = "--steps 2 --batch-size 2 --train 4 --test 4 --rounds 1 --seeds 1 --measure-every 2"
for figure in (4, 5, 6, 8, 9, 10):
    network = [] if figure == 6 else ["--network", "small"]
    given = ["--figure", str(figure), "--out", out, *network, *small.split()]
    sys.argv = ["sdntk", "networks", *given]
    try:
        cli.main()
    except SystemExit as left:
        assert not left.code
"""


@pytest.mark.long
def test_every_preset_runs_two_steps_and_stops_cleanly(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TWO_STEPS, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert FIGURES[7] == FIGURES[4]
    for figure, shown in FIGURES.items():
        for experiment in shown if figure != 7 else ():
            network = experiment.network if figure == 6 else "small"
            folder = tmp_path / f"figure{figure}_{network}_{experiment.dataset}"
            rows = pd.read_parquet(folder / "rounds.parquet")
            assert rows["steps"].tolist() == [2]
            assert np.isfinite(rows["train_loss"]).all()
            assert image.imread(folder / "rounds.png").shape[0] > 300
            assert not list(folder.glob("checkpoints/*"))
            assert (folder / "early_stopping.parquet").exists() == experiment.early_stopping


def test_presets_are_the_papers():
    """theory.md, section 6."""
    shown = {
        figure: [(e.network, e.dataset, e.loss, e.targets, e.early_stopping) for e in experiments]
        for figure, experiments in FIGURES.items()
    }
    ten, hundred = ("resnet50", "cifar10"), ("resnet50", "cifar100")
    assert shown == {
        4: [(*ten, "squared", "soft", False)],
        5: [(*ten, "cross-entropy", "soft", False)],
        6: [(*ten, "squared", "soft", True), ("vgg16", "cifar100", "squared", "soft", False)],
        7: [(*ten, "squared", "soft", False)],
        8: [(*hundred, "squared", "soft", False)],
        9: [(*ten, "cross-entropy", "hard", False)],
        10: [(*hundred, "cross-entropy", "hard", False)],
    }
    for experiment in (e for shown in FIGURES.values() for e in shown):
        numbers = {"cifar10": (16, 1e-3, 1e-4), "cifar100": (64, 1e-4, 5e-5)}[experiment.dataset]
        assert (experiment.batch_size, experiment.learning_rate, experiment.weight_decay) == numbers
        assert (experiment.steps, experiment.seeds, experiment.train, experiment.noise_rate) == (
            64_000,
            10,
            None,
            0,
        )
        assert experiment.rounds > 10


def test_settings_given_in_place_of_the_presets():
    """Another data set brings its numbers along; of figure 6 the half that they name is taken."""
    (hundred,) = experiments(4, dataset="cifar100", steps=10)
    assert hundred == dataclasses.replace(FIGURES[8][0], steps=10)
    (rate,) = experiments(4, dataset="cifar100", learning_rate=0.5)
    assert (rate.learning_rate, rate.batch_size) == (0.5, 64)
    left, right = FIGURES[6]
    assert experiments(6) == [left, right]
    assert experiments(6, network="vgg16") == experiments(6, dataset="cifar100") == [right]
    assert experiments(6, network="resnet50") == experiments(6, dataset="cifar10") == [left]
    assert experiments(6, network="vgg16", dataset="cifar10") == [
        dataclasses.replace(left, network="vgg16")
    ]
    assert [(e.network, e.dataset) for e in experiments(6, network="small")] == [
        ("small", "cifar10"),
        ("small", "cifar100"),
    ]
    assert experiments(6, network="small", dataset="cifar100") == [
        dataclasses.replace(right, network="small")
    ]
    with pytest.raises(ValueError, match="figure must be from 4 to 10; got 3"):
        experiments(3)


def dataset(size=60):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, size, 32, 32, 3), np.uint8)
    labels = np.tile(np.arange(10, dtype=np.int32), size // 10)
    return Dataset("noise", images[0], labels, images[1], labels, tuple(map(str, range(10))))


def test_data_is_sampled_as_asked_for():
    experiment = Experiment("small", "noise", "squared", train=40, test=20, noise_rate=0.25)
    data = prepare(dataset(), experiment)
    assert data.x_train.shape == (40, 32, 32, 3)
    assert data.x_train.dtype == data.y.dtype == jnp.float32
    np.testing.assert_array_equal(np.bincount(data.clean_labels), 4)
    np.testing.assert_array_equal(np.bincount(data.test_labels), 2)
    assert int(jnp.sum(jnp.argmax(data.y, axis=1) != data.clean_labels)) == 10
    np.testing.assert_allclose(data.x_train.mean((0, 1, 2)), 0, atol=1e-5)
    whole = prepare(
        dataset(), dataclasses.replace(experiment, train=None, test=None, noise_rate=0.0)
    )
    assert whole.x_train.shape == whole.x_test.shape == (60, 32, 32, 3)
    np.testing.assert_array_equal(jnp.argmax(whole.y, axis=1), whole.clean_labels)
    other = prepare(dataset(), dataclasses.replace(experiment, data_seed=1))
    assert (np.asarray(other.clean_labels) != np.asarray(data.clean_labels)).any()


def test_images_without_colours_are_refused():
    images = np.zeros((60, 8, 8, 1), np.uint8)
    grey = dataclasses.replace(dataset(), train_images=images, test_images=images)
    with pytest.raises(
        ValueError,
        match=r"images of shape \(height, width, 3\).* those of noise have shape \(8, 8, 1\)",
    ):
        prepare(grey, Experiment("small", "noise", "squared"))


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "alexnet"}, "network must be one of resnet18, resnet50, vgg16, small"),
        ({"loss": "hinge"}, "loss must be"),
        ({"targets": "warm"}, "targets must be 'soft' or 'hard'"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**{"network": "small", "dataset": "cifar10", "loss": "squared", **change})


@pytest.fixture(scope="module")
def chain_records(tmp_path_factory):
    records = Records(tmp_path_factory.mktemp("chain"), {"test": 1})
    for _ in network_classification.run(Network, problem(), CHAIN, records, seeds=[3, 5]):
        pass
    early_stopping.run(Network, problem(), CHAIN, records, seeds=[3, 5])
    return records


@pytest.mark.slow
def test_a_network_stopped_early_is_one_that_was_told_to_stop_there(chain_records):
    data, rows = problem(), chain_records["early_stopping"].set_index(["seed", "round"])
    levels = chain_records["rounds"].set_index(["seed", "round"])["given_loss"]
    assert rows.index.tolist() == levels.index.tolist()
    np.testing.assert_array_equal(rows["level"], levels)
    reached = rows.dropna()
    assert len(reached) >= 3
    for (seed, _), row in reached.iterrows():
        training = dataclasses.replace(
            CHAIN.training, until_loss=float(row["level"]), check_every=CHAIN.measure_every
        )
        keys = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)[None]
        trained = train(Network, keys, data.x_train, data.y, training)
        assert int(trained.steps[0]) == row["step"]
        np.testing.assert_allclose(trained.loss[0], row["given_loss"], rtol=1e-5)
        right = jnp.mean(
            jnp.argmax(trained.ensemble.outputs(data.x_test)[0], -1) == data.test_labels
        )
        np.testing.assert_allclose(right, row["test_accuracy"], rtol=1e-6)
    missing = rows[rows["step"].isna()]
    assert missing[["test_accuracy", "given_loss"]].isna().all(axis=None)


@pytest.mark.slow
def test_killed_it_is_resumed_where_it_was(chain_records, tmp_path, monkeypatch):
    records = Records(tmp_path, {"test": 1})
    records.put("rounds", chain_records["rounds"])
    saved, save = [], Checkpoints.save

    def save_and_die(self, state):
        save(self, state)
        saved.append(int(state.training_run.steps_taken))
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        early_stopping.run(Network, problem(), CHAIN, records, seeds=[3, 5], at_once=2)
    early_stopping.run(Network, problem(), CHAIN, records, seeds=[3, 5], at_once=2)
    assert saved == sorted(set(saved))  # no step was taken twice
    whole = Records(tmp_path / "whole", {"test": 1})
    whole.put("rounds", chain_records["rounds"])
    monkeypatch.setattr(Checkpoints, "save", save)
    early_stopping.run(Network, problem(), CHAIN, whole, seeds=[3, 5], at_once=2)
    pd.testing.assert_frame_equal(
        records["early_stopping"], whole["early_stopping"], check_exact=True
    )
    before = records["early_stopping"]
    monkeypatch.setattr(Group, "measure", None)  # whoever trained again would fail
    early_stopping.run(Network, problem(), CHAIN, records, seeds=[3, 5], at_once=1)
    pd.testing.assert_frame_equal(records["early_stopping"], before, check_exact=True)


def test_killed_between_its_last_state_and_the_table_it_takes_no_step_again(
    chain_records, tmp_path, monkeypatch
):
    records, put, taken, measure = (
        Records(tmp_path, {"test": 1}),
        Records.put,
        [],
        Group.measure,
    )
    records.put("rounds", chain_records["rounds"])

    def die(*arguments):
        if len(arguments[-1]):
            raise KeyboardInterrupt

    def count(*arguments):
        taken.append(1)
        return measure(*arguments)

    monkeypatch.setattr(Group, "measure", count)
    monkeypatch.setattr(Records, "put", die)
    with pytest.raises(KeyboardInterrupt):
        early_stopping.run(Network, problem(), CHAIN, records, seeds=[3], at_once=1)
    monkeypatch.setattr(Records, "put", put)
    needed = len(taken)
    early_stopping.run(Network, problem(), CHAIN, records, seeds=[3], at_once=1)
    assert len(taken) == needed > 0
    early_stopping.run(
        Network, problem(), CHAIN, records, seeds=[3, 5], at_once=2
    )  # seed 3 is done, 5 is not
    assert list(
        zip(*(records["early_stopping"][name] for name in ("seed", "round")), strict=True)
    ) == [(seed, t) for seed in (3, 5) for t in range(3)]
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_round_that_diverged_has_no_level(chain_records, tmp_path):
    rounds = chain_records["rounds"].copy()
    later = (rounds["seed"] == 5) & (rounds["round"] > 0)
    rounds.loc[later, "stop"] = "diverged"
    records = Records(tmp_path, {"test": 1})
    records.put("rounds", rounds)
    early_stopping.run(Network, problem(), CHAIN, records, seeds=[3, 5])
    found, expected = records["early_stopping"], chain_records["early_stopping"]
    np.testing.assert_array_equal(found["level"].isna(), later)
    pd.testing.assert_frame_equal(found[~later], expected[~later], check_exact=True)
    assert found.loc[later, "step"].isna().all()


def test_early_stopping_wants_finished_chains(chain_records, tmp_path):
    with pytest.raises(ValueError, match="records must hold 3 rounds of each of the seeds"):
        early_stopping.run(Network, problem(), CHAIN, Records(tmp_path, {}), seeds=[0])
    with pytest.raises(ValueError, match="records must hold 3 rounds of each of the seeds"):
        early_stopping.run(Network, problem(), CHAIN, chain_records, seeds=[3, 4])
    with pytest.raises(ValueError, match="at_once must be at least 1"):
        early_stopping.run(Network, problem(), CHAIN, chain_records, seeds=[3], at_once=0)


def made_up(folder, test_accuracy):
    """Records whose curves are known."""
    records = Records(folder, {**FIGURES[6][0].configuration(), "seeds": 2})
    rows = [
        {
            "seed": seed,
            "round": t,
            "train_accuracy": 1 - 0.1 * t,
            "test_accuracy": accuracy + 0.02 * seed,
            "train_loss": 0.1,
            "test_loss": 0.2,
            "given_loss": 0.1 + t,
            "stop": "steps",
        }
        for seed in range(2)
        for t, accuracy in enumerate(test_accuracy)
    ]
    records.put("rounds", pd.DataFrame(rows))
    return records


@pytest.mark.slow
def test_the_verdict_says_what_the_tables_say(tmp_path):
    records = made_up(tmp_path / "rises", [0.5, 0.6, 0.4])
    said = network_report.verdict(records)
    assert "training accuracy falls in 2 of 2 later rounds: from 1.0000 to 0.8000" in said
    assert "starts at 0.5100, rises to 0.6100 in round 1 (by 0.1000" in said
    assert "stopped early" not in said
    stopped = records["rounds"].assign(
        level=0.1, step=[10.0, 20.0, np.nan] * 2, test_accuracy=[0.3, 0.55, np.nan] * 2
    )
    records.put("early_stopping", stopped)
    said = network_report.verdict(records)
    assert (
        "rounds 0, 1, which every seed reached: mean test accuracy 0.5500 at best (round 1); "
        "self-distillation in" in said
    )
    assert "these rounds 0.6100 (round 1)" in said
    assert "does not rise" in network_report.verdict(made_up(tmp_path / "falls", [0.6, 0.5]))
    assert "falls in 0 of 0 later rounds: from 1.0000 to 1.0000" in network_report.verdict(
        made_up(tmp_path / "one", [0.6])
    )
    table = network_report.rounds_table(records)
    assert table.row_count == 3
    kernel = pd.DataFrame(
        {
            "seed": 0,
            "tolerance": [0.1] * 3,
            "round": range(3),
            "train_accuracy": 0.9,
            "test_accuracy": 0.5,
            "active_classes": [10, 10, 0],
        }
    )
    paths = save_figures(network_report.plot(records, kernel), tmp_path)
    assert [path.stem for path in paths] == ["rounds", "early_stopping"]
    for path in paths:
        assert np.unique(image.imread(path)[..., :3].reshape(-1, 3), axis=0).shape[0] > 50


def test_the_verdict_is_of_the_same_seeds_in_every_mean(tmp_path):
    """Rounds whose loss only some seeds reached are compared with nothing; chains that diverged are
    left out whole.
    """
    records = made_up(tmp_path, [0.5, 0.6, 0.4])  # seed 1 is better by 0.02
    rounds = records["rounds"]
    step = np.array([1.0, np.nan, np.nan, 1.0, 2.0, np.nan])  # only seed 1 reached round 1's loss
    accuracy = [0.52, np.nan, np.nan, 0.55, 0.9, np.nan]
    stopped = rounds.drop(columns="stop").assign(level=0.1, step=step, test_accuracy=accuracy)
    records.put("early_stopping", stopped)
    said = network_report.verdict(records)
    assert (
        "at the losses of rounds 0, which every seed reached: mean test accuracy 0.5350 at best "
        "(round 0)" in said
    )
    assert "self-distillation in these rounds 0.5100 (round 0)" in said
    assert [*network_report.rounds_table(records).columns[-1].cells] == [
        "2 of 2",
        "1 of 2",
        "0 of 2",
    ]
    records.put("early_stopping", stopped.assign(step=np.nan))
    assert "No round's loss was reached by every network" in network_report.verdict(records)

    stop = np.where((rounds["seed"] == 1) & (rounds["round"] == 2), "diverged", "steps")
    diverged = rounds.assign(
        stop=stop, train_accuracy=rounds["train_accuracy"] + np.where(rounds["seed"] == 1, -0.5, 0)
    )
    records.put("rounds", diverged)
    records.put("early_stopping", stopped)
    said = network_report.verdict(records)
    assert said.startswith(
        "1 of 2 chains diverged and are left out.\nMean training accuracy falls in 2 of 2 later "
        "rounds: "
        "from 1.0000 to 0.8000"
    )
    assert "starts at 0.5000, rises to 0.6000 in round 1 (by 0.1000" in said
    assert (
        "mean test accuracy 0.5200 at best (round 0); self-distillation in these rounds 0.5000"
        in said
    )
    assert save_figures(network_report.plot(records), tmp_path)
    records.put("rounds", rounds.assign(stop="diverged"))
    assert network_report.verdict(records) == "Every chain diverged."


@pytest.mark.slow
def test_the_command_runs_small_and_is_resumed(command, tmp_path, monkeypatch):
    from sdntk import cli

    monkeypatch.setattr(cli, "load_named", lambda *_: dataset())
    options = (
        "networks",
        "--figure",
        "6",
        "--network",
        "small",
        "--dataset",
        "cifar10",
        "--rounds",
        "2",
        "--seeds",
        "2",
        "--steps",
        "4",
        "--batch-size",
        "5",
        "--train",
        "20",
        "--test",
        "20",
        "--label-noise",
        "0.2",
        "--measure-every",
        "2",
        "--augment",
        "--early-stopping",
        "--out",
        "run",
    )
    done = command(*options)
    assert done.returncode == 0, done.stderr
    folders = [path.parent for path in (tmp_path / "run").glob("*/config.json")]
    assert [folder.name for folder in folders] == [
        "figure6_small_cifar10"
    ]  # both halves of the figure are one
    configuration = json.loads((folders[0] / "config.json").read_text())["configuration"]
    assert configuration["network"] == "small"
    assert configuration["label_noise"] == 0.2
    assert (
        len(pd.read_csv(folders[0] / "rounds.csv"))
        == len(pd.read_csv(folders[0] / "early_stopping.csv"))
        == 4
    )
    before = pd.read_csv(folders[0] / "rounds.csv")
    again = command(*options)
    assert again.returncode == 0, again.stderr
    pd.testing.assert_frame_equal(pd.read_csv(folders[0] / "rounds.csv"), before)
    bad = command("networks", "--figure", "3")
    assert bad.returncode == 2
    assert "Invalid value for '--figure'" in bad.stderr
    beside = command(*options, "--kernel", "nowhere")
    assert beside.returncode == 2
    assert "is not the configuration of records" in beside.stderr
    columns = dict.fromkeys(kernel_tables.columns()["rounds"], 0.5)
    kernel = {"seed": 0, "tolerance": 0.1, "round": range(2), "active_classes": 10}
    for folder, noise, kind in (
        ("same", 0.2, "symmetric"),
        ("more", 0.4, "symmetric"),
        ("other", 0.2, "asymmetric"),
    ):
        curves = Records(
            folder, {"kernel": "an NTK", "dataset": "cifar10", "label_noise": noise, "noise": kind}
        )
        curves.put("rounds", pd.DataFrame(columns | kernel | {"train_accuracy": 0.9}))
    without = (folders[0] / "rounds.png").read_bytes()
    assert command(*options, "--kernel", "same").returncode == 0
    assert (folders[0] / "rounds.png").read_bytes() != without
    for folder in ("more", "other"):
        beside = command(*options, "--kernel", folder)
        assert beside.returncode == 2
        assert "the same data set with the same label noise" in beside.stderr
    beside = command(*options, "--kernel", str(folders[0]))
    assert "kernel must be a folder that sdntk ntk wrote" in beside.stderr


def test_optimiser_adds_the_decay_as_a_penalty():
    """Adam's first step has the sign of gradient + decay * weights."""
    experiment = Experiment("small", "cifar10", "squared", learning_rate=0.1, weight_decay=0.5)
    assert isinstance(experiment.training, TrainingConfig)
    weights = {"w": jnp.array([1.0, -2.0, 0.5])}
    gradient = {"w": jnp.array([-0.4, 0.0, 0.1])}
    state = experiment.training.optimiser.init(weights)
    updates, _ = experiment.training.optimiser.update(gradient, state, weights)
    np.testing.assert_allclose(updates["w"], -0.1 * np.sign([0.1, -1.0, 0.35]), rtol=1e-4)
    assert network_experiment.LOSSES["squared"] is experiment.training.loss
