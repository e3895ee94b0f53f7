"""Derivatives of whole chains: kernel, points, labels, tolerance, multiplier and the ground truth's
weight.

Must hold: forward and reverse derivatives of c_t, fitted values and predictions to 1e-6 of finite
differences, where eigenvalues coincide, too: points on a circle, on a square grid, duplicated
points, and kernels of finite rank (a null space that turns as the points move). Chains of one
output and of many, separate and joint, that collapse on the way. Shown by central differences in
random directions of everything at once; reverse mode against forward mode. What has no right
derivative is refused: second ones by the Gram matrix, labels of a Krylov spectrum.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdntk
from sdntk.kernels import matern, rbf

ANGLES = 2 * jnp.pi * jnp.arange(24) / 24
GRID = jnp.stack(jnp.meshgrid(jnp.arange(5.0), jnp.arange(5.0)), axis=-1).reshape(25, 2) / 4
SCATTERED = jax.random.normal(jax.random.key(0), (25, 2))
POINTS = {
    "circle": jnp.stack([jnp.cos(ANGLES), jnp.sin(ANGLES)], axis=1),
    "grid": GRID,
    "duplicates": jnp.concatenate([SCATTERED[:12], SCATTERED[:12], SCATTERED[:1]]),
    "finite rank": SCATTERED,
    "scattered": SCATTERED,
}
NEW = jax.random.normal(jax.random.key(1), (4, 2)) / 2


def kernel_of(case, length_scale):
    if case == "finite rank":
        return lambda x, t: (1 + x @ t.T / length_scale**2) ** 2
    return rbf(length_scale) if case == "circle" else matern(1.5, length_scale)


def labels(x, outputs):
    smooth = jnp.stack([jnp.sin((1 + q) * x[:, 0] + q) + x[:, 1] for q in range(outputs)], axis=1)
    return smooth + 0.2 * jax.random.normal(jax.random.key(3), smooth.shape)


def chain(case, outputs, by="tolerance", method="dense"):
    """(parameters) -> everything of a run that has derivatives, with parameters to start from and a
    random direction.
    """
    moves = outputs is None or case in ("finite rank", "scattered")
    x = POINTS[case]
    y = labels(x, 3)
    joint = outputs == "joint"
    if outputs is None:
        y = y[:, 0]
    parameters = {"length_scale": jnp.asarray(0.9), "y": y, "alpha": jnp.asarray(0.1)}
    share = 0.3 if by == "tolerance" else 0.02
    parameters["level"] = share * (
        jnp.mean(y**2) if joint or y.ndim == 1 else jnp.mean(y**2, axis=0)
    )
    if moves and case != "duplicates":
        parameters["x"] = x

    def run(p):
        points = p.get("x", x)
        options = {
            by: p["level"],
            "rounds": 6,
            "ground_truth_weight": p["alpha"],
            "outputs": outputs or "separate",
        }
        options["method"] = method
        run = sdntk.distill(kernel_of(case, p["length_scale"]), points, p["y"], **options)
        c = jnp.where(run.status == sdntk.Status.ACTIVE, run.multipliers, 0)
        return {
            "multipliers": c,
            "fitted": run.fitted,
            "predictions": run.predict(NEW),
            "norms": run.norms,
            "loss": run.training_loss,
            "targets": run.targets,
        }

    keys = jax.random.split(jax.random.key(5), len(parameters))
    direction = {
        name: jax.random.normal(key, value.shape) * jnp.abs(value).max() / 5
        for key, (name, value) in zip(keys, sorted(parameters.items()), strict=True)
    }
    return run, parameters, direction


CASES = [
    ("duplicates", "separate", "tolerance", "dense"),
    ("finite rank", "joint", "multiplier", "dense"),
] + [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in (
        ("circle", "separate", "tolerance", "dense"),
        ("grid", "separate", "tolerance", "dense"),
        ("finite rank", "separate", "tolerance", "dense"),
        ("scattered", "separate", "tolerance", "dense"),
        ("grid", "joint", "tolerance", "dense"),
        ("circle", None, "tolerance", "dense"),
        ("grid", "separate", "multiplier", "dense"),
        ("circle", "separate", "tolerance", "tridiagonal"),
        ("grid", "joint", "tolerance", "tridiagonal"),
        ("duplicates", None, "tolerance", "tridiagonal"),
    )
]


@pytest.mark.parametrize(("case", "outputs", "by", "method"), CASES)
@pytest.mark.slow_cases
def test_derivatives_are_those_of_finite_differences(case, outputs, by, method):
    run, parameters, direction = chain(case, outputs, by, method)
    values, forward = jax.jit(lambda p, v: jax.jvp(run, (p,), (v,)))(parameters, direction)
    along = jax.jit(
        lambda step: run(jax.tree.map(lambda p, v: p + step * v, parameters, direction))
    )
    # Central differences of fourth order.
    ends = [along(step) for step in (-2e-4, -1e-4, 1e-4, 2e-4)]
    difference = jax.tree.map(lambda a, b, c, d: (a - 8 * b + 8 * c - d) / 12e-4, *ends)
    np.testing.assert_allclose(values["fitted"], along(0.0)["fitted"], rtol=1e-9, atol=1e-12)
    for name, exact in difference.items():
        assert jnp.abs(forward[name] - exact).max() < 1e-6 * jnp.abs(exact).max(), name
        assert jnp.abs(exact).max() > 1e-2 * jnp.abs(values[name]).max(), name

    weights = jax.tree.map(
        lambda v: jax.random.normal(jax.random.key(7), v.shape) / jnp.abs(v).max(), values
    )
    total = lambda p: sum(jnp.sum(weights[name] * value) for name, value in run(p).items())  # noqa: E731
    gradient = jax.jit(jax.grad(total))(parameters)
    reverse = sum(jnp.sum(gradient[name] * direction[name]) for name in parameters)
    expected = sum(jnp.sum(weights[name] * forward[name]) for name in forward)
    size = sum(jnp.sum(jnp.abs(weights[name] * forward[name])) for name in forward)
    assert abs(reverse - expected) < 1e-9 * size


@pytest.mark.slow
def test_some_rounds_are_active_and_some_have_collapsed_where_eigenvalues_coincide():
    """What the test above rests on."""
    for case in ("circle", "grid", "duplicates"):
        d = np.asarray(sdntk.decompose(sdntk.gram(kernel_of(case, 0.9), POINTS[case])).eigenvalues)
        gaps = np.diff(d[d > 1e-6 * d[-1]]) / d[-1]
        assert (gaps < 1e-13).sum() >= 4 or (case == "duplicates" and (d == 0).sum() == 13), case
    run, parameters, _ = chain("grid", "separate")
    c = np.asarray(run(parameters)["multipliers"])
    assert 0 < (c == 0).sum() < c.size


@pytest.mark.slow
def test_under_jit_and_vmap():
    run, parameters, direction = chain("grid", None)
    value = lambda p: run(p)["predictions"].sum()  # noqa: E731
    eager, jitted = jax.grad(value)(parameters), jax.jit(jax.grad(value))(parameters)
    together = jax.tree.map(lambda p, v: jnp.stack([p, p + 1e-2 * v]), parameters, direction)
    mapped = jax.vmap(jax.grad(value))(together)
    for name, derivative in eager.items():
        scale = jnp.abs(derivative).max()
        assert jnp.abs(jitted[name] - derivative).max() <= 1e-9 * scale
        assert jnp.abs(mapped[name][0] - derivative).max() <= 1e-9 * scale


def test_eigenvalues_have_derivatives_where_they_are_treated_alike():
    x = POINTS["circle"]
    d = lambda s: sdntk.decompose(sdntk.gram(matern(2.5, s), x)).eigenvalues  # noqa: E731
    total = lambda s: jnp.sum(d(s) / (0.01 + d(s)))  # noqa: E731
    slope = (total(0.9 + 1e-4) - total(0.9 - 1e-4)) / 2e-4
    assert jax.grad(total)(0.9) == pytest.approx(float(slope), rel=1e-7)


@pytest.mark.slow
def test_mixed_second_derivatives_are_right_and_those_by_the_kernel_are_refused():
    run, parameters, _ = chain("grid", None)

    @jax.jit
    def value(length_scale, level):
        return jnp.sum(
            run(parameters | {"length_scale": length_scale, "level": level})["predictions"][:2]
        )

    at = parameters["length_scale"], parameters["level"]
    by_level = lambda s: jax.grad(value, argnums=1)(s, at[1])  # noqa: E731
    slope = (by_level(at[0] + 1e-4) - by_level(at[0] - 1e-4)) / 2e-4
    for mixed in (
        jax.jacfwd(jax.grad(value, argnums=1), argnums=0)(*at),
        jax.jacfwd(jax.grad(value, argnums=0), argnums=1)(*at),
    ):
        np.testing.assert_allclose(mixed, slope, rtol=1e-6)
    with pytest.raises(
        NotImplementedError, match="Second derivatives with respect to the Gram matrix"
    ):
        jax.jacfwd(jax.grad(value))(*at)


@pytest.mark.slow
def test_of_a_krylov_spectrum_those_by_the_tolerance():
    x, y = SCATTERED, labels(SCATTERED, 2)
    tolerance = 0.1 * jnp.mean(y**2, axis=0)
    krylov = sdntk.krylov(
        sdntk.kernel_operator(matern(1.5, 1.0), x), y, tolerance=tolerance, rounds=3
    )
    dense = sdntk.decompose(sdntk.gram(matern(1.5, 1.0), x))

    def fitted(spectrum, tolerance):
        return sdntk.distill_spectrum(spectrum, y, tolerance=tolerance, rounds=3).fitted

    of_each = [jax.jit(jax.jacrev(lambda t, s=s: fitted(s, t)))(tolerance) for s in (krylov, dense)]
    np.testing.assert_allclose(of_each[0], of_each[1], rtol=1e-6, atol=1e-6)
    with pytest.raises(NotImplementedError, match="leave the Krylov space"):
        jax.grad(
            lambda y: jnp.sum(
                sdntk.distill_spectrum(krylov, y, tolerance=tolerance, rounds=3).fitted
            )
        )(y)
    with pytest.raises(NotImplementedError, match="cannot be traced"):
        jax.grad(
            lambda s: jnp.sum(
                sdntk.distill(matern(1.5, s), x, y, tolerance=0.1, rounds=3, method="krylov").fitted
            )
        )(1.0)
    with pytest.raises(NotImplementedError, match="cannot be traced"):
        jax.grad(
            lambda y: jnp.sum(
                sdntk.krylov(
                    sdntk.kernel_operator(matern(1.5, 1.0), x), y, tolerance=0.1, rounds=3
                ).labels
            )
        )(y)
