"""What several tests share: processes of many devices, spectra to order, the recurrence in 50
digits, networks once more.
"""

import os

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from flax import nnx

from sdntk import Status
from sdntk.architectures import (
    ACTIVATIONS,
    Activation,
    AveragePool,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
)
from sdntk.spectra.krylov_spectrum import ritz_values, with_vectors

#: Of XLA, by a device. With no more threads than devices, XLA's default on few cores, a collective
#: may wait for ever: the other devices' parts block all threads, and the last gets none.
THREADS_OF_A_DEVICE = 4


def with_virtual_devices(count):
    """The environment of a process with so many CPU devices, and this one's settings of JAX."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
    flags = f"--xla_force_host_platform_device_count={count}"
    threads = {"PJRT_NPROC": str(THREADS_OF_A_DEVICE * count)}
    of_xla = threads | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return settings | of_xla | {"PATH": os.environ["PATH"]}


def ritz_spectrum(process):
    """The spectrum of what Lanczos steps know so far, as :func:`sdntk.krylov` returns it."""
    eps = float(np.finfo(float).eps)
    known = ritz_values(process, machine_epsilon=eps)
    return with_vectors(process, *known, machine_epsilon=eps)


def spectrum_and_labels(seed, size, *, condition, nulls=0, noise=1.0):
    """d (ascending, d_max = 1, ``nulls`` exact zeros, both ends of the condition number met) and
    rotated labels z.
    """
    rng = np.random.default_rng(seed)
    kept = size - nulls
    exponents = rng.uniform(0, 1, kept)
    exponents[0] = 0
    if kept > 1:
        exponents[1] = 1
    d = np.concatenate([np.zeros(nulls), np.sort(condition**-exponents)])
    z = (
        noise
        * rng.normal(size=size)
        * np.where(rng.uniform(size=size) < 0.5, 1, 10 ** -rng.uniform(0, 3, size))
    )
    return d, z


def random_matrix(seed, d):
    """A symmetric matrix with eigenvalues d."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(len(d), len(d))))
    return (q * d) @ q.T


@st.composite
def problems(draw, sizes=(1, 3, 12), max_condition=1e8, nulls=True):
    """(d, z, eps) whose round 0 is active, null spaces included."""
    size = draw(st.sampled_from(sizes))  # a few: each is compiled anew
    null_count = draw(st.integers(0, size - 1)) if nulls else 0
    condition = 10.0 ** draw(st.floats(0, np.log10(max_condition)))
    d, z = spectrum_and_labels(
        draw(st.integers(0, 2**31)), size, condition=condition, nulls=null_count
    )
    floor, total = np.sum(z[d == 0] ** 2) / size, np.sum(z**2) / size
    share = draw(st.floats(1e-6, 0.99))  # where between floor and collapse
    return d, z, floor + share * (total - floor)


def exact_recurrence(d, z, eps, rounds, digits=50):
    """(c_t, z_t, condition of c_t) for every active round, to ``digits`` digits, starting from the
    floats given.

    The condition number is |d log c / d log s|, h/h' in the notation of the multiplier's module,
    plus that of the cancellations n - s and s - n0.
    """
    with mpmath.workdps(digits):
        d, z = [mpmath.mpf(float(v)) for v in d], [mpmath.mpf(float(v)) for v in z]
        points = len(z)
        s2 = points * mpmath.mpf(float(eps))
        history = []
        for _ in range(rounds):
            if mpmath.fsum(v**2 for v in z) <= s2:
                break
            c = exact_root(d, z, s2)
            residual = [v * c / (c + e) for v, e in zip(z, d, strict=True)]
            slope = mpmath.fsum(r**2 * e / (c + e) for r, e in zip(residual, d, strict=True))
            history.append((c, list(z), s2 / slope))
            z = [v * e / (c + e) for v, e in zip(z, d, strict=True)]
        return history, z


