"""The tables of all runs of the study, put together and kept: every round of every chain, the
kernel's, and a row for each chain that says what it did and whether it paid.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sdntk.experiments.paired import whole_chains
from sdntk.experiments.records import Records
from sdntk.reports.best_rounds import best_rounds, collapsed_round

#: What tells one run from another.
SETTING = ["dataset", "noise_rate", "steps", "loss", "targets"]
#: Columns that tell rows apart, and are written as they are.
_KEYS = [*SETTING, "weight_decay", "tolerance", "seed", "round"]
_ACCURACIES = ["train_accuracy", "noisy_train_accuracy", "held_out_accuracy", "test_accuracy"]
_ROUNDS = ["weight_decay", "seed", "round", *_ACCURACIES, "test_loss"]
_KERNEL = ["tolerance", "seed", "round", *_ACCURACIES, "active_classes"]
#: Of accuracies and losses in the tables.
_DIGITS = 4


def name_of(setting: Mapping[str, Any]) -> str:
    """Of a run's folder."""
    dataset, noise, steps, loss, targets = (setting[name] for name in SETTING)
    return f"{dataset}_{round(100 * noise)}_{steps}_{loss}_{targets}"


def gather(folders: list[Path], kept: Path, order: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Read the finished runs in these folders, and write their tables as ``kept/NAME.csv``, and all
    configurations as ``kept/config.json``. What is kept there of other runs stays, so that a study
    of hours may be extended on another day; all runs come in this order of their names.

    The tables are ``rounds`` (every round of every chain of networks), ``chains`` (see
    :func:`summary`), ``comparison`` (:func:`sdntk.experiments.paired.compare_chains`), ``kernel``
    and ``kernel_comparison`` (of the tangent kernel, for each data set and noise).
    """
    tables: dict[str, list[pd.DataFrame]] = {}
    configurations = _kept_configurations(kept)
    for folder in folders:
        records = Records.open(folder)
        text = (folder / "config.json").read_text()
        configurations[folder.name] = json.loads(text)
        for name, table in _tables_of(records).items():
            tables.setdefault(name, []).append(table)
    for path in sorted(kept.glob("*.csv")):
        table = pd.read_csv(path)
        runs = table[SETTING].apply(name_of, axis="columns")
        tables.setdefault(path.stem, []).append(table[~runs.isin([f.name for f in folders])])
    kept.mkdir(parents=True, exist_ok=True)
    joined = {name: _in_order(pd.concat(parts), order) for name, parts in tables.items()}
    for name, table in joined.items():
        measured = [column for column in table if column not in _KEYS]
        table.round(dict.fromkeys(measured, _DIGITS)).to_csv(kept / f"{name}.csv", index=False)
    configurations = {name: configurations[name] for name in order if name in configurations}
    (kept / "config.json").write_text(json.dumps(configurations, indent=1) + "\n")
    return joined


def _kept_configurations(kept: Path) -> dict[str, Any]:
    path = kept / "config.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _in_order(table: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    places = table[SETTING].apply(name_of, axis="columns").map(order.index)
    return table.iloc[places.argsort(kind="stable")].reset_index(drop=True)


def _tables_of(records: Records) -> dict[str, pd.DataFrame]:
    setting = {name: records.configuration[name] for name in SETTING}
    rounds = whole_chains(records["rounds"])
    chance = 1 / int(records.configuration["num_classes"])
    tables = {
        "rounds": rounds[_ROUNDS],
        "chains": summary(rounds, records["comparison"], chance),
        "comparison": records["comparison"],
    }
    kernel = records.folder / "kernel"
    if (kernel / "config.json").exists():
        of_kernel = Records.open(kernel)
        asked = of_kernel.configuration
        count = len(asked["seeds"]) * len(asked["tolerances"]) * asked["rounds"]
        if len(of_kernel["rounds"]) == count:  # its rows are written seed by seed
            tables["kernel"] = of_kernel["rounds"][_KERNEL]
            tables["kernel_comparison"] = of_kernel["comparison"]
    return {name: _with(table, setting) for name, table in tables.items()}


def _with(table: pd.DataFrame, setting: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({**setting, **dict(table.items())}, index=table.index)


def summary(rounds: pd.DataFrame, comparison: pd.DataFrame, chance: float) -> pd.DataFrame:
    """A row for each weight decay: means over seeds, with standard errors where ``_error`` says so.

    Columns: weight_decay; seeds (those that did not diverge, of which all else is); first, last
    (accuracy of round 0 and of the last round); highest (of the mean course) and its highest_round;
    best_round (the round that is best for each seed) and best_round_error; censored (seeds whose
    best round is their last); collapsed_round (from which on the mean course stays at chance, nan
    where it ends above); chosen_round and chosen (of the round that held-out images choose); and
    for each rival its accuracy, the difference to it and its verdict.
    """
    best = best_rounds(rounds)
    rows = []
    for decay, chain in rounds.groupby("weight_decay"):
        course = chain.groupby("round")["test_accuracy"].mean()
        own = best[best["weight_decay"] == decay]
        of_decay = comparison[comparison["weight_decay"] == decay]
        chosen = of_decay[of_decay["rival"] == "round 0"].iloc[0]
        row = {
            "weight_decay": decay,
            "seeds": len(own),
            "first": course.iloc[0],
            "last": course.iloc[-1],
            "highest": course.max(),
            "highest_round": int(course.idxmax()),
            "best_round": own["best_round"].mean(),
            "best_round_error": own["best_round"].sem(),
            "censored": int(own["censored"].sum()),
            "collapsed_round": collapsed_round(course, chance),
            "chosen_round": chosen["chosen_round"],
            "chosen": chosen["test_accuracy"],
        }
        for rival in of_decay.itertuples():
            name = str(rival.rival).replace(" ", "_")
            row |= {
                name: rival.rival_accuracy,
                f"over_{name}": rival.difference,
                f"over_{name}_error": rival.standard_error,
                f"over_{name}_verdict": rival.verdict,
            }
        rows.append(row)
    return pd.DataFrame(rows)
