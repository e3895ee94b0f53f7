"""Strict numerics for every test and doctest: x64 on, silent rank promotion off, shapes and types
checked by beartype.
"""

import os
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

# Before JAX is imported. What one worker, one process that a test starts, or the last run compiled
# is not compiled again; and XLA optimises little, since tests compile more than they compute (CI
# runs those of the core a second time, as XLA compiles for users).
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import jaxtyping
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "tests"))  # helpers.py
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Before sdntk is imported: every jaxtyping annotation of it is checked in the tests, and only here.
jaxtyping.install_import_hook("sdntk", "beartype.beartype")


#: The tiers beyond the default one, and what adds them: each includes the ones before it.
TIERS = {"slow": ("--slow", "--long"), "long": ("--long",)}


def pytest_addoption(parser):
    """The options that add tiers."""
    parser.addoption("--slow", action="store_true", help="add the slow tests")
    parser.addoption("--long", action="store_true", help="add slow and long tests, that is, all")


def pytest_collection_modifyitems(config, items):
    """Leave out the tiers that were not asked for; tests asked for by name stay."""
    if any("::" in argument for argument in config.args):
        return
    left_out = {tier for tier, options in TIERS.items() if not any(map(config.getoption, options))}
    seen = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if test in seen and item.get_closest_marker("slow_cases"):
            item.add_marker("slow")
        seen.add(test)
    kept = [item for item in items if not left_out & {mark.name for mark in item.iter_markers()}]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def pytest_terminal_summary(terminalreporter, config):
    """Say what the attacks tried, what was left out, and how to run it."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    scores = {
        line
        for report in reports
        for name, line in getattr(report, "user_properties", ())
        if name == "attack"
    }
    for line in sorted(scores):
        terminalreporter.write_line(f"attack: {line}")
    if not config.getoption("--slow") and not config.getoption("--long"):
        terminalreporter.write_line(
            "This was the default tier. --slow adds long computations, further cases, processes "
            "and kills (an hour on two cores), --long adds notebooks and studies: all tests."
        )


@pytest.fixture(autouse=True)
def _doctest_namespace(doctest_namespace):
    import jax.numpy as jnp

    doctest_namespace["jax"] = jax
    doctest_namespace["jnp"] = jnp


@pytest.fixture(autouse=True)
def _own_random_numbers(request):
    """A test's numbers do not depend on which tests its process ran before."""
    rng = getattr(getattr(request, "module", None), "RNG", None)
    if rng is not None:
        seed = zlib.crc32(request.node.nodeid.encode())
        rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state


#: Linux gives a process 65,530 memory maps, and every compiled function takes some: at the end XLA
#: aborts.
MANY_MAPS = 25_000


@pytest.fixture(autouse=True, scope="module")
def _room_for_compiled_code():
    """Forget what was compiled, once that is much."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MANY_MAPS:
        jax.clear_caches()


@pytest.fixture
def single_precision():
    """x64 off for one test."""
    with jax.enable_x64(False):
        yield


@pytest.fixture
def as_users_call():
    """Types unchecked by the hook: a wrong argument meets the library's own checks and messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """The command line in this process, which has compiled much of it before, with the test's
    folder as its own.
    """
    from sdntk import cli

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(sys, "argv", ["sdntk", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        output = capsys.readouterr()
        return SimpleNamespace(
            returncode=left.value.code or 0, stdout=output.out, stderr=output.err
        )

    return run
