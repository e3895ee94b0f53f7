"""The best round against the weight decay.

Must hold: each chain's first best round; those at the chain's end are marked; the sentence says
"earlier" exactly where the means never rise.
"""

import numpy as np
import pandas as pd
import pytest

from sdntk.reports.best_rounds import best_rounds, plot, sentence


def rounds(accuracies):
    """Of each weight decay and seed, the test accuracies round by round."""
    rows = [
        {"weight_decay": decay, "seed": seed, "round": t, "test_accuracy": accuracy}
        for decay, seeds in accuracies.items()
        for seed, chain in enumerate(seeds)
        for t, accuracy in enumerate(chain)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)  # in no order


EARLIER = {
    0.1: [[0.1, 0.2, 0.3, 0.4], [0.2, 0.5, 0.5, 0.1]],  # rounds 3, the last, and 1
    0.5: [[0.3, 0.6, 0.2, 0.1], [0.3, 0.6, 0.6, 0.5]],  # 1, 1
    2.0: [[0.7, 0.6, 0.2, 0.1], [0.8, 0.6, 0.6, 0.5]],  # 0, 0
}


def test_the_best_round_of_each_chain():
    best = best_rounds(rounds(EARLIER))
    assert best["best_round"].tolist() == [3, 1, 1, 1, 0, 0]
    assert best["censored"].tolist() == [True] + 5 * [False]
    np.testing.assert_allclose(best["accuracy"], [0.4, 0.5, 0.6, 0.6, 0.7, 0.8])
    np.testing.assert_allclose(best["first"], [0.1, 0.2, 0.3, 0.3, 0.7, 0.8])


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ((0.1, 0.5, 2.0), "comes earlier as the weight decay grows"),
        ((2.0, 0.5, 0.1), "comes earlier in 0 of 2 steps"),
        ((0.1, 2.0, 0.5), "comes earlier in 1 of 2 steps"),
        ((0.5, 0.5, 0.5), "does not move"),
    ],
)
def test_the_sentence(order, says):
    chains = dict(zip((1.0, 2.0, 3.0), (EARLIER[key] for key in order), strict=True))
    said = sentence(rounds(chains))
    assert said.startswith(f"The best round {says}")
    assert ("In 1 of 6 chains it is the last one" in said) == (0.1 in order)


def test_the_figure_marks_what_is_censored():
    figure = plot(rounds(EARLIER))
    left, right = figure.axes
    assert [text.get_text() for text in left.get_xticklabels()] == ["0.1", "0.5", "2"]
    assert len(left.get_legend().get_texts()) == 3
    assert left.get_xlabel() == right.get_xlabel() == "weight decay"
    assert left.get_ylabel()
    assert right.get_ylabel()
    uncensored = {decay: [chain[:1] * 4 for chain in seeds] for decay, seeds in EARLIER.items()}
    assert len(plot(rounds(uncensored)).axes[0].get_legend().get_texts()) == 2
