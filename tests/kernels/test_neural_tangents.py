"""The adapter that makes neural-tangents work on today's JAX.

Must hold: after the import, and after one that fails midway, every module of JAX has the names and
values it had, and TensorFlow is not imported (in a fresh process, all modules of JAX compared);
``import sdntk`` does not import the package, a neural kernel does, from many threads at once too;
no warning is given; a missing package, another version and another module of that name are told
apart, with the remedy; no private name of JAX stands in the adapter, and no other file imports the
package; the functions of ``predict`` that the adapter repairs work eagerly, under jit and vmap, and
keep no tracer.
"""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdntk
from sdntk.architectures import fully_connected
from sdntk.kernels import _neural_tangents, load_neural_tangents, ntk

ADAPTER = Path(_neural_tangents.__file__)

#: Names and values of every module of JAX; to be run before and after. What the package imports of
#: JAX comes first.
SNAPSHOT = """
import sys, jax, jax.core, jax.extend.core, jax.extend.linear_util, jax.interpreters.ad
import jax.experimental.ode, jax.example_libraries.stax, jax.scipy.linalg, jax.scipy.special
def snapshot():
    ours = lambda name: name.split(".")[0] in ("jax", "jaxlib")
    return {name: dict(vars(module)) for name, module in list(sys.modules.items()) if ours(name)}
def assert_same(before, after):
    assert before.keys() <= after.keys() and "jax.util" not in after and "jax.core" in after
    for name, names in before.items():
        added, removed = after[name].keys() - names.keys(), names.keys() - after[name].keys()
        added = {key for key in added if f"{name}.{key}" not in sys.modules}
        assert not added and not removed, (name, added, removed)
        assert all(after[name][key] is value for key, value in names.items()), name
    assert not hasattr(jax.core, "Primitive") and not hasattr(jax.interpreters.ad, "zeros_like_p")
"""


