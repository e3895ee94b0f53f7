"""Gram matrices and their decomposition: the definition, rank told apart from rounding, and the
floor.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_matrix

import sdntk
from sdntk import kernels


def test_gram_is_divided_by_the_number_of_training_points():
    rng = np.random.default_rng(0)
    x, x_new = rng.normal(size=(6, 2)), rng.normal(size=(3, 2))
    kernel = kernels.rbf(0.7)
    np.testing.assert_allclose(sdntk.gram(kernel, x), np.asarray(kernel(x, x)) / 6)
    np.testing.assert_allclose(sdntk.gram(kernel, x_new, x), np.asarray(kernel(x_new, x)) / 6)
    np.testing.assert_array_equal(sdntk.gram(kernel, x), sdntk.gram(kernel, x).T)


@pytest.mark.parametrize("nulls", [0, 3])
def test_decomposition_and_rotation(nulls):
    d = np.concatenate([np.zeros(nulls), np.geomspace(1e-6, 1, 8 - nulls)])
    G = random_matrix(3, d)
    spectrum = sdntk.decompose(G)
    assert int(spectrum.rank) == 8 - nulls
    assert np.all(np.asarray(spectrum.eigenvalues)[:nulls] == 0)
    np.testing.assert_allclose(spectrum.eigenvalues, d, atol=1e-14)
    y = np.random.default_rng(0).normal(size=(8, 2))
    z = spectrum.rotate(jnp.asarray(y))
    np.testing.assert_allclose(spectrum.unrotate(z), y, atol=1e-14)
    np.testing.assert_allclose(
        spectrum.unrotate(spectrum.eigenvalues[:, None] * z), G @ y, atol=1e-14
    )
    expected = np.sum(np.asarray(z)[:nulls] ** 2, axis=0) / 8
    np.testing.assert_allclose(spectrum.floor(y), expected, atol=1e-15)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_rank_does_not_depend_on_the_scale(scale):
    d = np.concatenate([np.zeros(4), np.geomspace(1e-9, 1, 8)])
    assert int(sdntk.decompose(scale * random_matrix(5, d)).rank) == 8


def test_under_jit_an_indefinite_matrix_gives_nan_not_a_wrong_answer():
    spectrum = jax.jit(sdntk.decompose)(jnp.diag(jnp.array([1.0, -0.5, 2.0])))
    assert np.isnan(spectrum.eigenvalues[0])
    assert not np.isnan(jax.jit(sdntk.decompose)(jnp.eye(3)).eigenvalues).any()
