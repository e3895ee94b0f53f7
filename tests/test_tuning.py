"""Levels and rounds chosen by a criterion (sdntk/tuning.py).

Must hold: every value in the table, and the choice, equal brute force: a chain for each level by
``distill_spectrum``, and the criterion of each round, for tolerances (absolute and relative) and
multipliers, one output and several, separate and joint, dense and tridiagonal; the fit is that
round's. Infeasible levels are nan, and no choice. The criterion finds about the best round and
level of a problem whose truth is known. A warning names what the criterion cannot decide. Bad input
is refused by name. (Its time against an eigendecomposition: ``python -m benchmarks selection``.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdntk import (
    UndecidedWarning,
    decompose,
    distill,
    distill_spectrum,
    gram,
    kernels,
    selection,
    tridiagonalise,
    tune,
)
from sdntk.tuning import TOLERANCES

POINTS = 80
KERNEL = kernels.matern(1.5, 0.5)
X = jax.random.uniform(jax.random.key(0), (POINTS, 2))
SIGNAL = jnp.stack([jnp.sin(4 * X[:, 0]), X[:, 1] * X[:, 0]], axis=1)
Y = SIGNAL + 0.3 * jax.random.normal(jax.random.key(1), SIGNAL.shape)
G = gram(KERNEL, X)
NEW = jax.random.uniform(jax.random.key(2), (30, 2))
NEW_Y = jnp.stack([jnp.sin(4 * NEW[:, 0]), NEW[:, 1] * NEW[:, 0]], axis=1)


def level_of(level, y, relative, outputs):
    """A level in the labels' own unit."""
    return level * jnp.mean(y**2, axis=None if outputs == "joint" else 0) if relative else level


def by_brute_force(spectrum, y, y_new, name, levels, criterion, relative, **chain):
    """The criterion's mean over outputs for every level and round."""
    rows = []
    for level in levels:
        number = level_of(level, y, relative, chain["outputs"])
        run = distill_spectrum(spectrum, y, **{name: number}, **chain)
        df = selection.degrees_of_freedom(run, relative=relative)
        if criterion == "gcv":
            values = selection.gcv(run, df)
        elif criterion == "sure":
            values = selection.sure(run, 0.09, df)
        else:
            values = (run.predict_from(gram(KERNEL, NEW, X)) - y_new[None]) ** 2
        rows.append(np.asarray(values).reshape(len(values), -1).mean(axis=1))
    return np.stack(rows)


@pytest.mark.parametrize(
    ("criterion", "name", "relative", "make", "weight", "outputs", "num_outputs"),
    [
        ("gcv", "tolerance", False, decompose, 0.0, "separate", 2),
        ("gcv", "tolerance", True, tridiagonalise, 0.2, "separate", 2),
        ("sure", "tolerance", True, decompose, 0.0, "joint", 2),
        ("sure", "multiplier", False, decompose, 0.2, "separate", 2),
        ("gcv", "multiplier", False, tridiagonalise, 0.0, "joint", 2),
        ("held_out", "tolerance", True, decompose, 0.0, "separate", 2),
        ("gcv", "tolerance", True, tridiagonalise, 0.2, "separate", None),
        ("held_out", "multiplier", False, decompose, 0.0, "separate", None),
    ],
)
@pytest.mark.slow_cases
def test_all_values_and_the_choice_are_those_of_brute_force(
    criterion, name, relative, make, weight, outputs, num_outputs
):
    y, y_new = (Y, NEW_Y) if num_outputs else (Y[:, 0], NEW_Y[:, 0])
    levels = [0.02, 0.05, 0.1] if name == "multiplier" else [0.05, 0.1, 0.2, 0.5]
    if name == "tolerance" and not relative:
        levels = [level * float(jnp.mean(y**2)) for level in levels]
    chain = {"rounds": 5, "ground_truth_weight": weight, "outputs": outputs}
    settings = {
        "gcv": {},
        "sure": {"noise_variance": 0.09},
        "held_out": {"kernel": KERNEL, "x": X, "validation": (NEW, y_new)},
    }[criterion]
    spectrum = make(G)
    found = tune(
        spectrum,
        y,
        criterion=criterion,
        relative=relative,
        **{f"{name}s": levels},
        **settings,
        **chain,
    )

    expected = by_brute_force(spectrum, y, y_new, name, levels, criterion, relative, **chain)
    columns = [name, "round", "active", "degrees_of_freedom", "training_error", criterion]
    assert list(found.table.columns) == columns
    table = found.table[criterion].to_numpy().reshape(expected.shape)
    np.testing.assert_allclose(table, expected, rtol=1e-9)
    level, t = np.unravel_index(np.argmin(expected), expected.shape)
    assert (found.best.level, found.best.round) == (levels[level], t)
    single = int(np.argmin(expected[:, 0]))
    assert (found.best_single.level, found.best_single.round) == (levels[single], 0)
    assert f"round {t}" in found.sentence

    number = level_of(levels[level], y, relative, outputs)
    run = distill_spectrum(spectrum, y, **{name: number}, **chain)
    np.testing.assert_allclose(found.fit.fitted, run.fitted[t], rtol=1e-9)
    if criterion == "held_out":
        np.testing.assert_allclose(
            found.fit.predict(NEW), run.predict_from(gram(KERNEL, NEW, X))[t], rtol=1e-9
        )


