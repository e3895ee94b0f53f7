"""What estimators compute (sdntk/estimators/).

Must hold: one round with multiplier alpha/K, not centred, is KernelRidge to 1e-10, for one output
and several, data of every form. A fit is that of ``sdntk.distill`` on centred labels; what "auto"
chooses is what folds by hand choose, by GCV what ``sdntk.tune`` does. Weighted points: a point of
weight 2 is two points, one of weight 0 is none. Length scales, weights of rounds, SURE, joint
outputs, tridiagonal: against brute force. Classes: the regressor on indicators. Probabilities: the
nearest point of the simplex, by quadratic programming. In float64 whatever the flag, which stays as
it is. Clones, folds of sizes that differ by one and grids compile nothing anew. Bad parameters are
named.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.spatial.distance import pdist
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.gaussian_process import kernels as gaussian_processes
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit, TimeSeriesSplit

import sdntk
from sdntk import SelfDistilledClassifier, SelfDistilledRegressor, kernels, mixing
from sdntk.estimators.chains import size_class
from sdntk.estimators.choosing import MULTIPLIERS, folds_of_points

RNG = np.random.default_rng(0)
K = 70
X = RNG.normal(size=(K, 3))
Y = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], axis=1) + 0.3 * RNG.normal(size=(K, 2)) + 2.0
NEW = RNG.normal(size=(23, 3))
KERNEL = kernels.matern(1.5, 2.0)


class PredefinedSplits:
    """A splitter of splits that are given."""

    def __init__(self, splits):
        self.splits = splits

    def get_n_splits(self, *_):
        return len(self.splits)

    def split(self, *_):
        return iter(self.splits)


def spectrum_of(x=X, kernel=KERNEL):
    return sdntk.decompose(sdntk.gram(kernel, x))


# ---- what it is ----


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("labels", [Y, Y[:, 0], Y[:, :1], Y[:, 0].tolist()])
def test_one_round_is_kernel_ridge(alpha, labels):
    ours = SelfDistilledRegressor(length_scale=1.5, rounds=1, multiplier=alpha / K, center=False)
    theirs = KernelRidge(alpha=alpha, kernel="rbf", gamma=1 / (2 * 1.5**2))
    ours.fit(X, labels), theirs.fit(X, labels)
    expected = theirs.predict(NEW)
    assert ours.predict(NEW).shape == expected.shape
    np.testing.assert_allclose(ours.predict(NEW), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(ours.dual_coef_, theirs.dual_coef_, rtol=1e-8, atol=1e-8)


def test_weighted_it_is_kernel_ridge_with_weights():
    weights = RNG.uniform(0.1, 3, K)
    ours = SelfDistilledRegressor(
        length_scale=1.5, rounds=1, multiplier=0.1 / weights.sum(), center=False
    )
    theirs = KernelRidge(alpha=0.1, kernel="rbf", gamma=1 / (2 * 1.5**2))
    ours.fit(X, Y, sample_weight=weights), theirs.fit(X, Y, sample_weight=weights)
    np.testing.assert_allclose(ours.predict(NEW), theirs.predict(NEW), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outputs", ["separate", "joint"])
@pytest.mark.parametrize("method", ["dense", "tridiagonal"])
@pytest.mark.slow_cases
def test_a_chain_is_that_of_distill_on_centred_labels(outputs, method):
    model = SelfDistilledRegressor(
        KERNEL, tolerance=0.2, rounds=3, outputs=outputs, method=method
    ).fit(X, Y)
    centred = Y - Y.mean(axis=0)
    tolerance = 0.2 * np.mean(centred**2, axis=None if outputs == "joint" else 0)
    run = sdntk.distill(KERNEL, X, centred, tolerance=tolerance, rounds=3, outputs=outputs)
    np.testing.assert_allclose(model.multipliers_, run.multipliers, rtol=1e-7)
    assert np.isnan(model.multipliers_[2]).all(), "the last round has collapsed"
    for staged, expected in zip(model.staged_predict(NEW), run.predict(NEW), strict=True):
        expected = np.asarray(expected) + Y.mean(axis=0)
        np.testing.assert_allclose(staged, expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(model.predict(NEW), staged)
    df = sdntk.selection.degrees_of_freedom(run, relative=True)[-1]
    np.testing.assert_allclose(model.degrees_of_freedom_, df, rtol=1e-6)


def test_an_absolute_tolerance_is_a_mean_square():
    model = SelfDistilledRegressor(KERNEL, tolerance=0.1, relative=False, rounds=1).fit(X, Y)
    np.testing.assert_allclose(np.mean((model.predict(X) - Y) ** 2, axis=0), 0.1, rtol=1e-8)


def test_a_mixture_of_rounds():
    model = SelfDistilledRegressor(KERNEL, multiplier=0.01, weights=[2.0, -1.5, 0.5]).fit(X, Y)
    run = sdntk.distill(KERNEL, X, Y - Y.mean(axis=0), multiplier=0.01, rounds=3)
    mixed = run.mix(jnp.asarray([2.0, -1.5, 0.5]))
    np.testing.assert_allclose(
        model.predict(NEW), mixed.predict(NEW) + Y.mean(axis=0)[None], rtol=1e-9
    )
    np.testing.assert_allclose(model.degrees_of_freedom_, mixed.degrees_of_freedom, rtol=1e-9)


# ---- what it chooses ----


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"multiplier": "auto"},
        {"outputs": "joint"},
        {"rounds": 4},
        {"tolerance": 0.1},
        {"method": "tridiagonal"},
    ],
)
@pytest.mark.slow_cases
def test_by_gcv_it_chooses_what_tune_does(given):
    model = SelfDistilledRegressor(KERNEL, criterion="gcv", **given).fit(X, Y)
    centred = Y - Y.mean(axis=0)
    levels = {"tolerances": sdntk.tuning.TOLERANCES, "relative": True}
    if "multiplier" in given:
        levels = {"multipliers": MULTIPLIERS}
    elif "tolerance" in given:
        levels["tolerances"] = [given["tolerance"]]
    rounds, outputs = given.get("rounds", 10), given.get("outputs", "separate")
    found = sdntk.tune(
        spectrum_of(), centred, **levels, rounds=rounds, outputs=outputs, kernel=KERNEL, x=X
    )
    table = model.table_
    np.testing.assert_allclose(table["gcv"], found.table["gcv"], rtol=1e-6)
    np.testing.assert_allclose(table["training_error"], found.table["training_error"], rtol=1e-6)
    name = found.table.columns[0]
    if rounds == 10:
        chosen = (model.tolerance_, model.rounds_ - 1)
        assert name == "multiplier" or chosen == found.best
        np.testing.assert_allclose(
            model.predict(NEW), found.fit.predict(NEW) + Y.mean(axis=0)[None], rtol=1e-6
        )
    last = table[table["round"] == model.rounds_ - 1]
    if rounds == 4:
        assert model.tolerance_ == last.loc[last["gcv"].idxmin(), "tolerance"]
    np.testing.assert_allclose(
        model.single_fit_.predict(NEW),
        found.single_fit.predict(NEW) + Y.mean(axis=0)[None],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "criterion",
    [
        "auto",
        ShuffleSplit(3, train_size=0.4, test_size=0.3, random_state=2),
        pytest.param(KFold(5, shuffle=True, random_state=1), marks=pytest.mark.slow),
        pytest.param(TimeSeriesSplit(4), marks=pytest.mark.slow),
    ],
)
def test_folds_by_hand(criterion):
    model = SelfDistilledRegressor(KERNEL, criterion=criterion).fit(X, Y)
    if criterion == "auto":
        folds = folds_of_points(X, np.ones(K))
        assert folds.left_out.shape == (10, K)
        splits = [tuple(map(np.flatnonzero, fold)) for fold in zip(*folds, strict=True)]
    else:
        splits = list(criterion.split(X))
    levels = sdntk.tuning.TOLERANCES
    total = np.zeros((len(levels), 10))
    for kept, left in splits:
        mean = Y[kept].mean(axis=0)
        found = sdntk.tune(
            spectrum_of(X[kept]),
            Y[kept] - mean,
            tolerances=levels,
            relative=True,
            criterion="held_out",
            validation=(X[left], Y[left] - mean),
            kernel=KERNEL,
            x=X[kept],
        )
        total += found.table["held_out"].to_numpy().reshape(-1, 10) * len(left)
    total /= sum(len(left) for _, left in splits)
    np.testing.assert_allclose(
        model.table_["held_out"].to_numpy().reshape(-1, 10), total, rtol=1e-6
    )
    level, t = np.unravel_index(np.argmin(total), total.shape)
    assert (model.tolerance_, model.rounds_) == (levels[level], t + 1)


def test_equal_points_are_left_out_together_in_whatever_order():
    x = np.repeat(X[:13], 3, axis=0)
    kept, left_out = folds_of_points(x, np.ones(39))
    np.testing.assert_array_equal(kept + left_out, 1)
    assert (left_out.sum(axis=0) == 1).all()
    assert sorted(left_out.sum(axis=1)) == [3] * 7 + [6] * 3
    assert (left_out.reshape(10, 13, 3).std(axis=2) == 0).all()
    order = RNG.permutation(39)
    np.testing.assert_array_equal(folds_of_points(x[order], np.ones(39))[1], left_out[:, order])
    weights = np.tile([1.0, 0.0, 2.0], 13)
    np.testing.assert_array_equal(folds_of_points(x, weights)[1], left_out * (weights > 0))
    assert folds_of_points(X[:4], np.ones(4)).kept.shape == (4, 4)
    assert folds_of_points(X[:1], np.ones(1)) is None
    assert folds_of_points(np.arange(2001.0)[:, None], np.ones(2001)) is None


@pytest.mark.slow
def test_sure_takes_the_noise_that_the_single_fit_leaves():
    y = Y[:, 0] - Y[:, 0].mean()
    model = SelfDistilledRegressor(KERNEL, criterion="sure").fit(X, y)
    levels = {"tolerances": sdntk.tuning.TOLERANCES, "relative": True}
    single = sdntk.tune(spectrum_of(), y, **levels)
    row = single.table[
        (single.table["tolerance"] == single.best_single.level) & (single.table["round"] == 0)
    ]
    noise = (
        float(row["training_error"].iloc[0]) * K / (K - float(row["degrees_of_freedom"].iloc[0]))
    )
    found = sdntk.tune(spectrum_of(), y, **levels, criterion="sure", noise_variance=noise)
    np.testing.assert_allclose(model.table_["sure"], found.table["sure"], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_length_scales_are_tried_around_the_median_distance():
    model = SelfDistilledRegressor(length_scale="auto").fit(X, Y[:, 0])
    median = np.median(pdist(X))
    scales = np.unique(model.table_["length_scale"])
    np.testing.assert_allclose(scales, median * np.array([0.25, 0.5, 1, 2, 4]))
    alone = [SelfDistilledRegressor(length_scale=scale).fit(X, Y[:, 0]) for scale in scales]
    best = min(alone, key=lambda one: one.table_["held_out"].min())
    assert model.length_scale_ == best.length_scale
    np.testing.assert_allclose(model.predict(NEW), best.predict(NEW), rtol=1e-9)
    plain = SelfDistilledRegressor().fit(X, Y[:, 0])
    assert plain.length_scale_ == pytest.approx(median)

    singles = model.table_[model.table_["round"] == 0]
    row = singles.loc[singles["held_out"].idxmin()]
    single = SelfDistilledRegressor(
        length_scale=row["length_scale"], tolerance=row["tolerance"], rounds=1
    )
    found = model.single_fit_
    assert (found.length_scale, found.tolerance, found.rounds) == (
        row["length_scale"],
        row["tolerance"],
        1,
    )
    np.testing.assert_allclose(found.predict(NEW), single.fit(X, Y[:, 0]).predict(NEW), rtol=1e-9)
    np.testing.assert_allclose(found.single_fit_.predict(NEW), found.predict(NEW))


@pytest.mark.slow
def test_weights_of_rounds_that_are_chosen():
    y = Y - Y.mean(axis=0)
    model = SelfDistilledRegressor(KERNEL, weights="auto", rounds=3, criterion="gcv").fit(X, y)
    single = sdntk.tune(spectrum_of(), y, multipliers=MULTIPLIERS, rounds=1).best_single.level
    run = sdntk.distill(KERNEL, X, y, multiplier=single, rounds=3, outputs="joint")
    np.testing.assert_allclose(model.weights_, mixing.one_shot(run).weights, rtol=1e-4)
    assert model.tolerance_ is None

    folds = SelfDistilledRegressor(KERNEL, weights="auto", criterion=5).fit(X, y)
    predicted = np.zeros((2, *y.shape))
    for kept, left in KFold(5).split(X):
        mean = y[kept].mean(axis=0)
        part = sdntk.distill(
            KERNEL, X[kept], y[kept] - mean, multiplier=folds.multipliers_[0, 0], rounds=2
        )
        predicted[:, left] = np.asarray(part.predict(X[left])) + mean
    by_hand = mixing.held_out(predicted, y).weights
    np.testing.assert_allclose(folds.weights_, by_hand, rtol=1e-5)
    thrice = PredefinedSplits(3 * list(KFold(5).split(X)))
    again = SelfDistilledRegressor(KERNEL, weights="auto", criterion=thrice).fit(X, y)
    np.testing.assert_allclose(again.weights_, folds.weights_, rtol=1e-6)


@pytest.mark.slow
def test_where_no_tolerance_is_feasible_multipliers_are_tried():
    noise = RNG.normal(size=K)
    lines = np.column_stack([X, np.ones(K)])
    y = noise - lines @ np.linalg.lstsq(lines, noise)[0] + 0.01 * X[:, 0]  # no line explains it
    model = SelfDistilledRegressor("linear", rounds=1).fit(X, y)
    assert model.tolerance_ is None
    assert "multiplier" in model.table_
    with pytest.raises(ValueError, match=r"tolerance 0\.5 of the labels' mean square is inf"):
        SelfDistilledRegressor("linear", tolerance=0.5).fit(X, y)


@pytest.mark.filterwarnings("ignore::sdntk.UndecidedWarning")
@pytest.mark.slow
def test_a_space_of_few_functions_is_tuned_as_well_as_a_ridge():
    errors = []
    for points in np.random.default_rng(1).normal(size=(8, K, 3)):
        x = points - points.mean(axis=0)  # a ridge's intercept is then the labels' mean
        truth = x @ np.array([1.0, -0.5, 0.2])
        y = truth + RNG.normal(size=K)
        model = SelfDistilledRegressor("linear").fit(x, y)
        assert model.tolerance_ is None
        ridge = RidgeCV(np.geomspace(1e-3, 1e3, 20)).fit(x, y)
        errors.append([np.mean((one.predict(x) - truth) ** 2) for one in (model, ridge)])
    ours, theirs = np.mean(errors, axis=0)
    assert ours < 1.3 * theirs


@pytest.mark.filterwarnings("ignore::sdntk.UndecidedWarning")
@pytest.mark.parametrize("method", ["dense", "tridiagonal"])
@pytest.mark.slow_cases
def test_what_rounding_decides_is_not_chosen(method):
    """A smooth kernel, whose tiny eigenvalues are noise, and a fit without noise."""
    x = np.linspace(0, 1, 120)[:, None]
    y = np.sin(5 * x[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", sdntk.PrecisionWarning)
        model = SelfDistilledRegressor(length_scale=0.5, criterion="gcv", method=method).fit(x, y)
    assert model.score(x, y) > 0.99
    assert np.nanmin(model.multipliers_) > 1e-13  # eps d_max / 1e-3, d_max about 1


@pytest.mark.filterwarnings("ignore::sdntk.UndecidedWarning")
@pytest.mark.slow
def test_scales_with_and_without_feasible_tolerances():
    x = RNG.uniform(-1, 1, (200, 1))
    model = SelfDistilledRegressor(length_scale="auto", criterion="gcv", rounds=1)
    model.fit(x, RNG.normal(size=200))
    assert len(model.table_) == 5 * 40


@pytest.mark.usefixtures("as_users_call")
def test_points_of_another_shape_and_values_that_are_nan():
    model = SelfDistilledRegressor(KERNEL, tolerance=0.3, rounds=1).fit(X, Y)
    with pytest.raises(ValueError, match=r"X (must have the training|has 1 features)"):
        model.predict(X[:, :1])
    with pytest.raises(ValueError, match="kernel must have finite values"):
        SelfDistilledRegressor(lambda a, b: np.full((len(a), len(b)), np.nan)).fit(X, Y)


# ---- weighted points ----


@pytest.mark.filterwarnings("ignore::sdntk.UndecidedWarning")
@pytest.mark.parametrize(
    "given",
    [
        {"tolerance": 0.2, "rounds": 3},
        {"length_scale": "auto", "criterion": "gcv"},
        pytest.param({}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("outputs", ["separate", "joint"])
@pytest.mark.slow_cases
def test_a_point_of_weight_two_is_two_points_and_one_of_weight_zero_is_none(given, outputs):
    counts = RNG.integers(0, 3, K)
    one = SelfDistilledRegressor(kernel="matern", outputs=outputs, **given)
    weighted = clone(one).fit(X, Y, sample_weight=counts)
    repeated = clone(one).fit(np.repeat(X, counts, axis=0), np.repeat(Y, counts, axis=0))
    assert weighted.rounds_ == repeated.rounds_
    np.testing.assert_allclose(weighted.predict(NEW), repeated.predict(NEW), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        weighted.degrees_of_freedom_, repeated.degrees_of_freedom_, rtol=1e-6
    )


@pytest.mark.parametrize("unit", [1e-90, 1e90])
def test_nothing_depends_on_the_labels_unit(unit):
    model = SelfDistilledRegressor(KERNEL).fit(X, Y)
    other = SelfDistilledRegressor(KERNEL).fit(X, unit * Y)
    assert (other.rounds_, other.tolerance_) == (model.rounds_, model.tolerance_)
    np.testing.assert_allclose(other.predict(NEW) / unit, model.predict(NEW), rtol=1e-8)


def test_a_factor_of_all_weights_changes_no_chain():
    model = SelfDistilledRegressor(KERNEL, tolerance=0.2, rounds=3).fit(X, Y)
    other = clone(model).fit(X, Y, sample_weight=np.full(K, 17.0))
    np.testing.assert_allclose(other.predict(NEW), model.predict(NEW), rtol=1e-8)


@pytest.mark.parametrize("num", [2, 3])
@pytest.mark.slow_cases
def test_few_points_and_labels_that_do_not_vary(num):
    model = SelfDistilledRegressor().fit(X[:num], np.full(num, 7.5))
    np.testing.assert_allclose(model.predict(NEW), 7.5)
    assert np.isfinite(SelfDistilledRegressor().fit(X[:num], Y[:num]).predict(NEW)).all()
    with pytest.warns(sdntk.UndecidedWarning, match="points are too few for gcv"):
        SelfDistilledRegressor(criterion="gcv").fit(X[:num], Y[:num])


@pytest.mark.parametrize("criterion", ["gcv", "sure", "auto"])
def test_small_weights_are_as_good_as_large_ones(criterion):
    weights = RNG.uniform(0.5, 1.5, K)
    weights *= K / weights.sum()
    model = SelfDistilledRegressor(KERNEL, criterion=criterion)
    one = clone(model).fit(X, Y, sample_weight=weights)
    other = clone(model).fit(X, Y, sample_weight=weights / K)
    assert (one.rounds_, one.tolerance_) == (other.rounds_, other.tolerance_)
    np.testing.assert_allclose(one.predict(NEW), other.predict(NEW), rtol=1e-7)


def test_one_point_tells_nothing():
    with pytest.warns(sdntk.UndecidedWarning, match="1 points are too few"):
        model = SelfDistilledRegressor().fit(X[:1], Y[:1])
    np.testing.assert_allclose(model.predict(NEW), np.tile(Y[:1], (len(NEW), 1)))


# ---- classes ----


@pytest.mark.slow
def test_classes_are_those_of_the_largest_output():
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = SelfDistilledClassifier(length_scale=2.0).fit(x, names)
    outputs = SelfDistilledRegressor(length_scale=2.0).fit(x, np.eye(3)[y]).predict(x)
    np.testing.assert_allclose(model.decision_function(x), outputs)
    np.testing.assert_array_equal(model.predict(x), model.classes_[outputs.argmax(axis=1)])
    assert model.score(x, names) > 0.95
    proba = model.predict_proba(x)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    for f, p in zip(outputs[::30], proba[::30], strict=True):
        nearest = scipy.optimize.minimize(
            lambda q, f=f: np.sum((q - f) ** 2),
            np.full(3, 1 / 3),
            bounds=[(0, 1)] * 3,
            constraints={"type": "eq", "fun": lambda q: q.sum() - 1},
            tol=1e-12,
        )
        np.testing.assert_allclose(p, nearest.x, atol=1e-5)
    last = list(model.staged_predict(x))[-1]
    np.testing.assert_array_equal(last, model.predict(x))


@pytest.mark.slow
def test_two_classes_are_told_by_a_sign_and_a_collapsed_fit_by_frequency():
    x, y = load_iris(return_X_y=True)
    x, y = x[40:], np.array(["a", "b"])[(y[40:] > 1).astype(int)]
    model = SelfDistilledClassifier(length_scale=2.0).fit(x, y)
    signs = np.where(y == "b", 1.0, -1.0)
    regressor = SelfDistilledRegressor(length_scale=2.0).fit(x, signs)
    np.testing.assert_allclose(model.decision_function(x), regressor.predict(x))
    np.testing.assert_array_equal(model.predict(x), np.where(regressor.predict(x) > 0, "b", "a"))
    np.testing.assert_allclose(
        model.predict_proba(x)[:, 1], np.clip((1 + regressor.predict(x)) / 2, 0, 1)
    )
    collapsed = SelfDistilledClassifier(tolerance=1.5, rounds=1).fit(x, y)
    assert (collapsed.predict(x) == "a").all()  # 60 of 110
    np.testing.assert_allclose(collapsed.predict_proba(x)[:, 1], 50 / 110)


# ---- precision and compilation ----


@pytest.mark.usefixtures("single_precision")
def test_it_computes_in_float64_and_leaves_the_flag():
    assert not jax.config.jax_enable_x64
    kernel = kernels.rbf(0.3)  # made with the flag off
    x = np.linspace(0, 1, 40)[:, None]
    y = np.sin(6 * x[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SelfDistilledRegressor(kernel, rounds=1, multiplier=1e-5 / 40, center=False)
        model.fit(x, y)
    theirs = KernelRidge(alpha=1e-5, kernel="rbf", gamma=1 / (2 * 0.3**2)).fit(x, y)
    assert model.dual_coef_.dtype == model.predict(x).dtype == np.float64
    np.testing.assert_allclose(model.predict(x), theirs.predict(x), rtol=1e-9)
    assert not jax.config.jax_enable_x64


@pytest.mark.slow
def test_clones_folds_and_grids_compile_nothing_anew():
    compiled = []

    def listen(event, *_, **__):
        compiled.append(event == "/jax/core/compile/backend_compile_duration")

    def compilations(work):
        compiled.clear()
        work()
        return sum(compiled)

    x = RNG.normal(size=(77, 3))
    y = np.sin(x[:, 0]) + 0.1 * RNG.normal(size=77)
    assert size_class(77) == size_class(76) == size_class(73) == 80
    model = SelfDistilledRegressor(rounds=2, tolerance=0.2)
    folded = SelfDistilledRegressor(rounds="auto", tolerance=0.2)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert compilations(lambda: jax.jit(lambda z: 3 * z)(x)) > 0  # they are heard
        model.fit(x, y).predict(x[:20])  # compiles, unless an earlier test had these sizes
        assert compilations(lambda: clone(model).fit(x[:73], y[:73]).predict(x[:18])) == 0
        assert compilations(lambda: clone(model).set_params(tolerance=0.4).fit(x, y)) == 0
        folded.fit(x, y)
        assert compilations(lambda: folded.fit(x[:74], y[:74])) == 0

        # 93 points: folds of 46 and 47, of one class; then all of them, of another.
        x, y = np.tile(x, (2, 1))[:93], np.tile(y, 2)[:93]
        grid = {"tolerance": [0.1, 0.3], "length_scale": [1.0, 2.0]}
        model.fit(x[:47], y[:47]).predict(x[:47])
        model.fit(x, y)
        assert compilations(lambda: GridSearchCV(model, grid, cv=2).fit(x, y)) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("num", [1, 7, 8, 9, 63, 300, 2000, 2049, 10**6])
def test_a_class_of_sizes_holds_little_more(num):
    size = size_class(num)
    assert num <= size <= max(num + 15, num * 17 / 16)
    assert size_class(size) == size


# ---- landmarks ----


@pytest.mark.filterwarnings("ignore::sdntk.UndecidedWarning")  # it may be, and both would
@pytest.mark.parametrize("outputs", ["separate", "joint"])
@pytest.mark.parametrize(
    "level", [{"tolerance": 0.2}, {"multiplier": 1e-3}, {"criterion": "sure", "multiplier": "auto"}]
)
@pytest.mark.slow_cases
def test_with_all_points_as_landmarks_nothing_is_lost(level, outputs):
    """Weights and an empty one among them, centred, two outputs of other sizes."""
    x = RNG.normal(size=(90, 3))
    y = np.column_stack([np.sin(x[:, 0]), 100 * x[:, 1]]) + RNG.normal(size=(90, 2)) * [0.1, 9]
    weights = RNG.integers(0, 3, size=90)
    common = {"kernel": "matern", "length_scale": 1.5, "outputs": outputs, **level}
    dense = SelfDistilledRegressor(method="dense", **{"criterion": "gcv", **common})
    few = clone(dense).set_params(method="nystrom", landmarks=500)
    for model in (dense, few):
        model.fit(x, y, sample_weight=weights)
    assert few.rounds_ == dense.rounds_
    assert len(few.X_fit_) == np.sum(weights > 0)
    np.testing.assert_allclose(few.predict(x), dense.predict(x), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(few.multipliers_, dense.multipliers_, rtol=1e-7)
    np.testing.assert_allclose(few.degrees_of_freedom_, dense.degrees_of_freedom_, rtol=1e-7)
    np.testing.assert_allclose(
        few.table_["training_error"], dense.table_["training_error"], rtol=1e-7
    )


@pytest.mark.slow
def test_landmarks_serve_many_points_and_all_tools():
    x = RNG.uniform(-3, 3, size=(12_000, 2))
    y = np.sin(x[:, 0]) * x[:, 1]
    model = SelfDistilledRegressor(method="nystrom", landmarks=150).fit(
        x, y + RNG.normal(size=len(x))
    )
    assert 50 < len(model.X_fit_) <= 150  # those that depend on others are left out
    assert np.mean((model.predict(x) - y) ** 2) < 0.02  # the noise has 1
    again = clone(model).fit(x, y)
    np.testing.assert_array_equal(again.X_fit_, model.X_fit_)
    other = clone(model).set_params(random_state=1).fit(x, y)
    assert not np.isin(other.X_fit_, model.X_fit_).all()
    assert len(list(model.staged_predict(x[:5]))) == model.rounds_
    assert model.single_fit_.predict(x[:5]).shape == (5,)


def test_landmarks_of_kernels_that_know_numpy_only():
    x, y = RNG.normal(size=(60, 2)), RNG.normal(size=60)
    theirs = SelfDistilledRegressor(kernel=gaussian_processes.RBF(2.0), multiplier=0.01, rounds=2)
    ours = SelfDistilledRegressor(length_scale=2.0, multiplier=0.01, rounds=2)
    predictions = [
        model.set_params(method="nystrom", landmarks=40).fit(x, y).predict(x)
        for model in (theirs, ours)
    ]
    np.testing.assert_allclose(*predictions, rtol=1e-7, atol=1e-9)


# ---- bad input ----


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kernel": "gauss"}, 'kernel must be one of "rbf", .*got "gauss"'),
        ({"kernel": 3}, "kernel must be a name, a kernel"),
        (
            {"kernel": "linear", "length_scale": 2.0},
            'length_scale must be left out: kernel "linear"',
        ),
        ({"kernel": KERNEL, "length_scale": 2.0}, "length_scale must be left out unless kernel"),
        ({"kernel": KERNEL, "kernel_params": {}}, "kernel_params must be left out unless"),
        ({"kernel_params": {"gamma": 1}}, "kernel_params must hold parameters of kernel"),
        ({"length_scale": "mean"}, 'length_scale must be a positive number, "median" or "auto"'),
        ({"length_scale": -1.0}, "length_scale must be a positive number"),
        ({"tolerance": None}, "tolerance must be a positive number"),
        ({"tolerance": -0.1}, "tolerance must be a positive number"),
        ({"tolerance": 0.1, "multiplier": 0.1}, "only one of tolerance and multiplier"),
        ({"multiplier": "best"}, "multiplier must be a positive number"),
        ({"rounds": "many"}, 'rounds must be a number or "auto"'),
        ({"rounds": 0}, "rounds must be"),
        ({"rounds": 2, "weights": [1.0]}, "weights must hold a number for each of the 2 rounds"),
        ({"weights": [[1.0]]}, 'weights must be "auto", None or one finite number'),
        ({"weights": "some"}, 'weights must be "auto", None or one finite number'),
        ({"weights": "auto", "tolerance": 0.1}, 'weights="auto" is for multipliers'),
        ({"criterion": "aic"}, 'criterion must be "auto", "gcv", "sure", a number of folds'),
        ({"criterion": 1}, r"criterion must be at least 2; got 1\. Beside a number of folds"),
        ({"criterion": 2.5}, r"criterion must be an integer; got 2\.5\. Beside a number"),
        ({"outputs": "both"}, "outputs must be"),
        ({"method": "nystrom", "random_state": -1}, "random_state must be a seed"),
        ({"method": "nystrom", "random_state": "a"}, "random_state must be a seed"),
        ({"method": "nystrom", "landmarks": 0}, "landmarks must be at least 1"),
        ({"method": "nystrom", "criterion": 5}, 'criterion must be "auto", "gcv" or "sure"'),
        ({"method": "nystrom", "weights": "auto"}, 'weights must not be "auto"'),
        ({"center": "yes"}, "center must be"),
        ({"relative": 1.5}, "relative must be"),
        ({"method": "krylov"}, "method must be"),
        ({"relative": False}, "relative must be True for tolerance"),
        ({"criterion": KFold}, "criterion must be an integer"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_parameters_are_named(given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SelfDistilledRegressor(**given).fit(X, Y[:, 0])


@pytest.mark.usefixtures("as_users_call")
def test_bad_weights_matrices_and_classes_are_named():
    with pytest.raises(ValueError, match="sample_weight must be zero or positive"):
        SelfDistilledRegressor().fit(X, Y, sample_weight=-np.ones(K))
    with pytest.raises(ValueError, match=r"ample weights? must"):
        SelfDistilledRegressor().fit(X, Y, sample_weight=np.zeros(K))
    with pytest.raises(ValueError, match="sample_weight must be left out with weights"):
        SelfDistilledRegressor(weights="auto", criterion="gcv").fit(
            X, Y, sample_weight=np.arange(1.0, K + 1)
        )
    with pytest.raises(ValueError, match="criterion must leave points of positive weight out"):
        SelfDistilledRegressor(criterion=KFold(5)).fit(
            X, Y, sample_weight=np.where(np.arange(K) < 10, 1.0, 0.0)
        )
    with pytest.raises(ValueError, match=r"y must be 0 or reach between 1e-150 and 1e\+150"):
        SelfDistilledRegressor().fit(X, 1e300 * Y)
    in_space = SelfDistilledRegressor(KERNEL, tolerance=0.3, rounds=1).fit(X.reshape(K, 3, 1), Y)
    with pytest.raises(ValueError, match=r"X must have the training points' shape \(3, 1\)"):
        in_space.predict(np.ones((5, 3, 2)))
    with pytest.raises(ValueError, match="X must be the square matrix"):
        SelfDistilledRegressor("precomputed").fit(X, Y)
    skew = np.triu(np.ones((K, K)))
    with pytest.raises(ValueError, match="X must be symmetric"):
        SelfDistilledRegressor("precomputed").fit(skew, Y)
    indefinite = np.asarray(KERNEL(X, X)) - 5 * np.eye(K)
    with pytest.warns(sdntk.PrecisionWarning, match="negative eigenvalues beyond rounding"):
        SelfDistilledRegressor("precomputed", multiplier=0.1, rounds=1).fit(indefinite, Y)
    with pytest.raises(ValueError, match=r"negative eigenvalues beyond rounding.*dense"):
        SelfDistilledRegressor("precomputed", multiplier=0.1, rounds=1, method="tridiagonal").fit(
            indefinite, Y
        )
    with pytest.raises(ValueError, match="y must hold at least 2 classes"):
        SelfDistilledClassifier().fit(X, np.ones(K))
