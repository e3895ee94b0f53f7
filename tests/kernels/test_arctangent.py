"""The angle of two legs: to two units of rounding of 50 digits, both ends included; its polynomials
are what mpmath finds; its derivative is the exact one.
"""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from sdntk.kernels.arctangent import _POLYNOMIALS, angle_of_legs


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_both_angles_keep_their_digits(dtype):
    rng = np.random.default_rng(0)
    angles = np.concatenate(
        [rng.uniform(0, np.pi / 2, 1500), np.geomspace(1e-30, 1, 300), [0, np.pi / 8, np.pi / 4]]
    )
    s, c = np.sin(angles).astype(dtype), np.cos(angles).astype(dtype)
    s, c = np.concatenate([s, c]), np.concatenate([c, s])
    with jax.enable_x64(dtype == np.float64):
        found = angle_of_legs(jnp.asarray(s), jnp.asarray(c))
        assert found.angle.dtype == dtype
        values = [np.asarray(part, np.float64) for part in found]
    with mpmath.workdps(50):
        for part, legs in zip(values, ((s, c), (c, s)), strict=True):
            pairs = zip(*(leg.astype(float).tolist() for leg in legs), strict=True)
            exact = [mpmath.atan2(mpmath.mpf(a), mpmath.mpf(b)) for a, b in pairs]
            errors = [
                abs(float((mpmath.mpf(got) - true) / true)) if true else abs(got)
                for got, true in zip(part.tolist(), exact, strict=True)
            ]
            assert max(errors) < 2 * np.finfo(dtype).eps


@pytest.mark.filterwarnings("ignore:Descending")  # mpmath's order of coefficients
def test_polynomials_are_the_nearest_ones():
    def quotient(z):
        root = mpmath.sqrt(z)
        return mpmath.atan(root) / root

    with mpmath.workdps(50):
        ends = [mpmath.mpf(10) ** -30, mpmath.tan(mpmath.pi / 8) ** 2]
        for coefficients in _POLYNOMIALS.values():
            nearest = mpmath.chebyfit(quotient, ends, len(coefficients))
            expected = [float(c) for c in reversed(nearest)]
            np.testing.assert_allclose(coefficients, expected, rtol=1e-9)


def test_derivatives_are_exact_at_every_angle():
    s, c = jnp.sin(jnp.linspace(0, np.pi / 2, 9)), jnp.cos(jnp.linspace(0, np.pi / 2, 9))

    def angle(s, c):
        return angle_of_legs(s, c).angle

    first = jax.vmap(jax.grad(angle, argnums=(0, 1)))(s, c)
    np.testing.assert_allclose(first[0], c / (s**2 + c**2), rtol=1e-15, atol=1e-16)
    np.testing.assert_allclose(first[1], -s / (s**2 + c**2), rtol=1e-15, atol=1e-16)
    second = jax.vmap(jax.grad(jax.grad(angle)))(s, c)
    np.testing.assert_allclose(second, -2 * s * c, atol=1e-14)
    rest = jax.vmap(jax.grad(lambda s, c: angle_of_legs(s, c).complement))(s, c)
    np.testing.assert_allclose(rest, -first[0], rtol=1e-15)
