"""Every compiled function of the core, lowered for accelerators that are not here.

Must hold: each jitted function of the library, with arguments that the library itself hands to it,
is lowered by jax.export for CUDA, ROCm and TPU, but for the one whose missing lowering is known and
refused by name where it would be needed; a function that is added without a lowering, or that no
workload calls, fails (shown by mutants); float32 products of the core are in full precision, as the
lowered text says, so that neither TF32 nor bfloat16 gets in.
"""

import contextlib
import functools
import importlib
import inspect
import itertools
import pkgutil
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export

import sdntk
from sdntk import architectures, kernels, losses, networks
from sdntk.gram_matrices import cross_products
from sdntk.spectra import choose
from sdntk.spectra.tridiagonal import tridiagonalise

pytestmark = pytest.mark.slow
PLATFORMS = ("cuda", "rocm", "tpu")
#: A function and a platform for which JAX has no lowering of what it needs.
MISSING = {
    ("sdntk.spectra.tridiagonal._reduce", "tpu"): "primitive 'tridiagonal' not found",
}
#: Calls of vendors' libraries, which JAX does not promise to keep for files of another version. We
#: write no such files.
CUSTOM_CALLS = (
    "hipsparse_gtsv2_f32_ffi",
    "hipsparse_gtsv2_f64_ffi",
)
#: Networks multiply as JAX does where they run; that is their user's choice.
OWN_PRECISION = ("sdntk.training.", "sdntk.kernels.neural._empirical")


def compiled_functions(package=sdntk):
    """All jitted functions of the modules, by name, but those of papers and experiments."""
    found = {}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name.startswith("sdntk.experiments") or module.name.endswith("__main__"):
            continue
        members = vars(importlib.import_module(module.name))
        found |= {
            f"{module.name}.{name}": value
            for name, value in members.items()
            if is_jitted(value) and value.__module__ in (module.name, "sdntk.theory.weights")
        }
    return found


def is_jitted(value):
    return hasattr(value, "lower") and hasattr(value, "trace") and callable(value)


