"""Claim: an estimator that tunes itself costs a fraction of a grid search, and in a grid search it
costs what scikit-learn's own does.

120 fits of GridSearchCV, of ours and of KernelRidge, over the same multipliers and length scales;
and one fit that chooses among 40 tolerances and 10 rounds by itself.
"""

import time
from typing import Any

import jax
import numpy as np
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV

from benchmarks import report
from benchmarks.timing import take_turns
from sdntk import SelfDistilledRegressor

SETTINGS: dict[str, Any] = {
    "data": "300 points in R^10, sin of the first coordinate, noise 0.3",
    "grid": "6 multipliers x 4 length scales, 5 folds: 120 fits",
    "kernel": "Gaussian",
    "dtype": "float64",
    "repeats": 5,
    "goal": "seconds over those of GridSearchCV(KernelRidge), at most 3 and 1/50",
}
SIZE = 300
ALPHAS, SCALES = np.geomspace(1e-3, 1, 6), np.geomspace(1, 8, 4)
GOALS = {"GridSearchCV of ours, one round": 3.0, "one fit that tunes itself, by GCV": 0.02}


def problem() -> tuple[np.ndarray, np.ndarray]:
    """Points and labels."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SIZE, 10))
    return x, np.sin(x[:, 0]) + 0.3 * rng.normal(size=SIZE)


def searches() -> dict[str, Any]:
    """What is timed: an object with ``fit``."""
    kept = SIZE * 4 // 5  # points of a fold's fit
    ridges = {"alpha": ALPHAS, "gamma": 1 / (2 * SCALES**2)}
    ours = {"multiplier": ALPHAS / kept, "length_scale": SCALES}
    rounds = {"tolerance": np.linspace(0.1, 0.6, 6), "length_scale": SCALES}
    return {
        "GridSearchCV(KernelRidge)": GridSearchCV(KernelRidge(kernel="rbf"), ridges, cv=5),
        "GridSearchCV of ours, one round": GridSearchCV(
            SelfDistilledRegressor(rounds=1, center=False), ours, cv=5
        ),
        "GridSearchCV of ours, three rounds to a tolerance": GridSearchCV(
            SelfDistilledRegressor(rounds=3), rounds, cv=5
        ),
        "one fit that tunes itself, by GCV": SelfDistilledRegressor(criterion="gcv"),
        "one fit that tunes itself, by ten folds": SelfDistilledRegressor(),
        "the same, with 5 length scales": SelfDistilledRegressor(length_scale="auto"),
    }


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Run, print, and keep table and JSON; ``quick`` takes each once."""
    x, y = problem()
    timed = searches()
    first = {}
    jax.clear_caches()
    for name, search in timed.items():  # with what is compiled for it
        start = time.perf_counter()
        search.fit(x, y)
        first[name] = time.perf_counter() - start
    theirs, ours = (timed[name].best_params_ for name in list(timed)[:2])
    kept = SIZE * 4 // 5
    if not np.isclose(theirs["alpha"], kept * ours["multiplier"]) or not np.isclose(
        theirs["gamma"], 1 / (2 * ours["length_scale"] ** 2)
    ):
        raise AssertionError(f"KernelRidge chose {theirs}, ours {ours}")

    def fit(search: Any) -> Any:
        return lambda: search.fit(x, y) and None

    repeats = 1 if quick else SETTINGS["repeats"]
    timings = take_turns({name: fit(search) for name, search in timed.items()}, repeats)
    reference = timings["GridSearchCV(KernelRidge)"].median
    rows = [
        {
            "K": SIZE,
            "what": name,
            "first call, s": first[name],
            "seconds (median)": timing.median,
            "fastest .. slowest, s": "{:.3g} .. {:.3g}".format(*timing.spread),
            "seconds over KernelRidge's grid": timing.median / reference,
            "goal": GOALS.get(name, ""),
        }
        for name, timing in timings.items()
    ]
    title = "Seconds of a grid search, and of one fit that tunes itself"
    report.write(report.record_name("estimators", quick=quick), title, SETTINGS, rows)
    return rows
