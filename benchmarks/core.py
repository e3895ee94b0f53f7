"""Claim: on a decomposed Gram matrix, self-distillation is almost free; refitting round by round
costs several eigh.

Everything is divided by one ``jnp.linalg.eigh`` of the same matrix, timed in the same process. The
baseline is what a user writes today: per round a scalar root finder over the multiplier, and a
scikit-learn KernelRidge fit per evaluation.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from rich.progress import track
from scipy.optimize import brentq
from sklearn.kernel_ridge import KernelRidge

import sdntk
from benchmarks import report
from benchmarks.timing import Timing, measure
from sdntk.theory.recurrence import ChainSpec, run_chain

SIZES = (500, 1000, 2000, 4000)
#: Dimension of the points, noise of the labels, tolerance and many-draws tolerance relative to
#: ||y||^2/K.
SETTINGS: dict[str, Any] = {
    "dimension": 5,
    "noise": 0.3,
    "kernel": "Matern-3/2, length scale 1",
    "tolerance": 1e-5,  # low enough for 100 rounds before collapse
    "tolerance_draws": 1e-2,
    "rounds": 100,
    "draws": 1000,
    "rounds_draws": 10,
    "rounds_baseline": 10,
    "seed": 0,
}
#: Goals at K = 2000, as fractions of one eigh.
GOALS = {
    "100 rounds": 0.01,
    "100 rounds, labels mapped back": 0.04,
    "1000 draws x 10 rounds, rotated": 0.30,
}


def problem(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, labels, and a thousand other draws of the labels' noise."""
    rng = np.random.default_rng(SETTINGS["seed"])
    x = rng.normal(size=(size, SETTINGS["dimension"]))
    clean = np.sin(x).sum(axis=1)
    noise = SETTINGS["noise"] * rng.normal(size=(size, 1 + SETTINGS["draws"]))
    return x, clean + noise[:, 0], clean[:, None] + noise[:, 1:]


def refit_per_round(
    gram: np.ndarray, y: np.ndarray, tolerance: float, rounds: int
) -> tuple[list[float], int]:
    """What a user writes today. Returns the multipliers and the number of KernelRidge fits."""
    multipliers: list[float] = []
    fits = 0

    def fit(log_c: float, targets: np.ndarray) -> np.ndarray:
        nonlocal fits
        fits += 1
        return (
            KernelRidge(alpha=np.exp(log_c), kernel="precomputed").fit(gram, targets).predict(gram)
        )

    def excess(log_c: float, targets: np.ndarray) -> float:
        return float(np.mean((fit(log_c, targets) - targets) ** 2)) - tolerance

    targets, scale = y, np.log(np.trace(gram))  # d_max is at most the trace
    for _ in range(rounds):
        if np.mean(targets**2) <= tolerance:
            break
        root = brentq(excess, scale - 18, scale + 5, args=(targets,), xtol=1e-6)
        targets = fit(root, targets)
        multipliers.append(float(np.exp(root)))
    return multipliers, fits