@contextlib.contextmanager
def recorded(functions, calls):
    """Keep the arguments of the first call of each, wherever it is imported."""
    modules = [m for name, m in sorted(importlib.sys.modules.items()) if name.startswith("sdntk")]
    replaced = []

    def recorder(name, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            calls.setdefault(name, []).append((shapes_of(args), shapes_of(kwargs)))
            return function(*args, **kwargs)

        return call

    for name, function in functions.items():
        wrapper = recorder(name, function)
        for module in modules:
            for attribute, value in list(vars(module).items()):
                if value is function:
                    setattr(module, attribute, wrapper)
                    replaced.append((module, attribute, function))
    try:
        yield
    finally:
        for module, attribute, function in replaced:
            setattr(module, attribute, function)


def shapes_of(arguments):
    """Arrays as their shapes: tracers, and arrays that are donated, do not last."""

    def shape(leaf):
        if isinstance(leaf, jax.Array | np.ndarray):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return leaf

    return jax.tree.map(shape, arguments)


# ---- what is done with the library ----


def kernel_chains():
    """Every way to a spectrum, chains, choices, mixtures, derivatives, on a few points."""
    x = np.random.default_rng(0).normal(size=(24, 3))
    y = np.stack([np.sin(x[:, 0]), x[:, 1]], axis=1)
    kernel, new = kernels.matern(1.5, 2.0), x[:5] + 0.1
    G = sdntk.gram(kernel, x, block_size=8)
    spectrum = sdntk.decompose(G)
    for options in (
        {"tolerance": 0.2},
        {"multiplier": 0.01, "ground_truth_weight": 0.2},
        {"tolerance": 0.2, "outputs": "joint"},
    ):
        run = sdntk.distill_spectrum(spectrum, y, rounds=3, **options)
        sdntk.selection.degrees_of_freedom(run)
        sdntk.selection.gcv(run)
        run.mix([0.5, 0.2, 0.3])
        run.targets  # noqa: B018
    plain = sdntk.distill(kernel, x, y, rounds=3, multiplier=0.01)
    plain.predict(new)
    plain.fits[1].fitted  # noqa: B018
    plain.fits[1].predict(new)
    sdntk.mixing.one_shot(plain)
    sdntk.mixing.oracle(plain, y, 0.1)
    sdntk.mixing.per_round(sdntk.mixing.held_out(np.stack([y, y / 2]), y + 0.1))
    sdntk.tune(spectrum, y, tolerances=[0.2, 0.4], rounds=2, kernel=kernel, x=x,
               criterion="held_out", validation=(new, y[:5]))  # fmt: skip
    jax.grad(lambda scale: jnp.sum(sdntk.distill(
        kernels.rbf(scale), x, y, tolerance=0.2, rounds=2).fitted))(1.0)  # fmt: skip

    tridiagonal = tridiagonalise(G)
    run = sdntk.distill_spectrum(tridiagonal, y, rounds=3, tolerance=0.2)
    run.degrees_of_freedom  # noqa: B018
    tridiagonal.describe_floor()
    with contextlib.suppress(ValueError):
        sdntk.distill_spectrum(tridiagonal, y, rounds=1, tolerance=1e-300)
    for operator in (
        sdntk.as_operator(G),
        sdntk.as_operator(np.asarray(G, np.float32)),
        sdntk.kernel_operator(kernel, x, block_size=8),
    ):
        known = sdntk.krylov(operator, y, tolerance=0.2, rounds=2, rtol=1e-2)
        sdntk.distill_spectrum(known, y, tolerance=0.2, rounds=2)
    by_krylov = sdntk.distill(kernel, x, y, tolerance=0.2, rounds=2, method="krylov", rtol=1e-2)
    sdntk.selection.degrees_of_freedom(by_krylov, key=jax.random.key(0))
    low_rank = sdntk.nystrom(kernel, x, y, landmarks=8, selection="pivoted")
    sdntk.distill_spectrum(low_rank, y, multiplier=0.01, rounds=2).fitted  # noqa: B018
    sdntk.solve_multiplier([1.0, 0.5], [1.0, 1.0], 0.1)


def accelerators_sums(monkeypatch):
    """The step of a Nystrom pass that a CPU does without."""
    x = np.random.default_rng(0).normal(size=(24, 3))
    with monkeypatch.context() as patched:
        patched.setattr(jax, "default_backend", lambda: "gpu")
        sdntk.nystrom(kernels.rbf(1.0), x, x[:, 0], landmarks=8)


def predictions_in_tiles(monkeypatch):
    """What a prediction at many points adds up, with tiles small enough to need it here."""
    x = np.random.default_rng(0).normal(size=(24, 3))
    run = sdntk.distill(kernels.rbf(1.0), x, x[:, 0], rounds=1, multiplier=0.1)
    with monkeypatch.context() as patched:
        patched.setattr(cross_products, "choose_block_size", lambda *_: 8)
        run.fits[0].predict(x)


def kernels_of_all_kinds():
    """Kernels pair by pair, of networks, sums; their precision."""
    x = np.random.default_rng(0).normal(size=(6, 3))
    for kernel in (
        kernels.cubic_spline() + 2.0 * kernels.brownian_bridge(),
        kernels.ntk(architectures.fully_connected(2)),
        kernels.ntk(architectures.convolutional(1)),
        kernels.rbf(1.0) * kernels.linear(),
    ):
        points = np.linspace(0.1, 0.9, 6) if "spline" in repr(kernel) else x
        points = np.ones((2, 4, 4, 1)) if "conv" in repr(kernel).lower() else points
        kernel(points, points)
        kernel.precision(points)
        getattr(kernel, "diagonal", lambda x: x)(jnp.asarray(points))
    small = networks.MLP(3, 2, widths=(4,), rngs=nnx.Rngs(0))
    kernels.empirical_ntk(small)(x, x)


def theory():
    """Bounds."""
    d, z = np.array([0.1, 0.5, 1.0]), np.array([1.0, 1.0, 2.0])
    of_fit = {"eigenvalues": d, "z": z, "tolerance": 0.1}
    for name in dir(sdntk.bounds):
        bound = getattr(sdntk.bounds, name)
        if inspect.isfunction(bound) and not name.startswith("_"):
            asked = inspect.signature(bound).parameters
            given = of_fit | {"rounds": 2, "num_points": 3, "round": 1, "t": 1}
            with contextlib.suppress(TypeError, ValueError):
                bound(**{key: value for key, value in given.items() if key in asked})


def retraining():
    """Rounds on the same and on new points."""
    x = np.random.default_rng(0).normal(size=(12, 2))
    kernel, signal = kernels.rbf(1.0), np.sin(x[:, 0])
    spectrum = sdntk.decompose(sdntk.gram(kernel, x))
    given = {"multiplier": 0.1, "rounds": 2, "noise": 0.1, "key": jax.random.key(0)}
    sdntk.retrain(spectrum, signal, **given)
    sdntk.retrain(spectrum, signal, points=np.stack([x, x + 1]), kernel=kernel, **given)


def estimators():
    """Choices by every criterion."""
    x = np.random.default_rng(0).normal(size=(30, 2))
    y = np.sin(x[:, 0])
    given = {"tolerance": 0.2, "rounds": 2}
    for options in ({}, {"criterion": "sure"}, {"weights": "auto"}, given):
        sdntk.SelfDistilledRegressor(**options).fit(x, y).predict(x)
    with contextlib.suppress(ValueError):
        sdntk.SelfDistilledRegressor(tolerance=1e-300, rounds=1).fit(np.ones((4, 1)), y[:4])


def training():
    """Rounds of networks of several kinds, with every loss and optimiser."""
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    y = np.stack([x[:, 0], x[:, 1]], axis=1)

    def build(rngs):
        return networks.MLP(3, 2, widths=(4,), rngs=rngs)

    keys = jax.random.split(jax.random.key(0), 2)
    for options in (
        {"batch_size": 4, "optimiser": optax.adam(1e-2), "patience": 2, "check_every": 1},
        {"loss": losses.squared_error_of_softmax, "until_loss": 1e-9, "centred": True},
        {"optimiser": sdntk.optimisers.gauss_newton(), "until_stationary": 1e-9},
    ):
        settings = sdntk.TrainingConfig(steps=2, **options)
        for some in (keys, keys[:1]):
            sdntk.train(build, some, x, y, settings, penalty=1e-2, validation=(x, y))
    rounds = sdntk.distill_networks(
        build, keys, x, y, rounds=2, training=sdntk.TrainingConfig(steps=2)
    )
    for each in rounds:
        each.trained.ensemble.outputs(x)


WORKLOADS = (
    kernel_chains,
    kernels_of_all_kinds,
    theory,
    retraining,
    estimators,
    training,
)


@pytest.fixture(scope="module")
def calls():
    """Of every function that the workloads call, with float64 and with float32."""
    functions, found = compiled_functions(), {}
    with recorded(functions, found), warnings.catch_warnings(), pytest.MonkeyPatch.context() as own:
        warnings.simplefilter("ignore")
        for workload in WORKLOADS:
            workload()
        accelerators_sums(own)
        predictions_in_tiles(own)
    return functions, found


def lowered(function, arguments, *platforms):
    """The program that platforms would be given."""
    args, kwargs = arguments
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in CUSTOM_CALLS]
    exported = export.export(function, platforms=platforms, disabled_checks=checks)
    return exported(*args, **kwargs)


