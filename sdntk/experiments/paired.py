"""Chains of networks beside their rivals, paired over seeds: a mean difference with its interval.

All choices are made by held-out accuracy, each seed its own, and judged by test accuracy. The pairs
share images and wrong labels.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from sdntk.experiments.network_classification import COLUMNS, columns_with
from sdntk.experiments.records import Records
from sdntk.experiments.rivals import ENSEMBLE, SINGLE
from sdntk.training.state import Stop

#: Of the intervals.
CONFIDENCE = 0.95
_KEYS = ["weight_decay", "seed"]
_COLUMNS = [
    *["weight_decay", "rival", "seeds", "chosen_round", "test_accuracy", "rival_accuracy"],
    *["difference", "standard_error", "low", "high", "verdict"],
]


class Paired(NamedTuple):
    """A mean difference over pairs.

    Attributes:
        difference: the mean.
        standard_error: of the mean; nan for one pair.
        low, high: the 95% interval by Student's t; nan for one pair.
    """

    difference: float
    standard_error: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether ours is "better" or "worse"; "no evidence" where the interval holds 0."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no evidence"


def paired(ours: pd.Series, theirs: pd.Series) -> Paired:
    """The difference, ours less theirs, over the same seeds.

    Example:
        >>> result = paired(pd.Series([0.8, 0.9, 0.85]), pd.Series([0.7, 0.8, 0.76]))
        >>> round(result.difference, 4), result.verdict
        (0.0967, 'better')
    """
    differences = ours.to_numpy(float) - theirs.to_numpy(float)
    mean, count = float(differences.mean()), len(differences)
    if count == 1:
        return Paired(mean, np.nan, np.nan, np.nan)
    error = float(differences.std(ddof=1) / np.sqrt(count))
    reach = error * float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return Paired(mean, error, mean - reach, mean + reach)


def compare_chains(records: Records) -> pd.DataFrame:
    """The round that held-out accuracy chose, of each weight decay, against its rivals.

    * "round 0" of the same chain;
    * "single network", its weight decay and steps chosen from the table ``single_networks``;
    * "ensemble", of as many networks as the chain trained, where there is one
      of this weight decay.

    In the rows of weight decay nan, where there are several, the chain's weight decay, too, is
    chosen on held-out images.
    Columns: weight_decay, rival, seeds, chosen_round (the mean), test_accuracy, rival_accuracy
    (means), difference, standard_error, low, high, verdict. Chains that diverged are left out.
    """
    rounds = records.read("rounds", columns_with({"weight_decay": 0.0}, COLUMNS))
    rounds = whole_chains(rounds)
    single = records.read("single_networks", SINGLE)
    ensembles = records.read("ensembles", ENSEMBLE)
    whole = ensembles[ensembles["networks"] == ensembles["networks"].max()]
    chains = [*rounds.groupby("weight_decay")]
    if len(chains) > 1:
        chains.append((np.nan, rounds))
    rows = []
    for decay, chain in chains:
        chosen = _chosen(chain)
        first = _chosen(chain[chain["round"] == 0])
        rivals = {"round 0": first, "single network": _chosen(single)}
        of_decay = whole[whole["weight_decay"] == decay]
        if len(of_decay):
            rivals["ensemble"] = of_decay.set_index("seed")
        for name, rival in rivals.items():
            seeds = chosen.index.intersection(rival.index)
            if len(seeds):
                ours, theirs = (t.loc[seeds, "test_accuracy"] for t in (chosen, rival))
                result = paired(ours, theirs)
                rows.append(
                    {
                        "weight_decay": decay,
                        "rival": name,
                        "seeds": len(seeds),
                        "chosen_round": chosen.loc[seeds, "round"].mean(),
                        "test_accuracy": ours.mean(),
                        "rival_accuracy": theirs.mean(),
                        **result._asdict(),
                        "verdict": result.verdict,
                    }
                )
    return pd.DataFrame(rows, columns=_COLUMNS)


def whole_chains(rounds: pd.DataFrame) -> pd.DataFrame:
    """The rows of the chains that did not diverge."""
    chains = pd.MultiIndex.from_frame(rounds[_KEYS])
    return rounds[~chains.isin(chains[rounds["stop"] == Stop.DIVERGED.name.lower()])]


def _chosen(table: pd.DataFrame) -> pd.DataFrame:
    """Each seed's row with the highest held-out accuracy, the first of equal ones, by seed."""
    best = table.groupby("seed")["held_out_accuracy"].idxmax()
    return table.loc[best].set_index("seed")
