"""A run as an object.

Must hold: repr within 15 lines however many rounds and outputs, also while traced; to_frame tidy; a
second Krylov run with another number of steps compiles nothing anew, nor does another number of
rounds that the same code serves; warnings name the user's line; old names of arguments warn.
"""

import json
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import sdntk
from sdntk import kernels
from sdntk.spectra.padding import compiled_rounds

X = jax.random.normal(jax.random.key(0), (60, 2))
Y = jnp.stack([jnp.sin(X[:, 0]), jnp.cos(2 * X[:, 1])], axis=1)
KERNEL = kernels.matern(1.5, 1.0)


def test_repr_shows_every_round():
    x, y = sdntk.datasets.mobahi_example()
    run = sdntk.distill(kernels.cubic_spline(), x, y, tolerance=0.045, rounds=5)
    lines = repr(run).splitlines()
    assert lines[0] == "Distillation(11 points, 5 rounds, cubic_spline(), dense)"
    assert lines[1].split() == ["round", "status", "multiplier", "training", "loss", "norm"]
    assert lines[2].split()[:3] == ["0", "active", "2.705e-06"]
    assert lines[6].split()[:3] == ["4", "collapsed", "-"]


@pytest.mark.parametrize("outputs", ["separate", "joint"])
@pytest.mark.parametrize("rounds", [1, 12, 13, 200])
def test_repr_keeps_within_15_lines(rounds, outputs):
    run = sdntk.distill(KERNEL, X, Y, tolerance=0.2, rounds=rounds, outputs=outputs)
    lines = repr(run).splitlines()
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 100
    assert "2 outputs" in lines[0]
    assert lines[-1].split()[0] == str(rounds - 1)


def test_repr_while_traced():
    shown = []
    jax.jit(lambda y: shown.append(repr(sdntk.distill(KERNEL, X, y, tolerance=0.1, rounds=2))))(Y)
    parts = "60 points, 2 outputs, 2 rounds, matern(1.5, 1.0), dense, traced"
    assert shown == [f"Distillation({parts})"]


def test_repr_never_raises():
    spectrum = sdntk.decompose(sdntk.gram(KERNEL, X))
    run = lambda eps: sdntk.distill_spectrum(spectrum, Y, tolerance=eps, rounds=3)  # noqa: E731
    assert repr(jax.tree.map(lambda leaf: leaf.shape, run(0.1))).startswith("Distillation(")
    assert repr(jax.eval_shape(run, 0.1)).startswith("Distillation(")


