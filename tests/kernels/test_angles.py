"""Neural kernels of vectors at any angle and size.

Must hold: values of the ReLU, erf, GELU and sine kernels at angles from 0 to pi, near-duplicates
from 1e-16 to 1, scaled copies and norms from 1e-6 to 1e6 are those of the textbook recursion in 80
digits to 1e-13 (relative to the root of the diagonals' product); Gram matrices of points on lines,
scaled copies and near-duplicates are positive semi-definite to rounding, so that the library takes
them; ReLU without biases has rank 1 or 2 on a line, and labels outside its span are infeasible;
few and many coordinates are computed by different means and agree; derivatives are finite, and
right where the kernel has one.
"""

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import sdntk
from sdntk.architectures import (
    ACTIVATIONS,
    Activation,
    Architecture,
    Dense,
    Flatten,
    convolutional,
    fully_connected,
)
from sdntk.kernels import nngp, ntk
from sdntk.kernels.angles import FEW_COORDINATES, pairs_of_points

EPS = np.finfo(float).eps
MANY_COORDINATES = 2 * FEW_COORDINATES
mp = mpmath.mp


# ---- The truth: the recursion for one pair of points, textbook forms, 80 digits ----


def exact_relu(q1, q2, k):
    angle = mp.acos(max(-1, min(1, k / mp.sqrt(q1 * q2))))
    product = mp.sqrt(q1 * q2) * (mp.sin(angle) + (mp.pi - angle) * mp.cos(angle)) / (2 * mp.pi)
    return product, (mp.pi - angle) / (2 * mp.pi)


def exact_erf(q1, q2, k):
    scale = (1 + 2 * q1) * (1 + 2 * q2)
    return (
        2 / mp.pi * mp.asin(2 * k / mp.sqrt(scale)),
        4 / mp.pi / mp.sqrt(scale - 4 * k**2),
    )


def exact_sin(q1, q2, k):
    outer = mp.exp(-(q1 + q2) / 2)
    return outer * mp.sinh(k), outer * mp.cosh(k)


def exact_gelu(q1, q2, k):
    """Tsuchida et al. 2021, the form that neural-tangents has."""
    P, prod = (1 + q1) * (1 + q2), q1 * q2
    d2 = P - k**2
    angle = mp.atan2(k, mp.sqrt(d2))
    product = (k**2 + prod * d2) / (P * mp.sqrt(d2)) + k * angle
    slope = (1 / d2 + (1 - prod) / P + 1) * k / mp.sqrt(d2) / (2 * mp.pi)
    return product / (2 * mp.pi) + k / 4, slope + mp.mpf(1) / 4 + angle / (2 * mp.pi)


EXACT = {"relu": exact_relu, "erf": exact_erf, "sin": exact_sin, "gelu": exact_gelu}


def exact_kernels(architecture, x1, x2):
    """(NTK, NNGP) of one pair of points."""
    with mpmath.workdps(80):
        a, b = ([mpmath.mpf(float(v)) for v in x] for x in (x1, x2))
        q1, q2, k = (
            mp.fsum(u * v for u, v in zip(s, t, strict=True)) / len(a)
            for s, t in ((a, a), (b, b), (a, b))
        )
        tangent = mpmath.mpf(0)
        for layer in architecture.layers:
            if isinstance(layer, Dense):
                w2, b2 = mpmath.mpf(layer.weight_std) ** 2, mpmath.mpf(layer.bias_std) ** 2
                q1, q2, k = w2 * q1 + b2, w2 * q2 + b2, w2 * k + b2
                tangent = k + w2 * tangent
            if isinstance(layer, Activation):
                moments = EXACT[layer.name]
                (k, slope), q1, q2 = (
                    moments(q1, q2, k),
                    moments(q1, q1, q1)[0],
                    moments(q2, q2, q2)[0],
                )
                tangent *= slope
        return float(tangent), float(k)


