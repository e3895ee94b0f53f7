"""Training one round.

Losses: against formulas in NumPy. The optimum: Gauss-Newton, L-BFGS and Adam end where the gradient
of the objective, written here a second time, vanishes, and agree. Stops: at the first look that
meets the rule. An ensemble: networks together are the networks one by one, on one device or eight;
one that diverges is told and leaves the others as they were. Batches: every epoch takes every point
once, and a batch of all points is the full gradient. Modules with batch statistics and dropout
train.
"""

import dataclasses
import itertools
import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import BatchNormNetwork, with_virtual_devices

import sdntk
from sdntk import losses
from sdntk.architectures import convolutional, fully_connected
from sdntk.networks import FiniteWidth
from sdntk.training import course, ensemble, steps
from sdntk.training import train as training
from sdntk.training.optimisers import LeastSquares, gauss_newton
from sdntk.training.state import Stop, TrainingConfig
from sdntk.training.train import train

X = jax.random.normal(jax.random.key(0), (20, 5))
Y = jnp.sin(X[:, :3])
KEYS = jax.random.split(jax.random.key(1), 3)
PENALTY = 0.02


def build(rngs):
    return FiniteWidth(
        fully_connected(2, activation="erf"), (5,), width=128, num_outputs=3, rngs=rngs
    )


def test_losses():
    rng = np.random.default_rng(0)
    f, p = rng.normal(size=(2, 6, 4)), rng.dirichlet(np.ones(4), size=(2, 6))
    softmax = np.exp(f) / np.exp(f).sum(-1, keepdims=True)
    expected = {
        losses.squared_error: ((f - p) ** 2).mean(-1),
        losses.squared_error_of_softmax: ((softmax - p) ** 2).mean(-1),
        losses.soft_cross_entropy: -(p * np.log(softmax)).sum(-1),
        losses.hard_cross_entropy: -np.log(
            np.take_along_axis(softmax, p.argmax(-1)[..., None], -1)
        )[..., 0],
    }
    for loss, values in expected.items():
        np.testing.assert_allclose(loss(jnp.asarray(f), jnp.asarray(p)), values, rtol=1e-12)
        predicted = f if loss is losses.squared_error else softmax
        np.testing.assert_allclose(losses.predictions(loss, jnp.asarray(f)), predicted, rtol=1e-12)


def gradient_norm(trained, index, penalty):
    """Of mean((f - f_0 - y)^2) + penalty |theta - theta_0|^2, from the networks' numbers."""
    take = lambda tree: jax.tree.map(lambda leaf: leaf[index], tree)  # noqa: E731
    ensemble = trained.ensemble
    initial, model_state = take(ensemble.initial_params), take(ensemble.model_state)

    def objective(params):
        at = lambda theta: ensemble.apply_fn(theta, model_state, X)  # noqa: E731
        outputs = at(params) - at(initial)
        moved = jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), params, initial))
        return jnp.mean((outputs - Y) ** 2) + penalty * sum(moved)

    return np.sqrt(
        sum(
            np.sum(np.square(g))
            for g in jax.tree.leaves(jax.grad(objective)(take(ensemble.params)))
        )
    )


@pytest.fixture(scope="module")
def at_the_optimum():
    settings = TrainingConfig(
        optimiser=gauss_newton(), centred=True, until_stationary=1e-9, steps=60, check_every=1
    )
    return train(build, KEYS, X, Y, settings, penalty=PENALTY)


@pytest.mark.slow
def test_gauss_newton_reaches_the_optimum_in_a_few_steps(at_the_optimum):
    assert at_the_optimum.stop.tolist() == [Stop.STATIONARY] * 3
    assert max(at_the_optimum.steps) <= 30
    for index in range(3):
        grad_norm = float(at_the_optimum.grad_norm[index])
        assert gradient_norm(at_the_optimum, index, PENALTY) == pytest.approx(grad_norm, rel=1e-3)
        assert grad_norm <= 1e-9


def with_its_diagonal(w, x):
    """Linear in weights, of which it takes some twice, in ways of two structures."""
    return x[:, :3] @ w + x[:, :3] * jnp.diag(w)[None]


@jax.checkpoint
def checkpointed(w, x):
    return x[:, :3] @ w