@pytest.mark.slow
def test_padded_rounds_are_those_of_the_unpadded_chain():
    """Under jit nothing is padded."""
    spectrum = sdntk.decompose(sdntk.gram(KERNEL, X))
    for rounds in (1, 3, 5, 9, 11):
        run = lambda y, T=rounds: sdntk.distill_spectrum(spectrum, y, tolerance=0.02, rounds=T)  # noqa: E731
        padded, exact = run(Y), jax.jit(run)(Y)
        assert jax.tree.structure(padded) == jax.tree.structure(exact)
        for one, other in zip(jax.tree.leaves(padded), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(padded.targets, exact.targets, rtol=1e-12, atol=1e-13)
        assert not padded.fitted.committed


def test_repr_of_spectra():
    G = sdntk.gram(KERNEL, X)
    assert repr(sdntk.decompose(np.diag([0.0, 1.0, 2.5]))) == (
        "Spectrum(3 points, rank 2, largest eigenvalue 2.5)"
    )
    assert repr(sdntk.tridiagonalise(G)).startswith("TridiagonalSpectrum(60 points, rank 60, ")
    spectrum = sdntk.krylov(sdntk.as_operator(G), Y, tolerance=0.1, rounds=1)
    assert repr(spectrum).endswith(f", {int(spectrum.steps)} Lanczos steps)")
    shown = []
    jax.jit(lambda spectrum: shown.append(repr(spectrum)))(spectrum)
    jax.jit(lambda G: shown.append(repr(sdntk.decompose(G))))(G)
    assert shown == ["KrylovSpectrum(60 points, traced)", "Spectrum(60 points, traced)"]


def test_to_frame_is_tidy():
    run = sdntk.distill(KERNEL, X, Y, tolerance=0.2, rounds=3, method="krylov")
    frame = run.to_frame()
    assert list(frame.columns) == [
        "round", "output", "status", "multiplier", "training_loss", "norm", "iterations",
        "multiplier_error", "fitted_error",
    ]  # fmt: skip
    assert len(frame) == 6
    row = frame[(frame["round"] == 1) & (frame["output"] == 1)].iloc[0]
    np.testing.assert_array_equal(row["multiplier"], run.multipliers[1, 1])
    assert row["status"] in ("active", "collapsed")
    joint = sdntk.distill(KERNEL, X, Y, tolerance=0.2, rounds=3, outputs="joint").to_frame()
    assert list(joint.columns)[:2] == ["round", "status"]
    assert isinstance(joint, pd.DataFrame)
    assert len(joint) == 3


def test_the_reason_of_a_method_is_forgotten_by_transformations_and_part_of_no_key():
    run = sdntk.distill(KERNEL, X, Y, tolerance=0.2, rounds=2, method="auto")
    assert (run.method, run.method_reason) == (sdntk.Method.DENSE, "60 points are few")
    again = sdntk.distill(KERNEL, X, Y, tolerance=0.2, rounds=2, method="dense")
    assert again.method_reason != run.method_reason
    assert jax.tree.structure(run) == jax.tree.structure(again)


def test_compiled_rounds_serve_several_and_waste_little():
    for rounds in range(1, 600):
        compiled = compiled_rounds(rounds)
        assert rounds <= compiled <= max(8, 1.15 * rounds + 4)
        assert compiled_rounds(compiled) == compiled
    assert len({compiled_rounds(rounds) for rounds in range(1, 65)}) < 20


#: Counts every compilation of XLA, the smallest too.
COUNTING = """
import jax, json
import jax.numpy as jnp
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_enable_compilation_cache", False)
count = [0]
def listen(event, duration, **_):
    count[0] += event == "/jax/core/compile/backend_compile_duration"
jax.monitoring.register_event_duration_secs_listener(listen)
import sdntk
x = jax.random.normal(jax.random.key(0), (400, 3))
y = jnp.sin(x[:, :2]) + 0.3 * jax.random.normal(jax.random.key(1), (400, 2))
kernel, new = sdntk.kernels.matern(1.5, 0.7), x[:7] + 0.1
def counted(**options):
    before = count[0]
    run = sdntk.distill(kernel, x, y, **options)
    run.dual_coefficients, run.targets, run.to_frame(), repr(run)
    if options.get("method") == "krylov":
        run.predict(new), run.fits[0].fitted
    return count[0] - before, int(getattr(run.spectrum, "steps", 0))
found = {}
krylov = {"tolerance": 0.02, "rounds": 4, "method": "krylov"}
found["krylov"] = [counted(**krylov, rtol=rtol) for rtol in (1e-2, 1e-8, 1e-5)]
found["rounds"] = [counted(tolerance=0.1, rounds=rounds) for rounds in (8, 7, 5, 6)]
weights = lambda rounds: jnp.asarray([-0.5, 1.5, 0.2, 1.0, 0.3, 0.0, 2.0][: rounds - 1])
found["weights"] = [
    counted(multiplier=0.1, rounds=rounds, ground_truth_weight=weights(rounds))
    for rounds in (8, 7, 5, 6)
]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_other_steps_and_other_rounds_compile_nothing_anew():
    done = subprocess.run([sys.executable, "-c", COUNTING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    (first, few), (second, many), (third, some) = found["krylov"]
    assert first > 0
    assert len({few, some, many}) == 3
    assert second == third == 0
    for name in ("rounds", "weights"):
        first, *others = (compilations for compilations, _ in found[name])
        assert first > 0
        assert others == [0, 0, 0]


def test_warnings_name_the_users_line():
    spectrum = sdntk.Spectrum(jnp.array([1e-13, 1e-12, 1.0]), jnp.eye(3), 2.2e-16)
    calls = [
        lambda: sdntk.distill_spectrum(spectrum, [1.0, 1.0, 1.0], tolerance=0.1, rounds=1),
        lambda: sdntk.decompose(np.eye(3, dtype=np.float32)),
        lambda: sdntk.distill(KERNEL, X, Y, tolerance=0.1, rounds=1, accuracy=1e-3),
    ]
    for call in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert [warning.filename for warning in caught] == [__file__]
    assert "argument accuracy of distill has been renamed to rtol" in str(caught[0].message)
