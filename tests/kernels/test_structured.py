"""The quickest exact implementation of an empirical tangent kernel.

Must hold: of every network here, by whichever implementation is chosen, the kernel is the
contraction of its whole Jacobians to 1e-12, in float64: dense and convolutional layers, batch norm,
skips, weights used twice, layers in a loop. Structured derivatives are chosen where they are known
to be exact, and nowhere else; the choice depends on shapes alone, is made under jit and vmap, and
once for a network; a network's own error is raised as it is.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sdntk import gram
from sdntk.kernels import empirical_ntk, load_neural_tangents, structured, tangent_kernel

RNG = np.random.default_rng(0)
X1, X2 = RNG.normal(size=(4, 4)), RNG.normal(size=(3, 4))
IMAGES = RNG.normal(size=(3, 6, 6, 2))


def weights(*shapes):
    return tuple(jnp.asarray(RNG.normal(size=shape)) for shape in shapes)


def mlp(w, x):
    return jnp.tanh(x @ w[0] + w[1][None]) @ w[2]


def skip(w, x):
    hidden = x + jax.nn.relu(x @ w[0])
    return (hidden + jnp.tanh(hidden @ w[1])) @ w[2]


def shared(w, x):
    hidden = x + jnp.tanh(x @ w[0] + w[1][None])
    return jnp.tanh(hidden @ w[0] + w[1][None]) @ w[2]


def tied(w, x):
    return jnp.tanh(x @ w[0]) @ w[0].T


def shared_with_itself(w, x):
    return x @ (w[0] + w[0] ** 2)


def weight_norm(w, x):
    return x @ (w[0] / jnp.linalg.norm(w[0], axis=0, keepdims=True))


def sliced(w, x):
    return x @ w[0][0] + x @ w[0][1]


def looped(w, x):
    return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, w[0])[0]


def recurrent(w, x):
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w[0]), None), x, None, length=3)[0]


def checkpointed(w, x):
    return jax.checkpoint(lambda h: jnp.tanh(h @ w[0]))(x) @ w[1]


def with_its_diagonal(w, x):
    return x @ w[0] + x * jnp.diag(w[0])[None]


def normed(w, x):
    hidden = x @ w[0]
    centred = hidden - hidden.mean(1, keepdims=True)
    return centred / jnp.sqrt(0.1 + hidden.var(1, keepdims=True)) * w[1][None] + w[2][None]


def attention(w, x):
    tokens = x.reshape(len(x), 2, 2)
    scores = (tokens @ w[0]) @ (tokens @ w[1]).transpose(0, 2, 1)
    return (jax.nn.softmax(scores, -1) @ (tokens @ w[2])).sum(1)


def by_head(w, x):
    heads = jnp.tanh(x @ w[0]).reshape(len(x), 3, 2)
    return jnp.einsum("nhd,hde->nhe", heads, w[1]).reshape(len(x), -1)


def concatenated(w, x):
    return x @ jnp.concatenate([w[0], w[0], -w[1]], 1)


def rearranged(w, x):
    hidden = jnp.tanh(x @ jnp.squeeze(w[0], 0)) @ w[1].T
    return jnp.tanh(hidden @ (w[2] / 3)) @ jnp.array(w[3], copy=True)


def mixed(w, x):
    return jnp.tanh(x @ w[0].astype(jnp.float64)) @ w[1]


def of_rates(w, x):
    return (w[0][None] / (2 + x**2)) @ jnp.exp(w[1]) * w[2] + w[3].sum(0)[None]


def part_unused(w, x):
    return x @ w[0]


def without_weights(w, x):
    return x + 0 * w[0].sum()


NETWORKS = {
    mlp: (weights((4, 6), 6, (6, 3)), 3),
    skip: (weights((4, 4), (4, 4), (4, 3)), 3),
    shared: (weights((4, 4), 4, (4, 3)), 3),
    recurrent: (weights((4, 4)), 3),
    normed: (weights((4, 5), 5, 5), 3),
    attention: (weights((2, 3), (2, 3), (2, 3)), 3),
    by_head: (weights((4, 6), (3, 2, 2)), 3),
    concatenated: (weights((4, 2), (4, 3)), 3),
    rearranged: (weights((1, 4, 5), (3, 5), (3, 4), (4, 2)), 3),
    of_rates: (weights(4, (4, 3), (), (2, 3)), 3),
    part_unused: (weights((4, 2), 3), 3),
    tied: (weights((4, 6)), 1),
    shared_with_itself: (weights((4, 6)), 1),
    weight_norm: (weights((4, 3)), 1),
    sliced: (weights((2, 4, 3)), 1),
    looped: (weights((3, 4, 4)), 1),
    checkpointed: (weights((4, 4), (4, 2)), 1),
    with_its_diagonal: (weights((4, 4)), 1),
    without_weights: (weights(4), None),  # either is exact
}


@functools.partial(jax.jit, static_argnums=0)
def contraction(apply, params, x1, x2):
    jacobians = [jax.tree.leaves(jax.jacrev(apply)(params, x)) for x in (x1, x2)]
    pairs = [[a.reshape(*a.shape[:2], -1) for a in leaves] for leaves in jacobians]
    outputs = pairs[0][0].shape[1]
    return sum(jnp.einsum("nqp,mqp->nm", a, b) for a, b in zip(*pairs, strict=True)) / outputs


def chosen(monkeypatch, call):
    """What the package is asked for while ``call`` is traced."""
    asked = []
    nt = load_neural_tangents()
    compute = nt.empirical_ntk_fn

    def recorded(*args, **kwargs):
        asked.append(int(kwargs["implementation"]))
        return compute(*args, **kwargs)

    monkeypatch.setattr(nt, "empirical_ntk_fn", recorded)
    return call(), asked


@pytest.mark.parametrize("apply", NETWORKS, ids=lambda apply: apply.__name__)
def test_functions(apply, monkeypatch):
    params, implementation = NETWORKS[apply]
    values, asked = chosen(monkeypatch, lambda: empirical_ntk(apply, params)(X1, X2))
    expected = contraction(apply, params, X1, X2)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12 * max(1, abs(expected).max()))
    assert implementation in (None, asked[-1])


@pytest.mark.parametrize("apply", [mlp, checkpointed, with_its_diagonal])
def test_all_outputs(apply, monkeypatch):
    params, implementation = NETWORKS[apply]
    values, asked = chosen(monkeypatch, lambda: tangent_kernel(apply, params, X1))
    jacobians = jax.tree.leaves(jax.jacrev(apply)(params, X1))
    rows = [leaf.reshape(values.shape[0], -1) for leaf in jacobians]
    expected = sum(leaf @ leaf.T for leaf in rows)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12 * abs(expected).max())
    assert asked[-1] == implementation


def test_weights_in_two_precisions(monkeypatch):
    first, last = weights((4, 5), (5, 3))
    params = (first.astype(jnp.float32), last)  # whose derivatives are rounded to float32
    values, asked = chosen(monkeypatch, lambda: empirical_ntk(mixed, params)(X1, X2))
    expected = contraction(mixed, params, X1, X2)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6 * abs(expected).max())
    assert asked[-1] == 3


class Residual(nnx.Module):
    """Convolutions, batch norm, a skip, and a convolution that is used twice."""

    def __init__(self, rngs):
        options = {"param_dtype": jnp.float64, "rngs": rngs}
        self.first = nnx.Conv(2, 4, (3, 3), **options)
        self.norm = nnx.BatchNorm(4, **options)
        self.again = nnx.Conv(4, 4, (3, 3), **options)
        self.depthwise = nnx.Conv(4, 4, (3, 3), feature_group_count=4, strides=2, **options)
        self.grouped = nnx.Conv(4, 6, (2, 2), feature_group_count=2, padding="VALID", **options)
        self.dense = nnx.Linear(6, 3, **options)
        self.norm.mean.set_value(jnp.asarray(RNG.normal(size=4)))
        self.norm.var.set_value(jnp.asarray(RNG.uniform(0.5, 2, size=4)))

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        x = x + nnx.gelu(self.again(x))
        x = x + nnx.tanh(self.again(x))
        x = nnx.max_pool(self.depthwise(x), (2, 2), (1, 1))
        return self.dense(nnx.avg_pool(self.grouped(x), (1, 1)).mean((1, 2)))


def test_a_module(monkeypatch):
    module = Residual(nnx.Rngs(0))
    values, asked = chosen(monkeypatch, lambda: empirical_ntk(module)(IMAGES, IMAGES[:2]))
    module.eval()
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    expected = contraction(
        lambda p, x: nnx.merge(graph, p, rest)(x), params, jnp.asarray(IMAGES), IMAGES[:2]
    )
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12 * abs(expected).max())
    assert asked[-1] == 3


def operations_on_weights(apply, params, x):
    """The names of what the weights go into, in the derivative's program."""
    outputs = lambda leaves, _, x: apply(jax.tree.unflatten(structure, leaves), x)  # noqa: E731
    leaves, structure = jax.tree.flatten(params)
    program = structured._linear_program(outputs, leaves, None, x)
    uses = [(each.primitive.name, v) for each in program.eqns for v in each.invars]
    return {name for name, v in uses if not hasattr(v, "val") and v in program.invars}