@pytest.mark.parametrize(
    "apply", [with_its_diagonal, pytest.param(checkpointed, marks=pytest.mark.slow)]
)
def test_gauss_newton_where_structured_derivatives_are_none(apply):
    """A network that is linear in its weights is at the optimum after one step."""
    settings = TrainingConfig(
        optimiser=gauss_newton(), centred=True, until_stationary=1e-9, steps=1, check_every=1
    )
    pair = (lambda key: jax.random.normal(key, (3, 3)), apply)
    trained = train(pair, KEYS[:1], X, Y, settings, penalty=PENALTY)
    assert gradient_norm(trained, 0, PENALTY) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimiser", "tolerance"),
    [(optax.lbfgs(), 1e-6), (optax.adam(3e-3), 1e-3)],
    ids=["lbfgs", "adam"],
)
def test_other_optimisers_end_there_too(at_the_optimum, optimiser, tolerance):
    settings = TrainingConfig(
        optimiser=optimiser, centred=True, until_stationary=1e-7, steps=2000, check_every=10
    )
    trained = train(build, KEYS, X, Y, settings, penalty=PENALTY)
    np.testing.assert_allclose(trained.loss, at_the_optimum.loss, rtol=tolerance)
    outputs, optimal = trained.ensemble.outputs(X), at_the_optimum.ensemble.outputs(X)
    assert np.linalg.norm(outputs - optimal) < tolerance * np.linalg.norm(optimal)


@pytest.mark.slow
def test_networks_together_are_networks_one_by_one(at_the_optimum):
    settings = TrainingConfig(
        optimiser=gauss_newton(), centred=True, until_stationary=1e-9, steps=60, check_every=1
    )
    together = train(build, KEYS, X, Y, settings, penalty=PENALTY, at_once=3)
    two = train(build, KEYS, X, Y, settings, penalty=PENALTY, at_once=2)
    assert together.steps.tolist() == two.steps.tolist() == at_the_optimum.steps.tolist()
    for other in (together, two):
        np.testing.assert_allclose(
            other.ensemble.outputs(X), at_the_optimum.ensemble.outputs(X), rtol=1e-7, atol=1e-9
        )


def test_same_keys_same_bits():
    settings = TrainingConfig(optimiser=optax.adam(1e-2), steps=25, batch_size=4)
    first, again, other = (train(build, keys, X, Y, settings) for keys in (KEYS, KEYS, KEYS[::-1]))
    np.testing.assert_array_equal(first.ensemble.outputs(X), again.ensemble.outputs(X))
    np.testing.assert_array_equal(
        first.ensemble.outputs(X), other.ensemble.outputs(X)[::-1]
    )  # whatever the others are


EIGHT_DEVICES = """
    import jax, json, optax
    jax.config.update("jax_enable_x64", True)
    import sys; sys.path[:0] = sys.argv[1:]
    from test_train import X, Y, build
    from sdntk.training.state import TrainingConfig
    from sdntk.training.train import train
    keys = jax.random.split(jax.random.key(1), 8)
    settings = TrainingConfig(optimiser=optax.adam(1e-2), steps=12, batch_size=4)
    spread, single, uneven = (
        train(build, keys, X, Y, settings, at_once=size) for size in (8, 1, 6)
    )
    outputs, expected = spread.ensemble.outputs(X), single.ensemble.outputs(X)
    assert abs(uneven.ensemble.outputs(X) - expected).max() < 1e-12
    devices = len(jax.tree.leaves(spread.ensemble.params)[0].devices())
    print(json.dumps([devices, float(abs(outputs - expected).max())]))
"""


@pytest.mark.slow
def test_an_ensemble_is_spread_over_all_devices(request):
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EIGHT_DEVICES), *request.path.parents[:2]],
        env=with_virtual_devices(8),
        capture_output=True,
        text=True,
        check=True,
    )
    devices, difference = json.loads(ran.stdout)
    assert devices == 8
    assert difference < 1e-12


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_network_that_diverges_is_told_and_leaves_the_others_as_they_were(at_once):
    targets = jnp.stack([Y, Y * 1e200, Y])
    settings = TrainingConfig(optimiser=optax.adam(1e-2), steps=30, until_loss=0.0, check_every=10)
    trained = train(build, KEYS, X, targets, settings, at_once=at_once)
    assert trained.stop.tolist() == [Stop.STEPS, Stop.DIVERGED, Stop.STEPS]
    assert trained.steps.tolist() == [30, 0, 30]
    alone = train(build, KEYS, X, Y, settings, at_once=at_once)
    outputs = trained.ensemble.outputs(X)
    np.testing.assert_allclose(outputs[::2], alone.ensemble.outputs(X)[::2], rtol=1e-12)
    assert bool(jnp.isfinite(outputs).all())  # it keeps its last finite weights


