"""Spectral filters against what they are the diagonal of: matrix inverses, matrix exponentials,
recurrences.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers import random_matrix

from sdntk import filters

D = np.array([0.0, 0.01, 0.5, 2.0])


def in_basis(G, matrix):
    """The diagonal of a function of G in G's eigenbasis; fails unless it is diagonal there."""
    _, vectors = np.linalg.eigh(G)
    rotated = vectors.T @ matrix @ vectors
    np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=1e-12)
    return np.diag(rotated)


def test_ridge_is_the_hat_matrix():
    G = random_matrix(0, D)
    np.testing.assert_allclose(
        filters.ridge(D, 0.3), in_basis(G, G @ np.linalg.inv(0.3 * np.eye(4) + G)), atol=1e-12
    )
    assert np.all(filters.ridge(D, np.inf) == 0)


@pytest.mark.parametrize("time", [1e-12, 0.1, 3.0, 1e3])
def test_gradient_flow_solves_its_differential_equation(time):
    """f' = -(dL/df in function space) = -G (f - y), f(0) = 0, so f = (I - exp(-time G)) y."""
    G = random_matrix(0, D)
    exact = in_basis(G, np.eye(4) - scipy.linalg.expm(-time * G))
    np.testing.assert_allclose(filters.gradient_flow(D, time), exact, atol=1e-12)
    small = np.asarray(filters.gradient_flow(D[1:], 1e-12))
    np.testing.assert_allclose(small, 1e-12 * D[1:], rtol=1e-11)  # no cancellation


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_distillation_is_the_recurrence_of_matrices(alpha):
    G = random_matrix(1, D)
    multipliers = np.array([0.1, 0.7, 2.0, np.inf, np.inf])
    fitted, targets = filters.distillation(jnp.asarray(D), jnp.asarray(multipliers), alpha)
    target = np.eye(4)
    for t, c in enumerate(multipliers):
        np.testing.assert_allclose(targets[t], in_basis(G, target), atol=1e-12)
        round_ = np.zeros((4, 4)) if np.isinf(c) else G @ np.linalg.inv(c * np.eye(4) + G) @ target
        np.testing.assert_allclose(fitted[t], in_basis(G, round_), atol=1e-12)
        target = alpha * np.eye(4) + (1 - alpha) * round_


def test_outputs_on_the_last_axis():
    multipliers = jnp.array([[0.1, 1.0], [0.2, 3.0]])
    together, _ = filters.distillation(jnp.asarray(D), multipliers)
    own, _ = filters.distillation(jnp.stack([D, 2 * D], axis=1), multipliers)
    for q in range(2):
        alone, _ = filters.distillation(jnp.asarray(D), multipliers[:, q])
        np.testing.assert_allclose(together[..., q], alone, rtol=1e-14)
    np.testing.assert_allclose(
        own[..., 1], filters.distillation(2 * jnp.asarray(D), multipliers[:, 1])[0], rtol=1e-14
    )
