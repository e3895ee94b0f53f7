"""Kernels of neural networks.

Must hold: the NTK and NNGP of fully connected ReLU and erf networks are their closed forms, here
worked out in NumPy, for depths 1 to 5, several scales and biases; those of every activation, and of
convolutional networks, are what random wide networks, written here from the description alone, show
within five standard errors, as are the kernels of stax networks; the NTK of a network approaches
the closed form as it widens. The empirical NTK is the contraction of explicit Jacobians, by each
implementation, of a plain function and of a Flax module with batch statistics, traced and per
class. Blocks of points give the values of the whole. Every architecture gives symmetric positive
semi-definite matrices. jit, vmap, grad and float32 work, equal descriptions and new parameters
compile nothing, and bad input is named.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import finite_network

import sdntk
from sdntk.architectures import (
    ACTIVATIONS,
    convolutional,
    fully_connected,
    myrtle,
)
from sdntk.kernels import empirical_ntk, load_neural_tangents, neural, nngp, ntk

SQRT_2 = float(np.sqrt(2))
RNG = np.random.default_rng(0)
VECTORS, OTHERS = RNG.normal(size=(5, 7)), RNG.normal(size=(4, 7))
IMAGES = RNG.normal(size=(4, 8, 8, 3))


# ---- Closed forms ----


def relu_moments(cov, var1, var2):
    """E[relu(u) relu(v)], E[relu'(u) relu'(v)] and E[relu(u)^2] (Cho and Saul 2009)."""
    norm = np.sqrt(var1 * var2)
    angle = np.arccos(np.clip(cov / norm, -1, 1))
    return (
        norm * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi),
        (np.pi - angle) / (2 * np.pi),
        lambda v: v / 2,
    )


def erf_moments(cov, var1, var2):
    """The same of erf (Williams 1997)."""
    scale = (1 + 2 * var1) * (1 + 2 * var2)
    second = lambda v: 2 / np.pi * np.arcsin(2 * v / (1 + 2 * v))  # noqa: E731
    return (
        2 / np.pi * np.arcsin(2 * cov / np.sqrt(scale)),
        4 / np.pi / np.sqrt(scale - 4 * cov**2),
        second,
    )


def closed_form(moments, depth, weight_std, bias_std, x1, x2):
    """(NTK, NNGP): K' = w^2 E[phi phi] + b^2, Theta' = K' + w^2 E[phi' phi'] Theta (Jacot et al.
    2018).
    """
    w, b = weight_std**2, bias_std**2
    cov = w * x1 @ x2.T / x1.shape[1] + b
    var1, var2 = ((w * np.sum(x**2, 1) / x.shape[1] + b) for x in (x1, x2))
    theta = cov
    for _ in range(depth):
        product, derivatives, second = moments(cov, var1[:, None], var2[None, :])
        cov, var1, var2 = w * product + b, w * second(var1) + b, w * second(var2) + b
        theta = cov + w * derivatives * theta
    return theta, cov


@pytest.mark.parametrize(
    ("activation", "moments", "weight_std", "bias_std", "depth"),
    [
        *(("relu", relu_moments, SQRT_2, 0.0, depth) for depth in (1, 2, 3, 4, 5)),
        *(("relu", relu_moments, 1.3, 0.4, depth) for depth in (1, 2)),
        *(("erf", erf_moments, 1.7, 0.2, depth) for depth in (1, 2, 3, 4, 5)),
    ],
)
def test_closed_forms(activation, moments, weight_std, bias_std, depth):
    network = fully_connected(
        depth, activation=activation, weight_std=weight_std, bias_std=bias_std
    )
    x = np.concatenate([OTHERS, VECTORS])
    theta, cov = closed_form(moments, depth, weight_std, bias_std, VECTORS, x)
    np.testing.assert_allclose(nngp(network)(VECTORS, x), cov, rtol=1e-13, atol=1e-13)
    values = ntk(network)(VECTORS, x)
    same = np.eye(5, 9, 4, dtype=bool)
    np.testing.assert_allclose(values[~same], theta[~same], rtol=1e-13, atol=1e-13)
    # The truth here, not the kernel, has the arccosine of 1 up to rounding for a point and itself.
    np.testing.assert_allclose(values[same], theta[same], rtol=1e-7)


def test_a_linear_network():
    np.testing.assert_allclose(
        ntk(fully_connected(0))(VECTORS, OTHERS), 2 * VECTORS @ OTHERS.T / 7, atol=1e-14
    )


# ---- Random wide networks; those of a description: tests/test_networks.py ----


@pytest.mark.parametrize("name", ["LeakyRelu", "Rbf"])
def test_random_networks_of_stax(name):
    stax = load_neural_tangents().stax
    options = {"LeakyRelu": {"alpha": 0.1}}.get(name, {})
    layer = getattr(stax, name)(**options)
    init, apply, kernel_fn = stax.serial(
        stax.Dense(512, 1.2, 0.1), layer, stax.Dense(512, 1.2, 0.1), layer, stax.Dense(1)
    )
    x, seeds = jnp.asarray(VECTORS[:3]), 40
    keys = jax.random.split(jax.random.key(2), seeds)
    sample = jax.jit(jax.vmap(lambda key: empirical_ntk(apply, init(key, x.shape)[1])(x, x)))(keys)
    error, expected = np.std(sample, axis=0, ddof=1) / np.sqrt(seeds), ntk(kernel_fn)(x, x)
    np.testing.assert_array_less(
        abs(np.mean(sample, axis=0) - expected), 5 * error + abs(expected).max() / 512
    )


# ---- Networks as they are ----


class CNN(nnx.Module):
    def __init__(self, rngs, dtype=jnp.float64):
        self.conv = nnx.Conv(3, 4, (3, 3), param_dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(4, param_dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(16, 3, param_dtype=dtype, rngs=rngs)
        self.norm.mean.set_value(jax.random.normal(rngs.params(), (4,), dtype))
        self.norm.var.set_value(jax.random.uniform(rngs.params(), (4,), dtype, 0.5, 2.0))

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.avg_pool(x, (4, 4), (4, 4)).reshape(len(x), -1)
        return self.dense(self.dropout(x))


@functools.partial(jax.jit, static_argnums=0)
def contraction(apply, params, x1, x2):
    """<df_q(x)/dw, df_q(x')/dw> from the whole Jacobians: (n1, n2, Q)."""
    jacobians = [jax.tree.leaves(jax.jacrev(apply)(params, x)) for x in (x1, x2)]
    pairs = (
        (a.reshape(*a.shape[:2], -1), b.reshape(*b.shape[:2], -1))
        for a, b in zip(*jacobians, strict=True)
    )
    return sum(jnp.einsum("nqp,mqp->nmq", a, b) for a, b in pairs)


@pytest.fixture(scope="module", params=["fully connected", "Flax module"])
def network(request):
    """(what empirical_ntk takes, its explicit contraction, x1, x2)"""
    if request.param == "fully connected":
        init, apply = finite_network(fully_connected(2, activation="gelu", bias_std=0.3), 6, 3)
        params = init(jax.random.key(0), 7)
        return (apply, params), contraction(apply, params, VECTORS, OTHERS), VECTORS, OTHERS
    module = CNN(nnx.Rngs(0))
    evaluated = CNN(nnx.Rngs(0))
    evaluated.eval()
    graph, params, rest = nnx.split(evaluated, nnx.Param, ...)
    x1, x2 = jnp.asarray(IMAGES), jnp.asarray(IMAGES[::-1][:3] + 0.5)
    return (module,), contraction(lambda p, x: nnx.merge(graph, p, rest)(x), params, x1, x2), x1, x2


@pytest.mark.slow
@pytest.mark.parametrize("implementation", [0, 1, 2, 3])
def test_empirical_ntk_is_the_contraction_of_jacobians(network, implementation, capsys):
    arguments, expected, x1, x2 = network
    traced = empirical_ntk(*arguments, implementation=implementation)(x1, x2)
    chex.assert_shape(traced, expected.shape[:2])
    np.testing.assert_allclose(traced, expected.mean(-1), rtol=0, atol=1e-12 * abs(expected).max())
    assert capsys.readouterr().out == ""  # neural-tangents' implementation 0 is talkative


@pytest.mark.parametrize("implementation", [1, 3])
@pytest.mark.slow_cases
def test_the_kernel_of_one_output(network, implementation):
    arguments, expected, x1, x2 = network
    of_one = empirical_ntk(*arguments, implementation=implementation, output=1)(x1, x2)
    np.testing.assert_allclose(of_one, expected[..., 1], rtol=0, atol=1e-12 * abs(expected).max())


def test_a_module_is_left_as_it_was():
    module = CNN(nnx.Rngs(0))
    before = jax.tree.map(
        np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))
    )
    kernel = empirical_ntk(module)
    kernel(IMAGES, IMAGES)
    assert not module.norm.use_running_average
    assert not module.dropout.deterministic
    chex.assert_trees_all_equal(
        before, nnx.to_pure_dict(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))
    )
    assert (
        repr(kernel)
        == "EmpiricalNTK(_Module(name='CNN'), 171 parameters, output=None, implementation='auto')"
    )


