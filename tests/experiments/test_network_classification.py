"""Chains of network classifiers with records and checkpoints.

Must hold: killed with SIGKILL in the middle of rounds and started again, a run ends with the
records of an undisturbed one, timings aside. Every column is worked out here a second time from the
in-memory chain of sdntk.distill_networks; the best step is the best of the measured ones; a state
of other work is refused.
"""

import dataclasses
import random
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax import nnx

import sdntk
from sdntk import losses
from sdntk.experiments import checkpoints, network_classification, network_runs
from sdntk.experiments.checkpoints import Checkpoints
from sdntk.experiments.data import Split
from sdntk.experiments.network_classification import run
from sdntk.experiments.network_runs import Group, Measurements, NetworkChainSpec
from sdntk.experiments.records import Records
from sdntk.training.state import TrainingConfig

STEPS = 60


class Network(nnx.Module):
    """Batch statistics and dropout: all that a state may hold."""

    def __init__(self, rngs):
        self.first = nnx.Linear(64, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


def problem():
    digits = sdntk.datasets.digits(jax.random.key(0))
    x, x_test = (
        jnp.asarray(images[:100].reshape(100, -1) / 16, jnp.float32)
        for images in (digits.train_images, digits.test_images)
    )
    labels, test_labels = (jnp.asarray(a[:100]) for a in (digits.train_labels, digits.test_labels))
    noisy = labels.at[::5].set((labels[::5] + 1) % 10)
    others = x_test[50:], (test_labels[50:] + 1) % 10
    return Split(x, labels, noisy, *others, x_test[:50], test_labels[:50], 10)


CHAIN = NetworkChainSpec(
    TrainingConfig(
        loss=losses.squared_error_of_softmax, optimiser=optax.adam(3e-3), steps=STEPS, batch_size=20
    ),
    rounds=3,
    ground_truth_weight=0.1,
    measure_every=15,
)


def go(folder):
    return list(run(Network, problem(), CHAIN, Records(folder, {"test": 1}), seeds=[3, 5]))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    go(folder)
    return folder


def table(folder):
    return pd.read_parquet(folder / "rounds.parquet")


@pytest.mark.slow
def test_killed_in_the_middle_of_rounds_it_ends_with_the_same_records(
    undisturbed, tmp_path, request
):
    program = """
import jax, os, pathlib, signal, sys, threading, time
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, sys.argv[1])
import test_network_classification
test_network_classification.checkpoints.SECONDS_BETWEEN_STATES = 0

def kill_after(states, seconds):  # from inside: a slow tester cannot come too late
    seen = set()
    while len(seen) <= states:
        seen |= {f for f in pathlib.Path(sys.argv[2]).glob("checkpoints/*/*") if f.name.isdigit()}
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)

moment = [float(number) for number in sys.argv[3:]]
if moment:
    threading.Thread(target=kill_after, args=moment, daemon=True).start()
test_network_classification.go(sys.argv[2])
print("done")
"""
    moments = random.Random(4)

    def execute(*moment):
        arguments = [request.path.parent, tmp_path, *map(str, moment)]
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True)

    for states in 2, 6:  # then a moment, which may lie within the writing of the next
        killed = execute(states, moments.uniform(0, 0.03))
        assert killed.stdout == ""  # it was not done
        assert killed.returncode == -signal.SIGKILL
    states = [int(path.name) for path in tmp_path.glob("checkpoints/*/*") if path.name.isdigit()]
    # Four measurements a round, and its start: it is resumed in the middle of a round.
    assert any(state % (STEPS // 15 + 1) not in (STEPS // 15 - 1, STEPS // 15) for state in states)
    assert execute().stdout == "done\n"
    pd.testing.assert_frame_equal(
        table(tmp_path).drop(columns="seconds"),
        table(undisturbed).drop(columns="seconds"),
        check_exact=True,
    )


def test_a_run_killed_in_its_first_round_is_of_these_settings(tmp_path, monkeypatch):
    """It must not be resumed with others, such as another learning rate."""

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", die)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path)
    with pytest.raises(ValueError, match=r"test \(1, now 2\) differ"):
        Records(tmp_path, {"test": 2})


def test_states_of_quick_work_are_written_now_and_then(tmp_path, monkeypatch):
    """A kill loses the seconds since the last one, and the records are the same."""
    clock = iter(range(1000))  # seconds, one for each look at it
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_STATES", 4)
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: float(next(clock)))
    states = Checkpoints(tmp_path)
    written = []
    for n in range(12):
        states.save_if_due({"n": np.int64(n)})
        if states.last is not None and len(written) <= states.last:
            written.append(n)
    states.close()
    assert written == [3, 7, 11]


def test_finished_chains_stay_whatever_the_groups(undisturbed, tmp_path, monkeypatch):
    """One chain is done; the other, begun with another at_once, does not begin the first again."""
    records, started, begin = Records(tmp_path, {"test": 1}), [], Group.fresh_run
    whole = table(undisturbed)
    records.put("rounds", whole[whole["seed"] == 3])

    def count(group, *arguments):
        started.append(group.seeds)
        return begin(group, *arguments)

    monkeypatch.setattr(Group, "fresh_run", count)
    assert len(list(run(Network, problem(), CHAIN, records, seeds=[3, 5], at_once=2))) == 3
    assert started == [[5]] * 3
    pd.testing.assert_frame_equal(
        table(tmp_path).drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True
    )


def test_a_finished_run_does_nothing_and_leaves_no_states(undisturbed):
    before = (undisturbed / "rounds.parquet").stat().st_mtime_ns
    assert go(undisturbed) == []
    assert (undisturbed / "rounds.parquet").stat().st_mtime_ns == before
    assert not list(undisturbed.glob("checkpoints/*"))


@pytest.mark.slow
def test_every_column_is_what_it_says(undisturbed):
    data, rows = problem(), table(undisturbed).set_index(["seed", "round"])
    assert rows.index.tolist() == [(3, 0), (3, 1), (3, 2), (5, 0), (5, 1), (5, 2)]
    assert (rows["steps"] == STEPS).all()
    keys = jnp.stack([jax.random.key(3), jax.random.key(5)])
    chain = sdntk.distill_networks(
        Network,
        keys,
        data.x_train,
        data.y,
        CHAIN.training,
        rounds=3,
        ground_truth_weight=jnp.float32(0.1),
    )
    softmax = lambda f: np.exp(f) / np.exp(f).sum(-1, keepdims=True)  # noqa: E731
    for done in chain:
        for index, seed in enumerate((3, 5)):
            row = rows.loc[(seed, done.index)]
            train, held_out, test = (
                np.asarray(done.trained.ensemble.outputs(x)[index], np.float64)
                for x in (data.x_train, data.x_held_out, data.x_test)
            )
            one_hot, one_hot_test = np.eye(10)[data.clean_labels], np.eye(10)[data.test_labels]
            expected = {
                "train_accuracy": np.mean(train.argmax(1) == data.clean_labels),
                "noisy_train_accuracy": np.mean(train.argmax(1) == data.noisy_labels),
                "held_out_accuracy": np.mean(held_out.argmax(1) == data.held_out_labels),
                "test_accuracy": np.mean(test.argmax(1) == data.test_labels),
                "train_loss": np.mean((softmax(train) - one_hot) ** 2),
                "test_loss": np.mean((softmax(test) - one_hot_test) ** 2),
                "target_loss": np.mean((softmax(train) - done.targets[index]) ** 2),
                "stationarity": done.trained.grad_norm[index],
            }
            for name, value in expected.items():
                assert row[name] == pytest.approx(float(value), rel=2e-3), name
            assert row["best_test_accuracy"] >= row["test_accuracy"]
            assert row["best_step"] % 15 == 0


def test_the_best_step_is_the_best_of_those_that_were_measured(undisturbed, tmp_path):
    row = table(undisturbed).query("seed == 5 and round == 0").iloc[0]
    shorter = NetworkChainSpec(
        TrainingConfig(**{**vars(CHAIN.training), "steps": int(row["best_step"])}),
        rounds=1,
        measure_every=15,
    )
    (ended,) = run(Network, problem(), shorter, Records(tmp_path, {}), seeds=[5])
    for name in Measurements._fields:
        assert ended[name][0] == pytest.approx(row[f"best_{name}"], rel=1e-5)


def test_the_best_step_is_the_best_of_all_that_were_measured(tmp_path, monkeypatch):
    seen, measure = [], network_runs.measure
    for module in (network_classification, network_runs):
        monkeypatch.setattr(
            module, "measure", lambda *arguments: seen.append(measure(*arguments)) or seen[-1]
        )
    chain = NetworkChainSpec(
        TrainingConfig(optimiser=optax.sgd(2.0), steps=40, batch_size=20), rounds=1, measure_every=4
    )
    (ended,) = run(Network, problem(), chain, Records(tmp_path, {}), seeds=[1])
    accuracies = np.array([float(values.test_accuracy[0]) for values in seen])
    assert ended["best_test_accuracy"][0] == accuracies.max() > accuracies[-1]
    assert ended["best_step"][0] == 4 * accuracies.argmax()


def test_a_rule_met_at_once_and_a_network_that_diverges(tmp_path):
    met = NetworkChainSpec(TrainingConfig(steps=20, until_loss=1e9), rounds=2)
    rows = pd.concat(run(Network, problem(), met, Records(tmp_path / "met", {}), seeds=[1]))
    assert rows["stop"].tolist() == ["loss", "loss"]
    assert np.isfinite(rows.drop(columns="stop").to_numpy(float)).all()
    wild = NetworkChainSpec(TrainingConfig(optimiser=optax.sgd(1e20), steps=20), rounds=3)
    rows = pd.concat(run(Network, problem(), wild, Records(tmp_path / "wild", {}), seeds=[1]))
    assert rows["stop"].tolist() == ["diverged"] * 3
    assert rows["steps"].tolist()[1:] == [0, 0]


def test_other_settings_other_states_and_fewer_rounds_none(undisturbed):
    names = [
        chain.folder_name([3, 5])
        for chain in (
            CHAIN,
            NetworkChainSpec(TrainingConfig(steps=STEPS), 3),
            dataclasses.replace(CHAIN, penalty=1.0),
        )
    ]
    assert len({*names, CHAIN.folder_name([3])}) == 4
    assert (
        CHAIN.folder_name([3, 5])
        == names[0]
        == dataclasses.replace(CHAIN, rounds=9).folder_name([3, 5])
    )
    assert len(CHAIN.folder_name(range(1000))) == 16
    fewer = dataclasses.replace(CHAIN, rounds=2)
    assert (
        list(run(Network, problem(), fewer, Records(undisturbed, {"test": 1}), seeds=[3, 5])) == []
    )
    assert not list(undisturbed.glob("checkpoints/*"))


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": "warm"}, "targets must be 'soft' or 'hard'"),
        ({"ground_truth_weight": 7}, "ground_truth_weight must lie between 0 and 1"),
        ({"measure_every": 0}, "measure_every must be at least 1"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"penalty": -1.0}, "penalty must be a number, at least 0"),
        ({"training": TrainingConfig(batch_size=101)}, "batch_size must be at most 100"),
    ],
)
def test_bad_input(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        next(
            run(
                Network,
                problem(),
                dataclasses.replace(CHAIN, **change),
                Records(tmp_path, {}),
                seeds=[1],
            )
        )


def test_checkpoints(tmp_path):
    state = {"x": jnp.arange(3.0), "key": jax.random.split(jax.random.key(1)), "n": np.int64(4)}
    saved = Checkpoints(tmp_path / "states")
    assert saved.last is None
    for n in (1, 5, 9):
        saved.save({**state, "n": np.int64(n)})
    saved.close()
    again = Checkpoints(tmp_path / "states")
    assert again.last == 2
    restored = again.restore(jax.tree.map(lambda leaf: leaf, state))
    assert restored["n"] == 9
    assert isinstance(restored["n"], np.integer | np.ndarray)
    np.testing.assert_array_equal(restored["x"], state["x"])
    np.testing.assert_array_equal(
        jax.random.key_data(restored["key"]), jax.random.key_data(state["key"])
    )
    others = [
        {**state, "x": jnp.zeros(4)},
        {**state, "x": jnp.zeros(3, jnp.float32)},
        {**state, "z": jnp.zeros(2)},
    ]
    for other in others:
        with pytest.raises(ValueError, match="holds the state of other work"):
            again.restore(other)
    again.close(delete=True)
    assert not (tmp_path / "states").exists()


def test_states_of_another_version_are_refused_with_a_message(tmp_path):
    """In the folder of these settings, but not what this version would write."""
    Records(tmp_path, {"test": 1}).keep_configuration()
    states = Checkpoints(tmp_path / "checkpoints" / CHAIN.folder_name([3]))
    states.save({"round": np.int64(0), "best": jnp.zeros((2, 6))})
    states.close()
    with pytest.raises(ValueError, match="holds the state of other work, or is damaged; choose"):
        go(tmp_path)