def test_every_known_operation_is_compared():
    networks = {apply: params for apply, (params, number) in NETWORKS.items() if number == 3}
    networks[mixed] = (jnp.ones((4, 5), jnp.float32), jnp.ones((5, 3)))
    found = [operations_on_weights(apply, params, X1) for apply, params in networks.items()]
    module = Residual(nnx.Rngs(0))
    module.eval()
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    found.append(operations_on_weights(lambda p, x: nnx.merge(graph, p, rest)(x), params, IMAGES))
    assert set().union(*found) == structured.KNOWN_OPERATIONS


def test_a_choice_of_ones_own_is_kept(monkeypatch):
    params, _ = NETWORKS[mlp]
    apply = lambda w, x: mlp(w, x)  # noqa: E731 (compiled for no other test)
    for implementation in (1, 2, 3):
        kernel = empirical_ntk(apply, params, implementation=implementation)
        _, asked = chosen(monkeypatch, lambda kernel=kernel: kernel(X1, X2))
        assert set(asked) == {implementation}


def test_the_choice_is_made_under_transformations_and_once():
    params, _ = NETWORKS[skip]
    traces = []

    def counted(w, x):
        traces.append(1)
        return skip(w, x)

    kernel, x = empirical_ntk(counted, params), jnp.asarray(X1)
    whole = jax.jit(lambda k, x: k(x, x))(kernel, x)
    np.testing.assert_allclose(whole, contraction(skip, params, X1, X1), rtol=1e-12)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), kernel)
    np.testing.assert_allclose(jax.vmap(lambda k: k(x, x))(stacked)[1], whole, rtol=1e-12)
    kernel(x, x)
    once = len(traces)
    empirical_ntk(counted, jax.tree.map(lambda leaf: leaf + 1, params))(x, x)
    assert len(traces) == once
    slope = jax.grad(lambda k: jnp.sum(k(x, x)))(kernel).params
    ends = [
        jnp.sum(contraction(skip, (params[0], params[1], params[2] * f), X1, X1))
        for f in (1 + 1e-6, 1 - 1e-6)
    ]
    along = jnp.vdot(slope[2], params[2])
    np.testing.assert_allclose(along, (ends[0] - ends[1]) / 2e-6, rtol=1e-6)