# ---- As kernels of the library ----


@pytest.fixture(scope="module")
def kernels():
    init, apply = finite_network(fully_connected(2), 16, 3)
    params = init(jax.random.key(0), 8 * 8 * 3)
    return {
        "ntk": ntk(fully_connected(2)),
        "nngp, pooling": nngp(convolutional(1, readout="pool")),
        "empirical": empirical_ntk(apply, params),
        "empirical, structured": empirical_ntk(apply, params, implementation=3),
        "module": empirical_ntk(CNN(nnx.Rngs(0)), output=1),
        "module, products": empirical_ntk(CNN(nnx.Rngs(0)), implementation=2),
    }


KERNELS = [
    "ntk",
    "nngp, pooling",
    "empirical",
    "empirical, structured",
    "module",
    "module, products",
]


@pytest.mark.parametrize("name", KERNELS)
def test_blocks_give_the_values_of_the_whole(kernels, name):
    kernel, x = kernels[name], np.concatenate([IMAGES, IMAGES[:2] / 2])
    whole = kernel(x, x)
    tiles = [[kernel(x[i : i + 2], x[j : j + 2]) for j in (0, 2, 4)] for i in (0, 2, 4)]
    np.testing.assert_allclose(np.block(tiles), whole, rtol=1e-12)
    np.testing.assert_allclose(kernel(x[:1], x[1:]), whole[:1, 1:], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_jit_vmap_and_grad(kernels, name):
    kernel, x = kernels[name], jnp.asarray(IMAGES)
    whole = kernel(x, x + 1)
    np.testing.assert_allclose(jax.jit(lambda k, a: k(a, a + 1))(kernel, x), whole, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(lambda a: kernel(a[None], x + 1)[0])(x), whole, rtol=1e-12)
    slope = jax.grad(lambda c: kernel(c * x[:1], x[1:2] + 1)[0, 0])(1.0)
    ends = [kernel(c * x[:1], x[1:2] + 1)[0, 0] for c in (1 + 1e-6, 1 - 1e-6)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-6)


@pytest.mark.parametrize("kernel", [ntk, nngp])
def test_a_kernel_of_stax_is_that_of_the_description(kernel):
    stax = load_neural_tangents().stax
    layers = (stax.Flatten(), stax.Dense(1, 1.3, 0.1), stax.Erf(), stax.Dense(1, 1.3, 0.1))
    kernel_fn = stax.serial(*layers)[2]
    ours = kernel(fully_connected(1, activation="erf", weight_std=1.3, bias_std=0.1))
    values = kernel(kernel_fn)(IMAGES, IMAGES)
    np.testing.assert_allclose(values, ours(IMAGES, IMAGES), rtol=1e-13, atol=1e-14)
    # x1_is_x2, which is traced here, does not matter without dropout.
    np.testing.assert_allclose(values, kernel_fn(IMAGES, None, kernel.__name__), rtol=1e-13)


@pytest.mark.parametrize("kernel", [ntk, nngp])
@pytest.mark.parametrize(
    "architecture",
    [
        *(fully_connected(3, activation=name, bias_std=0.1) for name in ACTIVATIONS),
        convolutional(2),
        *(convolutional(1, readout="pool", activation=name) for name in ACTIVATIONS),
        *(myrtle(depth) for depth in (5, 7, 10)),
    ],
    ids=lambda a: (
        f"{len(a.layers)}-{a.layers[2 if a.smallest_image is None else 1].name}-"
        f"{type(a.layers[-2]).__name__}"
    ),
)
def test_every_architecture_is_symmetric_and_positive(kernel, architecture):
    x = (
        IMAGES
        if len(architecture.layers) > 9
        else np.concatenate([IMAGES, IMAGES[:1] * (1 + 1e-6), IMAGES[:1]])
    )
    matrix = np.asarray(kernel(architecture)(x, x))
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-7)
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert eigenvalues[0] > -1e-7 * eigenvalues[-1]