def complaints(functions, found):
    """What is not lowered, or never called."""
    told = dict.fromkeys(functions.keys() - found.keys(), "no workload calls it")
    for name, arguments in found.items():
        with contextlib.suppress(Exception):
            lowered(functions[name], arguments[0], *PLATFORMS)
            continue
        for platform in PLATFORMS:
            try:
                lowered(functions[name], arguments[0], platform)
            except Exception as error:
                told[name, platform] = str(error)
    return told


def test_every_compiled_function_is_lowered_for_every_accelerator(calls):
    told = complaints(*calls)
    missing = {place: told.pop(place) for place in MISSING if place in told}
    assert told == {}
    assert missing.keys() == MISSING.keys(), "JAX has learnt what it could not: take it off"
    for place, message in missing.items():
        assert MISSING[place] in message


def test_a_function_without_a_lowering_is_found(calls):
    """Two mutants: one that only CPUs and GPUs have, one that nobody calls."""
    functions, found = calls
    matrix = jax.ShapeDtypeStruct((4, 4), jnp.float64)
    mutants = {"sdntk.added": jax.jit(jax.lax.linalg.tridiagonal), "sdntk.idle": jax.jit(jnp.sin)}
    beside = dict(itertools.islice(found.items(), 3))
    functions = {name: functions[name] for name in beside} | mutants
    told = complaints(functions, {"sdntk.added": [((matrix,), {})]} | beside)
    assert told.keys() == {("sdntk.added", "tpu"), "sdntk.idle"}
    assert "not found for platform tpu" in told["sdntk.added", "tpu"]
    assert told["sdntk.idle"] == "no workload calls it"


def test_products_are_in_full_precision(calls):
    """Of every function of the core, wherever it multiplies float32 matrices."""
    functions, found = calls
    products = 0
    for name, all_arguments in found.items():
        if name.startswith(OWN_PRECISION):
            continue
        program = lowered(functions[name], in_float32(all_arguments[0]), "cuda")
        for line in program.mlir_module().splitlines():
            if "stablehlo.dot_general" in line and "xf32>" in line:
                products += 1
                assert re.search(r"precision = \[HIGHEST, HIGHEST\]", line), (name, line)
    assert products > 50


def in_float32(arguments):
    def single(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.dtype == jnp.float64:
            return jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
        return leaf

    return jax.tree.map(single, arguments)


def test_the_tridiagonal_path_refuses_where_it_has_no_lowering(monkeypatch):
    x = np.random.default_rng(0).normal(size=(12, 2))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(NotImplementedError, match=r"tridiagonal path.*TPU.*dense"):
        tridiagonalise(np.eye(3))
    with pytest.raises(NotImplementedError, match=r"tridiagonal path.*TPU.*dense"):
        sdntk.distill(kernels.rbf(1.0), x, x[:, 0], multiplier=0.1, rounds=1, method="tridiagonal")
    monkeypatch.setattr("sdntk.estimators.plan.DENSE_POINTS", 5)
    fitted = sdntk.SelfDistilledRegressor(rounds=1, tolerance=0.2).fit(x, x[:, 0])
    assert np.isfinite(fitted.predict(x)).all()
    monkeypatch.setattr(choose, "DENSE_POINTS", 5)
    run = sdntk.distill(kernels.rbf(1.0), x, x[:, 0], multiplier=0.1, rounds=1, method="auto")
    assert run.method != "tridiagonal"
