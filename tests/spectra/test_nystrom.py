"""Spectra from landmarks.

Must hold: a chain on a Nystrom spectrum is the dense chain of the kernel g' = phi . phi', in every
attribute, every way to choose and every way to read it; with all points as landmarks it is that of
the kernel itself, to 1e-8 (Matern-3/2, and the RBF kernel, whose rank is reported); arrays, memory
maps and blocks of a function give the same bits; sums and predictions are the same on 1 device, 8
devices and in 2 processes (test_nystrom_processes.py, with kills); a tolerance below the floor is
refused with the floor's name, a fixed multiplier has none; what is lost is told.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdntk
import sdntk.architectures
from sdntk import Status, distill, distill_spectrum, kernels, nystrom
from sdntk.gram_matrices.point_blocks import PointBlocks
from sdntk.spectra import nystrom_sums
from sdntk.spectra.landmarks import landmarks_at, pivots

K, M = 240, 40
KERNEL = kernels.rbf(2.0)
RNG = np.random.default_rng(0)


def points_and_labels(rng, num=K, outputs=()):
    x = rng.normal(size=(num, 4))
    signal = np.sin(x[:, :1] * (1 + np.arange(*outputs or (1,)))) + x[:, 1:2] * x[:, 2:3]
    y = signal + 0.3 * rng.normal(size=signal.shape)
    return x, y if outputs else y[:, 0]


def low_rank_kernel(landmarks, kernel=KERNEL):
    """G' as a kernel: g(x, L) g(L, L)^-1 g(L, t)."""
    factor = jnp.linalg.cholesky(kernel(landmarks, landmarks))

    def values(x, t):
        phi, psi = (
            jax.scipy.linalg.solve_triangular(factor, kernel(landmarks, z), lower=True)
            for z in (x, t)
        )
        return phi.T @ psi

    return values


@pytest.fixture(scope="module", params=[(), (3,)], ids=["one output", "three outputs"])
def problem(request):
    x, y = points_and_labels(np.random.default_rng(5), outputs=request.param)
    spectrum = nystrom(KERNEL, x, y, landmarks=x[::6])
    return x, y, spectrum, low_rank_kernel(x[::6])