def test_one_output_and_blocks():
    params, _ = NETWORKS[mlp]
    of_one = empirical_ntk(mlp, params, output=1)(X1, X2)
    np.testing.assert_allclose(
        of_one, contraction(lambda w, x: mlp(w, x)[:, 1:2], params, X1, X2), rtol=1e-12
    )
    whole = gram(empirical_ntk(mlp, params), X1)
    np.testing.assert_allclose(gram(empirical_ntk(mlp, params), X1, block_size=2), whole, rtol=1e-9)


def no_readout(w, x):
    return x @ w


def mean_of_points(w, x):
    return (x @ w).mean(0, keepdims=True)


def raises(*_):
    raise RuntimeError("of the network's own")


def test_errors_are_those_of_the_network():
    with pytest.raises(ValueError, match=re.escape("outputs of shape (n, Q)")):
        empirical_ntk(no_readout, jnp.ones(4))(X1, X2)
    for compute in (empirical_ntk(mean_of_points, jnp.ones((4, 2))), None):
        with pytest.raises(
            ValueError, match=r"shape \(n, Q\), here \(4, Q\).*returned shape \(1, 2\)"
        ):
            compute(X1, X2) if compute else tangent_kernel(mean_of_points, jnp.ones((4, 2)), X1)
    with pytest.raises(ValueError, match="output must be below 3"):
        empirical_ntk(mlp, NETWORKS[mlp][0], output=3)(X1, X2)
    with pytest.raises(RuntimeError, match="of the network's own"):
        empirical_ntk(raises, jnp.ones(4))(X1, X2)


@pytest.mark.parametrize("wrong", [4, -1, "structured", 1.5])
@pytest.mark.usefixtures("as_users_call")
def test_bad_implementations_are_named(wrong):
    with pytest.raises((TypeError, ValueError), match="implementation must be"):
        empirical_ntk(mlp, NETWORKS[mlp][0], implementation=wrong)
