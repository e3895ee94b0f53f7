"""Precision.

Must hold: float32 works (x64 off): no nan but those the contract names, and a warning that names
machine_eps * d_max / c when c cannot be trusted; with x64 off, decompose warns that the theory
needs float64.
"""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import spectrum_and_labels

import sdntk
from sdntk import PrecisionWarning, Status, kernels


def points_and_labels(size=40):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(size, 2))
    return x, np.sin(3 * x[:, 0]) + 0.1 * rng.normal(size=size)


@pytest.mark.usefixtures("single_precision")
def test_decompose_warns_that_the_theory_needs_float64():
    with pytest.warns(PrecisionWarning, match=r"needs float64.*jax_enable_x64"):
        spectrum = sdntk.decompose(np.eye(3))
    assert spectrum.eigenvalues.dtype == jnp.float32


def test_a_float32_matrix_is_decomposed_in_float64_when_x64_is_on_but_its_rounding_is_known():
    x, _ = points_and_labels()
    G = np.asarray(sdntk.gram(kernels.rbf(1.0), x), np.float32)
    with pytest.warns(PrecisionWarning, match="form the Gram matrix in float64"):
        spectrum = sdntk.decompose(G)
    assert spectrum.eigenvalues.dtype == jnp.float64
    assert spectrum.machine_epsilon == pytest.approx(1.2e-7, rel=0.01)
    assert int(spectrum.rank) < int(sdntk.decompose(sdntk.gram(kernels.rbf(1.0), x)).rank)


def test_no_warning_in_float64_where_there_is_nothing_to_warn_of():
    x, y = points_and_labels()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sdntk.distill(kernels.matern(1.5), x, y, tolerance=0.01, rounds=5)


def test_a_multiplier_that_cannot_be_trusted_is_named():
    spectrum = sdntk.Spectrum(jnp.array([1e-13, 1e-12, 1.0]), jnp.eye(3), 2.2e-16)
    with pytest.warns(
        PrecisionWarning, match=r"machine_eps \* d_max / c = 2\.2e-16 \* 1\.0e\+00 / "
    ):
        sdntk.distill_spectrum(spectrum, [1.0, 1.0, 1.0], tolerance=0.1, rounds=1)


@pytest.mark.usefixtures("single_precision")
def test_the_same_in_float32():
    x, y = points_and_labels()
    with pytest.warns(PrecisionWarning) as caught:
        sdntk.distill(kernels.matern(1.5), x, y, tolerance=1e-7, rounds=2)
    assert any("machine_eps * d_max / c = 1.2e-07" in str(w.message) for w in caught)


@pytest.mark.usefixtures("single_precision")
@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")
@pytest.mark.parametrize("kernel", [kernels.rbf, kernels.matern], ids=["rbf", "matern"])
@pytest.mark.parametrize("share", [1e-7, 1e-4, 1e-2, 0.3, 0.999, 1.0, 2.0])
def test_float32_has_no_nan_but_those_of_the_contract(kernel, share):
    x, y = points_and_labels()
    spectrum = sdntk.decompose(sdntk.gram(kernel() if kernel is kernels.rbf else kernel(1.5), x))
    floor = float(spectrum.floor(y))
    eps = share * float(np.mean(y**2)) + (1.01 * floor if share < 0.9 else 0)
    run = sdntk.distill_spectrum(spectrum, y, tolerance=eps, rounds=12)
    active = np.asarray(run.status) == Status.ACTIVE
    assert np.all(np.isfinite(run.multipliers) == active)
    for name in ("filters", "fitted", "training_loss", "norms", "dual_coefficients", "targets"):
        assert np.all(np.isfinite(getattr(run, name))), name
    np.testing.assert_allclose(run.training_loss[active], eps, rtol=1e-4)
    assert not active.any() if share >= 1 else active[0]


@pytest.mark.usefixtures("single_precision")
@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_float32_at_any_scale_of_labels(scale):
    d, z = spectrum_and_labels(0, 20, condition=1e4)
    spectrum = sdntk.Spectrum(jnp.asarray(d), jnp.eye(20), 1.2e-7)
    one = sdntk.distill_spectrum(spectrum, z, tolerance=0.1 * np.mean(z**2), rounds=5)
    run = sdntk.distill_spectrum(
        spectrum, scale * z, tolerance=0.1 * np.mean(z**2) * scale**2, rounds=5
    )
    np.testing.assert_array_equal(run.status, one.status)
    np.testing.assert_allclose(run.multipliers, one.multipliers, rtol=1e-3)
