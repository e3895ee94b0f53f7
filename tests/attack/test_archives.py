"""Random damage to the files of runs and spectra.

Must hold: a damaged file is refused by name, or what is loaded has the same bits as before (some
bytes of a zip file mean nothing).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdntk
from sdntk.kernels import linear, rbf

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["run", "spectrum"])
def saved(request, tmp_path_factory):
    x = jnp.linspace(0, 1, 9)
    run = sdntk.distill(rbf(0.3) + linear(), x, jnp.sin(7 * x), tolerance=0.05, rounds=2)
    value = run if request.param == "run" else run.spectrum
    path = tmp_path_factory.mktemp("saved") / f"{request.param}.npz"
    value.save(path)
    return request.param, value, path


def damage(content, rng, number):
    """A bit flipped, the end cut off, or some bytes inverted."""
    place = rng.integers(len(content))
    if number % 3 == 1:
        return content[:place]
    changed = bytearray(content)
    if number % 3 == 0:
        changed[place] ^= 1 << int(rng.integers(8))
    else:
        stop = place + rng.integers(1, 20)
        changed[place:stop] = (255 - byte for byte in changed[place:stop])
    return bytes(changed)


def same(one, other):
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    leaves = (map(np.asarray, jax.tree.leaves(tree)) for tree in (one, other))  # numbers, too
    pairs = zip(*leaves, strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def test_random_damage_is_refused_or_harmless(saved, size, score):
    name, value, path = saved
    whole, rng, tried, wrong, refused = path.read_bytes(), np.random.default_rng(0), 0, [], 0
    for tried in range(1, size(300, 5000) + 1):
        path.write_bytes(damage(whole, rng, tried))
        try:
            loaded = sdntk.load(path)
        except ValueError as error:
            refused += 1
            if f"path {path} does not hold what sdntk has saved" not in str(error):
                wrong.append((tried, error))
        except BaseException as error:
            wrong.append((tried, error))
        else:
            if not same(loaded, value):
                wrong.append((tried, "other values"))
    path.write_bytes(whole)
    score(f"random damage to the file of a {name}", tried, len(wrong))
    assert refused > tried / 2
    assert not wrong
