"""What a newcomer meets.

Must hold: help() of every public function shows short types; every name of sdntk.__all__ is there,
and those of version 0.1 too, the renamed ones with a warning at the user's line; import paths of
functions are not modules; `import sdntk` and `sdntk --help` import nothing heavy; every option of
every command has a help text and a default.
"""

import importlib
import inspect
import subprocess
import sys
import warnings

import pytest

import sdntk

#: sdntk.__all__ of version 0.1, which outside code may use.
NAMES_OF_0_1 = [
    "AccuracyError",
    "Distillation",
    "ErrorBounds",
    "GramStore",
    "KrylovSpectrum",
    "Multiplier",
    "PrecisionWarning",
    "Products",
    "Spectrum",
    "Status",
    "Stop",
    "Trained",
    "Training",
    "TridiagonalSpectrum",
    "architectures",
    "bounds",
    "compare",
    "datasets",
    "decompose",
    "distill",
    "distill_networks",
    "distill_spectrum",
    "exponents",
    "filters",
    "gram",
    "kernels",
    "krylov",
    "losses",
    "networks",
    "optimisers",
    "products",
    "solve_multiplier",
    "train",
    "tridiagonalise",
]
RENAMED = {
    "Products": "GramOperator",
    "Trained": "TrainingResult",
    "Training": "TrainingConfig",
    "compare": "compare_widths",
    "exponents": "gap_exponents",
}


def public_functions():
    """Those of the package, and of its public modules."""
    found = {}
    for name in sdntk.__all__:
        value = getattr(sdntk, name)
        inner = vars(value) if inspect.ismodule(value) else {}
        found |= {f"{name}.{key}": v for key, v in inner.items() if not key.startswith("_")}
        found[name] = value
    return {
        name: value
        for name, value in sorted(found.items())
        if inspect.isfunction(value) and value.__module__.startswith("sdntk.")
    }


FUNCTIONS = public_functions()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_shows_short_types(name):
    """No annotation is a list of all that JAX and NumPy take."""
    function = FUNCTIONS[name]
    for parameter in inspect.signature(function).parameters.values():
        annotation = str(parameter.annotation)
        assert "numpy.bool" not in annotation, parameter
        assert len(annotation) < 170, parameter
    assert function.__doc__


def test_every_name_is_there():
    for name in sdntk.__all__:
        assert getattr(sdntk, name) is not None
    assert set(sdntk.__all__) <= set(dir(sdntk))


@pytest.mark.parametrize("name", NAMES_OF_0_1)
def test_names_of_version_0_1_work_and_the_renamed_ones_warn(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = getattr(sdntk, name)
    if name not in RENAMED:
        assert caught == []
        return
    assert value is getattr(sdntk, RENAMED[name])
    assert [warning.filename for warning in caught] == [__file__]
    assert f"sdntk.{name} has been renamed to sdntk.{RENAMED[name]}" in str(caught[0].message)


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        sdntk.destill  # noqa: B018


@pytest.mark.parametrize("name", ["kernels", "networks", "datasets", "architectures"])
def test_import_paths_stay(name):
    assert importlib.import_module(f"sdntk.{name}") is getattr(sdntk, name)


@pytest.mark.parametrize("name", ["krylov", "gram", "distill", "products", "train"])
def test_a_function_is_no_module(name):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"sdntk.{name}")


HEAVY = ["pandas", "matplotlib", "scipy", "sklearn", "flax", "optax", "orbax", "pooch", "pyarrow"]


@pytest.mark.parametrize("what", ["import sdntk", "import sys; sys.argv = ['sdntk', '--help']\n"])
def test_nothing_heavy_is_imported(what):
    program = what
    if "argv" in what:
        program += "from sdntk import cli\ntry:\n    cli.main()\nexcept SystemExit:\n    pass"
    program += f"\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == []


@pytest.mark.parametrize("command", ["illustrate", "papers", "ntk", "compare", "networks"])
def test_every_option_shows_its_default(command):
    import typer.main

    from sdntk import cli

    group = typer.main.get_command(cli.app)
    for option in group.commands[command].params:
        if getattr(option, "hidden", False) or option.required:
            continue
        assert option.help, option.name
        in_words = isinstance(option.show_default, str)
        shown = in_words or (option.show_default and option.default is not None)
        assert shown or option.is_flag, (command, option.name)