def test_distillation_with_a_neural_kernel():
    x, y = np.concatenate([VECTORS, OTHERS]), RNG.normal(size=9)
    run = sdntk.distill(ntk(fully_connected(3)), x, y, tolerance=0.1 * np.mean(y**2), rounds=2)
    np.testing.assert_allclose(run.training_loss[0], 0.1 * np.mean(y**2), rtol=1e-6)
    np.testing.assert_allclose(run.predict(x)[0], run.fitted[0], atol=1e-6)


# ---- Precision, compilation, input ----


@pytest.mark.slow
def test_the_default_float_decides_the_precision(single_precision):  # noqa: ARG001
    x = np.concatenate([IMAGES, IMAGES, np.zeros((1, 8, 8, 3))])
    for architecture in (
        fully_connected(3),
        fully_connected(2, activation="erf"),
        convolutional(1, bias_std=0.1),
    ):
        for kernel in (ntk(architecture), nngp(architecture)):
            values = kernel(x, x)
            assert values.dtype == jnp.float32
            assert bool(jnp.isfinite(values).all())
            with jax.enable_x64(True):
                exact = kernel(x.astype(np.float32), x.astype(np.float32))
                assert exact.dtype == jnp.float64
                np.testing.assert_allclose(
                    values, exact, rtol=0, atol=1e-3 * float(abs(exact).max())
                )
    kernel = empirical_ntk(CNN(nnx.Rngs(0), jnp.float32))
    values = kernel(IMAGES, IMAGES)
    assert values.dtype == jnp.float32
    assert bool(jnp.isfinite(values).all())