def test_a_network_that_diverges_midway_keeps_its_last_finite_weights():
    """Of the squared error's own making: too long steps grow until the weights are no numbers."""
    targets = jnp.stack([Y, Y * 1e8])
    settings = TrainingConfig(
        optimiser=optax.sgd(2.0), steps=400, check_every=400, batch_size=4, until_loss=0.0
    )
    relu = lambda rngs: FiniteWidth(fully_connected(2), (5,), width=32, num_outputs=3, rngs=rngs)  # noqa: E731
    trained = train(relu, KEYS[:2], X, targets, settings)
    assert Stop.DIVERGED in trained.stop.tolist()
    diverged = int(np.argmax(np.asarray(trained.stop) == Stop.DIVERGED))
    assert 0 < trained.steps[diverged] < 400
    weights = jax.tree.leaves(jax.tree.map(lambda leaf: leaf[diverged], trained.ensemble.params))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in weights)
    outputs = np.asarray(trained.ensemble.outputs(X)[diverged])
    loss = np.mean(
        (outputs - np.asarray(targets[diverged])) ** 2
    )  # of the weights that it ends with
    np.testing.assert_allclose(trained.loss[diverged], loss, rtol=1e-9)


def test_points_in_parts_and_steps_one_by_one_change_nothing(monkeypatch):
    settings = TrainingConfig(
        optimiser=optax.adam(1e-2), steps=12, batch_size=5, until_stationary=0.0, check_every=4
    )
    plain = train(build, KEYS[:1], X, Y, settings)
    monkeypatch.setattr(steps, "POINTS_AT_ONCE_WITH_BATCHES", 7)
    parts = train(build, KEYS[:1], X, Y, settings)
    np.testing.assert_allclose(parts.loss, plain.loss, rtol=1e-12)
    np.testing.assert_allclose(parts.grad_norm, plain.grad_norm, rtol=1e-12)
    monkeypatch.setattr(steps, "_has_convolutions", lambda *_: True)
    monkeypatch.setattr(steps, "_loop", None)  # the compiled loop
    one_by_one = train(build, KEYS[:1], X, Y, settings)
    np.testing.assert_allclose(
        one_by_one.ensemble.outputs(X), plain.ensemble.outputs(X), rtol=1e-12
    )
    assert one_by_one.steps.tolist() == [12]


@pytest.mark.parametrize("convolves", [False, True])
def test_only_convolutions_are_kept_out_of_the_compiled_loop(monkeypatch, convolves):
    """On a CPU."""
    loops, compiled_loop = [], steps._loop

    def counted(*arguments, **static):
        loops.append(1)
        return compiled_loop(*arguments, **static)

    monkeypatch.setattr(steps, "_loop", counted)
    network = convolutional(1) if convolves else fully_connected(1)

    def build_images(rngs):
        return FiniteWidth(network, (8, 8, 3), width=4, num_outputs=1, rngs=rngs)

    settings = TrainingConfig(steps=3, batch_size=2)
    trained = train(build_images, KEYS[:1], jnp.ones((4, 8, 8, 3)), jnp.zeros((4, 1)), settings)
    assert trained.steps.tolist() == [3]
    assert bool(loops) != convolves


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("convolves", [False, True])
def test_steps_use_the_memory_of_the_state_again(monkeypatch, convolves, count):
    """Donated, so that no two states are in memory at once."""
    monkeypatch.setattr(steps, "_has_convolutions", lambda *_: convolves)
    settings = TrainingConfig(steps=3, batch_size=2)
    targets = jnp.broadcast_to(Y, (count, *Y.shape))
    none = jnp.zeros(count, bool)
    run = course.init(build, KEYS[:count], X, targets, settings, jnp.zeros(()), none)
    after = course.advance(run, X, settings, every=3)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(run.state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after.state))