def near_pairs(seed, size, norm):
    """Pairs of points of about that norm: angles and distances from 1e-16 to 1, then the same
    nearly opposite, then scaled copies.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for exponent in (*range(-16, 1, 2), -7, -np.inf):
        x = rng.normal(size=size)
        x *= norm / np.linalg.norm(x)
        other = x + 10.0**exponent * norm * rng.normal(size=size) / np.sqrt(size)
        pairs += [(x, other), (x, -other), (x, x * (1 + 10.0**exponent)), (x, 0.3 * other)]
    return pairs


@pytest.mark.parametrize("size", [3, pytest.param(MANY_COORDINATES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.slow_cases
def test_values_at_any_angle_and_size(activation, size):
    for bias_std, norm in itertools.product((0.0, 0.3), (1e-6, 1.0, 1e3, 1e6)):
        network = fully_connected(2, activation=activation, bias_std=bias_std)
        pairs = near_pairs(1, size, norm * np.sqrt(size))
        x1, x2 = (jnp.asarray(x) for x in zip(*pairs, strict=True))
        exact = np.asarray([exact_kernels(network, *pair) for pair in pairs])
        for kernel, truth in zip((ntk(network), nngp(network)), exact.T, strict=True):
            values = jnp.diagonal(kernel(x1, x2))
            sizes = jnp.sqrt(jnp.diagonal(kernel(x1, x1)) * jnp.diagonal(kernel(x2, x2)))
            errors = np.abs(values - truth) / sizes
            assert errors.max() < 1e-13, (kernel, norm, int(errors.argmax()))


# ---- Positive semi-definite to rounding ----


def points(kind, norm):
    rng = np.random.default_rng(2)
    images = np.asarray(sdntk.datasets.digits().train_images[:20].reshape(20, -1), float)
    x = {
        "on a line": lambda: np.linspace(0.1, 0.9, 30)[:, None],
        "on a line, both sides": lambda: np.linspace(-0.9, 0.9, 31)[:, None],
        "in one direction": lambda: np.linspace(0.1, 3, 30)[:, None] * rng.normal(size=7),
        "brightness": lambda: np.concatenate([images, 0.5 * images, 0.1 * images]),
        "near-duplicates": lambda: np.concatenate(
            [images, *(images * (1 + 10.0**-e * rng.normal(size=images.shape)) for e in range(17))]
        ),
        "scaled near-duplicates": lambda: np.concatenate(
            [images, *(images * (1 + 10.0**-e) for e in range(17))]
        ),
        "near-duplicates of other brightness": lambda: np.concatenate(
            [
                images,
                *(0.3 * images * (1 + 10.0**-e * rng.normal(size=images.shape)) for e in range(17)),
            ]
        ),
    }[kind]()
    return norm * x / np.sqrt(np.mean(x**2))


KINDS = [
    "on a line",
    "on a line, both sides",
    "in one direction",
    "brightness",
    "near-duplicates",
    "scaled near-duplicates",
    "near-duplicates of other brightness",
]


@pytest.mark.parametrize(
    ("depth", "bias_std"),
    [(2, 0.0), *(pytest.param(*both, marks=pytest.mark.slow) for both in ((1, 0.2), (3, 0.2)))],
)
@pytest.mark.parametrize(
    "activation",
    ["relu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("erf", "gelu", "sin"))],
)
def test_gram_matrices_are_positive_to_rounding(activation, depth, bias_std):
    kernel = ntk(fully_connected(depth, activation=activation, bias_std=bias_std))
    for kind, norm in itertools.product(KINDS, (1e-6, 1.0, 1e6)):
        G = sdntk.gram(kernel, points(kind, norm))
        assert (G == G.T).all()
        eigenvalues = np.linalg.eigvalsh(G)
        assert eigenvalues[0] > -len(G) * EPS * eigenvalues[-1], (kind, norm)
        sdntk.decompose(G)  # judges likewise


@pytest.mark.parametrize(
    ("activation", "depth", "weight_std"),
    [
        ("erf", 3, 10.0),
        ("sin", 2, 1000.0),
        *(
            pytest.param(*all_three, marks=pytest.mark.slow)
            for all_three in [
                ("erf", 2, 1000.0),
                ("erf", 12, 2.0),
                ("sin", 5, 5.0),
                ("sin", 8, 3.0),
                ("gelu", 5, 3.0),
                ("relu", 8, 3.0),
            ]
        ),
    ],
)
def test_deep_networks_and_large_weights(activation, depth, weight_std):
    """What one layer loses, the next ones magnify."""
    network = fully_connected(depth, activation=activation, weight_std=weight_std)
    pairs = near_pairs(8, 3, 1.0)
    x1, x2 = (jnp.asarray(x) for x in zip(*pairs, strict=True))
    kernel = ntk(network)
    sizes = jnp.sqrt(jnp.diagonal(kernel(x1, x1)) * jnp.diagonal(kernel(x2, x2)))
    exact = np.asarray([exact_kernels(network, *pair)[0] for pair in pairs])
    assert (np.abs(jnp.diagonal(kernel(x1, x2)) - exact) / sizes).max() < 1e-13

    rng = np.random.default_rng(9)
    for _ in range(3):
        cluster = rng.normal(size=3) * (1 + 1e-8 * rng.normal(size=(44, 3)))
        assert int(sdntk.decompose(sdntk.gram(kernel, cluster)).rank) >= 1


@pytest.mark.parametrize(("low", "rank"), [(0.1, 1), (-0.9, 2)])
def test_relu_on_a_line_has_the_rank_of_its_directions(low, rank):
    kernel, x = ntk(fully_connected(1)), np.linspace(low, 0.9, 6)
    spectrum = sdntk.decompose(sdntk.gram(kernel, x))
    assert int(spectrum.rank) == rank
    y = np.sin(7 * x)
    floor = np.mean((y - project(y, np.stack([np.maximum(x, 0), np.minimum(x, 0)], 1))) ** 2)
    with pytest.raises(ValueError, match=f"infeasible: .* error of {floor:.6g}"):
        sdntk.distill(kernel, x, y, tolerance=0.9 * floor, rounds=2)
    feasible = (floor + np.mean(y**2)) / 2
    run = sdntk.distill(kernel, x, y, tolerance=feasible, rounds=1)
    np.testing.assert_allclose(run.training_loss[0], feasible, rtol=1e-10)


def project(y, directions):
    return directions @ np.linalg.lstsq(directions, y, rcond=None)[0]


# ---- Ways of computing them, and derivatives ----


def test_few_and_many_coordinates_agree():
    x = jnp.asarray(points("near-duplicates", 1.0)[:, :FEW_COORDINATES])
    x = x.at[5].set(0).at[30].set(0)
    few = pairs_of_points(x, x[::-1])
    padded = jnp.pad(x, ((0, 0), (0, MANY_COORDINATES - FEW_COORDINATES)))
    many = pairs_of_points(padded, padded[::-1])
    for name in ("sin2", "cos2"):
        np.testing.assert_allclose(
            np.sqrt(getattr(many, name)), np.sqrt(getattr(few, name)), rtol=0, atol=1e-13
        )
    for name in ("minus", "plus", "cov"):
        ours = getattr(many, name) * MANY_COORDINATES / FEW_COORDINATES
        np.testing.assert_allclose(ours, getattr(few, name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [3, pytest.param(MANY_COORDINATES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.slow_cases
def test_derivatives(activation, size):
    kernel = ntk(fully_connected(2, activation=activation, bias_std=0.1))
    rng = np.random.default_rng(3)
    x, direction = jnp.asarray(rng.normal(size=(2, 1, size)))

    @jax.jit
    def along(t):
        return kernel(x, x + t * direction)[0, 0]

    derivative = jax.jit(jax.grad(along))

    for t in (1e-3, 0.3):
        ends = along(t * (1 + 1e-5)), along(t * (1 - 1e-5))
        np.testing.assert_allclose(
            derivative(t), (ends[0] - ends[1]) / (2e-5 * t), rtol=1e-5, atol=1e-7
        )
    for t in (1e-8, 1e-9):  # where the cosine is 1 up to rounding
        ends = along(1.1 * t), along(0.9 * t)
        np.testing.assert_allclose(
            derivative(t), (ends[0] - ends[1]) / (0.2 * t), rtol=1e-3, atol=1e-5
        )
    # At a point itself ReLU has a kink, whose two sides' mean is that of norm alone.
    sides = (along(1e-6) - along(-1e-6)) / 2e-6
    np.testing.assert_allclose(derivative(0.0), sides, rtol=1e-5, atol=1e-8)
    zero = jnp.zeros((1, size))
    assert bool(jnp.isfinite(jax.grad(lambda a: kernel(a, zero)[0, 0])(zero)).all())
    mixed = jax.hessian(lambda t: along(0.3 + t))(0.0)
    assert bool(jnp.isfinite(mixed))


@pytest.mark.slow
def test_single_precision_keeps_its_digits(single_precision):  # noqa: ARG001
    x = points("near-duplicates", 1.0).astype(np.float32)
    for activation in ACTIVATIONS:
        kernel = ntk(fully_connected(3, activation=activation))
        values = kernel(x, x)
        assert values.dtype == jnp.float32
        with jax.enable_x64(True):
            exact = np.asarray(kernel(x.astype(float), x.astype(float)))
        np.testing.assert_allclose(values, exact, rtol=0, atol=2e-6 * exact.max())


# ---- Kernels that lose digits know it ----

MIXED = Architecture(
    (Flatten(), Dense(1.5, 0.1), Activation("gelu"), Dense(), Activation("relu"), Dense(1.0, 0.3))
)


def test_a_relu_behind_another_activation_knows_its_precision():
    pairs = near_pairs(4, 5, 1.0)
    x1, x2 = (jnp.asarray(x) for x in zip(*pairs, strict=True))
    kernel = ntk(MIXED)
    exact = np.asarray([exact_kernels(MIXED, *pair)[0] for pair in pairs])
    error = np.abs(jnp.diagonal(kernel(x1, x2)) - exact).max()
    assert 1e-13 < error < kernel.precision(x1) < 1e-6
    assert ntk(fully_connected(2)).precision(x1) == 0
    assert sdntk.kernels.rbf(1.0).precision(x1) == 0


def images_and_copies():
    images = sdntk.datasets.digits().train_images[:6] / 16.0
    return np.concatenate([images, *(images * (1 + 10.0**-e) for e in range(6, 16))])


STAX = "stax"
LOSING = {
    "convolutional": lambda: (ntk(convolutional(2)), images_and_copies()),
    "pooling": lambda: (ntk(convolutional(1, readout="pool")), images_and_copies()[:, 2:5, 2:5]),
    "mixed": lambda: (ntk(MIXED), images_and_copies()),
    STAX: lambda: (ntk(_stax_network()), images_and_copies().reshape(66, -1)),
}


def _stax_network():
    stax = sdntk.kernels.load_neural_tangents().stax
    return stax.serial(stax.Dense(1), stax.LeakyRelu(0.1), stax.Dense(1))[2]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name != STAX else name for name in LOSING],
)
@pytest.mark.slow
def test_rounding_of_a_kernel_that_loses_digits_is_no_reason_to_refuse_it(name, tmp_path):
    kernel, x = LOSING[name]()
    G = sdntk.gram(kernel, x)
    smallest, *_, largest = np.linalg.eigvalsh(G)
    assert smallest < -len(G) * EPS * largest  # what `decompose` would call indefinite
    with pytest.raises(ValueError, match=r"rank_tolerance=kernel\.precision\(x\)"):
        sdntk.decompose(G)
    precision = kernel.precision(x)
    assert -smallest < precision < 1e-6 * float(jnp.max(jnp.diagonal(kernel(x[:2], x[:2]))))
    assert float(sdntk.decompose(G, rank_tolerance=precision).eigenvalues[0]) == 0

    store = sdntk.gram(kernel, x, path=tmp_path / "G", block_size=20)
    assert store.precision == precision
    assert float(sdntk.decompose(store).eigenvalues[0]) == 0
    assert sdntk.GramStore.open(tmp_path / "G").precision == precision

    y = np.random.default_rng(5).normal(size=len(x))
    by_itself = [
        sdntk.distill(kernel, x, y, multiplier=0.01 * largest, rounds=2, method=method)
        for method in ("dense", "tridiagonal", "krylov")
    ]
    for run in by_itself:
        np.testing.assert_allclose(run.fitted, by_itself[0].fitted, atol=1e-6)


def _few_images_and_copies():
    images = np.random.default_rng(0).normal(size=(3, 4, 4, 1))
    return np.concatenate([images, *(images * (1 + 10.0**-e) for e in range(7, 11)), images])


FEW = {"convolutional": ntk(convolutional(2)), "mixed": ntk(MIXED)}
SLOW = pytest.mark.slow


@pytest.mark.parametrize("given", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("name", ["mixed", pytest.param("convolutional", marks=SLOW)])
def test_precision_is_the_same_while_something_is_traced(name, given):
    kernel, x = FEW[name], given(_few_images_and_copies())
    known = kernel.precision(x)
    assert isinstance(known, float)
    assert known > 0
    assert jax.jit(lambda z: z * kernel.precision(x))(1.0) == known
    assert jax.jit(kernel.precision)(x) == pytest.approx(known, rel=1e-6)  # XLA's rounding is seen
    assert not jax.grad(kernel.precision)(jnp.asarray(x)).any()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("convolutional", "dense"),
        pytest.param("convolutional", "tridiagonal", marks=SLOW),
        pytest.param("mixed", "dense", marks=SLOW),
        pytest.param("mixed", "tridiagonal", marks=SLOW),
    ],
)
@pytest.mark.slow
def test_chains_of_near_duplicates_are_the_same_under_transformations(name, method):
    kernel, x = FEW[name], _few_images_and_copies()
    y = np.tile(np.random.default_rng(8).normal(size=3), 6)

    def run(x, y):
        tolerance = 0.3 * jnp.mean(y**2)
        run = sdntk.distill(kernel, x, y, tolerance=tolerance, rounds=3, method=method)
        return run.status, run.multipliers, run.fitted

    known = run(x, y)
    assert int(known[0][0]) == sdntk.Status.ACTIVE
    by_labels, of_jax = (jax.jit(lambda y, x=x: run(x, y))(y) for x in (x, jnp.asarray(x)))
    together = jax.tree.map(lambda leaf: leaf[0], jax.vmap(run)(x[None], y[None]))
    for found in (by_labels, of_jax, jax.jit(run)(x, y), together):
        for one, other in zip(found, known, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


def test_matrices_in_memory_say_what_knows_the_precision():
    kernel, x = FEW["convolutional"], _few_images_and_copies()
    G, y = sdntk.gram(kernel, x), np.ones(len(x))
    with pytest.raises(ValueError, match=r"rank_tolerance=kernel\.precision\(x\)"):
        sdntk.decompose(G)
    with pytest.raises(
        ValueError, match=r"distill\(kernel, x, y, method=\"tridiagonal\"\) or a st"
    ):
        sdntk.tridiagonalise(G)
    with pytest.raises(ValueError, match=r"kernel_operator\(kernel, x\), which knows"):
        sdntk.krylov(sdntk.as_operator(G), y, multiplier=1.0, rounds=1)
    sdntk.krylov(sdntk.kernel_operator(kernel, x), y, multiplier=1.0, rounds=1)


def test_what_is_not_rounding_is_refused_still():
    network = _stax_network()

    def indefinite(x1, x2, get):
        return network(x1, x2, get) - 0.1 * jnp.outer(
            jnp.sin(99 * x1[:, 0]), jnp.sin(99 * x2[:, 0])
        )

    x, y = np.random.default_rng(6).normal(size=(20, 3)), np.ones(20)
    for method in ("dense", "tridiagonal"):
        with pytest.raises(ValueError, match="positive semi-definite"):
            sdntk.distill(ntk(indefinite), x, y, multiplier=1.0, rounds=1, method=method)
