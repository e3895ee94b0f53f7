"""The tables of the study of choices, and its figure: test errors as ratios to the reference."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.stats
from matplotlib.figure import Figure

from benchmarks import report
from benchmarks.choices import REFERENCE
from sdntk.experiments.paired import CONFIDENCE
from sdntk.experiments.records import Records

#: What tells one setting from another.
SETTING = ["dataset", "kernel", "train", "noise_rate"]
#: The figure's panels: what they say, and whose settings they show.
_PANELS = {
    "150 points": "kernel == 'matern' and train == 150",
    "200 to 600 points": "kernel != 'ntk' and train > 150",
    "Images, 600, 0 to 40% wrong labels": "kernel == 'ntk'",
}
#: Ratios beyond these are drawn at the edge.
_EDGES = (0.85, 1.35)


def read(folders: list[Path]) -> pd.DataFrame:
    """Every split of every run. The error of images is the share of wrong classes, of tables the
    mean squared error.
    """
    tables = []
    for folder in folders:
        records = Records.open(folder)
        setting = {name: records.configuration[name] for name in ("dataset", "kernel", "train")}
        tables.append(records["splits"].assign(**setting))
    splits = pd.concat(tables, ignore_index=True)
    splits["error"] = splits["wrong"].fillna(splits["squared_error"])
    return splits


def wide(splits: pd.DataFrame) -> pd.DataFrame:
    """A row for each split, a column for each rule."""
    table = splits.pivot(index=[*SETTING, "seed"], columns="rule", values="error")
    return table[list(dict.fromkeys(splits["rule"]))].reset_index()


def ratios(splits: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """A row for each setting and rule: the geometric mean over splits of its error over that of the
    reference, with a 95% interval (of Student's t, of the logarithms).

    Columns: those of the setting, rule, splits, error (mean), ratio, low, high, verdict.
    """
    rows = []
    for setting, group in splits.groupby(SETTING, sort=False):
        errors = group.pivot(index="seed", columns="rule", values="error")
        for rule in dict.fromkeys(group["rule"]):
            if rule == reference:
                continue
            logs = np.log(errors[rule] / errors[reference]).dropna()
            count, mean = len(logs), float(logs.mean())
            reach = float(logs.sem() * scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
            low, high = np.exp(mean - reach), np.exp(mean + reach)
            verdict = "better" if high < 1 else "worse" if low > 1 else "no evidence"
            row = dict(zip(SETTING, setting, strict=True))
            row |= {"rule": rule, "splits": count, "error": errors[rule].mean()}
            rows.append(row | {"ratio": np.exp(mean), "low": low, "high": high, "verdict": verdict})
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each rule: in how many settings it is better and worse, the geometric mean of its
    ratios, and the smallest and the largest of them.
    """
    rows = []
    for rule, group in table.groupby("rule", sort=False):
        worst = group.loc[group["ratio"].idxmax()]
        rows.append(
            {
                "rule": rule,
                "settings": len(group),
                "better": int((group["verdict"] == "better").sum()),
                "worse": int((group["verdict"] == "worse").sum()),
                "mean ratio": float(np.exp(np.log(group["ratio"]).mean())),
                "smallest": group["ratio"].min(),
                "largest": worst["ratio"],
                "largest at": f"{worst['dataset']}, {worst['train']}, {worst['kernel']}, "
                f"{worst['noise_rate']:.0%} noise",
            }
        )
    return pd.DataFrame(rows)


def keep(splits: pd.DataFrame, folders: list[Path], kept: Path, reference: str) -> pd.DataFrame:
    """Write every split's errors, their ratios, a summary and the runs' configurations; the ratios.

    Args:
        splits: of all runs.
        folders: of the runs.
        kept: the folder that is written to.
        reference: the rule with which all others are compared.
    """
    table = ratios(splits, reference)
    kept.mkdir(parents=True, exist_ok=True)
    wide(splits).to_csv(kept / "splits.csv", index=False, float_format="%.5g")
    table.round(4).to_csv(kept / "ratios.csv", index=False)
    summary(table).round(4).to_csv(kept / "summary.csv", index=False)
    configurations = {f.name: json.loads((f / "config.json").read_text()) for f in folders}
    (kept / "config.json").write_text(json.dumps(configurations, indent=1) + "\n")
    report.show(f"Test error over that of {reference}", summary(table).to_dict("records"))
    return table


def plot(table: pd.DataFrame) -> Figure:
    """Every rule's ratio in every setting, with its interval."""
    rules = list(dict.fromkeys(table["rule"]))
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(14, 8), sharey=True)
    for ax, (title, which) in zip(axes, _PANELS.items(), strict=True):
        shown = table.query(which)
        names = shown[["dataset", "kernel", "noise_rate"]].drop_duplicates().reset_index(drop=True)
        colours = plt.get_cmap("tab20")(np.linspace(0, 1, 20))
        for number, one in enumerate(names.itertuples()):
            of = shown[(shown[list(names)] == list(one)[1:]).all(axis=1)].set_index("rule")
            height = np.arange(len(rules)) + 0.7 * ((number + 0.5) / len(names) - 0.5)
            ratio, low, high = (
                of[c].reindex(rules).clip(*_EDGES) for c in ("ratio", "low", "high")
            )
            ax.errorbar(
                ratio,
                height,
                xerr=[ratio - low, high - ratio],
                fmt="o",
                markersize=3,
                linewidth=1,
                color=colours[number % 20],
                label=_label(one.dataset, one.kernel, one.noise_rate),
            )
        ax.axvline(1, color="black", linewidth=0.8)
        label = f"test error / {REFERENCE} (edges: or beyond)"
        ax.set(xscale="log", xlim=_EDGES, title=title, xlabel=label)
        ticks = [0.9, 1, 1.1, 1.2, 1.3]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.grid(axis="x", alpha=0.3)
        if len(names):
            ax.legend(fontsize=7, loc="upper right")
    axes[0].set_yticks(np.arange(len(rules)), rules)
    axes[0].invert_yaxis()
    for ax in axes:
        for edge in np.arange(len(rules) - 1) + 0.5:
            ax.axhline(edge, color="grey", linewidth=0.3)
    figure.tight_layout()
    return figure


def _label(dataset: str, kernel: str, noise: float) -> str:
    return f"{dataset}, {noise:.0%} noise" if kernel == "ntk" else dataset
