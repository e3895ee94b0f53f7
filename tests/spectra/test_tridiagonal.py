"""The tridiagonal path against the dense one, and against arithmetic of 50 digits.

Q T Q^T = G and Q orthogonal; multipliers of random spectra to 1e-8 of 50 digits; whole chains of
one output and many, separate and joint, by tolerance and multiplier, with collapse, to 1e-9 of the
dense path, predictions too; what is infeasible is; derivatives by kernel, labels and tolerance are
the dense path's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import exact_recurrence, random_matrix, spectrum_and_labels
from matplotlib.figure import Figure

import sdntk
from sdntk.kernels import matern
from sdntk.reports import plotting

X = jax.random.normal(jax.random.key(0), (80, 3))
NEW = jax.random.normal(jax.random.key(1), (7, 3))
KERNEL = matern(1.5, 2.0)
Y = jnp.stack(
    [
        jnp.sin((1 + q) * X[:, 0]) + 0.3 * jax.random.normal(jax.random.key(q), (80,))
        for q in range(3)
    ],
    axis=1,
)


@pytest.mark.parametrize("size", [1, 2, 3, 40])
@pytest.mark.slow_cases
def test_the_reduction(size):
    G = random_matrix(size, np.geomspace(1e-6, 1, size))
    spectrum = sdntk.tridiagonalise(G)
    Q = np.asarray(spectrum.unrotate(jnp.eye(size)))
    np.testing.assert_allclose(Q @ Q.T, np.eye(size), atol=1e-14)
    np.testing.assert_allclose(spectrum.rotate(jnp.eye(size)), Q.T, atol=1e-14)
    np.testing.assert_allclose(Q @ np.asarray(spectrum.apply(jnp.eye(size))) @ Q.T, G, atol=1e-14)
    np.testing.assert_allclose(spectrum.eigenvalues, np.geomspace(1e-6, 1, size), atol=1e-14)
    assert float(spectrum.largest) >= np.linalg.norm(G, 2) * (1 - 1e-12)
    c = jnp.array([1e-3, 0.5])
    both = spectrum.resolvent(c, jnp.ones((size, 2)))
    for q in range(2):
        T = spectrum.apply(jnp.eye(size)) + c[q] * jnp.eye(size)
        np.testing.assert_allclose(T @ both[:, q], np.ones(size), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("share", [1e-3, 0.1, 0.5])
def test_against_50_digits(condition, share):
    d, z = spectrum_and_labels(0, 24, condition=condition)
    Q = np.linalg.qr(np.random.default_rng(1).normal(size=(24, 24)))[0]
    eps = share * np.mean(z**2)
    exact, _ = exact_recurrence(d, z, eps, rounds=10)
    G = (Q * d) @ Q.T
    run = sdntk.distill_spectrum(
        sdntk.tridiagonalise((G + G.T) / 2), Q @ z, tolerance=eps, rounds=10
    )
    assert int(run.active_rounds) == len(exact)
    for t, (c, _, condition_of_c) in enumerate(exact):
        rounding = 1e-14 * d.max() / float(c)  # of G
        assert abs(float(run.multipliers[t]) / float(c) - 1) <= (1e-8 + rounding) * max(
            1, float(condition_of_c)
        )
    assert int(jnp.max(run.iterations)) <= 12


CASES = {
    "one output": ({"tolerance": 0.1}, Y[:, 0]),
    "separate": ({"tolerance": jnp.array([0.1, 0.2, 5.0])}, Y),
    "joint": ({"tolerance": 0.1, "outputs": "joint"}, Y),
    "ground truth": ({"tolerance": 0.2, "ground_truth_weight": 0.3}, Y),
    "multiplier": ({"multiplier": 1e-3}, Y),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_chains_are_the_dense_path_s(case):
    options, y = CASES[case]
    options = {"rounds": 12, **options}
    run, exact = (
        sdntk.distill(KERNEL, X, y, method=m, **options) for m in ("tridiagonal", "dense")
    )
    assert (run.method, run.method_reason) == ("tridiagonal", "as asked for")
    assert run.filters is None
    for name in ("status", "active_rounds"):
        np.testing.assert_array_equal(getattr(run, name), getattr(exact, name))
    for name in ("multipliers", "fitted", "training_loss", "norms", "targets", "eigenvalues"):
        values = np.asarray(getattr(exact, name))
        scale = np.nanmax(np.abs(values))
        np.testing.assert_allclose(
            getattr(run, name), values, rtol=1e-9, atol=1e-9 * scale, err_msg=name
        )
    np.testing.assert_allclose(run.predict(NEW), exact.predict(NEW), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_what_is_infeasible_is():
    x = jnp.concatenate([X[:40], X[:40]])
    floor = float(sdntk.decompose(sdntk.gram(KERNEL, x)).floor(Y[:, 0]))
    feasible = sdntk.distill(
        KERNEL, x, Y[:, 0], method="tridiagonal", tolerance=1.1 * floor, rounds=2
    )
    exact = sdntk.distill(KERNEL, x, Y[:, 0], tolerance=1.1 * floor, rounds=2)
    np.testing.assert_allclose(feasible.fitted, exact.fitted, atol=1e-7)
    with pytest.raises(
        ValueError,
        match=r"is infeasible: no function of this space .* because 40 of 80 eigenvalues",
    ):
        sdntk.distill(KERNEL, x, Y[:, 0], method="tridiagonal", tolerance=0.9 * floor, rounds=2)
    with pytest.raises(ValueError, match="rank_tolerance must be left out unless"):
        sdntk.distill(
            KERNEL, x, Y[:, 0], method="tridiagonal", tolerance=0.1, rounds=2, rank_tolerance=1e-9
        )
    with pytest.raises(ValueError, match="G must be symmetric"):
        sdntk.tridiagonalise(jnp.array([[1.0, 2.0], [0.0, 1.0]]))


@pytest.mark.parametrize("below", [-0.3, -1e-9])
def test_an_indefinite_matrix_is_refused_and_nan_where_it_is_traced(below):
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]
    G = jnp.asarray(Q * np.append(np.linspace(0, 1, 29), below) @ Q.T)
    with pytest.raises(
        ValueError, match="G must be positive semi-definite; it has an eigenvalue below -"
    ):
        sdntk.tridiagonalise((G + G.T) / 2)
    reduced = jax.jit(lambda G: sdntk.tridiagonalise(G).diagonal)
    assert np.isnan(reduced((G + G.T) / 2)).all()
    assert not sdntk.tridiagonalise(jnp.zeros((3, 3))).diagonal.any()
    semidefinite = Q * np.append(np.linspace(0, 1, 29), 0) @ Q.T
    assert np.isfinite(sdntk.tridiagonalise((semidefinite + semidefinite.T) / 2).diagonal).all()


@pytest.mark.slow
def test_derivatives_are_the_dense_path_s():
    def value(length_scale, y, level, method):
        run = sdntk.distill(
            matern(1.5, length_scale), X, y, tolerance=level, rounds=4, method=method
        )
        return jnp.sum(run.predict(NEW)[1:] ** 2) + jnp.sum(run.norms) + jnp.sum(run.multipliers[0])

    at = jnp.asarray(2.0), Y, 0.3 * jnp.mean(Y**2, axis=0)
    derivatives = jax.jit(jax.grad(value, argnums=(0, 1, 2)), static_argnums=3)
    for tridiagonal, dense in zip(
        derivatives(*at, "tridiagonal"), derivatives(*at, "dense"), strict=True
    ):
        np.testing.assert_allclose(tridiagonal, dense, rtol=1e-8, atol=1e-9 * np.abs(dense).max())
    # In y and level second ones, too.
    second = jax.jit(jax.jacfwd(jax.grad(value, argnums=2), argnums=2), static_argnums=3)
    tridiagonal, dense = (second(*at, method) for method in ("tridiagonal", "dense"))
    np.testing.assert_allclose(tridiagonal, dense, rtol=1e-7, atol=1e-7 * np.abs(dense).max())


@pytest.mark.slow
def test_under_vmap_over_tolerances():
    spectrum = sdntk.tridiagonalise(sdntk.gram(KERNEL, X))
    run = lambda level: sdntk.distill_spectrum(spectrum, Y[:, 0], tolerance=level, rounds=5)  # noqa: E731
    levels = jnp.array([0.05, 0.2, 9.0])
    together = jax.vmap(run)(levels)
    for i, level in enumerate(levels):
        np.testing.assert_allclose(together.fitted[i], run(level).fitted, rtol=1e-9, atol=1e-13)


def test_the_reflections_written_out_are_those_that_are_run():
    """Else derivatives would be those of something else."""
    from sdntk.spectra.tridiagonal import _reflected

    spectrum = sdntk.tridiagonalise(sdntk.gram(KERNEL, X))
    reflections, columns = (spectrum.reflectors, spectrum.taus), Y[1:]
    for transpose in (True, False):
        closed = jax.make_jaxpr(lambda b, t=transpose: _reflected(reflections, b, transpose=t))(
            columns
        )
        [solve] = [
            equation for equation in closed.eqns if "linear_solve" in str(equation.primitive)
        ]
        written = solve.params["jaxprs"].matvec
        consts = solve.params["const_lengths"].matvec
        values = [closed.consts[closed.jaxpr.constvars.index(v)] for v in solve.invars[:consts]]
        product = _reflected(reflections, columns, transpose=transpose)
        back = jax.core.eval_jaxpr(written.jaxpr, written.consts, *values, product)
        np.testing.assert_allclose(back[0], columns, atol=1e-13)


def test_a_figure_of_filters_wants_a_run_that_has_them():
    run = sdntk.distill(KERNEL, X, Y[:, 0], method="tridiagonal", tolerance=0.1, rounds=2)
    with pytest.raises(ValueError, match='hold filters, which method="tridiagonal" does not give'):
        plotting.plot_filter_ratios(Figure().subplots(), run, 0.1)
