"""The study's grid and its tables (benchmarks/study.py).

Must hold: every run has a name of its own, and the kernel's chains are run once for the same
labels; a row of `chains` says what the course of its chain is; the tables of finished runs hold
their records' rows, and those kept before of other runs; there is a figure of each kind.
"""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from experiments.test_network_study import STUDY

from benchmarks import study, study_figures, study_tables


def test_every_run_has_a_name_and_labels_their_kernel():
    runs = [*study.studies()]
    assert len({study.name_of(run) for run in runs}) == len(runs) == 24
    with_kernel = [(r.dataset, r.noise_rate) for r in runs if study.takes_the_kernel(r)]
    assert sorted(with_kernel) == sorted({(r.dataset, r.noise_rate) for r in runs})


def test_a_chain_in_a_row():
    """Two seeds: one best in round 1, one in its last round, near chance in between; and a chain
    that collapses in round 2.
    """
    courses = {
        (1e-3, 0): [0.1, 0.8, 0.7, 0.6],
        (1e-3, 1): [0.1, 0.6, 0.7, 0.8],
        (1e-2, 0): [0.9, 0.5, 0.1, 0.1],
        (1e-2, 1): [0.7, 0.3, 0.14, 0.1],
    }
    rounds = pd.DataFrame(
        {"weight_decay": decay, "seed": seed, "round": t, "test_accuracy": value}
        for (decay, seed), course in courses.items()
        for t, value in enumerate(course)
    )
    comparison = pd.DataFrame(
        {
            "weight_decay": [1e-3, 1e-3, 1e-2],
            "rival": ["round 0", "single network", "round 0"],
            "chosen_round": [1.5, 1.0, 0.0],
            "test_accuracy": [0.75, 0.7, 0.8],
            "rival_accuracy": [0.1, 0.65, 0.8],
            "difference": [0.65, 0.05, 0.0],
            "standard_error": [0.01, 0.02, 0.0],
            "verdict": ["better", "better", "no evidence"],
        }
    )
    weak, strong = study_tables.summary(rounds, comparison, chance=0.1).to_dict("records")
    assert (weak["first"], weak["highest"], weak["highest_round"]) == (0.1, 0.7, 1)
    assert weak["seeds"] == strong["seeds"] == 2
    assert (weak["best_round"], weak["best_round_error"], weak["censored"]) == (2, 1, 1)
    assert np.isnan(weak["collapsed_round"])
    assert strong["collapsed_round"] == 2
    assert (weak["chosen"], weak["over_single_network_verdict"]) == (0.75, "better")
    assert strong["over_round_0"] == 0


@pytest.mark.slow
def test_tables_and_figures_of_finished_runs(tmp_path):
    runs = [
        STUDY,
        dataclasses.replace(STUDY, steps=10),
        dataclasses.replace(STUDY, targets="hard"),
    ]
    folders = [tmp_path / study.name_of(run) for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        study.run(run, folder)
    order = [folder.name for folder in folders]
    study_tables.gather(folders[::2], tmp_path / "kept", order)
    before = pd.read_csv(tmp_path / "kept" / "comparison.csv")
    shutil.rmtree(folders[0])  # kept, hence no longer needed
    tables = study_tables.gather(folders[1:], tmp_path / "kept", order)
    after = pd.read_csv(tmp_path / "kept" / "comparison.csv")
    others = after[after["steps"] == 25].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, before)
    written = pd.read_csv(tmp_path / "kept" / "rounds.csv")
    assert len(written) == 3 * 2 * 2 * 3  # runs, weight decays, seeds, rounds
    own = pd.read_parquet(folders[2] / "rounds.parquet")
    of_run = written[written["targets"] == "hard"]
    np.testing.assert_allclose(of_run["test_accuracy"], own["test_accuracy"], atol=6e-5)
    configurations = json.loads((tmp_path / "kept" / "config.json").read_text())
    assert [one["configuration"]["steps"] for one in configurations.values()] == [25, 10, 25]
    figures = study_figures.plot(tables)
    assert figures.keys() == {"rounds", "rounds_fewer_steps", "best_rounds", "losses_and_targets"}
    for figure in figures.values():
        assert all(ax.get_xlabel() or ax.get_ylabel() or ax.get_title() for ax in figure.axes)
