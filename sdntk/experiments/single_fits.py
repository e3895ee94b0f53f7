"""Does distillation beat one good fit? Chains beside single fits, of the tables of both."""

import pandas as pd

from sdntk.experiments.kernel_tables import Level, level_of


def compare_with_single_fits(rounds: pd.DataFrame, single_fits: pd.DataFrame) -> pd.DataFrame:
    """Does distillation beat one good fit? For each seed and chain, both chosen by held-out
    accuracy, judged on test images.

    Columns: ``first_round`` and ``best_round`` (test accuracies of round 0 and of the round that
    was chosen), ``round`` (which), ``single_fit`` (test accuracy of the single fit that was
    chosen), ``single_tolerance`` (which), ``gain`` (best_round - single_fit), and the same by
    hindsight, chosen on the test images: ``hindsight_best_round``, ``hindsight_single_fit``. The
    smaller tolerance, and the earlier round, wins a tie. In the row of tolerance "chosen" the
    chain's tolerance, too, is chosen on the held-out images. Without held-out images all is chosen
    by hindsight, on the test images. Chains of a fixed multiplier have multipliers in place of
    tolerances.
    """
    judge, level = chosen_by(rounds), level_of(rounds)
    rows = []
    for seed, chains in rounds[rounds["seed"].isin(single_fits["seed"])].groupby("seed"):
        singles = single_fits[single_fits["seed"] == seed]
        named = [(f"{value:g}", chain) for value, chain in chains.groupby(level)]
        named.append(("chosen", chains.sort_values([level, "round"])))
        for name, chain in named:
            comparison = _best_of_both(chain, singles, judge, level)
            rows.append({"seed": seed, level: name, **comparison})
    return pd.DataFrame(rows)


def _best_of_both(
    chain: pd.DataFrame, singles: pd.DataFrame, judge: str, level: Level
) -> dict[str, float]:
    """The best round and the best single fit of one seed, by the column ``judge``."""
    best = chain.loc[chain[judge].idxmax()]
    single = singles.loc[singles[judge].idxmax()]
    is_start = (chain["round"] == 0) & (chain[level] == best[level])
    return {
        "first_round": chain.loc[is_start, "test_accuracy"].iloc[0],
        "best_round": best["test_accuracy"],
        "round": int(best["round"]),
        "single_fit": single["test_accuracy"],
        f"single_{level}": single[level],
        "gain": best["test_accuracy"] - single["test_accuracy"],
        "hindsight_best_round": chain["test_accuracy"].max(),
        "hindsight_single_fit": singles["test_accuracy"].max(),
    }


def chosen_by(table: pd.DataFrame) -> str:
    """The column that rounds and tolerances are chosen by: accuracy on held-out images where there
    are any.
    """
    return "held_out_accuracy" if table["held_out_accuracy"].notna().any() else "test_accuracy"