def test_points_are_ordered_by_other_keys_than_weights_are_drawn_with():
    networks, data_keys = course.fresh_networks(build, KEYS, X, TrainingConfig())
    by_data_keys = ensemble.initialise(build, data_keys, X)
    for a, b in zip(
        jax.tree.leaves(networks.params), jax.tree.leaves(by_data_keys.params), strict=True
    ):
        assert a.size == 1 or not np.allclose(a, b) or not np.any(a)
    assert len({tuple(np.ravel(jax.random.key_data(key))) for key in data_keys}) == len(KEYS)


def test_gauss_newton_never_takes_a_step_that_raises_the_objective():
    """f = arctan(w): from far away full steps overshoot, more at each."""
    problem = LeastSquares(
        lambda w: jnp.arctan(w)[:, None],
        lambda w: (1 / (1 + w**2) ** 2)[:, None],
        jnp.zeros((1, 1)),
        jnp.array([4.0]),
        jnp.array(1e-6),
    )
    value_fn = lambda w: jnp.mean(problem.outputs(w) ** 2) + 1e-6 * jnp.sum((w - 4.0) ** 2)  # noqa: E731
    w, values = jnp.array([4.0]), []
    for _ in range(8):
        values.append(value_fn(w))
        updates, _ = gauss_newton().update(
            None, gauss_newton().init(w), w, value=values[-1], value_fn=value_fn, problem=problem
        )
        w = w + updates
    assert all(after <= before for before, after in itertools.pairwise(values))
    assert values[-1] < 1e-3 * values[0]


def test_training_stops_at_the_first_look_that_meets_the_rule():
    settings = TrainingConfig(optimiser=optax.adam(1e-2), steps=500, until_loss=0.02, check_every=5)
    trained = train(build, KEYS, X, Y, settings)
    assert trained.stop.tolist() == [Stop.LOSS] * 3
    assert max(trained.loss) <= 0.02
    steps = int(trained.steps[0])
    assert steps % 5 == 0
    shorter = TrainingConfig(optimiser=settings.optimiser, steps=steps - 5)
    assert train(build, KEYS[:1], X, Y, shorter).loss[0] > 0.02
    assert train(build, KEYS, X, Y, TrainingConfig(steps=3)).stop.tolist() == [Stop.STEPS] * 3


def test_every_epoch_takes_every_point_once():
    seen = []

    def loss(outputs, targets):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), targets[:, 0])
        return losses.squared_error(outputs, targets)

    marks = jnp.broadcast_to(jnp.arange(20.0)[:, None], (20, 3))
    train(
        build,
        KEYS[:1],
        X,
        marks,
        TrainingConfig(loss=loss, optimiser=optax.sgd(0.0), steps=10, batch_size=4),
    )
    jax.effects_barrier()
    batches = [values for values in seen if values.size == 4]
    epochs = [np.concatenate(batches[start : start + 5]) for start in (0, 5)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 2
    assert (epochs[0] != epochs[1]).any()


def test_a_batch_of_all_points_is_the_full_gradient():
    settings = TrainingConfig(optimiser=optax.sgd(0.05), steps=20)
    whole = train(build, KEYS, X, Y, settings)
    batch = train(build, KEYS, X, Y, dataclasses.replace(settings, batch_size=20))
    np.testing.assert_allclose(
        whole.ensemble.outputs(X), batch.ensemble.outputs(X), rtol=1e-9, atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 3])
def test_batch_statistics_move_and_dropout_ends_with_training(at_once):
    settings = TrainingConfig(
        loss=losses.soft_cross_entropy, optimiser=optax.adamw(1e-2), steps=60, batch_size=10
    )
    labels = jax.nn.one_hot(jnp.argmax(X[:, :3], axis=1), 3)
    x, labels = X.astype(jnp.float32), labels.astype(jnp.float32)  # as Flax's own layers are
    trained = train(BatchNormNetwork, KEYS, x, labels, settings, at_once=at_once)
    outputs = trained.ensemble.outputs(x)
    np.testing.assert_array_equal(outputs, trained.ensemble.outputs(x))
    np.testing.assert_allclose(outputs, trained.ensemble.outputs(x, batch_size=7), rtol=1e-5)
    means = nnx.to_pure_dict(trained.ensemble.model_state)["norm"]["mean"]
    assert np.abs(means).max() > 1e-3
    assert np.mean(np.argmax(outputs, -1) == np.argmax(labels, -1)[None]) > 0.8


