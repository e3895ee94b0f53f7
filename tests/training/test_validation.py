"""Points that are not trained on.

Must hold: what is recorded at a look is the loss of the networks as they are after so many steps. A
network stops at the first look after which the smallest of its losses lies before the last looks,
as read off a training without the rule.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdntk import losses
from sdntk.training.state import Stop, TrainingConfig
from sdntk.training.train import train

X = jax.random.normal(jax.random.key(0), (12, 4))
NEW = jax.random.normal(jax.random.key(1), (40, 4))
KEYS = jax.random.split(jax.random.key(2), 3)
#: Noise, which can only be learned by heart: the loss on other points rises before long.
Y, Y_NEW = jax.random.normal(jax.random.key(3), (12, 2)), NEW[:, :2] * 0.2
SETTINGS = TrainingConfig(optimiser=optax.adam(1e-2), steps=98, check_every=5)


def apply(params, x):
    return jnp.tanh(x @ params["first"]) @ params["last"]


def init(key):
    first, last = jax.random.split(key)
    return {
        "first": jax.random.normal(first, (4, 32)) / 2,
        "last": jax.random.normal(last, (32, 2)) / 20,
    }


def trained(settings, **options):
    return train((init, apply), KEYS, X, Y, settings, validation=(NEW, Y_NEW), **options)


@pytest.mark.parametrize("loss", [losses.squared_error, losses.squared_error_of_softmax])
@pytest.mark.slow_cases
def test_every_look_is_recorded(loss):
    settings = dataclasses.replace(SETTINGS, loss=loss)
    recorded = trained(settings).validation_loss
    assert recorded.shape == (3, 20)
    for look, steps in ((0, 5), (6, 35), (19, 98)):
        shorter = dataclasses.replace(settings, steps=steps)
        outputs = train((init, apply), KEYS, X, Y, shorter).ensemble.outputs(NEW)
        expected = [np.mean(loss(one, Y_NEW)) for one in outputs]
        np.testing.assert_allclose(recorded[:, look], expected, rtol=1e-9)
    assert train((init, apply), KEYS, X, Y, shorter).validation_loss is None


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("patience", [1, 4])
@pytest.mark.slow_cases
def test_a_network_stops_when_its_last_looks_are_not_the_best(at_once, patience):
    whole = np.asarray(trained(SETTINGS).validation_loss)
    ended = trained(dataclasses.replace(SETTINGS, patience=patience), at_once=at_once)
    assert Stop.PATIENCE in ended.stop.tolist()
    for network in range(3):
        best, looks = np.minimum.accumulate(whole[network]), range(patience, 20)
        stalled = [look for look in looks if best[look] == best[look - patience]]
        last = stalled[0] if stalled else 19
        assert ended.steps[network] == min(5 * (last + 1), 98)
        assert ended.stop[network] == (Stop.PATIENCE if stalled else Stop.STEPS)
        recorded = np.asarray(ended.validation_loss[network])
        np.testing.assert_allclose(recorded[: last + 1], whole[network, : last + 1], rtol=1e-9)
        assert np.isnan(recorded[last + 1 :]).all()


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("validation", "error", "message"),
    [
        (None, ValueError, r"validation must be points and targets \(x, y\) with patience"),
        (NEW, TypeError, r"validation must be a pair \(x, y\)"),
        ((NEW[:, :3], Y_NEW), ValueError, "validation's x must hold points of one shape"),
        ((NEW, Y_NEW[:5]), ValueError, r"validation's y must have shape \(40, 2\)"),
    ],
)
def test_bad_input(validation, error, message):
    settings = dataclasses.replace(SETTINGS, patience=2)
    with pytest.raises(error, match=message):
        train((init, apply), KEYS, X, Y, settings, validation=validation)
    with pytest.raises(ValueError, match="patience must be at least 1"):
        TrainingConfig(patience=0)