def test_the_grid_where_none_is_given():
    y = Y[:, 0] - Y[:, 0].mean()
    found = tune(decompose(G), y)
    same = tune(decompose(G), y, tolerances=TOLERANCES, relative=True, rounds=10)
    assert found.best == same.best
    assert found.table.equals(same.table)
    assert TOLERANCES[0] < 1e-3 < 0.98 < TOLERANCES[-1] < 1


def test_infeasible_levels_are_no_choice():
    x = jnp.concatenate([X[:60], X[:1]])  # one point twice, with two labels
    y = jnp.concatenate([Y[:60, 0], Y[:1, 0] + 2])
    spectrum = decompose(gram(KERNEL, x))
    floor = float(spectrum.floor(y))
    assert floor > 1e-3
    found = tune(spectrum, y, tolerances=[floor / 2, 4 * floor], rounds=3)
    infeasible = found.table["tolerance"] < floor
    assert found.table.loc[infeasible, "gcv"].isna().all()
    assert found.best.level == found.best_single.level == 4 * floor
    with pytest.raises(ValueError, match=r"tolerances must hold a feasible one.*just above"):
        tune(spectrum, y, tolerances=[floor / 2, floor / 3], rounds=3)


@pytest.mark.slow
def test_the_choice_is_about_as_good_as_the_best():
    """Of a problem whose truth is known: 300 points, noise 0.4, tolerances from small to large."""
    x = jax.random.uniform(jax.random.key(5), (300, 2))
    signal = jnp.sin(4 * x[:, 0]) * x[:, 1]
    y = signal + 0.4 * jax.random.normal(jax.random.key(6), (300,))
    spectrum = decompose(gram(KERNEL, x))
    levels = np.geomspace(0.05, 0.9, 12)
    found = {
        criterion: tune(
            spectrum,
            y,
            tolerances=levels,
            rounds=12,
            relative=True,
            criterion=criterion,
            noise_variance=0.16 if criterion == "sure" else None,
        )
        for criterion in ("gcv", "sure")
    }
    best = np.inf
    for level in levels:
        run = distill_spectrum(spectrum, y, tolerance=level * jnp.mean(y**2), rounds=12)
        best = min(best, float(jnp.min(jnp.mean((run.fitted - signal[None]) ** 2, axis=1))))
    for tuning in found.values():
        risk = float(jnp.mean((tuning.fit.fitted - signal) ** 2))
        assert best <= risk < 1.5 * best


def test_warnings_name_what_cannot_be_told():
    few = decompose(gram(KERNEL, X[:20]))
    with pytest.warns(UndecidedWarning, match="20 points are too few for gcv"):
        tune(few, Y[:20, 0], tolerances=[0.1, 0.2], rounds=2)
    smooth = jnp.sin(3 * X[:, 0])  # without noise GCV goes on to interpolate
    with pytest.warns(UndecidedWarning, match="gcv chose a fit of .* of 80 residuals"):
        tune(decompose(G), smooth, multipliers=[1e-6, 1e-2], rounds=2)