@pytest.mark.slow
def test_convolutions_and_weight_decay():
    x = jax.random.normal(jax.random.key(3), (12, 6, 6, 1))
    y = jax.nn.one_hot(jnp.arange(12) % 2, 2)
    cnn = lambda rngs: FiniteWidth(convolutional(1), (6, 6, 1), width=8, num_outputs=2, rngs=rngs)  # noqa: E731
    norms = []
    for decay in (0.0, 10.0):
        settings = TrainingConfig(
            loss=losses.hard_cross_entropy,
            optimiser=optax.adamw(1e-2, weight_decay=decay),
            steps=40,
        )
        trained = train(cnn, KEYS[:1], x, y, settings)
        norms.append(float(optax.tree.norm(trained.ensemble.params)))
    assert norms[1] < 0.5 * norms[0]


def test_nothing_compiles_twice():
    traces = []

    def loss(outputs, targets):
        traces.append(outputs.shape)
        return losses.squared_error(outputs, targets)

    settings = TrainingConfig(loss=loss, optimiser=optax.adam(1e-2), steps=5, until_loss=1e-9)
    train(build, KEYS, X, Y, settings, penalty=0.1)
    once = len(traces)
    train(build, KEYS[::-1], X + 1, 2 * Y, settings, penalty=0.2)  # other numbers, an equal network
    assert len(traces) == once


def test_single_precision_data_with_x64_on():
    """The networks' weights are in float64 then: so are their outputs, and what is compared with
    them.
    """
    settings = TrainingConfig(optimiser=optax.adam(1e-2), steps=5)
    trained = train(build, KEYS[:1], X.astype(jnp.float32), Y.astype(jnp.float32), settings)
    double = train(build, KEYS[:1], X.astype(jnp.float32).astype(float), Y, settings)
    np.testing.assert_allclose(trained.loss, double.loss, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("single_precision")
def test_float32():
    settings = TrainingConfig(optimiser=optax.adam(1e-2), steps=20)
    trained = train(
        build, KEYS, X.astype(jnp.float32), Y.astype(jnp.float32), settings, penalty=0.1
    )
    assert trained.ensemble.outputs(X.astype(jnp.float32)).dtype == jnp.float32
    assert bool(jnp.isfinite(trained.loss).all())


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("settings", "arguments", "error", "message"),
    [
        ({"steps": 0}, {}, ValueError, "steps must be at least 1"),
        ({"until_loss": -1.0}, {}, ValueError, "until_loss must be at least 0"),
        ({"optimiser": "adam"}, {}, TypeError, "optimiser must be an optax optimiser"),
        (
            {"optimiser": gauss_newton(), "batch_size": 4},
            {},
            ValueError,
            "batch_size None, with gauss_newton",
        ),
        (
            {"optimiser": gauss_newton()},
            {},
            ValueError,
            "penalty must be positive with gauss_newton",
        ),
        ({"batch_size": 21}, {}, ValueError, "batch_size must be at most 20"),
        ({}, {"penalty": -1.0}, ValueError, "penalty must be a number, at least 0"),
        ({}, {"targets": Y[:5]}, ValueError, r"targets must have shape \(20, Q\), or \(3, 20, Q\)"),
        ({}, {"targets": jnp.stack([Y, Y])}, ValueError, "targets must have shape"),
        ({}, {"build": lambda _: 3}, TypeError, "build must return a Flax NNX module"),
        ({}, {"at_once": 0}, ValueError, "at_once must be at least 1"),
        ({}, {"keys": jax.random.key(0)}, ValueError, "keys must hold a JAX key for each network"),
        ({}, {"keys": KEYS[:0]}, ValueError, "keys must hold a JAX key for each network"),
    ],
)
def test_bad_input(settings, arguments, error, message):
    given = {"build": build, "keys": KEYS, "x": X, "targets": Y, **arguments}
    with pytest.raises(error, match=message):
        train(training=TrainingConfig(**settings), **given)


