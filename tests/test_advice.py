"""Advice before distilling.

Must hold: the table has what each chain and each single fit gives when it is run by itself, by
accuracy and by loss; the gain and its standard error are those of the differences point by point,
and decide what the sentence says; a problem made so that distilling pays is told from one where it
does not; a module is its empirical tangent kernel; bad input is named.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sdntk
from sdntk import advice, kernels
from sdntk.advice import Advice

KERNEL = kernels.matern(1.5, length_scale=0.5)
RNG = np.random.default_rng(0)
X, X_NEW = RNG.uniform(size=(60, 2)), RNG.uniform(size=(40, 2))
TOLERANCES = [0.05, 0.2]


def smooth(x):
    return np.sin(4 * x[:, 0]) + x[:, 1]


Y = smooth(X) + 0.5 * RNG.normal(size=60)
CLASSES = (Y > 0.5).astype(int) + (Y > 1.2)
NEW_CLASSES = (smooth(X_NEW) > 0.5).astype(int) + (smooth(X_NEW) > 1.2)


def row_of(table, tolerance, t):
    return table[(table["tolerance"] == tolerance) & (table["round"] == t)].iloc[0]


def test_a_row_is_what_its_chain_gives():
    found = sdntk.advise(
        KERNEL, X, Y, (X_NEW, smooth(X_NEW)), tolerances=TOLERANCES[::-1], rounds=4
    )
    assert list(found.table) == ["tolerance", "round", "validation_loss", "is_single_fit"]
    assert found.measure == "loss"
    for part in [*TOLERANCES, 0.5]:
        rounds = 1 if part == 0.5 else 4
        run = sdntk.distill(KERNEL, X, Y, tolerance=part * np.mean(Y**2), rounds=rounds)
        active = int(run.active_rounds)
        of_chain = found.table[found.table["tolerance"] == part]
        assert of_chain["round"].tolist() == list(range(active))
        losses = np.mean((np.asarray(run.predict(X_NEW)) - smooth(X_NEW)) ** 2, axis=1)[:active]
        np.testing.assert_allclose(of_chain["validation_loss"], losses, rtol=1e-8)
        assert of_chain["is_single_fit"].tolist() == [t == 0 for t in range(active)]


def test_the_gain_is_that_of_the_points():
    found = sdntk.advise(KERNEL, X, CLASSES, (X_NEW, NEW_CLASSES), tolerances=[0.2], rounds=4)
    rows = sdntk.datasets.one_hot(CLASSES, 3, centred=True)

    def right(part, t):
        level = part * float(jnp.mean(rows**2))
        run = sdntk.distill(KERNEL, X, rows, tolerance=level, rounds=t + 1, outputs="joint")
        return np.asarray(run.predict(X_NEW)[t]).argmax(-1) == NEW_CLASSES

    best = right(found.best_tolerance, found.best_round).astype(float)
    single = right(found.best_single_tolerance, 0).astype(float)
    table = found.table
    of_chains = table[~table["is_single_fit"]]["validation_accuracy"]
    assert best.mean() == pytest.approx(of_chains.max())
    assert single.mean() == pytest.approx(
        table[table["is_single_fit"]]["validation_accuracy"].max()
    )
    assert found.gain == pytest.approx(np.mean(best - single))
    assert found.standard_error == pytest.approx(np.std(best - single, ddof=1) / np.sqrt(40))
    assert found.pays == (found.gain > 1.96 * found.standard_error)


@pytest.mark.parametrize("centred", [False, True])
def test_one_hot_rows_are_classes(centred):
    rows = [
        np.asarray(sdntk.datasets.one_hot(labels, 3, centred=centred))
        for labels in (CLASSES, NEW_CLASSES)
    ]
    by_rows = sdntk.advise(KERNEL, X, rows[0], (X_NEW, rows[1]), tolerances=[0.2], rounds=2)
    assert by_rows.measure == "accuracy"
    if centred:  # the same rows that classes become
        names = [4, 70, 900000]
        by_class = sdntk.advise(
            KERNEL,
            X,
            np.take(names, CLASSES),
            [X_NEW, np.take(names, NEW_CLASSES)],
            tolerances=[0.2],
            rounds=2,
        )
        assert by_class.table.equals(by_rows.table)


def test_where_distilling_pays_and_where_it_does_not():
    # The signal lies in the large eigenvalues and the noise in those next to them: the filter of a
    # later round falls between them, more steeply than that of any single fit.
    frequencies = np.arange(1, 25)
    x = np.arange(200) / 200
    decay = np.where(frequencies <= 4, 1.0, 0.25)

    def features(t):
        return np.sqrt(2) * np.cos(2 * np.pi * np.outer(t, frequencies))

    def kernel(a, b):
        return (features(a) * decay) @ features(b).T + 1e-9 * (a[:, None] == b[None, :])

    signal = features(x)[:, :4].sum(1)
    noisy = signal + 0.6 * features(x)[:, 4:].sum(1)
    pays = sdntk.advise(kernel, x, noisy, (x, signal))
    assert pays.pays
    assert pays.gain > 0
    assert "distilling pays" in str(pays)
    harm = sdntk.advise(kernel, x, noisy, (x, noisy))  # what rounds shrink is wanted
    assert not harm.pays
    assert "does harm" in harm.sentence
    same = sdntk.advise(KERNEL, X, CLASSES, (X_NEW, NEW_CLASSES), rounds=5)
    assert "no evidence that distilling pays" in same.sentence


def test_a_chain_that_ends_at_once():
    found = sdntk.advise(KERNEL, X, Y, (X_NEW[:1], Y[:1]), tolerances=[0.9], rounds=3)
    assert (found.best_round, found.best_tolerance, found.pays) == (None, None, False)
    assert found.sentence.startswith("No chain is active after round 0; the best single fit")
    one_point = sdntk.advise(KERNEL, X, Y, (X_NEW[:1], Y[:1]), tolerances=[0.05], rounds=3)
    assert not one_point.pays  # of one point nothing can be told
    assert isinstance(one_point, Advice)


def test_a_module_is_its_tangent_kernel():
    module = nnx.Sequential(
        nnx.Linear(2, 8, param_dtype=float, rngs=nnx.Rngs(0)),
        nnx.tanh,
        nnx.Linear(8, 3, param_dtype=float, rngs=nnx.Rngs(1)),
    )
    asked = {"tolerances": [0.6], "rounds": 2}
    of_module = sdntk.advise(module, X, CLASSES, (X_NEW, NEW_CLASSES), **asked)
    kernel = kernels.empirical_ntk(module)
    assert of_module.table.equals(
        sdntk.advise(kernel, X, CLASSES, (X_NEW, NEW_CLASSES), **asked).table
    )


def test_tolerances_that_no_function_reaches_are_left_out():
    x, y = np.repeat(X, 2, axis=0), np.repeat(Y, 2) + np.tile([0.4, -0.4], 60)  # points twice
    floor = 0.16 / np.mean(y**2)
    found = sdntk.advise(KERNEL, x, y, (X_NEW, smooth(X_NEW)), rounds=2)
    assert floor < found.table["tolerance"].min() < floor + 0.02
    with pytest.raises(ValueError, match=r"tolerances must lie above 0\.\d+, the part"):
        sdntk.advise(KERNEL, x, y, (X_NEW, smooth(X_NEW)), tolerances=[floor / 2, 0.9])


GOOD = (KERNEL, X, Y, (X_NEW, smooth(X_NEW)))
CASES = {
    "no kernel": ((3, *GOOD[1:]), {}, TypeError, "module_or_kernel must be a function"),
    "no points": ((KERNEL, 1.0, *GOOD[2:]), {}, ValueError, "x must hold at least one point"),
    "too few labels": ((KERNEL, X, Y[1:], GOOD[3]), {}, ValueError, r"y must have shape \(60,\)"),
    "no pair": ((*GOOD[:3], X_NEW), {}, TypeError, "validation must be a pair"),
    "three things": ((*GOOD[:3], (X, Y, Y)), {}, ValueError, "a pair.*it holds 3"),
    "other points": (
        (*GOOD[:3], (X_NEW[:, :1], Y[:40])),
        {},
        ValueError,
        r"validation\[0\] and x must hold points of one shape",
    ),
    "validation labels": (
        (*GOOD[:3], (X_NEW, Y)),
        {},
        ValueError,
        r"validation\[1\] must have shape \(40,\)",
    ),
    "classes and numbers": (
        (KERNEL, X, CLASSES, GOOD[3]),
        {},
        ValueError,
        r"y and validation\[1\] must both be integer classes, or both numbers",
    ),
    "other outputs": (
        (*GOOD[:3], (X_NEW, np.ones((40, 2)))),
        {},
        ValueError,
        r"as many outputs; their shapes are \(60,\) and \(40, 2\)",
    ),
    "nothing to learn": ((KERNEL, X, 0 * Y, GOOD[3]), {}, ValueError, "y must not be 0"),
    "one round": (GOOD, {"rounds": 1}, ValueError, "rounds must be at least 2"),
    "no tolerances": (GOOD, {"tolerances": []}, ValueError, "tolerances must be a sequence"),
    "a tolerance of 1": (
        GOOD,
        {"tolerances": [0.1, 1.0]},
        ValueError,
        "tolerances must lie between 0 and 1",
    ),
}


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named(case, monkeypatch):
    arguments, options, error, message = CASES[case]
    monkeypatch.setattr(advice, "choose_spectrum", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(error, match=message):
        sdntk.advise(*arguments, **options)


def test_traced_arguments_are_refused():
    with pytest.raises(TypeError, match="y, validation and tolerances must have values"):
        jax.jit(lambda y: sdntk.advise(KERNEL, X, y, GOOD[3]).gain)(Y)
