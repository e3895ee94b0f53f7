"""Runs, fits and spectra in files.

Must hold: what is loaded equals what was saved, bit by bit, predictions too; kernels of the library
come back, others are given again; a write is all or nothing; nothing in a file is run (no pickle);
a file of something else, a damaged or hand-made one, one in float64 with x64 off: refused by name.
"""

import dataclasses
import io
import json
import os
import stat
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdntk
from sdntk import _archive, architectures, datasets, distill, filters, kernels

X = jax.random.normal(jax.random.key(0), (30, 2))
Y = jnp.stack([jnp.sin(X[:, 0]), jnp.cos(2 * X[:, 1])], axis=1)
NEW = X[:4] + 0.1
KERNELS = {
    "rbf": kernels.rbf([1.0, 2.0]),
    "matern": kernels.matern(2.5, 0.7),
    "ntk": kernels.ntk(architectures.fully_connected(2)),
}


def same_leaves(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)
        assert jnp.asarray(left).dtype == jnp.asarray(right).dtype


@pytest.mark.parametrize("method", ["dense", "tridiagonal", "krylov"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.slow_cases
def test_a_run_comes_back(method, kernel, tmp_path):
    run = sdntk.distill(KERNELS[kernel], X, Y, tolerance=0.1, rounds=3, method=method)
    run.save(tmp_path / "new" / "run.npz")
    again = sdntk.load(tmp_path / "new" / "run.npz")
    same_leaves(run, again)
    assert (again.method, again.method_reason) == (run.method, run.method_reason)
    np.testing.assert_array_equal(again.predict(NEW), run.predict(NEW))
    assert repr(again) == repr(run)


@pytest.mark.usefixtures("as_users_call")
def test_spectra_and_fits_come_back(tmp_path):
    matrix = sdntk.gram(KERNELS["rbf"], X)
    spectra = [
        sdntk.decompose(matrix),
        sdntk.tridiagonalise(matrix),
        sdntk.krylov(sdntk.as_operator(matrix), Y, tolerance=0.1, rounds=2),
    ]
    for spectrum in spectra:
        spectrum.save(tmp_path / "spectrum.npz")  # in place of the one before
        again = sdntk.load(tmp_path / "spectrum.npz")
        same_leaves(spectrum, again)
        np.testing.assert_array_equal(
            sdntk.distill_spectrum(again, Y, tolerance=0.1, rounds=2).fitted,
            sdntk.distill_spectrum(spectrum, Y, tolerance=0.1, rounds=2).fitted,
        )
    fit = sdntk.fit_filter(spectra[0], Y, lambda d: filters.ridge(d, 0.1))
    fit.save(tmp_path / "fit.npz")
    np.testing.assert_array_equal(sdntk.load(tmp_path / "fit.npz").fitted, fit.fitted)
    with pytest.raises(ValueError, match="kernel must be left out"):
        sdntk.load(tmp_path / "fit.npz", kernel=KERNELS["rbf"])
    with pytest.raises(TypeError, match="kernel must be a function"):
        sdntk.load(tmp_path / "fit.npz", kernel=5)


def test_a_kernel_of_the_users_is_given_again(tmp_path):
    kernel = lambda x, t: (1 + x @ t.T) ** 2  # noqa: E731
    run = sdntk.distill(kernel, X, Y, tolerance=0.4, rounds=1)
    run.save(tmp_path / "run.npz")
    again = sdntk.load(tmp_path / "run.npz")
    with pytest.raises(ValueError, match="knows no kernel"):
        again.predict(NEW)
    again = sdntk.load(tmp_path / "run.npz", kernel=kernel)
    np.testing.assert_array_equal(again.predict(NEW), run.predict(NEW))
    sdntk.distill(KERNELS["rbf"], X, Y, tolerance=0.3, rounds=2).save(tmp_path / "run.npz")
    with pytest.raises(ValueError, match="kernel must be left out"):
        sdntk.load(tmp_path / "run.npz", kernel=kernel)


def test_points_in_bfloat16_come_back(tmp_path):
    x = jnp.linspace(0, 1, 12).astype(jnp.bfloat16)
    kernel = lambda x, t: jnp.exp(-((x.astype(float)[:, None] - t.astype(float)[None]) ** 2))  # noqa: E731
    run = sdntk.distill(kernel, x, jnp.sin(6 * x.astype(float)), tolerance=0.05, rounds=2)
    run.save(tmp_path / "run.npz")
    again = sdntk.load(tmp_path / "run.npz")
    assert again.x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(again.x, x)


def test_several_runs_in_one_are_not_saved(tmp_path):
    spectrum = sdntk.decompose(sdntk.gram(KERNELS["rbf"], X))
    run = lambda eps: sdntk.distill_spectrum(spectrum, Y, tolerance=eps, rounds=3)  # noqa: E731
    stacked = jax.vmap(run)(jnp.array([0.1, 0.2]))
    assert repr(stacked) == "Distillation(2 runs, stacked)"
    for call in (lambda: stacked.save(tmp_path / "r.npz"), stacked.to_frame, lambda: stacked.fits):
        with pytest.raises(ValueError, match="holds several, stacked by"):
            call()
    one = jax.tree.map(lambda leaf: leaf[1], stacked)
    one.save(tmp_path / "r.npz")
    np.testing.assert_array_equal(sdntk.load(tmp_path / "r.npz").fitted, stacked.fitted[1])


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        sdntk.decompose(np.diag([1.0, 2.0])).save(tmp_path / "spectrum.npz")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "spectrum.npz").stat().st_mode) == 0o644