def test_nothing_compiles_twice(monkeypatch):
    stax = load_neural_tangents().stax
    kernel_fn = chex.assert_max_traces(
        stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))[2], n=1
    )
    ntk(kernel_fn)(VECTORS, VECTORS)
    ntk(kernel_fn)(VECTORS + 1, VECTORS)

    compute, traced = neural.vector_kernel, []
    monkeypatch.setattr(neural, "vector_kernel", lambda *a: traced.append(1) or compute(*a))
    for _ in range(2):  # equal descriptions
        ntk(fully_connected(2, weight_std=1.2345))(VECTORS, OTHERS)
    assert len(traced) == 1

    init, apply = finite_network(fully_connected(1), 5, 2)
    traces = []

    def counted(params, x):
        traces.append(1)
        return apply(params, x)

    empirical_ntk(counted, init(jax.random.key(0), 7))(VECTORS, OTHERS)
    once = len(traces)
    empirical_ntk(counted, init(jax.random.key(1), 7))(VECTORS + 1, OTHERS)  # new parameters
    assert len(traces) == once

    for seed in (0, 1):  # another module of the same layers
        with jax.log_compiles(False):
            before = neural._empirical._cache_size()
            empirical_ntk(CNN(nnx.Rngs(seed)), output=2)(IMAGES, IMAGES)
            assert neural._empirical._cache_size() == before + (seed == 0)


