"""Chains beside their rivals.

Must hold: intervals are those of SciPy's t test; a choice never sees test images; each seed chooses
for itself; "no evidence" is said exactly where the interval holds 0.
"""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from sdntk.experiments.network_classification import COLUMNS, columns_with
from sdntk.experiments.network_study import NetworkStudy
from sdntk.experiments.paired import compare_chains, paired
from sdntk.experiments.records import Records
from sdntk.experiments.rivals import ENSEMBLE, SINGLE
from sdntk.reports import network_study as report

accuracies = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


@given(st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=12))
def test_the_interval_is_that_of_the_t_test(pairs):
    ours, theirs = (pd.Series(side) for side in zip(*pairs, strict=True))
    result = paired(ours, theirs)
    differences = (ours - theirs).to_numpy()
    assert result.difference == pytest.approx(differences.mean(), abs=1e-12)
    if np.ptp(differences) < 1e-12:
        assert result.low == pytest.approx(result.high)
        return
    truth = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((truth.low, truth.high))
    assert result.standard_error == pytest.approx(scipy.stats.sem(differences))
    holds_zero = truth.low <= 0 <= truth.high
    assert (result.verdict == "no evidence") == holds_zero
    if not holds_zero:
        assert result.verdict == ("better" if differences.mean() > 0 else "worse")


def test_one_pair_is_no_evidence():
    result = paired(pd.Series([0.9]), pd.Series([0.1]))
    assert result.difference == pytest.approx(0.8)
    assert result.verdict == "no evidence"
    assert np.isnan([result.standard_error, result.low, result.high]).all()


def rounds_of(decay, seed, held_out, test, stop="steps"):
    rows = pd.DataFrame({"held_out_accuracy": held_out, "test_accuracy": test})
    rows = rows.assign(weight_decay=decay, seed=seed, round=range(len(rows)), stop=stop)
    columns = columns_with({"weight_decay": 0.0}, COLUMNS)
    numbers = {name: 0 for name in columns if name not in rows}
    return rows.assign(**numbers)[[*columns]].astype(columns)


def records_of(folder, rounds, single, ensembles):
    records = Records(folder, {"test": 1})
    records.put("rounds", pd.concat(rounds, ignore_index=True))
    for name, columns, rows in (
        ("single_networks", SINGLE, single),
        ("ensembles", ENSEMBLE, ensembles),
    ):
        table = pd.DataFrame(rows)
        for column in columns:
            if column not in table:
                table[column] = 0
        records.put(name, table[[*columns]].astype(columns))
    return records


def single(decay, seed, step, held_out, test):
    return {
        "weight_decay": decay,
        "seed": seed,
        "step": step,
        "held_out_accuracy": held_out,
        "test_accuracy": test,
    }


def ensemble(seed, networks, test):
    return {
        "weight_decay": 0.1,
        "seed": seed,
        "networks": networks,
        "held_out_accuracy": test,
        "test_accuracy": test,
    }


@pytest.fixture
def comparison(tmp_path):
    """Two decays, 0.1 and 0.5, of three seeds, the last of which diverged with 0.5."""
    rounds = [
        rounds_of(0.1, 0, [0.2, 0.4, 0.3], [0.5, 0.6, 0.9]),  # round 1 is chosen
        rounds_of(0.1, 1, [0.2, 0.2, 0.2], [0.4, 0.8, 0.8]),  # round 0: the first of equal ones
        rounds_of(0.1, 2, [0.1, 0.2, 0.5], [0.5, 0.6, 0.7]),  # round 2
        rounds_of(0.5, 0, [0.9, 0.1, 0.1], [0.3, 0.2, 0.1]),
        rounds_of(0.5, 1, [0.1, 0.1, 0.1], [0.3, 0.2, 0.1]),
        rounds_of(0.5, 2, [1.0, 1.0, 1.0], [0.3, 0.2, 0.1], stop="diverged"),
    ]
    networks = [
        single(0.0, seed, step, held_out, test)
        for seed in range(3)
        for step, held_out, test in ((10, 0.3, 0.75), (20, 0.2, 0.99))
    ]
    ensembles = [ensemble(seed, n, 0.1 * n) for seed in range(3) for n in (1, 2, 3)]
    table = compare_chains(records_of(tmp_path, rounds, networks, ensembles))
    return table.set_index(["weight_decay", "rival"])


def test_each_seed_chooses_by_held_out_images(comparison):
    row = comparison.loc[(0.1, "single network")]
    assert row["chosen_round"] == pytest.approx((1 + 0 + 2) / 3)
    assert row["test_accuracy"] == pytest.approx((0.6 + 0.4 + 0.7) / 3)
    assert row["rival_accuracy"] == pytest.approx(0.75)  # not .99, which only test images show
    row = comparison.loc[(0.1, "round 0")]
    assert row["difference"] == pytest.approx(((0.6 - 0.5) + 0 + (0.7 - 0.5)) / 3)


def test_the_ensemble_is_the_whole_one_at_its_own_decay(comparison):
    assert comparison.loc[(0.1, "ensemble")]["rival_accuracy"] == pytest.approx(0.3)
    others = comparison[comparison.index.get_level_values("weight_decay") != 0.1]
    assert "ensemble" not in others.index.get_level_values("rival")


def test_chains_that_diverged_are_left_out(comparison):
    assert comparison.loc[(0.5, "round 0")]["seeds"] == 2
    assert comparison.loc[(0.5, "single network")]["test_accuracy"] == pytest.approx(0.3)


def test_where_every_chain_diverged_there_is_nothing_to_compare(tmp_path):
    rounds = [rounds_of(0.1, 0, [0.2, 0.4], [0.5, 0.6], stop="diverged")]
    networks = [single(0.0, 0, 10, 0.3, 0.75)]
    records = records_of(tmp_path, rounds, networks, [ensemble(0, 1, 0.1)])
    table = compare_chains(records)
    assert table.empty
    assert "rival" in table
    records.put("comparison", table)
    study = NetworkStudy("digits", rounds=2, seeds=1, weight_decays=(0.1,))
    assert report.plot(records, study) == {}
    assert report.verdict(records) == "Every chain diverged."
    assert report.comparison_table(records).row_count == 0


def test_the_weight_decay_is_chosen_too(comparison):
    chosen = comparison[comparison.index.get_level_values("weight_decay").isna()]
    row = chosen.xs("single network", level="rival").iloc[0]
    # Seed 0 chooses decay 0.5 and its round 0; the others 0.1 with rounds 0 and 2.
    assert row["test_accuracy"] == pytest.approx((0.3 + 0.4 + 0.7) / 3)
    assert row["seeds"] == 3