def test_the_sentence_says_what_is_at_an_end_of_the_grid_and_what_is_nothing():
    spectrum, y = decompose(G), Y[:, 0]
    inside = tune(spectrum, y, tolerances=TOLERANCES, relative=True)
    assert "tried" not in inside.sentence
    strong = tune(spectrum, y, tolerances=[0.8, 0.9], relative=True)
    assert strong.sentence.count(", the least tried)") == 2
    weak = tune(spectrum, y, multipliers=[1e-3, 2e-3], rounds=1)
    assert weak.sentence.count(", the largest tried)") == 2
    noise = jax.random.normal(jax.random.key(3), (POINTS,))
    nothing = tune(spectrum, noise, tolerances=[0.5, 1.5], relative=True)
    assert not nothing.fit.fitted.any()
    assert ", collapsed)" in nothing.sentence
    alone = tune(spectrum, y, tolerances=[0.8], relative=True)
    assert "tried" not in alone.sentence


@pytest.mark.slow
def test_a_krylov_spectrum_serves_held_out_points():
    run = distill(KERNEL, X, Y, tolerance=0.2, rounds=2, method="krylov")
    held_out = {"criterion": "held_out", "kernel": KERNEL, "x": X, "validation": (NEW, NEW_Y)}
    chain = {"tolerances": [0.2], "rounds": 2}
    found = tune(run.spectrum, Y, **chain, **held_out)
    dense = tune(decompose(G), Y, **chain, **held_out)
    np.testing.assert_allclose(found.table["held_out"], dense.table["held_out"], rtol=1e-5)
    assert found.table["degrees_of_freedom"].isna().all()
    with pytest.raises(ValueError, match="needs degrees of freedom"):
        tune(run.spectrum, Y, **chain)


@pytest.mark.usefixtures("as_users_call")
def test_bad_input_is_named():
    spectrum, y = decompose(G), Y[:, 0]
    held_out = {"criterion": "held_out", "tolerances": [0.1]}
    for arguments, error, message in [
        ({"tolerances": [0.1], "multipliers": [0.1]}, ValueError, "only one of tolerances and"),
        ({"tolerances": 0.1}, ValueError, r"tolerances must have shape \(L,\)"),
        ({"tolerances": [0.1, -1.0]}, ValueError, "tolerances must be positive"),
        ({"multipliers": [0.1], "relative": True}, ValueError, "relative is for tolerances"),
        ({"tolerances": [0.1], "criterion": "aic"}, ValueError, "criterion must be one of"),
        ({"tolerances": [0.1], "criterion": "sure"}, ValueError, "noise_variance must be given"),
        ({"tolerances": [0.1], "validation": (NEW, NEW_Y)}, ValueError, "validation is for"),
        ({"tolerances": [0.1], "noise_variance": 0.1}, ValueError, "noise_variance is for"),
        (held_out, ValueError, "kernel and x must be given"),
        (held_out | {"kernel": KERNEL, "x": X}, ValueError, "validation=.x_new, y_new. must be"),
        (
            held_out | {"kernel": KERNEL, "x": X, "validation": (NEW, NEW_Y)},
            ValueError,
            "validation.1. must have shape",
        ),
        ({"tolerances": [0.1], "kernel": KERNEL, "x": X[:5]}, ValueError, "x must hold the 80"),
    ]:
        with pytest.raises(error, match=message):
            tune(spectrum, y, **{"rounds": 2} | arguments)
    with pytest.raises(NotImplementedError, match="tune cannot be traced"):
        jax.jit(lambda y: tune(spectrum, y, tolerances=[0.1], rounds=2).best.level)(y)


@pytest.mark.slow
def test_weights_of_the_ground_truth_for_each_round():
    weights = [0.3, 0.1, -0.2]
    chain = {"rounds": 4, "ground_truth_weight": weights}
    found = tune(decompose(G), Y[:, 0], tolerances=[0.05, 0.1], **chain)
    level, t = found.best
    run = distill_spectrum(decompose(G), Y[:, 0], tolerance=level, **chain)
    np.testing.assert_allclose(found.fit.fitted, run.fitted[t], rtol=1e-9)
    values = found.table.loc[found.table["round"] == 0, "gcv"]
    assert found.best_single_value == values.min() >= found.best_value


def test_relative_to_labels_that_are_all_zero():
    y = np.stack([Y[:, 0], 0 * Y[:, 0]], axis=1)
    with pytest.raises(ValueError, match="y must not be 0 for an output"):
        tune(decompose(G), y, tolerances=[0.1], rounds=1, relative=True)
    joint = tune(decompose(G), y, tolerances=[0.1], rounds=1, relative=True, outputs="joint")
    assert np.isfinite(joint.best_value)  # a fraction of all outputs' mean square
