"""Advice before distilling.

Must hold: the table has what each chain and each single fit gives when it is run by itself, by
accuracy and by loss; the gain and its standard error are those of the differences point by point,
and decide what the sentence says; a problem made so that distilling pays is told from one where it
does not; labels of any unit have one verdict; few or equal points prove nothing; a module is its
empirical tangent kernel; bad input is named.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert found.pays == (found.gain > 2.0227 * found.standard_error)  # Student's t, 39 degrees


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_tolerances_that_no_function_reaches_are_left_out():
    x, y = np.repeat(X, 2, axis=0), np.repeat(Y, 2) + np.tile([0.4, -0.4], 60)  # points twice
    floor = 0.16 / np.mean(y**2)
    found = sdntk.advise(KERNEL, x, y, (X_NEW, smooth(X_NEW)), rounds=2)
    assert floor < found.table["tolerance"].min() < floor + 0.02
    with pytest.raises(ValueError, match=r"tolerances must lie above 0\.\d+, the part"):
        sdntk.advise(KERNEL, x, y, (X_NEW, smooth(X_NEW)), tolerances=[floor / 2, 0.9])


# ---- No unit, and no proof from too little ----

UNITS = [2.0**-508, 2.0**508]  # 1e-153 to 8e152


@pytest.mark.parametrize("unit", UNITS)
def test_labels_have_any_unit(unit):
    asked = {"tolerances": TOLERANCES, "rounds": 3}
    plain = sdntk.advise(KERNEL, X, Y, (X_NEW, smooth(X_NEW)), **asked)
    found = sdntk.advise(KERNEL, X, unit * Y, (X_NEW, unit * smooth(X_NEW)), **asked)
    assert str(found).rpartition(":")[2] == str(plain).rpartition(":")[2]
    for name in ("best_round", "best_tolerance", "best_single_tolerance", "pays"):
        assert getattr(found, name) == getattr(plain, name)
    assert plain.standard_error > 0
    for name in ("gain", "standard_error"):
        assert getattr(found, name) / unit / unit == pytest.approx(getattr(plain, name), rel=1e-10)
    losses = found.table["validation_loss"] / unit / unit
    np.testing.assert_allclose(losses, plain.table["validation_loss"], rtol=1e-13)


@pytest.mark.usefixtures("single_precision")
@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")
@pytest.mark.parametrize("unit", [2.0**-100, 2.0**100])
@pytest.mark.slow_cases
def test_labels_have_any_unit_in_float32(unit):
    asked = {"tolerances": TOLERANCES, "rounds": 3}
    kernel = kernels.matern(1.5, length_scale=0.5)
    x, y, x_new, new = (np.asarray(a, np.float32) for a in (X, Y, X_NEW, smooth(X_NEW)))
    plain = sdntk.advise(kernel, x, y, (x_new, new), **asked)
    found = sdntk.advise(kernel, x, unit * y, (x_new, unit * new), **asked)
    assert found.gain / unit / unit == plain.gain
    assert found.standard_error / unit / unit == plain.standard_error > 0
    assert found.pays == plain.pays


@pytest.mark.parametrize("size", [1e-310, 1e-160, 1e155, 1e300])
def test_labels_whose_losses_no_number_holds_are_named(size):
    with pytest.raises(ValueError, match=r"y must reach between 1\.5e-154 and 3\.4e\+153"):
        sdntk.advise(KERNEL, X, size * Y, (X_NEW, size * smooth(X_NEW)))


@pytest.mark.parametrize("unit", [1e-100, 1.0])
def test_validation_labels_of_another_size(unit):
    asked = {"tolerances": [0.2], "rounds": 2}
    with pytest.raises(ValueError, match=r"validation's y must reach .* at most where y reaches"):
        sdntk.advise(KERNEL, X, unit * Y, (X_NEW, 1e200 * unit * smooth(X_NEW)), **asked)
    large = sdntk.advise(KERNEL, X, unit * Y, (X_NEW, 1e70 * unit * smooth(X_NEW)), **asked)
    assert np.isfinite(large.interval).all()
    assert not large.pays


def test_few_points_are_no_proof():
    """Of n points the error is known with n - 1 degrees of freedom (Student 1908)."""
    known = sdntk.advise(KERNEL, X, Y, (X_NEW, smooth(X_NEW)), tolerances=TOLERANCES, rounds=3)
    for count, factor in ((2, 12.706205), (3, 4.302653), (15, 2.144787), (10**6, 1.959966)):
        found = dataclasses.replace(known, gain=1.0, standard_error=0.2, num_validation=count)
        np.testing.assert_allclose(found.interval, (1 - 0.2 * factor, 1 + 0.2 * factor), rtol=1e-6)
        assert found.pays == (count > 2)


@pytest.mark.slow
def test_equal_differences_are_no_proof():
    """Points and labels that are symmetric: two validation points tell what one does."""
    x, labels = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([1.0, 0.2, 0.2, 1.0])
    asked = {"tolerances": [0.1], "rounds": 2}
    for wanted in (0.9, -0.9):  # what rounds shrink is wanted, or not
        found = sdntk.advise(
            KERNEL, x, labels, (np.array([-1.5, 1.5]), np.full(2, wanted)), **asked
        )
        assert found.gain != 0
        assert np.isnan(found.standard_error)
        assert "no evidence that distilling pays" in str(found)


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
        "x and validation's x must hold points of one shape",
    ),
    "validation labels": (
        (*GOOD[:3], (X_NEW, Y)),
        {},
        ValueError,
        r"validation's y must have shape \(40,\)",
    ),
    "classes and numbers": (
        (KERNEL, X, CLASSES, GOOD[3]),
        {},
        ValueError,
        "y and validation's y must both be integer classes, or both numbers",
    ),
    "other outputs": (
        (*GOOD[:3], (X_NEW, np.ones((40, 2)))),
        {},
        ValueError,
        r"as many outputs; their shapes are \(60,\) and \(40, 2\)",
    ),
    "nothing to learn": ((KERNEL, X, 0 * Y, GOOD[3]), {}, ValueError, "y must not be 0"),
    "a Linen module": (
        (linen.Dense(1), *GOOD[1:]),
        {},
        TypeError,
        r"module_or_kernel must have weights.*empirical_ntk\(module\.apply, variables\)",
    ),
    "a class": (
        (nnx.Linear, *GOOD[1:]),
        {},
        TypeError,
        "module_or_kernel must be a function of two arrays of points, or a module; .*Linear.*make",
    ),
    "what makes a network": (
        (lambda rngs: nnx.Linear(2, 1, rngs=rngs), *GOOD[1:]),
        {},
        TypeError,
        r"module_or_kernel must be a function of two .* as in build\(nnx\.Rngs\(0\)\)",
    ),
    "one round": (GOOD, {"rounds": 1}, ValueError, "rounds must be at least 2"),
    "no tolerances": (GOOD, {"tolerances": []}, ValueError, "tolerances must be a sequence"),
    "a tolerance of next to nothing": (
        GOOD,
        {"tolerances": [0.1, 1e-310]},
        ValueError,
        r"tolerances must lie between 0 and 1, .* not below 1e-292; got \[",
    ),
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


def closing_over(length_scale):
    return lambda a, b: kernels.rbf(length_scale)(a, b)


@pytest.mark.parametrize("transformed", [jax.jit, jax.grad])
@pytest.mark.parametrize("kernel", [kernels.rbf, closing_over])
def test_traced_kernels_are_refused(transformed, kernel):
    with pytest.raises(TypeError, match=r"module_or_kernel, x, y.* must have values"):
        transformed(lambda scale: sdntk.advise(kernel(scale), *GOOD[1:]).gain)(0.3)


def test_within_jit_it_is_refused():
    with pytest.raises(TypeError, match=r"advise looks at them, and stands outside of jax\.jit"):
        jax.jit(lambda z: z + sdntk.advise(*GOOD).gain)(1.0)