def exact_chain(d, z, eps, weights, *, multiplier=None, digits=50):
    """(status, c_t, fit) of rounds 0 .. len(weights) by their definition, each decided afresh, for
    weights of any size; an infeasible round is the last. With a multiplier in place of eps, all
    rounds are active.
    """
    with mpmath.workdps(digits):
        d, z, weights = ([mpmath.mpf(float(v)) for v in values] for values in (d, z, weights))
        s2 = -1 if eps is None else len(z) * mpmath.mpf(float(eps))
        targets, rounds = list(z), []
        for weight in [*weights, mpmath.mpf(0)]:
            null = [v for v, e in zip(targets, d, strict=True) if e == 0]
            c, fit, status = None, [mpmath.mpf(0)] * len(z), Status.COLLAPSED
            if multiplier is not None:
                c, status = mpmath.mpf(float(multiplier)), Status.ACTIVE
            elif mpmath.fsum(v**2 for v in targets) > s2:
                status = Status.INFEASIBLE
                if not null or mpmath.fsum(v**2 for v in null) < s2:
                    c, status = exact_root(d, targets, s2), Status.ACTIVE
            if status == Status.ACTIVE:
                fit = [v * e / (c + e) for v, e in zip(targets, d, strict=True)]
            rounds.append((status, c, fit))
            if status == Status.INFEASIBLE:
                break
            targets = [weight * v + (1 - weight) * f for v, f in zip(z, fit, strict=True)]
        return rounds


def exact_root(d, z, s2):
    """Newton's monotone iteration in mu = 1/c on the concave 1/||z/(1 + mu d)|| (Reinsch 1971):
    another algorithm.
    """
    n02 = mpmath.fsum(v**2 for v, e in zip(z, d, strict=True) if e == 0)
    pairs = [(v, e) for v, e in zip(z, d, strict=True) if e > 0]
    s, n = mpmath.sqrt(s2 - n02), mpmath.sqrt(mpmath.fsum(v**2 for v, _ in pairs))
    mu = (n - s) / (max(e for _, e in pairs) * s)
    for _ in range(200):
        r2 = mpmath.fsum((v / (1 + mu * e)) ** 2 for v, e in pairs)
        step = (
            (mpmath.sqrt(r2) / s - 1)
            * r2
            / mpmath.fsum(v**2 * e / (1 + mu * e) ** 3 for v, e in pairs)
        )
        mu += step
        if abs(step) < mu * mpmath.mpf(10) ** (10 - mpmath.mp.dps):
            return 1 / mu
    raise AssertionError("the reference did not converge")


def as_float(values):
    return np.array([float(v) for v in values])


def finite_network(architecture, width, outputs):
    """(init, apply) in the NTK parameterisation: shapes of the weights are found on the way."""
    trainable = [layer for layer in architecture.layers if isinstance(layer, (Conv, Dense))]

    def init(key, inputs):
        params = []
        for layer, subkey in zip(trainable, jax.random.split(key, len(trainable)), strict=True):
            units = (
                outputs if layer is trainable[-1] and len(params) == len(trainable) - 1 else width
            )
            shape = (
                (*layer.filter_shape, inputs, units) if isinstance(layer, Conv) else (inputs, units)
            )
            w, b = jax.random.split(subkey)
            params.append((jax.random.normal(w, shape), jax.random.normal(b, (units,))))
            inputs = units
        return params

    def apply(params, x):
        params = iter(params)
        for layer in architecture.layers:
            match layer:
                case Dense(weight_std, bias_std):
                    w, b = next(params)
                    x = weight_std * x @ w / np.sqrt(w.shape[0]) + bias_std * b[None]
                case Conv(_, weight_std, bias_std):
                    (w, b), (height, width) = next(params), x.shape[1:3]
                    padding = [((size - 1) // 2, size // 2) for size in w.shape[:2]]
                    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
                    shifts = np.ndindex(w.shape[:2])
                    x = sum(x[:, i : i + height, j : j + width] @ w[i, j] for i, j in shifts)
                    x = weight_std * x / np.sqrt(w[..., 0].size) + bias_std * b[None, None, None]
                case Activation(name):
                    x = ACTIVATIONS[name](x)
                case AveragePool((p, q)):
                    n, h, w, c = x.shape
                    x = (
                        x[:, : h // p * p, : w // q * q]
                        .reshape(n, h // p, p, w // q, q, c)
                        .mean((2, 4))
                    )
                case GlobalAveragePool():
                    x = x.mean((1, 2))
                case Flatten():
                    x = x.reshape(len(x), -1)
        return x

    return jax.jit(init, static_argnums=1), apply


class BatchNormNetwork(nnx.Module):
    """Batch statistics and dropout, from 5 inputs to 3 outputs."""

    def __init__(self, rngs):
        self.first = nnx.Linear(5, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))