def test_random_damage_is_a_value_error_or_harmless(tmp_path):
    path, rng = tmp_path / "spectrum.npz", np.random.default_rng(0)
    sdntk.decompose(np.diag([1.0, 2.0])).save(path)
    whole, messages = path.read_bytes(), []
    for _ in range(300):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            sdntk.load(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 150
    assert all("does not hold what sdntk has saved" in message for message in messages)


RUNS = {
    "losses of another length": {"training_loss": jnp.zeros(7)},
    "iterations of another length": {"iterations": jnp.zeros(2, jnp.int32)},
    "a scalar for multipliers": {"multipliers": jnp.array(1.0)},
    "a status in float": {"status": jnp.zeros((3, 2))},
    "a method in words": {"method": "dense"},
    "filters of other rounds": {"filters": jnp.zeros((1, 30, 2))},
}


@pytest.mark.parametrize("case", RUNS)
def test_hand_made_runs_are_refused(case, tmp_path):
    run = sdntk.distill(KERNELS["rbf"], X, Y, tolerance=0.1, rounds=3)
    _archive.save(tmp_path / "run.npz", dataclasses.replace(run, **RUNS[case]))
    with pytest.raises(ValueError, match="does not hold what sdntk has saved"):
        sdntk.load(tmp_path / "run.npz")


def test_a_write_is_all_or_nothing(tmp_path, monkeypatch):
    spectrum = sdntk.decompose(np.diag([1.0, 2.0]))
    spectrum.save(tmp_path / "spectrum.npz")

    def breaks_off(file, **_):
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(_archive.np, "savez", breaks_off)
    with pytest.raises(OSError, match="no space left"):
        sdntk.decompose(np.diag([3.0, 4.0])).save(tmp_path / "spectrum.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["spectrum.npz"]
    same_leaves(sdntk.load(tmp_path / "spectrum.npz"), spectrum)


def forge(path, change, **arrays):
    """A file whose header is changed, or some of its arrays."""
    with np.load(path) as file:
        content = dict(file)
    header = json.loads(bytes(content["header"]))
    change(header)
    text = json.dumps(header).replace('"NESTED"', '{"tuple": [' * 10_000 + "1" + "]}" * 10_000)
    content["header"] = np.frombuffer(text.encode(), np.uint8)
    np.savez(path, **(content | arrays))


FORGED = {
    "another format": lambda header: header.update(format="zarr"),
    "another version": lambda header: header.update(version=99),
    "another class": lambda header: header["value"].update({"class": "Popen"}),
    "a field more": lambda header: header["value"]["fields"].update(more=1),
    "a field less": lambda header: header["value"]["fields"].pop("eigenvalues"),
    "no array": lambda header: header["value"]["fields"].update(eigenvalues={"array": "none"}),
    "nested": lambda header: header["value"]["fields"].update(eigenvalues="NESTED"),
    "no object": lambda header: header.update(value=3),
}


@pytest.mark.parametrize("case", FORGED)
def test_hand_made_files_are_refused(case, tmp_path):
    path = tmp_path / "spectrum.npz"
    sdntk.decompose(np.diag([1.0, 2.0])).save(path)
    forge(path, FORGED[case])
    with pytest.raises(ValueError, match=r"path .*spectrum.npz does not hold what sdntk has saved"):
        sdntk.load(path)


def test_arrays_that_do_not_go_together_objects_and_other_files_are_refused(tmp_path):
    path = tmp_path / "spectrum.npz"
    sdntk.decompose(np.diag([1.0, 2.0])).save(path)
    forge(path, lambda _: None, array1=np.zeros((3, 3)))
    with pytest.raises(ValueError, match="does not hold what sdntk has saved"):
        sdntk.load(path)
    with np.load(path) as file:
        content = dict(file)
    np.savez(path, **(content | {"array0": np.array([print], dtype=object)}))
    with pytest.raises(ValueError, match="does not hold what sdntk has saved"):
        sdntk.load(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="does not hold what sdntk has saved"):
        sdntk.load(path)
    path.write_text("no archive")
    with pytest.raises(ValueError, match="does not hold what sdntk has saved"):
        sdntk.load(path)
    with pytest.raises(FileNotFoundError, match="holds no file"):
        sdntk.load(tmp_path / "nothing.npz")


def write_compressed(path, arrays):
    np.savez_compressed(path, **(arrays | {"array0": np.zeros(2**25)}))


def write_a_claim(path, arrays):
    """An array's header that promises more than follows."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in (arrays | {"array0": np.zeros(2)}).items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array)
            content = buffer.getvalue()
            if name == "array0":
                content = content.replace(b"(2,), }" + b" " * 8, b"(400000000,), }")
            archive.writestr(f"{name}.npy", content)


@pytest.mark.parametrize("write", [write_compressed, write_a_claim])
def test_no_more_memory_is_taken_than_the_file_has_bytes(tmp_path, write):
    path = tmp_path / "spectrum.npz"
    sdntk.decompose(np.diag([1.0, 2.0])).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    write(path, arrays)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="does not hold what sdntk has saved"):
            sdntk.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_float64_with_x64_off_is_refused_by_name(tmp_path):
    sdntk.decompose(np.diag([1.0, 2.0])).save(tmp_path / "spectrum.npz")
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=r"float64, which needs x64: jax.config.update"),
    ):
        sdntk.load(tmp_path / "spectrum.npz")


def test_files_of_before_fits_had_degrees_of_freedom(tmp_path, monkeypatch):
    x, y = datasets.mobahi_example()
    fit = distill(kernels.cubic_spline(), x, y, tolerance=0.045, rounds=2).fits[1]
    names = _archive.field_names
    with monkeypatch.context() as patch:
        patch.setattr(
            _archive,
            "field_names",
            lambda kind: [name for name in names(kind) or () if name != "degrees_of_freedom"],
        )
        fit.save(tmp_path / "fit.npz")
    again = sdntk.load(tmp_path / "fit.npz")
    assert again.degrees_of_freedom is None
    np.testing.assert_array_equal(again.fitted, fit.fitted)


def test_degrees_of_freedom_of_another_shape_are_refused(tmp_path):
    x, y = datasets.mobahi_example()
    fit = distill(kernels.cubic_spline(), x, y, tolerance=0.045, rounds=2).fits[1]
    dataclasses.replace(fit, degrees_of_freedom=jnp.ones(3)).save(tmp_path / "fit.npz")
    with pytest.raises(ValueError, match="shapes of its arrays"):
        sdntk.load(tmp_path / "fit.npz")
