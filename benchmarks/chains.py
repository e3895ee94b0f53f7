"""Claim: ten rounds without an eigendecomposition, and their gradient for the price of their value.

The Gram matrix is given to all but the gradient. Ours: the dense path (one eigendecomposition and
the chain on it), the tridiagonal path, and the Krylov path, as many Lanczos steps as its error
bound asks for; beside it stand the true error and the bound. What a user would pick instead, at
sizes that bear it: scikit-learn's KernelRidge or SciPy's Cholesky factors within a root finder,
round by round, and neural_tangents.predict, which is told every multiplier and fitted again every
round. The machine's own limit: one eigh, and the time that reading G takes (the sum of its
entries).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from rich.progress import track
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import brentq

import sdntk
from benchmarks import report
from benchmarks.core import refit_per_round
from benchmarks.gram import stax_kernel_fn
from benchmarks.timing import Timing, measure, take_turns
from sdntk import architectures, kernels

SETTINGS: dict[str, Any] = {
    "dimension": 5,
    "labels": "sum of sines",
    "noise": 0.3,
    "tolerance": 1e-2,
    "rounds": 10,
    "accuracy": 1e-6,
    "seed": 0,
    "repeats": "3, of what takes minutes one",
}
SIZES = (500, 1000, 2000, 4000, 8000)
#: The largest K of the baselines, which take minutes there.
BASELINES_TO = 2000
#: Where value and gradient are timed.
GRADIENT_AT = 2000
MATERN, NTK, SPHERE = (
    "Matern-3/2, length scale 1",
    "ReLU NTK, 2 hidden layers",
    "the same NTK, points of equal norm",
)
KERNELS: dict[str, Any] = {
    MATERN: kernels.matern(1.5, 1.0),
    NTK: kernels.ntk(architectures.fully_connected(2)),
    SPHERE: kernels.ntk(architectures.fully_connected(2)),
}
#: Turns of the Krylov path, so many reads of G and as many products.
TURNS, READS_A_TURN = 7, 15
#: At the largest size: the Krylov path over the time in which memory could be read that it must
#: read, of G once and of all Lanczos vectors twice in each step, the machine's bound (40 times as
#: fast as the dense path, the first goal, is beyond it on two cores); tridiagonal path and value
#: with gradient, as fractions of one eigh and of the value; the part of the memory bandwidth that a
#: product reaches.
READS = "Krylov path over its reads"
GOALS: dict[tuple[str, str], float] = {
    (MATERN, READS): 1.3,
    (NTK, READS): 1.3,
    (SPHERE, READS): 1.3,
    (MATERN, "tridiagonal path"): 0.65,
    (MATERN, "value and gradient"): 1.3,
    (MATERN, "one product"): 0.7,
}


def problem(size: int, *, equal_norms: bool = False) -> tuple[jax.Array, jax.Array]:
    """Points, and labels of which noise makes the share ``noise`` of the variance."""
    rng = np.random.default_rng(SETTINGS["seed"])
    x = rng.normal(size=(size, SETTINGS["dimension"]))
    if equal_norms:
        x *= SETTINGS["dimension"] ** 0.5 / np.linalg.norm(x, axis=1, keepdims=True)
    smooth = np.sin(x).sum(axis=1)
    noise = SETTINGS["noise"]
    y = smooth / smooth.std() * (1 - noise) ** 0.5 + rng.normal(size=size) * noise**0.5
    return jnp.asarray(x), jnp.asarray(y)


def time_case(name: str, size: int) -> list[dict[str, Any]]:
    """Rows for one kernel and one K."""
    x, y = problem(size, equal_norms=name == SPHERE)
    matrix = jax.block_until_ready(sdntk.gram(KERNELS[name], x))
    chain = {
        "tolerance": SETTINGS["tolerance"] * float(jnp.mean(y**2)),
        "rounds": SETTINGS["rounds"],
    }
    paths: dict[str, Callable[[], Any]] = {
        "dense path": lambda: sdntk.distill_spectrum(sdntk.decompose(matrix), y, **chain),
        "tridiagonal path": lambda: sdntk.distill_spectrum(
            sdntk.tridiagonalise(matrix), y, **chain
        ),
        "Krylov path": lambda: _by_krylov(matrix, y, chain),
    }
    found = {
        what: _timed(run, long=size > 2000 and what != "Krylov path") for what, run in paths.items()
    }
    exact = found["dense path"][0]
    eigh = measure(
        lambda: jnp.linalg.eigh(matrix), repeats=1 if size > 2000 else 3, warm_up=size <= 2000
    )
    dense = found["dense path"][1].median
    rows = [_row(name, size, "one eigh", eigh, "", "")]
    for what, (run, timing) in found.items():
        gain = {
            "Krylov path": dense / timing.median,
            "tridiagonal path": timing.median / eigh.median,
        }.get(what, "")
        rows.append(_row(name, size, what, timing, gain, _note(run, exact)))
    if size <= BASELINES_TO:
        rows += _baselines(name, size, np.asarray(matrix), x, np.asarray(y), chain, exact)
    return rows + _against_reads(name, matrix, y, chain, found["Krylov path"][0].spectrum)


def _against_reads(
    name: str, matrix: jax.Array, y: jax.Array, chain: dict[str, Any], spectrum: Any
) -> list[dict[str, Any]]:
    """The Krylov path, reading G and multiplying it in turns, since the speed of the memory varies
    by a third within a minute.
    """
    read, product, size = jax.jit(jnp.sum), sdntk.as_operator(matrix), len(matrix)
    steps, width = int(spectrum.steps), len(spectrum.residuals)

    def repeated(run: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [jax.block_until_ready(run()) for _ in range(READS_A_TURN)]

    timings = take_turns(
        {
            "path": lambda: _by_krylov(matrix, y, chain).fitted,
            "reads": repeated(lambda: read(matrix)),
            "products": repeated(lambda: product(y[:, None])),
        },
        TURNS,
    )
    reading = timings["reads"].median / READS_A_TURN
    vectors = steps**2 * width * size * matrix.dtype.itemsize  # 2 (1 + .. + steps) blocks
    at_least = (steps + vectors / matrix.nbytes) * reading
    bound = (
        f"{steps} reads of G of {1e3 * reading:.3g} ms, {vectors / 1e9:.2g} GB of Lanczos "
        f"vectors: {at_least:.3g} s"
    )
    ratio = timings["path"].median / at_least
    rows = [_row(name, size, READS, timings["path"], ratio, bound)]
    if name == MATERN:
        one = Timing(tuple(seconds / READS_A_TURN for seconds in timings["products"].seconds))
        speeds = "{:.1f} GB/s; memory {:.1f} GB/s".format(
            *(matrix.nbytes / seconds / 1e9 for seconds in (one.median, reading))
        )
        rows.append(_row(name, size, "one product", one, reading / one.median, speeds))
    return rows


def _by_krylov(matrix: jax.Array, y: jax.Array, chain: dict[str, Any]) -> sdntk.Distillation:
    spectrum = sdntk.krylov(sdntk.as_operator(matrix), y, **chain, rtol=SETTINGS["accuracy"])
    return sdntk.distill_spectrum(spectrum, y, **chain)


def _note(run: sdntk.Distillation, exact: sdntk.Distillation) -> str:
    active = int(exact.active_rounds)
    if run is exact:
        return f"{active} rounds active"
    of_c = float(jnp.abs(run.multipliers / exact.multipliers - 1)[:active].max())
    of_f = (
        jnp.linalg.norm(run.fitted - exact.fitted, axis=1)[:active]
        / jnp.linalg.norm(exact.fitted, axis=1)[:active]
    )
    note = f"errors of c {of_c:.1e}, of f {float(of_f.max()):.1e}"
    if isinstance(run.spectrum, sdntk.KrylovSpectrum) and run.error_bounds is not None:
        bounds = ", ".join(f"{float(bound.max()):.1e}" for bound in run.error_bounds)
        note += f"; bounds {bounds}; {int(run.spectrum.steps)} steps"
    return note


def _baselines(
    name: str,
    size: int,
    matrix: np.ndarray,
    x: jax.Array,
    y: np.ndarray,
    chain: dict[str, Any],
    exact: sdntk.Distillation,
) -> list[dict[str, Any]]:
    """What a user would pick instead, once each: they take minutes."""
    active = int(exact.active_rounds)
    rows = []
    for what, run in {
        "scikit-learn refits": lambda: refit_per_round(
            matrix, y, chain["tolerance"], chain["rounds"]
        )[0],
        "SciPy Cholesky chain": lambda: cholesky_chain(
            matrix, y, chain["tolerance"], chain["rounds"]
        ),
    }.items():
        multipliers, timing = _timed(run, long=True)
        error = np.abs(np.asarray(multipliers) / np.asarray(exact.multipliers)[:active] - 1).max()
        rows.append(_row(name, size, what, timing, "", f"multipliers agree to {error:.0e}"))
    if name != MATERN:
        given = np.asarray(exact.multipliers)[:active] * size
        fitted, timing = _timed(lambda: neural_tangents_refits(x, y, given), long=True)
        error = np.abs(np.asarray(fitted) - np.asarray(exact.fitted)[active - 1]).max()
        rows.append(
            _row(
                name,
                size,
                "neural_tangents.predict",
                timing,
                "",
                f"multipliers given; fits agree to {error:.0e}",
            )
        )
    return rows


def cholesky_chain(matrix: np.ndarray, y: np.ndarray, tolerance: float, rounds: int) -> list[float]:
    """A careful user's: the residual is c (G + c I)^-1 y, one Cholesky factor for each evaluation
    of the root finder.
    """
    multipliers: list[float] = []
    targets, scale, eye = y, np.log(np.trace(matrix)), np.eye(len(matrix))

    def residual(log_c: float, targets: np.ndarray) -> np.ndarray:
        c = np.exp(log_c)
        return np.asarray(c * cho_solve(cho_factor(matrix + c * eye), targets))

    for _ in range(rounds):
        if np.mean(targets**2) <= tolerance:
            break

        def excess(log_c: float, targets: np.ndarray = targets) -> float:
            return float(np.mean(residual(log_c, targets) ** 2)) - tolerance

        root = brentq(excess, scale - 18, scale + 5, xtol=1e-6)
        targets = targets - residual(root, targets)
        multipliers.append(float(np.exp(root)))
    return multipliers


def neural_tangents_refits(x: jax.Array, y: np.ndarray, ridges: np.ndarray) -> jax.Array:
    """The package's own regression, fitted again every round, its ridge K c_t given: it finds
    none.
    """
    nt = kernels.load_neural_tangents()
    kernel_fn = stax_kernel_fn(architectures.fully_connected(2))
    targets = jnp.asarray(y)[:, None]
    for ridge in ridges:
        fit = nt.predict.gradient_descent_mse_ensemble(
            kernel_fn, x, targets, diag_reg=float(ridge), diag_reg_absolute_scale=True
        )
        targets = fit(t=None, x_test=x, get="ntk")  # of its training points it returns the labels
    return targets[:, 0]


def time_gradient(size: int) -> list[dict[str, Any]]:
    """Value, and value with gradient by length scale, tolerance and labels, of ten rounds' loss at
    new points.
    """
    x, y = problem(size)
    new = x[:200] + 0.1

    def loss(length_scale: jax.Array, tolerance: jax.Array, y: jax.Array) -> jax.Array:
        run = sdntk.distill(
            kernels.matern(1.5, length_scale), x, y, tolerance=tolerance, rounds=SETTINGS["rounds"]
        )
        return jnp.mean(run.predict(new)[-1] ** 2)

    at = jnp.asarray(1.0), 1e-3 * jnp.mean(y**2), y
    value, both = jax.jit(loss), jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    timings = [measure(partial(f, *at), repeats=5) for f in (value, both)]
    ratio = timings[1].median / timings[0].median
    return [
        _row(MATERN, size, "value", timings[0], "", "Gram matrix, eigh, chain, predictions"),
        _row(
            MATERN,
            size,
            "value and gradient",
            timings[1],
            ratio,
            "by length scale, tolerance and labels",
        ),
    ]


def _timed(run: Callable[[], Any], *, long: bool) -> tuple[Any, Timing]:
    """The result and the timing; of work of minutes the one run, which compiles for a second, is
    both.
    """
    results: list[Any] = []

    def kept() -> Any:
        results[:] = [run()]
        return results

    timing = measure(kept, repeats=1 if long else 3, warm_up=not long)
    return results[0], timing


def _row(name: str, size: int, what: str, timing: Timing, figure: Any, note: str) -> dict[str, Any]:
    at_goal = size == (GRADIENT_AT if what == "value and gradient" else max(SIZES))
    return {
        "kernel": name,
        "K": size,
        "what": what,
        "seconds (median)": timing.median,
        "fastest .. slowest": "{:.3g} .. {:.3g}".format(*timing.spread),
        "figure": figure,
        "goal": GOALS.get((name, what), "") if at_goal else "",
        "note": note,
    }


def plot(rows: list[dict[str, Any]], name: str) -> None:
    """Seconds against K for every method."""
    rows = [row for row in rows if "value" not in row["what"] and row["what"] != READS]
    figure, axes = plt.subplots(
        1, len(KERNELS), figsize=(16, 4.8), sharey=True, layout="constrained"
    )
    methods = dict.fromkeys(row["what"] for row in rows)
    colours = {what: f"C{i}" for i, what in enumerate(methods)}
    for what, colour in colours.items():
        axes[0].plot([], [], "o-", color=colour, label=what)
    for ax, label in zip(axes, KERNELS, strict=True):
        chosen = [row for row in rows if row["kernel"] == label]
        for what in dict.fromkeys(row["what"] for row in chosen):
            points = sorted(
                (row["K"], row["seconds (median)"]) for row in chosen if row["what"] == what
            )
            ax.plot(*zip(*points, strict=True), "o-", color=colours[what])
        ax.set(xscale="log", yscale="log", xlabel="K, training points", title=label)
        ax.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
        ax.minorticks_off()
        ax.grid(alpha=0.25)
    figure.legend(frameon=False, fontsize="small", loc="outside right center")
    axes[0].set_ylabel("seconds (median), Gram matrix given")
    env = report.environment()
    figure.suptitle(
        f"Ten rounds of self-distillation ({env['device']}, {env['machine']}, {env['cores']} cores)"
    )
    figure.savefig(report.RESULTS / f"{name}.png", dpi=150)
    plt.close(figure)


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Run, print, and keep table, JSON and plot; ``quick`` takes the two smallest sizes only."""
    sizes = SIZES[:2] if quick else SIZES
    rows = time_gradient(sizes[-1] if quick else GRADIENT_AT)
    cases = [(name, size) for size in sizes for name in KERNELS]
    for case in track(cases, description="chains"):
        rows += time_case(*case)
    name = report.record_name("chains", quick=quick)
    title = (
        "Ten rounds by every method. Figures: dense path over Krylov path, and this over its "
        "reads; tridiagonal path over one eigh; value and gradient over value; reading G over a "
        "product"
    )
    report.write(name, title, SETTINGS, rows)
    plot(rows, name)
    return rows