def mean_squares(axis):
    return lambda outputs, targets: jnp.mean((outputs - targets) ** 2, axis)


#: Losses that are no numbers of points: what they return of three outputs at each of 20 points.
BAD_LOSSES = {
    r"an array of shape \(\) and": mean_squares(None),
    r"an array of shape \(20, 3\)": optax.losses.squared_error,
    r"an array of shape \(20, 1\)": lambda f, y: mean_squares(1)(f, y)[:, None],
    r"an array of shape \(3,\)": mean_squares(0),
    r"an array of shape \(20,\) and dtype int64": lambda f, y: jnp.argmax(f - y, axis=1),
    r"an array of shape \(20,\) and dtype complex128": lambda f, y: mean_squares(1)(f, y) * 1j,
    "a NoneType": lambda f, y: None,  # noqa: ARG005
    "a tuple": lambda f, y: (mean_squares(1)(f, y),),
}


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("returned", BAD_LOSSES)
@pytest.mark.parametrize("options", [{}, {"validation": (X, Y)}])
def test_a_loss_is_one_number_for_each_point(returned, options):
    settings = TrainingConfig(loss=BAD_LOSSES[returned], steps=1, until_loss=0.5)
    message = rf"training.loss must return one number for each point.* it returned {returned}"
    with pytest.raises((TypeError, ValueError), match=message):
        train(build, KEYS, X, Y, settings, **options)


def test_a_loss_of_outputs_is_told_where_there_are_as_many_points():
    message = "training.loss must return one number for each point"
    with pytest.raises(ValueError, match=message):
        train(build, KEYS, X[:3], Y[:3], TrainingConfig(loss=mean_squares(0), steps=1))


def test_a_loss_in_another_dtype_than_the_outputs():
    def loss(outputs, targets):
        return jnp.mean((outputs - targets).astype(jnp.float32) ** 2, -1)

    brief = (lambda key: jax.random.normal(key, (5, 3), jnp.bfloat16), linear)
    result = train(brief, KEYS, X.astype(jnp.bfloat16), Y, TrainingConfig(loss=loss, steps=3))
    assert result.loss.dtype == jnp.float32
    assert result.ensemble.outputs(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def linear(weights, x):
    return x @ weights


@pytest.mark.parametrize("traced", ["keys", "x", "targets", "penalty"])
@pytest.mark.usefixtures("as_users_call")
def test_training_cannot_be_traced(traced):
    given = {"keys": KEYS, "x": X, "targets": Y, "penalty": 0.1}

    def trained(value):
        return train(build, training=TrainingConfig(steps=1), **(given | {traced: value})).loss

    with pytest.raises(TypeError, match=f"{traced}.* must have values: they cannot be traced"):
        jax.jit(trained)(given[traced])
    with pytest.raises(TypeError, match="must have values: they cannot be traced"):
        jax.jit(lambda: trained(given[traced]))()  # all is traced, no argument


def test_weights_cannot_be_traced():
    def trained(weights):
        build = (lambda _: weights, linear)
        return jnp.sum(train(build, KEYS, X, Y, TrainingConfig(steps=1)).loss)

    with pytest.raises(TypeError, match="the weights that build makes must have values"):
        jax.grad(trained)(jnp.ones((5, 3)))


def test_progress_shows_the_loss(monkeypatch):
    notes = []
    monkeypatch.setattr(
        training.Bar, "advance", lambda _, count=1, note="": notes.append((count, note))
    )
    train(build, KEYS[:2], X, Y, TrainingConfig(steps=25, check_every=10))
    assert sum(count for count, _ in notes) == 50
    assert any(note.startswith("loss 0.") for _, note in notes)


def test_old_names_still_work_and_warn():
    with pytest.warns(DeprecationWarning, match=r"sdntk\.Training has been renamed to"):
        assert sdntk.Training is TrainingConfig
    with pytest.warns(DeprecationWarning, match=r"sdntk\.Trained has been renamed to"):
        assert sdntk.Trained is sdntk.TrainingResult
    trained = train(build, KEYS[:1], X, Y, TrainingConfig(steps=1))
    with pytest.warns(DeprecationWarning, match="TrainingResult.stationarity has been renamed"):
        np.testing.assert_array_equal(trained.stationarity, trained.grad_norm)
