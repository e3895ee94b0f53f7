"""Where the best round lies, against the weight decay: the theory says earlier, and lower above
round 0, the stronger a round's own regularisation is.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

#: An accuracy so near chance counts as chance.
NEAR_CHANCE = 0.05


def collapsed_round(course: pd.Series, chance: float) -> int | None:
    """The first round from which on the accuracy stays within :data:`NEAR_CHANCE` of chance; None
    where it ends above.

    Args:
        course: accuracies, by round.
        chance: the accuracy of guessing.
    """
    above = course.index[course > chance + NEAR_CHANCE]
    later = course.index if above.empty else course.index[course.index > above[-1]]
    return int(later[0]) if len(later) else None


def best_rounds(rounds: pd.DataFrame) -> pd.DataFrame:
    """The round with the highest test accuracy, the first of equal ones, of each chain.

    Args:
        rounds: the table ``rounds`` of a study.

    Returns:
        A row for each weight decay and seed: weight_decay, seed, best_round, accuracy, first (round
        0's accuracy), and censored, whether it is the chain's last round: a longer chain might have
        had a later one.
    """
    keys = ["weight_decay", "seed"]
    rounds = rounds.sort_values([*keys, "round"])
    best = rounds.loc[rounds.groupby(keys)["test_accuracy"].idxmax()].set_index(keys)
    chains = rounds.groupby(keys)
    return pd.DataFrame(
        {
            "best_round": best["round"],
            "accuracy": best["test_accuracy"],
            "first": chains["test_accuracy"].first(),
            "censored": best["round"] == chains["round"].last(),
        }
    ).reset_index()


def sentence(rounds: pd.DataFrame) -> str:
    """Whether the best round comes earlier as the weight decay grows."""
    best = best_rounds(rounds)
    of_decay = best.groupby("weight_decay")
    means, censored = of_decay["best_round"].mean(), of_decay["censored"].sum()
    steps = np.diff(means)
    says = "comes earlier as the weight decay grows"
    if not (steps <= 0).all():
        says = f"comes earlier in {(steps < 0).sum()} of {len(steps)} steps of the weight decay"
    if (steps == 0).all():
        says = "does not move with the weight decay"
    where = ", ".join(f"{means[decay]:.1f} at {decay:g}" for decay in means.index)
    ends = ""
    if censored.sum():
        ends = (
            f" In {censored.sum()} of {len(best)} chains it is the last one, so that it may lie "
            "later still."
        )
    return f"The best round {says} (mean over seeds): {where}.{ends}"


def plot(rounds: pd.DataFrame) -> Figure:
    """The best round, and what it reaches, against the weight decay: means with standard errors,
    and each seed.
    """
    best = best_rounds(rounds)
    decays = sorted(best["weight_decay"].unique())
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.4), layout="constrained")
    _plot_where(left, best, decays)
    for column, label, colour in (
        ("first", "round 0", "C3"),
        ("accuracy", "the best round (chosen on test images)", "C0"),
    ):
        mean, error = _mean_and_error(best, column)
        right.errorbar(range(len(decays)), mean, error, label=label, color=colour, marker="o")
    right.set(ylabel="accuracy on test images")
    for ax in (left, right):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False, fontsize="small")
        ax.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        ax.set(xlabel="weight decay")
        ax.grid(alpha=0.25)
    return figure


def _plot_where(ax: Axes, best: pd.DataFrame, decays: list[float]) -> None:
    place = best["weight_decay"].map({decay: index for index, decay in enumerate(decays)})
    # Seeds beside one another.
    seeds = best["seed"].rank(method="dense")
    place = place + 0.4 * ((seeds - 0.5) / seeds.max() - 0.5)
    for censored, marker, label in (
        (False, "o", "a seed"),
        (True, "^", "a seed, best in its last round: at least so late"),
    ):
        of_kind = best["censored"] == censored
        if of_kind.any():
            best_round = best.loc[of_kind, "best_round"]
            ax.scatter(place[of_kind], best_round, 16, "0.6", marker=marker, label=label)
    mean, error = _mean_and_error(best, "best_round")
    ax.errorbar(
        range(len(decays)),
        mean,
        error,
        color="C0",
        marker="s",
        label="mean with its standard error",
    )
    ax.set(ylabel="round with the highest test accuracy")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))


def _mean_and_error(best: pd.DataFrame, column: str) -> tuple[pd.Series, pd.Series]:
    values = best.groupby("weight_decay")[column]
    return values.mean(), values.sem().fillna(0)
