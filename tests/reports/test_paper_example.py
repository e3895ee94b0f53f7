"""The paper's example (section 4; theory: section 7).

Must hold: c_t, active rounds and test errors at eps = 0.045; five rounds at 0.042; infeasible at or
below the floor 0.04186106; the trap (two vanishing rows of G) does not bite at any eps from 0.0419
to 0.6, in float64 and float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdntk
from sdntk import Status, datasets, kernels

KERNEL = kernels.cubic_spline()
TOLERANCES = np.concatenate([[0.0419, 0.04195, 0.042], np.linspace(0.0425, 0.6, 100)])


def test_published_numbers():
    x, y = datasets.mobahi_example()
    run = sdntk.distill(KERNEL, x, y, tolerance=0.045, rounds=6)
    np.testing.assert_allclose(
        run.multipliers[:4], [2.70525e-06, 8.76276e-05, 2.73755e-04, 7.90018e-04], rtol=2e-6
    )
    assert int(run.active_rounds) == 4
    assert run.status.tolist() == [0, 0, 0, 0, 1, 1]
    x_test = jnp.linspace(0, 1, 201)
    error = np.mean((run.predict(x_test) - datasets.mobahi_truth(x_test)[None]) ** 2, axis=1)
    np.testing.assert_allclose(error[:4], [0.15351, 0.06855, 0.12089, 0.30590], atol=6e-6)
    assert int(sdntk.distill(KERNEL, x, y, tolerance=0.042, rounds=9).active_rounds) == 5


def test_floor_and_the_error_that_names_it():
    x, y = datasets.mobahi_example()
    spectrum = sdntk.decompose(sdntk.gram(KERNEL, x))
    assert int(spectrum.rank) == 9
    np.testing.assert_allclose(spectrum.floor(y), 0.04186106, atol=5e-9)
    np.testing.assert_allclose(spectrum.floor(y), (y[0] ** 2 + y[10] ** 2) / 11, rtol=1e-14)
    for eps in (float(spectrum.floor(y)), 0.0418, 1e-6):
        with pytest.raises(
            ValueError, match=r"is infeasible.*2 of 11 eigenvalues.*smallest feasible.*0\.04186106"
        ):
            sdntk.distill(KERNEL, x, y, tolerance=eps, rounds=3)
    with pytest.raises(ValueError, match=r"for output 1"):
        sdntk.distill(KERNEL, x, jnp.stack([0.1 * y, y], axis=1), tolerance=0.01, rounds=3)


@pytest.mark.slow
@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")
def test_the_trap_does_not_bite(x64):
    """Nowhere a multiplier or a fit blows up: the smallest nonzero eigenvalue and the labels bound
    both.
    """
    with jax.enable_x64(x64):
        x, y = datasets.mobahi_example()
        spectrum = sdntk.decompose(sdntk.gram(KERNEL, x))
        cross = sdntk.gram(KERNEL, jnp.linspace(0, 1, 201), x)
        assert int(spectrum.rank) == 9
        for eps in TOLERANCES:
            run = sdntk.distill_spectrum(spectrum, y, tolerance=eps, rounds=12)
            active = np.asarray(run.status) == Status.ACTIVE
            assert active.any() == (eps < float(jnp.mean(y**2)))
            assert run.status[-1] == Status.COLLAPSED
            assert np.all(run.multipliers[active] > 1e-8)
            assert np.all(np.isfinite(run.fitted))
            assert np.max(np.abs(run.fitted)) < 2
            assert np.max(np.abs(run.predict_from(cross))) < 2
            np.testing.assert_allclose(run.training_loss[active], eps, rtol=1e-10 if x64 else 1e-4)


@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")
def test_float32_agrees_with_float64():
    x, y = datasets.mobahi_example()
    exact = sdntk.distill(KERNEL, x, y, tolerance=0.045, rounds=6)
    with jax.enable_x64(False):
        run = sdntk.distill(KERNEL, np.asarray(x), np.asarray(y), tolerance=0.045, rounds=6)
        assert run.multipliers.dtype == jnp.float32
        np.testing.assert_array_equal(run.status, exact.status)
        np.testing.assert_allclose(run.multipliers[:4], exact.multipliers[:4], rtol=0.02)
        np.testing.assert_allclose(run.fitted, exact.fitted, atol=2e-3)


def test_fresh_noise_comes_from_the_key_alone():
    _, y = datasets.mobahi_example(jax.random.key(3))
    _, again = datasets.mobahi_example(jax.random.key(3))
    _, other = datasets.mobahi_example(jax.random.key(4))
    np.testing.assert_array_equal(y, again)
    assert np.all(y != other)
    draws = jnp.stack(
        [datasets.mobahi_example(k)[1] for k in jax.random.split(jax.random.key(0), 400)]
    )
    x, _ = datasets.mobahi_example()
    np.testing.assert_allclose(draws.mean(axis=0), datasets.mobahi_truth(x), atol=0.1)
    np.testing.assert_allclose(draws.std(axis=0), 0.5, atol=0.07)