def run(program, *flags):
    """A program in a fresh process, in which every warning is an error."""
    command = [sys.executable, "-W", "error", *flags, "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(sdntk.__file__).parents[1], timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_leaves_jax_as_it_was_and_warns_of_nothing(tmp_path):
    run(
        SNAPSHOT
        + """
import sdntk
from concurrent.futures import ThreadPoolExecutor
from sdntk.architectures import fully_connected
fully_connected()
assert not any(name.split(".")[0] == "neural_tangents" for name in sys.modules)
before = snapshot()
with ThreadPoolExecutor(8) as pool:
    kernels = list(pool.map(lambda _: sdntk.kernels.ntk(fully_connected()), range(8)))
    modules = list(pool.map(lambda _: sdntk.kernels.load_neural_tangents(), range(8)))
assert_same(before, snapshot())
from neural_tangents import predict, stax
assert all(nt is sys.modules["neural_tangents"] for nt in modules)
assert modules[0].stax is stax and stax.Dense
assert not any(name.split(".")[0] in ("tensorflow", "tf2jax") for name in sys.modules)
assert not hasattr(modules[0], "experimental") and "neural_tangents.experimental" not in sys.modules
""",
        "-X",  # compiled anew, so that warnings of the compiler are heard too
        f"pycache_prefix={tmp_path}",
    )


def test_an_import_that_fails_midway_leaves_jax_as_it_was():
    """First by the user, without the adapter, then at three places inside the adapter; then it
    succeeds all the same.
    """
    run(
        SNAPSHOT
        + """
import sdntk.kernels._neural_tangents as adapter
try:
    import neural_tangents
except ImportError:
    assert any(name.startswith("neural_tangents.") for name in sys.modules)      # its remains
else:
    raise AssertionError("neural-tangents imports by itself: is the adapter still needed?")
before, forget = snapshot(), adapter._forget
for module in ("utils.rules", "stax.linear", "empirical"):
    adapter._forget()
    sys.modules[f"neural_tangents._src.{module}"] = None          # now importing it fails
    adapter._forget = lambda: None
    try:
        adapter.load_neural_tangents()
    except ImportError as error:
        assert jax.__version__ in str(error) and error.__cause__ is not None, error
    else:
        raise AssertionError("it did not fail")
    adapter._forget = forget
    assert_same(before, snapshot())
    assert not {"neural_tangents", "neural_tangents.experimental"} & sys.modules.keys()
assert any(name.startswith("neural_tangents.") for name in sys.modules)
assert adapter.load_neural_tangents().stax.Dense
assert_same(before, snapshot())
"""
    )


def test_missing_package(monkeypatch):
    def version(_):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(_neural_tangents, "_repaired", None)
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(
        ImportError, match=re.escape("pip install --no-deps neural-tangents==0.6.5")
    ) as caught:
        ntk(fully_connected())
    assert "uv sync" in str(caught.value)


def test_other_version(monkeypatch):
    monkeypatch.setattr(_neural_tangents, "_repaired", None)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.6.1")
    with pytest.raises(ImportError, match=r"0\.6\.5.*found 0\.6\.1.*pip install"):
        load_neural_tangents()


def test_another_module_of_that_name(monkeypatch):
    monkeypatch.setattr(_neural_tangents, "_repaired", None)
    monkeypatch.setitem(sys.modules, "neural_tangents", sys)
    with pytest.raises(ImportError, match=r"another module of that name.*sys"):
        load_neural_tangents()


def test_no_private_name_of_jax():
    """No import below jax._src, and no attribute with a leading underscore of anything that comes
    from JAX.
    """
    tree = ast.parse(ADAPTER.read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, alias.asname or alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [
                (f"{node.module}.{alias.name}", alias.asname or alias.name) for alias in node.names
            ]
        else:
            continue
        for full, name in names:
            if full.split(".")[0] == "jax":
                imported.add(name)
                assert not any(part.startswith("_") for part in full.split(".")), full
    assert imported == {"jax", "jnp", "ad"}
    for node in ast.walk(tree):
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(node, ast.Attribute) and isinstance(root, ast.Name) and root.id in imported:
            assert not node.attr.startswith("_") or node.attr == "__version__", ast.unparse(node)
    assert not re.search(r"jax\._[a-z]", ADAPTER.read_text())
    assert not any(name.startswith("_") for name in _neural_tangents._MOVED)


def test_only_the_adapter_imports_the_package():
    for file in Path(sdntk.__file__).parent.rglob("*.py"):
        imports = re.findall(r"^(?:from|import) neural_tangents\b", file.read_text(), re.MULTILINE)
        assert not imports, file


X = jax.random.normal(jax.random.key(0), (6, 5))
Y = X[:, :2]


@pytest.fixture(scope="module")
def nt():
    return load_neural_tangents()


@pytest.fixture(scope="module")
def kernel_fn(nt):
    return jax.jit(
        nt.stax.serial(nt.stax.Dense(1), nt.stax.Relu(), nt.stax.Dense(1))[2], static_argnames="get"
    )


@pytest.mark.parametrize("t", [None, 1.5])
def test_ensemble_prediction(nt, kernel_fn, t):
    """Kernel regression (t = None), and gradient flow for a time t; nothing that is kept between
    calls is a tracer.
    """
    predict = nt.predict.gradient_descent_mse_ensemble(kernel_fn, X, Y, diag_reg=1e-3)
    compiled = jax.jit(lambda x: predict(t=t, x_test=x, get="ntk"))
    train = np.asarray(kernel_fn(X, None, "ntk"))
    eigenvalues, vectors = np.linalg.eigh(train + 1e-3 * np.trace(train) / 6 * np.eye(6))
    decay = 1 / eigenvalues if t is None else -np.expm1(-eigenvalues * t / Y.size) / eigenvalues
    for x in (
        X[:2] + 1,
        X[:3] - 1,
    ):  # two traces of one predict_fn, and only then it is called without
        expected = np.asarray(kernel_fn(x, X, "ntk")) @ (
            vectors * decay @ vectors.T @ np.asarray(Y)
        )
        for function in (compiled, lambda x: predict(t=t, x_test=x, get="ntk")):
            np.testing.assert_allclose(function(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("t", [None, 1.5])
def test_prediction_from_a_kernel(nt, kernel_fn, t):
    train, test = kernel_fn(X, None, "ntk"), kernel_fn(X[:3] + 1, X, "ntk")

    def predict(train, test):
        return nt.predict.gradient_descent_mse(train, Y, diag_reg=1e-3)(
            t, jnp.zeros_like(Y), jnp.zeros((3, 2)), test
        )[1]

    scales = jnp.array([1.0, 2.0, 3.0])
    expected = jnp.stack([predict(c * train, test) for c in scales])
    np.testing.assert_allclose(
        jax.vmap(lambda c: predict(c * train, test))(scales), expected, atol=1e-12
    )
    np.testing.assert_allclose(jax.jit(predict)(train, test), expected[0], atol=1e-12)
    kept = nt.predict.gradient_descent_mse(train, Y, diag_reg=1e-3)
    for _ in range(2):  # a fresh trace each time, one kept decomposition
        traced = jax.jit(lambda test: kept(t, jnp.zeros_like(Y), jnp.zeros((3, 2)), test)[1])(test)
        np.testing.assert_allclose(traced, expected[0], atol=1e-12)


def test_max_learning_rate(nt, kernel_fn):
    train = kernel_fn(X, None, "ntk")
    largest = np.linalg.eigvalsh(train)[-1]
    for function in (nt.predict.max_learning_rate, jax.jit(nt.predict.max_learning_rate)):
        np.testing.assert_allclose(function(train), 2 * 6 / largest, rtol=1e-10)
    rates = jax.vmap(nt.predict.max_learning_rate)(jnp.stack([train, 2 * train]))
    np.testing.assert_allclose(rates, [12 / largest, 6 / largest], rtol=1e-10)
