"""Kernel against network: both chains on the same data, and how far apart they are, width by width
and round by round.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from jaxtyping import Array, Float, Key

from sdntk._arguments import (
    MOST_ROUNDS,
    ArrayLike,
    as_choice,
    as_count,
    as_labels,
    as_path,
    as_points,
    as_sequence,
    require_type,
)
from sdntk._folders import hold
from sdntk.architectures import Architecture
from sdntk.distillation import Distillation, distill_spectrum
from sdntk.experiments.data import Problem
from sdntk.experiments.gaps import agreement, kernel_changes, side_by_side
from sdntk.experiments.records import Records, with_rows
from sdntk.experiments.tables import Columns, empty
from sdntk.gram_matrices.compute import gram
from sdntk.kernels import ntk
from sdntk.networks import FiniteWidth
from sdntk.spectra.dense import decompose
from sdntk.training.adapters import Build
from sdntk.training.ensemble import members
from sdntk.training.losses import squared_error
from sdntk.training.optimisers import GaussNewton, gauss_newton
from sdntk.training.rounds import Round, distill_networks
from sdntk.training.state import Stop, TrainingConfig

#: Gauss-Newton to a gradient norm of 1e-7: what is left of the gap is the width's, not the
#: optimiser's.
TO_THE_OPTIMUM = TrainingConfig(
    optimiser=gauss_newton(),
    centred=True,
    until_stationary=1e-7,
    steps=100,
    check_every=1,
)
#: Columns of the table that :func:`compare_widths` returns.
COLUMNS: Columns = {
    **dict.fromkeys(["width", "seed", "round"], int),
    "multiplier": float,
    "collapsed": bool,
    **dict.fromkeys(["gap_train", "gap_test", "loss_over_tolerance"], float),
    **dict.fromkeys(["agreement_train", "agreement_test"], float),
    **dict.fromkeys(["accuracy_train", "accuracy_test"], float),
    **dict.fromkeys(["kernel_accuracy_train", "kernel_accuracy_test"], float),
    **dict.fromkeys(["stationarity", "steps"], float),
    "stop": str,
    **dict.fromkeys(["kernel_change", "kernel_error_initial", "kernel_error"], float),
}
#: Columns of the outputs side by side.
FITS: Columns = {
    **dict.fromkeys(["width", "round", "point", "output"], int),
    **dict.fromkeys(["kernel", "network"], float),
}


@dataclasses.dataclass(frozen=True)
class KernelChain:
    """The kernel's side: the infinitely wide network's chain, its predictions, and its kernel on
    the training points.
    """

    run: Distillation
    test_outputs: Float[Array, "T n Q"]
    ntk: Float[Array, "K K"]
    tolerance: float

    @property
    def active(self) -> int:
        """Rounds before collapse."""
        return int(self.run.active_rounds)


class _WidthTables(NamedTuple):
    """The rows of one width, and the first network's outputs on test points beside the kernel's."""

    comparison: pd.DataFrame
    fits: pd.DataFrame


def compare_widths(
    architecture: Architecture,
    x: ArrayLike,
    y: ArrayLike,
    x_test: ArrayLike,
    y_test: ArrayLike,
    *,
    tolerance: float,
    rounds: int = 2,
    widths: Sequence[int] = (64, 256, 1024),
    seeds: int = 4,
    training: TrainingConfig = TO_THE_OPTIMUM,
    out: str | Path | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """How close a trained network of finite width is to its kernel, round by round of
    self-distillation.

    The kernel chain, ``outputs="joint"``, says which multiplier c_t each round takes; the networks'
    own chains then minimise mean((f - y_t)^2) + (c_t/Q) |theta - theta_0|^2 in every round from
    fresh weights, f their outputs less those at theta_0. As the width grows both must agree, with a
    gap of order 1/sqrt(width) (theory.md, section 6).

    Args:
        architecture: of both.
        x: training points, shape (K, ...).
        y: their labels, shape (K, Q).
        x_test: points to compare predictions at, shape (n, ...).
        y_test: their labels, shape (n, Q).
        tolerance: eps, the mean squared error over points and outputs that every round of the
            kernel chain has.
        rounds: T.
        widths: of the networks, at least one.
        seeds: networks of each width.
        training: how the networks are trained: squared error, centred outputs.
        out: a folder for ``comparison.csv``, ``comparison.parquet``, ``fits`` and ``config.json``,
            written width by width; a run that was killed is resumed there, and one that another
            process is at is waited for.
        configuration: what else ``config.json`` is to hold, such as how the data were made.

    Returns:
        A row for each width, seed and round, sorted by width, with the columns width, seed, round;
        multiplier c_t;
        collapsed (then both chains are 0, nothing is trained and the rest is nan); gap_train,
        gap_test, the relative distances |f - f_kernel| / |f_kernel| on either set of points;
        loss_over_tolerance, the network's training loss over eps; agreement_train, agreement_test,
        the share of points with equal predicted classes; accuracy_train, accuracy_test,
        kernel_accuracy_train, kernel_accuracy_test, against y and y_test; stationarity, the
        gradient's norm at the end; steps, stop; kernel_change, kernel_error_initial, kernel_error:
        relative Frobenius distances of the empirical tangent kernel on the training points, from
        its start and, at start and end, from that of infinite width.

    Raises:
        TypeError, ValueError: arguments of another type, shape or range; ``out`` holds another
            comparison.

    Source: theory.md, section 6; Jacot et al. 2018; Lee et al. 2019, *Wide Neural Networks of Any
    Depth Evolve as Linear Models Under Gradient Descent*.

    Example:
        >>> from sdntk.architectures import fully_connected
        >>> x = jax.random.normal(jax.random.key(0), (12, 3))
        >>> y = jnp.sign(x[:, :1])
        >>> network = fully_connected(1, activation="erf")
        >>> chain = {"tolerance": 0.3, "rounds": 1}
        >>> frame = compare_widths(network, x, y, x, y, **chain, widths=[512], seeds=1)
        >>> bool(frame["gap_train"][0] < 0.15), bool(frame["stationarity"][0] < 1e-7)
        (True, True)
    """
    require_type("architecture", architecture, Architecture, "an sdntk Architecture")
    problem = _checked_problem(x, y, x_test, y_test)
    _check_training(training, recorded=out is not None)
    out = None if out is None else as_path("out", out)
    configuration = {} if configuration is None else configuration
    require_type("configuration", configuration, Mapping, "a mapping from name to value")
    widths = [as_count("widths", width, at_least=1) for width in as_sequence("widths", widths)]
    if not widths or len(set(widths)) < len(widths):
        raise ValueError(f"widths must hold at least one width, and none twice; got {widths}.")
    seeds = as_count("seeds", seeds, at_least=1, at_most=MOST_ROUNDS)
    chain = _kernel_chain(architecture, problem, tolerance, rounds)

    def run(width: int) -> _WidthTables:
        return _run_width(architecture, problem, chain, width, seeds, training)

    if out is None:
        frames = [run(width).comparison for width in sorted(widths)]
        return pd.concat(frames, ignore_index=True)

    settings = {
        "architecture": architecture.config(),
        "tolerance": tolerance,
        "rounds": rounds,
        "seeds": seeds,
        "training": _settings(training),
        **configuration,
        "data": _fingerprint(problem),
    }
    with hold(Path(out)):
        table = _run_and_record(Records(out, settings), widths, seeds, rounds, run)
    return table[table["width"].isin(widths)].reset_index(drop=True)


def _run_and_record(
    records: Records,
    widths: list[int],
    seeds: int,
    rounds: int,
    run: Callable[[int], _WidthTables],
) -> pd.DataFrame:
    """Run the widths that the records lack; the comparison of all."""
    tables = _WidthTables(records.read("comparison", COLUMNS), records.read("fits", FITS))
    finished = _finished_widths(tables, seeds, rounds)
    tables = _WidthTables(*(table[table["width"].isin(finished)] for table in tables))
    _put(records, tables)
    for width in widths:
        if width not in finished:
            both = zip(tables, run(width), strict=True)
            tables = _WidthTables(*(with_rows(old, new, by=["width"]) for old, new in both))
            _put(records, tables)
    return tables.comparison


def _put(records: Records, tables: _WidthTables) -> None:
    for name, table in tables._asdict().items():
        records.put(name, table)


def _finished_widths(tables: _WidthTables, seeds: int, rounds: int) -> list[int]:
    """Those that have a row for each round and seed, and fits where not all have collapsed."""
    wanted = sorted(itertools.product(range(rounds), range(seeds)))
    finished = []
    for width, rows in tables.comparison.groupby("width"):
        done = sorted(rows[["round", "seed"]].itertuples(index=False, name=None))
        has_fits = rows["collapsed"].all() or (tables.fits["width"] == width).any()
        if done == wanted and has_fits:
            finished.append(width)
    return finished


def _checked_problem(x: ArrayLike, y: ArrayLike, x_test: ArrayLike, y_test: ArrayLike) -> Problem:
    x, x_test = as_points("x", x), as_points("x_test", x_test)
    y = as_labels("y", y, len(x), dtype=x.dtype)
    y_test = as_labels("y_test", y_test, len(x_test), dtype=x.dtype)
    if y.ndim != 2 or y.shape[1:] != y_test.shape[1:]:
        raise ValueError(
            f"y and y_test must have shapes (K, Q) and (n, Q); theirs are {y.shape} and "
            f"{y_test.shape}."
        )
    return Problem(x, y, x_test, y_test)


def _check_training(training: TrainingConfig, *, recorded: bool) -> None:
    require_type("training", training, TrainingConfig, "an sdntk.TrainingConfig")
    if not training.centred or training.loss is not squared_error:
        raise ValueError(
            "training must have centred=True and loss squared_error: the kernel's prediction "
            "starts from 0 and minimises it."
        )
    if recorded and not isinstance(training.optimiser, GaussNewton):
        raise ValueError(
            "out must be None unless the optimiser is gauss_newton(): records cannot tell others "
            "apart."
        )


def gap_exponents(comparison: pd.DataFrame, gap: str = "gap_train") -> pd.DataFrame:
    """The exponent a of gap ~ width^a in every round, by least squares on logarithms over widths
    and seeds.

    Args:
        comparison: what :func:`compare_widths` returned, of two widths or more.
        gap: the column to fit, "gap_train" or "gap_test".

    Returns:
        A row for each round with the columns round, exponent, standard_error, intercept (gap =
        exp(intercept) width^exponent) and points; nan for rounds that have collapsed, and a
        standard error only of three points or more.
        Theory: -1/2.

    Example:
        >>> frame = pd.DataFrame({"round": 0, "width": [16, 64, 256], "gap_train": [0.4, 0.2, 0.1]})
        >>> gap_exponents(frame)["exponent"].round(6).tolist()
        [-0.5]
    """
    from scipy.stats import linregress  # here: it takes a third of a second to import

    require_type("comparison", comparison, pd.DataFrame, "a table of compare_widths")
    as_choice("gap", gap, ["gap_train", "gap_test"])
    missing = {"round", "width", gap} - set(comparison.select_dtypes("number"))
    if missing:
        raise ValueError(f"comparison must have columns {sorted(missing)} of numbers.")
    rows = []
    for index, frame in comparison.groupby("round"):
        frame = frame[np.isfinite(frame[gap]) & (frame[gap] > 0)]
        row = {
            "round": index,
            "exponent": np.nan,
            "standard_error": np.nan,
            "intercept": np.nan,
            "points": len(frame),
        }
        if frame["width"].nunique() > 1:
            fit = linregress(np.log(frame["width"]), np.log(frame[gap]))
            row |= {"exponent": fit.slope, "intercept": fit.intercept}
            if len(frame) > 2:
                row["standard_error"] = fit.stderr
        rows.append(row)
    return pd.DataFrame(rows)


def fits_in(folder: str | Path) -> pd.DataFrame:
    """The outputs side by side that :func:`compare_widths` wrote.

    Columns: width, round, point, output, kernel, network.
    """
    return Records.open(folder).read("fits", FITS)


def _kernel_chain(
    architecture: Architecture, problem: Problem, tolerance: float, rounds: int
) -> KernelChain:
    kernel = ntk(architecture)
    matrix = gram(kernel, problem.x)
    run = distill_spectrum(
        decompose(matrix), problem.y, tolerance=tolerance, rounds=rounds, outputs="joint"
    )
    return KernelChain(
        run=run,
        test_outputs=run.predict_from(gram(kernel, problem.x_test, problem.x)),
        ntk=matrix * len(matrix),
        tolerance=float(tolerance),
    )


def _run_width(
    architecture: Architecture,
    problem: Problem,
    chain: KernelChain,
    width: int,
    seeds: int,
    training: TrainingConfig,
) -> _WidthTables:
    """Train and measure all networks of one width."""
    num_outputs = problem.y.shape[1]
    build = functools.partial(
        _network,
        architecture=architecture,
        point_shape=problem.x.shape[1:],
        width=width,
        num_outputs=num_outputs,
    )
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), width))(jnp.arange(seeds))
    penalties = [float(c) / num_outputs for c in chain.run.multipliers[: chain.active]]

    rows, fits = [], []
    for done in _network_rounds(build, keys, problem, training, penalties):
        train_outputs = done.trained.ensemble.outputs(problem.x)
        test_outputs = done.trained.ensemble.outputs(problem.x_test)
        for seed in range(seeds):
            row = _row(problem, chain, done, seed, train_outputs[seed], test_outputs[seed])
            rows.append({"width": width, "seed": seed, **row})
        fit = side_by_side(chain.test_outputs[done.index], test_outputs[0])
        fits.append(fit.assign(width=width, round=done.index)[[*FITS]])

    collapsed = {"width": width, "multiplier": np.nan, "collapsed": True}
    for t in range(chain.active, len(chain.run.multipliers)):
        rows += [{**collapsed, "seed": seed, "round": t} for seed in range(seeds)]

    comparison = pd.DataFrame(rows, columns=[*COLUMNS])
    return _WidthTables(comparison, pd.concat(fits, ignore_index=True) if fits else empty(FITS))


def _network_rounds(
    build: Build,
    keys: Key[Array, " S"],
    problem: Problem,
    training: TrainingConfig,
    penalties: list[float],
) -> Iterator[Round]:
    """The networks' rounds as far as the kernel's chain is active, which may be none."""
    if penalties:
        yield from distill_networks(
            build, keys, problem.x, problem.y, training, rounds=len(penalties), penalties=penalties
        )


def _network(
    rngs: nnx.Rngs,
    *,
    architecture: Architecture,
    point_shape: tuple[int, ...],
    width: int,
    num_outputs: int,
) -> FiniteWidth:
    return FiniteWidth(architecture, point_shape, width=width, num_outputs=num_outputs, rngs=rngs)


def _row(
    problem: Problem,
    chain: KernelChain,
    done: Round,
    seed: int,
    train_outputs: Float[Array, "K Q"],
    test_outputs: Float[Array, "n Q"],
) -> dict[str, Any]:
    """The measurements of one network in one round."""
    t = done.index
    trained = done.trained
    network = members(trained.ensemble, seed)
    return {
        "round": t,
        "multiplier": float(chain.run.multipliers[t]),
        "collapsed": False,
        **agreement("train", train_outputs, chain.run.fitted[t], problem.y),
        **agreement("test", test_outputs, chain.test_outputs[t], problem.y_test),
        "loss_over_tolerance": float(trained.loss[seed]) / chain.tolerance,
        "stationarity": float(trained.grad_norm[seed]),
        "steps": int(trained.steps[seed]),
        "stop": Stop(int(trained.stop[seed])).name.lower(),
        **kernel_changes(network, problem.x, chain.ntk),
    }


def _settings(training: TrainingConfig) -> dict[str, Any]:
    settings = {field.name: getattr(training, field.name) for field in dataclasses.fields(training)}
    return settings | {
        "loss": training.loss.__name__,
        "optimiser": type(training.optimiser).__name__,
    }


def _fingerprint(problem: Problem) -> str:
    """A checksum of points and labels, their shapes and dtypes."""
    digest = hashlib.sha256()
    for array in map(np.asarray, (problem.x, problem.y, problem.x_test, problem.y_test)):
        digest.update(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()