def test_an_ensemble_is_a_stack_of_kernels():
    init, apply = finite_network(fully_connected(1), 5, 2)
    ensemble = [empirical_ntk(apply, init(jax.random.key(seed), 7)) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ensemble)
    values = jax.vmap(lambda kernel: kernel(VECTORS, OTHERS))(stacked)
    np.testing.assert_allclose(values, [kernel(VECTORS, OTHERS) for kernel in ensemble], rtol=1e-12)


def test_descriptions_are_readable_and_comparable():
    kernel = nngp(fully_connected(1, weight_std=1.5))
    assert eval(repr(kernel), {"nngp": nngp, **vars(sdntk.architectures)}) == kernel
    assert kernel != ntk(fully_connected(1, weight_std=1.5))
    assert hash(kernel) == hash(nngp(fully_connected(1, weight_std=1.5)))


def no_readout(x1, x2, get):
    del get
    return jnp.zeros((len(x1), len(x2), 3))


CASES = {
    "no kernel_fn": (lambda: ntk(3), TypeError, "kernel_fn"),
    "kernel_fn of wrong shape": (
        lambda: ntk(no_readout)(VECTORS, OTHERS),
        ValueError,
        r"\(5, 4\); its shape is \(5, 4, 3\)",
    ),
    "not images": (
        lambda: ntk(convolutional())(VECTORS, OTHERS),
        ValueError,
        r"x1 must be images.*\(5, 7\)",
    ),
    "images too small": (
        lambda: ntk(myrtle())(IMAGES[:, :3], IMAGES[:, :3]),
        ValueError,
        "at least 4 x 4 pixels",
    ),
    "points of two shapes": (
        lambda: ntk(fully_connected())(VECTORS, OTHERS[:, :2]),
        ValueError,
        "points of one shape",
    ),
    "a point alone": (
        lambda: ntk(fully_connected())(1.0, VECTORS),
        ValueError,
        "x1 must hold at least one point",
    ),
    "nan": (
        lambda: nngp(fully_connected())(VECTORS, OTHERS * np.nan),
        ValueError,
        "x2 must be finite",
    ),
    "apply_fn no function": (
        lambda: empirical_ntk(3, {}),
        TypeError,
        "apply_fn",
    ),
    "no params": (lambda: empirical_ntk(lambda p, _: p), TypeError, "params must be given"),
    "params of a module": (
        lambda: empirical_ntk(CNN(nnx.Rngs(0)), {}),
        TypeError,
        "params must be left out",
    ),
    "implementation": (
        lambda: empirical_ntk(jnp.dot, 1.0, implementation=4),
        ValueError,
        "implementation must be 0, 1, 2, 3 or",
    ),
    "output negative": (
        lambda: empirical_ntk(jnp.dot, 1.0, output=-1),
        ValueError,
        "output must be at least 0",
    ),
    "output too large": (
        lambda: empirical_ntk(lambda w, x: x @ w, jnp.ones((7, 2)), output=2)(VECTORS, OTHERS),
        ValueError,
        "output must be below 2, the number of outputs; got 2",
    ),
    "no outputs axis": (
        lambda: empirical_ntk(lambda w, x: x @ w, jnp.ones(7))(VECTORS, OTHERS),
        ValueError,
        r"apply_fn must return outputs of shape \(n, Q\).*it returned shape",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()