CHAINS = {
    "multiplier": {"multiplier": 1e-3},
    "ground truth": {"multiplier": 1e-3, "ground_truth_weight": 0.3},
    "tolerance": {"tolerance": 0.45},
    "joint": {"tolerance": 0.45, "outputs": "joint"},
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.slow_cases
def test_a_chain_is_the_dense_one_of_the_low_rank_kernel(problem, name):
    x, y, spectrum, kernel = problem
    chain = {"rounds": 5, **CHAINS[name]}
    run, dense = distill_spectrum(spectrum, y, **chain), distill(kernel, x, y, **chain)
    assert (np.asarray(dense.status) == Status.ACTIVE).any()
    np.testing.assert_array_equal(run.status, dense.status)
    np.testing.assert_array_equal(run.active_rounds, dense.active_rounds)
    for attribute in ("multipliers", "fitted", "training_loss", "norms", "degrees_of_freedom"):
        found, expected = getattr(run, attribute), getattr(dense, attribute)
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9, err_msg=attribute)
    np.testing.assert_allclose(sdntk.selection.gcv(run), sdntk.selection.gcv(dense), rtol=1e-8)
    new = RNG.normal(size=(9, 4))
    run = dataclasses.replace(run, kernel=KERNEL, x=spectrum.landmarks)
    np.testing.assert_allclose(run.predict(new), dense.predict(new), rtol=0, atol=1e-8)
    cross = sdntk.gram(KERNEL, new, spectrum.landmarks)
    np.testing.assert_allclose(run.predict_from(cross), dense.predict(new), rtol=0, atol=1e-8)
    weights = RNG.normal(size=5)
    mixed, mixed_dense = run.mix(weights), dense.mix(weights)
    np.testing.assert_allclose(mixed.fitted, mixed_dense.fitted, rtol=0, atol=1e-8)
    np.testing.assert_allclose(mixed.predict(new), mixed_dense.predict(new), rtol=0, atol=1e-8)
    fit, of_dense = run.fits[1], dense.fits[1]
    np.testing.assert_allclose(fit.fitted, of_dense.fitted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("criterion", ["gcv", "sure", "held_out"])
@pytest.mark.slow_cases
def test_levels_and_rounds_are_chosen_as_on_the_dense_one(problem, criterion):
    x, y, spectrum, kernel = problem
    options = {"tolerances": [0.43, 0.45, 0.5, 0.7], "rounds": 3, "criterion": criterion}
    if criterion == "sure":
        options["noise_variance"] = 0.09
    dense = {}
    if criterion == "held_out":
        new = RNG.normal(size=(30, 4))
        labels = np.sin(new[:, 0]) if y.ndim == 1 else np.sin(new[:, :3])
        options |= {"x": x, "validation": (new, labels)}
        dense = {"kernel": kernel}
        options["kernel"] = KERNEL
    found = sdntk.tune(spectrum, y, **options)
    other = sdntk.tune(sdntk.decompose(sdntk.gram(kernel, x)), y, **(options | dense))
    assert found.best == other.best
    np.testing.assert_allclose(found.table[criterion], other.table[criterion], rtol=1e-7)
    np.testing.assert_allclose(found.fit.fitted, other.fit.fitted, rtol=0, atol=1e-7)


def test_filters_of_your_own(problem):
    x, y, spectrum, kernel = problem
    ridge = lambda d: sdntk.filters.ridge(d, 1e-3)  # noqa: E731
    fit = sdntk.fit_filter(spectrum, y, ridge, kernel=KERNEL, x=x)
    dense = sdntk.fit_filter(sdntk.decompose(sdntk.gram(kernel, x)), y, ridge, kernel=kernel, x=x)
    new = RNG.normal(size=(9, 4))
    np.testing.assert_allclose(fit.predict(new), dense.predict(new), rtol=0, atol=1e-8)
    np.testing.assert_allclose(fit.fitted, dense.fitted, rtol=0, atol=1e-8)
    np.testing.assert_allclose(fit.degrees_of_freedom, dense.degrees_of_freedom, rtol=1e-9)


@pytest.mark.slow_cases
def test_other_labels_take_a_pass(problem):
    x, y, spectrum, kernel = problem
    others = np.cos(x[:, 0]) + RNG.normal(size=K)
    run = distill_spectrum(spectrum, others, multiplier=1e-3, rounds=3)
    dense = distill(kernel, x, others, multiplier=1e-3, rounds=3)
    np.testing.assert_allclose(run.fitted, dense.fitted, rtol=0, atol=1e-8)
    np.testing.assert_allclose(run.training_loss, dense.training_loss, rtol=1e-9)
    several = np.stack([others, 2 * others], axis=1)
    both = distill_spectrum(spectrum, several, multiplier=1e-3, rounds=3)
    np.testing.assert_allclose(both.fitted[..., 1], 2 * run.fitted, rtol=0, atol=1e-8)
    unit = distill_spectrum(spectrum, 1e100 * y, multiplier=1e-3, rounds=3)  # no pass: its own
    own = distill_spectrum(spectrum, y, multiplier=1e-3, rounds=3)
    np.testing.assert_allclose(unit.fitted, 1e100 * own.fitted, rtol=1e-9)


# ---- all points as landmarks ----


@pytest.mark.parametrize("kernel", [kernels.matern(1.5, 2.0), KERNEL], ids=repr)
@pytest.mark.parametrize("chain", [{"tolerance": 0.05}, {"multiplier": 1e-4}], ids=str)
@pytest.mark.slow_cases
def test_all_points_as_landmarks_give_the_dense_path(kernel, chain):
    x, y = points_and_labels(RNG)
    run = distill(kernel, x, y, rounds=6, method="nystrom", landmarks=K, **chain)
    dense = distill(kernel, x, y, rounds=6, **chain)
    assert run.method == "nystrom"
    np.testing.assert_allclose(run.multipliers, dense.multipliers, rtol=1e-8)
    np.testing.assert_allclose(run.fitted, dense.fitted, rtol=0, atol=1e-8)
    np.testing.assert_allclose(run.degrees_of_freedom, dense.degrees_of_freedom, rtol=1e-8)
    new = RNG.normal(size=(9, 4))
    np.testing.assert_allclose(run.predict(new), dense.predict(new), rtol=0, atol=1e-8)
    assert run.spectrum.lost.trace < 1e-12
    assert run.spectrum.lost.norm < 1e-12


def test_the_rank_is_reported():
    x = np.linspace(0, 1, 200)[:, None]
    spectrum = nystrom(kernels.rbf(0.5), x, np.sin(6 * x[:, 0]), landmarks=200)
    rank = len(spectrum.landmarks)
    true = np.linalg.matrix_rank(np.asarray(kernels.rbf(0.5)(x, x)), hermitian=True)
    assert abs(rank - true) <= 3
    assert spectrum.num_asked == 200
    assert f"{rank} landmarks" in repr(spectrum)
    twice = np.concatenate([x[::10], x[::10]])
    matern = kernels.matern(0.5, 1.0)
    assert len(nystrom(matern, x, x[:, 0], landmarks=twice).landmarks) == 20


# ---- sources ----


@pytest.mark.slow
def test_arrays_memory_maps_and_functions_give_the_same_bits(tmp_path):
    x, y = points_and_labels(RNG, num=500, outputs=(2,))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")

    def blocks(sizes=(64,) * 8):
        start = 0
        for size in sizes:
            yield x[start : start + size], y[start : start + size]
            start += size

    landmarks = x[:M]
    spectra = [
        nystrom(KERNEL, x, y, landmarks=landmarks, block_size=64),
        nystrom(KERNEL, mapped, y, landmarks=landmarks, block_size=64),
        nystrom(KERNEL, blocks, landmarks=landmarks, block_size=64),
        nystrom(KERNEL, lambda: blocks((128, 256, 128)), landmarks=landmarks, block_size=64),
        nystrom(KERNEL, jnp.asarray(x), list(y), landmarks=landmarks, block_size=64),
    ]
    for spectrum in spectra[1:]:
        np.testing.assert_array_equal(spectrum.rotated_labels, spectra[0].rotated_labels)
        np.testing.assert_array_equal(spectrum.eigenvalues, spectra[0].eigenvalues)
        np.testing.assert_array_equal(spectrum.labels, y)
        run, first = (
            distill_spectrum(s, y, multiplier=1e-3, rounds=2) for s in (spectrum, spectra[0])
        )
        np.testing.assert_array_equal(run.fitted, first.fitted)


@pytest.mark.parametrize("size", [1, 7, 100, K, 10**6])
@pytest.mark.slow_cases
def test_blocks_of_any_size(size):
    x, y = points_and_labels(RNG)
    found = nystrom(KERNEL, x, y, landmarks=x[:M], block_size=size)
    other = nystrom(KERNEL, x, y, landmarks=x[:M])
    np.testing.assert_allclose(found.eigenvalues, other.eigenvalues, rtol=1e-7, atol=1e-15)
    run, expected = (distill_spectrum(s, y, multiplier=1e-3, rounds=2) for s in (found, other))
    np.testing.assert_allclose(run.fitted, expected.fitted, rtol=0, atol=1e-9)


def test_functions_are_drawn_from_evenly():
    """Every point is as likely as any other, whatever the blocks."""
    x, y = np.arange(1000.0)[:, None], np.zeros(1000)

    def blocks():
        for part in (slice(0, 100), slice(100, 900), slice(900, 1000)):
            yield x[part], y[part]

    drawn = []
    for seed in range(200):
        [points] = PointBlocks(KERNEL, blocks, None).draw([(20, jax.random.key(seed))])
        assert len(np.unique(points)) == 20
        drawn.append(points)
    drawn = np.ravel(drawn)
    counts = np.histogram(drawn, bins=[0, 100, 500, 900, 1000])[0] / len(drawn)
    np.testing.assert_allclose(counts, [0.1, 0.4, 0.4, 0.1], atol=5 * np.sqrt(0.25 / len(drawn)))


def test_landmarks_follow_the_key():
    x, y = points_and_labels(RNG)
    taken = [
        nystrom(KERNEL, x, y, landmarks=M, key=key).landmarks
        for key in (None, jax.random.key(0), jax.random.key(1))
    ]
    np.testing.assert_array_equal(taken[0], taken[1])
    assert (np.asarray(taken[0]) != np.asarray(taken[2])).any()
    assert all((x == point).all(axis=1).any() for point in np.asarray(taken[0]))


# ---- what is lost ----


def test_what_is_lost_is_told():
    x, y = points_and_labels(RNG, num=1000)
    values = np.asarray(KERNEL(x, x))
    for number in (10, 40, 160):
        spectrum = nystrom(KERNEL, x, y, landmarks=number)
        low_rank = np.asarray(low_rank_kernel(spectrum.landmarks)(x, x))
        trace = np.trace(values - low_rank) / 1000
        norm = np.linalg.norm(values - low_rank, 2) / np.linalg.norm(values, 2)
        assert float(spectrum.lost.trace) == pytest.approx(trace, rel=0.25)
        # Few points show more of a diagonal than many do.
        assert 0.8 * norm < float(spectrum.lost.norm) < 1.2 * norm + trace / 256 * 1000 / 100


@pytest.mark.slow
def test_random_pivots_leave_less_than_random_points():
    """On points of which most lie together: random ones miss the others."""
    x = np.concatenate([0.01 * RNG.normal(size=(950, 2)), 10 * RNG.normal(size=(50, 2))])
    y = x[:, 0]
    lost = [
        float(nystrom(kernels.rbf(1.0), x, y, landmarks=100, selection=how).lost.trace)
        for how in ("uniform", "pivoted")
    ]
    assert lost[0] > 0.02  # of the 50 it has about 5
    assert lost[1] < 0.001
    taken = pivots(kernels.rbf(1.0), x, 60, jax.random.key(0))
    assert len(set(taken.tolist())) == 60


def test_a_tolerance_below_the_floor_is_refused():
    x, y = points_and_labels(RNG)
    spectrum = nystrom(KERNEL, x, y, landmarks=10)
    outside = y - np.asarray(distill_spectrum(spectrum, y, multiplier=1e-12, rounds=1).fitted[0])
    floor = float(spectrum.floor(y))
    assert floor == pytest.approx(np.mean(outside**2), rel=1e-6)
    with pytest.raises(ValueError, match=r"the functions of 10 landmarks.*multiplier.*just above"):
        distill_spectrum(spectrum, y, tolerance=0.99 * floor, rounds=1)
    run = distill_spectrum(spectrum, y, tolerance=1.01 * floor, rounds=2)
    assert run.training_loss[0] == pytest.approx(1.01 * floor)


# ---- precision ----


def test_float32_values_are_added_up_in_float64():
    x, y = points_and_labels(RNG, num=20_000)
    landmarks = x[:M]
    exact = nystrom(KERNEL, x, y, landmarks=landmarks)
    found = nystrom(KERNEL, x, y, landmarks=landmarks, dtype=jnp.float32)
    assert found.eigenvalues.dtype == jnp.float64
    assert found.machine_epsilon == pytest.approx(np.finfo(np.float32).eps)
    run, other = (distill_spectrum(s, y, multiplier=1e-3, rounds=3) for s in (found, exact))
    np.testing.assert_allclose(run.fitted, other.fitted, rtol=0, atol=2e-4)
    with pytest.warns(sdntk.PrecisionWarning, match="not to be trusted"):
        distill_spectrum(found, y, multiplier=1e-7, rounds=1)


@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")
@pytest.mark.slow
def test_float32_values_keep_the_small_eigenvalues_of_many_landmarks():
    """Their rounding is machine_eps d_max in the spectral norm, not m times that: a chain that
    needs eigenvalues of 1e-4 d_max finds them among 1,500 landmarks.
    """
    x = np.random.default_rng(0).normal(size=(1500, 10))
    y = np.random.default_rng(1).normal(size=1500)
    kernel = kernels.ntk(sdntk.architectures.fully_connected(3))
    exact = distill(kernel, x, y, multiplier=1e-4, rounds=3)
    assert float(exact.spectrum.eigenvalues[0]) < 1500 * 1.2e-7 * float(exact.spectrum.largest)
    spectrum = nystrom(kernel, x, y, landmarks=1500, dtype=np.float32)
    run = distill_spectrum(spectrum, y, multiplier=1e-4, rounds=3)
    np.testing.assert_allclose(run.fitted, exact.fitted, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("single_precision")
@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")
@pytest.mark.slow
def test_without_x64_all_is_float32_but_the_sums():
    x, y = (a.astype(np.float32) for a in points_and_labels(RNG, num=2000))
    spectrum = nystrom(KERNEL, x, y, landmarks=x[:M])
    run = distill_spectrum(spectrum, y, multiplier=1e-3, rounds=3)
    assert run.fitted.dtype == spectrum.eigenvalues.dtype == jnp.float32
    assert np.isfinite(run.fitted).all()
    dense = distill(low_rank_kernel(x[:M]), x, y, multiplier=1e-3, rounds=3)
    np.testing.assert_allclose(run.fitted, dense.fitted, rtol=0, atol=2e-2)


def test_the_sums_on_an_accelerator_are_those_of_a_cpu(monkeypatch):
    """The compiled step, which a CPU does without, on this CPU."""
    x, y = points_and_labels(RNG, outputs=(2,))
    chosen = landmarks_at(KERNEL, x[:M])
    options = {"block_size": 100, "dtype": None, "path": None}
    sums, _ = nystrom_sums.sum_over_points(PointBlocks(KERNEL, x, y), chosen, x, **options)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    others, _ = nystrom_sums.sum_over_points(PointBlocks(KERNEL, x, y), chosen, x, **options)
    for one, other in zip(sums, others, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-13 * np.abs(one).max())


# ---- files and transformations ----


def test_it_is_saved_without_its_points(tmp_path, problem):
    _, y, spectrum, _ = problem
    run = distill_spectrum(spectrum, y, multiplier=1e-3, rounds=2)
    run.save(tmp_path / "run.npz")
    again = sdntk.load(tmp_path / "run.npz")
    np.testing.assert_array_equal(again.multipliers, run.multipliers)
    np.testing.assert_array_equal(again.dual_coefficients, run.dual_coefficients)
    cross = sdntk.gram(KERNEL, RNG.normal(size=(3, 4)), spectrum.landmarks)
    np.testing.assert_array_equal(again.predict_from(cross), run.predict_from(cross))
    with pytest.raises(ValueError, match="does not know them any longer"):
        again.fitted  # noqa: B018
    with pytest.raises(ValueError, match="y must be the labels that this Nystrom"):
        distill_spectrum(again.spectrum, np.asarray(y) + 1, multiplier=1e-3, rounds=2)


def test_chains_on_it_can_be_jitted_and_differentiated(problem):
    spectrum = problem[2]

    def last_norm(log_c):
        run = distill_spectrum(spectrum, spectrum.labels, multiplier=jnp.exp(log_c), rounds=3)
        return jnp.sum(run.norms[-1])

    value, slope = jax.jit(jax.value_and_grad(last_norm))(-6.0)
    assert value == pytest.approx(float(last_norm(-6.0)), rel=1e-10)
    difference = (last_norm(-6.0 + 1e-5) - last_norm(-6.0 - 1e-5)) / 2e-5
    assert slope == pytest.approx(float(difference), rel=1e-6)
    with pytest.raises(NotImplementedError, match="Nystrom"):
        jax.grad(lambda y: jnp.sum(distill_spectrum(spectrum, y, multiplier=1.0, rounds=1).norms))(
            spectrum.labels
        )


def test_what_needs_all_vectors_is_refused(problem):
    _, y, spectrum, _ = problem
    run = distill_spectrum(spectrum, y, multiplier=1e-3, rounds=2)
    for refused in (
        lambda: sdntk.selection.leave_one_out(spectrum, y, 1e-3),
        lambda: sdntk.mixing.one_shot(run),
        lambda: spectrum.unrotate(spectrum.rotated_labels),
        lambda: run.targets,
    ):
        with pytest.raises(ValueError, match=r"Nystrom|landmarks"):
            refused()


def far_apart(kernel, **options):
    x = np.arange(400)[:, None] / 3.0
    return nystrom(kernel, x, np.sin(x[:, 0]), landmarks=x[[40, 200, 350]], **options)


def test_sums_of_another_kernel_with_the_same_values_between_landmarks_are_refused(tmp_path):
    far_apart(kernels.rbf(0.5), path=tmp_path / "sums")
    with pytest.raises(ValueError, match="for the same kernel and landmarks"):
        far_apart(kernels.rbf(0.7), path=tmp_path / "sums")
    again = far_apart(kernels.rbf(0.5), path=tmp_path / "sums")
    np.testing.assert_array_equal(again.eigenvalues, far_apart(kernels.rbf(0.5)).eigenvalues)


def test_points_of_float32_are_taken_in_the_dtype_that_was_asked_for():
    x = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    spectrum = nystrom(kernels.linear(), x, x[:, 0], landmarks=100, dtype=np.float64)
    exact = np.linalg.eigvalsh(x.astype(np.float64).T @ x.astype(np.float64) / 300)
    np.testing.assert_allclose(spectrum.eigenvalues[1:], exact, rtol=1e-13)


def test_points_that_float32_does_not_resolve_are_taken_in_float64():
    t = 1.6e9 + 60.0 * np.arange(3000)[:, None]
    y = np.sin(np.arange(3000) / 300)
    options = {"landmarks": t[::10], "block_size": 500}
    fits = [
        sdntk.distill_spectrum(
            nystrom(kernels.rbf(900.0), t, y, dtype=dtype, **options),
            y,
            multiplier=1e-3,
            rounds=2,
        ).fitted
        for dtype in (None, np.float32)
    ]
    np.testing.assert_allclose(fits[1], fits[0], atol=1e-4)


def test_of_permuted_landmarks_the_message_names_the_points():
    x = np.random.default_rng(0).normal(size=(60, 2))
    y = np.sin(x[:, 0])
    spectrum = nystrom(KERNEL, x, y, landmarks=60)
    run = sdntk.distill_spectrum(spectrum, y, multiplier=1e-3, rounds=2)
    with pytest.raises(ValueError, match=r"gram\(kernel, x_new, run.spectrum.landmarks\)"):
        run.predict(x[:3])
    found = run.predict_from(sdntk.gram(KERNEL, x[:3], run.spectrum.landmarks))
    np.testing.assert_allclose(found, run.fitted[:, :3], rtol=1e-6, atol=1e-8)


# ---- bad input ----


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"landmarks": 0}, "landmarks must be"),
        ({"landmarks": K + 1}, f"landmarks must be at most {K}"),
        ({"landmarks": np.ones((3, 5))}, "landmarks and x must hold points of one shape"),
        ({"landmarks": np.full((3, 4), np.nan)}, "landmarks must be finite"),
        ({"landmarks": 5, "selection": "leverage"}, "selection must be"),
        ({"landmarks": 5, "key": 7}, "key must be one JAX key"),
        ({"landmarks": 5, "block_size": 0}, "block_size must be"),
        ({"landmarks": 5, "y": np.ones(3)}, "y must have shape"),
        ({"landmarks": 5, "y": None}, "y must be given"),
        ({"landmarks": 5, "x": lambda: iter([])}, "y must be left out"),
        ({"landmarks": 5, "x": lambda: iter([]), "y": None}, "at least one block"),
        ({"landmarks": 5, "x": lambda: 3, "y": None}, "must return an iterator"),
        ({"landmarks": 5, "x": KERNEL, "y": None}, "without arguments"),
        ({"landmarks": 5, "x": lambda: iter([np.ones(3)]), "y": None}, "must yield pairs"),
        (
            {"landmarks": 2, "x": lambda: iter([(np.ones((3, 2)), np.ones(2))]), "y": None},
            "y of block 0 must have shape",
        ),
        (
            {
                "landmarks": 2,
                "x": lambda: iter([(np.ones((3, n)), np.ones(3)) for n in (2, 4)]),
                "y": None,
            },
            "points of one shape",
        ),
        ({"landmarks": 5, "kernel": lambda x, t: -KERNEL(x, t)}, r"largest g\(x, x\) is -1"),
        (
            {"landmarks": 5, "kernel": lambda x, t: KERNEL(x, t) * (2 + x[:, :1] - t[:, 0][None])},
            "kernel must be symmetric",
        ),
        (
            {"landmarks": 40, "kernel": lambda x, t: jnp.cos(x @ t.T) - 0.5},
            "kernel must be positive semi-definite",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named(arguments, message):
    x, y = points_and_labels(RNG)
    given = {"kernel": KERNEL, "x": x, "y": y} | arguments
    with pytest.raises((ValueError, TypeError), match=message):
        nystrom(given.pop("kernel"), given.pop("x"), given.pop("y"), **given)


def test_more_landmarks_than_memory_holds_are_refused():
    points = np.lib.stride_tricks.as_strided(np.zeros(1), shape=(10**7, 1), strides=(0, 0))
    with pytest.raises(MemoryError, match=r"10000000 landmarks needs .* fewer landmarks"):
        nystrom(KERNEL, points, points[:, 0], landmarks=10**7)


def test_landmarks_are_for_this_method_only():
    x, y = points_and_labels(RNG)
    with pytest.raises(ValueError, match="landmarks must be given"):
        distill(KERNEL, x, y, multiplier=1e-3, rounds=1, method="nystrom")
    with pytest.raises(ValueError, match="landmarks must be given"):
        distill(KERNEL, x, y, multiplier=1e-3, rounds=1, landmarks=5)
    with pytest.raises(ValueError, match="key must be left out"):
        distill(KERNEL, x, y, multiplier=1e-3, rounds=1, key=jax.random.key(0))