def time_size(size: int, *, repeats: int, baseline: bool) -> list[dict[str, Any]]:
    """All rows for one K."""
    x, y, draws = problem(size)
    gram = jax.block_until_ready(sdntk.gram(sdntk.kernels.matern(1.5, 1.0), x))
    eigh_repeats = repeats if size <= 2000 else 2
    eigh = measure(partial(jax.jit(jnp.linalg.eigh), gram), repeats=eigh_repeats)
    spectrum = sdntk.decompose(gram)
    d, scale = spectrum.eigenvalues, float(np.mean(y**2))
    z, z_draws = spectrum.rotate(jnp.asarray(y)), spectrum.rotate(jnp.asarray(draws))
    rounds, rounds_draws = SETTINGS["rounds"], SETTINGS["rounds_draws"]
    eps = jnp.asarray(SETTINGS["tolerance"] * scale)
    eps_draws = jnp.full(draws.shape[1], SETTINGS["tolerance_draws"] * scale)
    alpha = jnp.asarray(0.0)
    run = jax.jit(run_chain)
    chain = ChainSpec(jnp.sqrt(size * eps), None, alpha, rounds, joint=False)
    chain_draws = ChainSpec(jnp.sqrt(size * eps_draws), None, alpha, rounds_draws, joint=False)
    path = run(d, z, chain)
    active = int((path.status == sdntk.Status.ACTIVE).sum())
    iterations = float(path.iterations[:active].mean())

    timings = {
        f"{rounds} rounds": measure(lambda: run(d, z, chain), repeats=repeats),
        f"{rounds} rounds, labels mapped back": measure(
            lambda: sdntk.distill_spectrum(spectrum, y, tolerance=eps, rounds=rounds).fitted,
            repeats=repeats,
        ),
        f"{draws.shape[1]} draws x {rounds_draws} rounds, rotated": measure(
            lambda: run(d, z_draws, chain_draws), repeats=repeats
        ),
        f"rotating {draws.shape[1]} draws": measure(
            lambda: spectrum.rotate(jnp.asarray(draws)), repeats=repeats
        ),
    }
    rows = [_row(size, "eigh", eigh, eigh, "")]
    for name, timing in timings.items():
        note = (
            f"{active} rounds active, {iterations:.1f} Newton steps each"
            if name == f"{rounds} rounds"
            else ""
        )
        rows.append(_row(size, name, timing, eigh, note))
    if baseline:
        rows.append(_baseline_row(size, np.asarray(gram), y, eigh))
    return rows


def _baseline_row(size: int, gram: np.ndarray, y: np.ndarray, eigh: Timing) -> dict[str, Any]:
    rounds, eps = SETTINGS["rounds_baseline"], SETTINGS["tolerance_draws"] * float(np.mean(y**2))
    found: list[Any] = []
    timing = measure(
        lambda: found.append(refit_per_round(gram, y, eps, rounds)), repeats=1, warm_up=False
    )
    multipliers, fits = found[0]
    run = sdntk.distill_spectrum(sdntk.decompose(gram), y, tolerance=eps, rounds=rounds)
    ours = np.asarray(run.multipliers)[: len(multipliers)]
    agreement = float(np.max(np.abs(np.asarray(multipliers) / ours - 1)))
    note = f"{len(multipliers)} rounds, {fits} fits; multipliers agree to {agreement:.0e}"
    return _row(size, f"scikit-learn refits, {rounds} rounds", timing, eigh, note)


def _row(size: int, what: str, timing: Timing, eigh: Timing, note: str) -> dict[str, Any]:
    low, high = timing.spread
    return {
        "K": size,
        "what": what,
        "seconds (median)": timing.median,
        "fastest .. slowest": f"{low:.3g} .. {high:.3g}",
        "runs": len(timing.seconds),
        "fraction of one eigh": timing.median / eigh.median,
        "goal": str(GOALS.get(what, "")) if size == 2000 else "",
        "note": note,
    }


def plot(rows: list[dict[str, Any]], name: str) -> None:
    """Seconds against K for everything timed."""
    figure, ax = plt.subplots(figsize=(8.6, 4.4), layout="constrained")
    for what in dict.fromkeys(row["what"] for row in rows):
        chosen = [row for row in rows if row["what"] == what]
        ax.plot(
            [row["K"] for row in chosen],
            [row["seconds (median)"] for row in chosen],
            "o-",
            label=what,
        )
    ax.set(xscale="log", yscale="log", xlabel="K, training points", ylabel="seconds (median)")
    ax.set_xticks(SIZES, [str(size) for size in SIZES])
    ax.minorticks_off()
    env = report.environment()
    ax.set_title(
        f"Self-distillation on one decomposition ({env['machine']}, {env['cores']} cores)",
        fontsize="medium",
    )
    figure.legend(frameon=False, fontsize="small", loc="outside right center")
    figure.savefig(report.RESULTS / f"{name}.png", dpi=150)
    plt.close(figure)


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Run, print, and keep table, JSON and plot; ``quick`` takes the two smallest sizes."""
    sizes = SIZES[:2] if quick else SIZES
    rows: list[dict[str, Any]] = []
    for size in track(sizes, description="core"):
        rows += time_size(size, repeats=5, baseline=True)
    name = report.record_name("core", quick=quick)
    report.write(name, "Trajectories against one eigendecomposition", SETTINGS, rows)
    plot(rows, name)
    return rows
