"""The command line, and the pictures it writes."""

import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib import image

import sdntk

FIGURES = {"green_function", "data", "fits", "filters", "filter_ratios", "early_stopping"}


def process(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", "from sdntk.cli import main; main()", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "160"},
        check=False,
    )


def rows(output):
    return [
        line.replace("│", "|").split("|")[1:-1]
        for line in output.splitlines()
        if line.startswith("│")
    ]


@pytest.mark.slow
def test_illustrate_prints_every_quantity_and_draws_six_figures(tmp_path):
    """theory.md, section 7: c_t, status and errors at eps = 0.045; bounds enclose what they
    bound.
    """
    done = process("illustrate", "--out", "figures", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = [[cell.strip() for cell in row] for row in rows(done.stdout)]
    assert [row[1] for row in table] == ["active"] * 4 + ["collapsed"] * 2
    assert [row[2] for row in table[:4]] == ["2.7053e-06", "8.7628e-05", "2.7376e-04", "7.9002e-04"]
    assert [row[7] for row in table[:4]] == ["0.15351", "0.06855", "0.12089", "0.30590"]
    assert [row[6] for row in table[:4]] == ["0.04500"] * 4
    for row in table:
        for value, bounds in ((row[2], row[3]), (row[4], row[5])):
            if value != "-":
                low, high = map(float, bounds.split(" .. "))
                assert low - 1e-3 <= float(value) <= high + 1e-3
    basis = [float(row[8]) for row in table]
    assert all(a > b for a, b in itertools.pairwise(basis[:5]))
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == FIGURES
    for path in (tmp_path / "figures").glob("*.png"):
        picture = image.imread(path)
        assert picture.shape[0] > 300
        assert np.unique(picture[..., :3].reshape(-1, 3), axis=0).shape[0] > 50, (
            f"{path.name} shows nothing"
        )


@pytest.mark.slow
def test_fresh_noise_and_a_chain_that_collapses_at_once(command, tmp_path):
    fresh = command("illustrate", "--seed", "3", "--rounds", "3", "--out", "a")
    assert "fresh noise, seed 3" in fresh.stdout
    assert len(rows(fresh.stdout)) == 3
    collapsed = command("illustrate", "--tolerance", "0.9", "--rounds", "2", "--out", "b")
    assert collapsed.returncode == 0, collapsed.stderr
    assert {path.stem for path in (tmp_path / "b").glob("*.png")} == {
        "green_function",
        "data",
        "fits",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tolerance", "0.04"), "tolerance 0.04 is infeasible"),
        (("--rounds", "0"), "Invalid value for '--rounds'"),
    ],
)
def test_bad_input_ends_with_a_message_not_a_traceback(arguments, message, command):
    done = command("illustrate", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_help_comes_at_once_and_names_every_default(command):
    """Nothing heavy is imported for it, and the default of no option is left out."""
    heavy = "pandas", "matplotlib", "scipy", "sklearn", "flax", "optax", "orbax"
    program = f"""
import sys
import sdntk.cli
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    flags = {"--help", "--version"}
    for name in ("illustrate", "ntk", "compare", "networks"):
        shown = command(name, "--help").stdout
        options = re.split(r"(?m)^│ \*?\s*(?=--)", shown)[1:]
        assert len(options) > 3
        for option in options:
            if option.split()[0] not in flags:
                assert "[default: " in option or "[required]" in option, option


def test_an_old_option_works_and_warns(command):
    assert "--accuracy" not in command("ntk", "--help").stdout
    done = command("ntk", "--accuracy", "1e-3", "--test", "361")
    assert done.returncode == 2
    assert "--accuracy has been renamed to --rtol" in " ".join(done.stderr.split())
    assert "test must be from 1 to 360" in done.stderr


NOT_NUMBERS = "nan", "inf", "-1", "junk", ""
WRONG = {
    "illustrate": {
        "--tolerance": (*NOT_NUMBERS, "0"),
        "--rounds": (*NOT_NUMBERS, "0", "1.5", "10001", "1" + 99 * "0"),
        "--seed": (*NOT_NUMBERS, "4294967296"),
    },
    "ntk": {
        "--dataset": ("junk", ""),
        "--architecture": ("junk", ""),
        "--depth": (*NOT_NUMBERS, "0", "1001"),
        "--train": (*NOT_NUMBERS, "0"),
        "--held-out": NOT_NUMBERS,
        "--test": (*NOT_NUMBERS, "0"),
        "--tolerance": (*NOT_NUMBERS, "0", "1"),
        "--rounds": (*NOT_NUMBERS, "0", "10001"),
        "--label-noise": (*NOT_NUMBERS, "1.1"),
        "--noise": ("junk", ""),
        "--outputs": ("junk", ""),
        "--method": ("junk", ""),
        "--rtol": (*NOT_NUMBERS, "0", "1"),
        "--accuracy": (*NOT_NUMBERS, "0", "1"),
        "--gram-dtype": ("junk", "", "int32", "complex64"),
        "--seeds": (*NOT_NUMBERS, "0", "1000001"),
        "--first-seed": (*NOT_NUMBERS, "4294967295"),
    },
    "compare": {
        "--dataset": ("junk", "", "missing.npz"),
        "--architecture": ("junk", ""),
        "--widths": (*NOT_NUMBERS, "0", "16,", "16,x", "1" + 99 * "0"),
        "--seeds": (*NOT_NUMBERS, "0", "1000001"),
        "--rounds": (*NOT_NUMBERS, "0", "10001"),
        "--tolerance": (*NOT_NUMBERS, "0", "1", "1.5"),
        "--depth": (*NOT_NUMBERS, "0", "1001"),
        "--train": (*NOT_NUMBERS, "0"),
        "--test": (*NOT_NUMBERS, "0"),
        "--label-noise": (*NOT_NUMBERS, "1.1"),
        "--stationarity": (*NOT_NUMBERS, "0"),
        "--steps": (*NOT_NUMBERS, "0"),
    },
    "networks": {
        "--figure": (*NOT_NUMBERS, "3", "11"),
        "--dataset": ("junk", "", "missing.npz"),
        "--widths": ("nan", "-1", "16,", "16,x"),
        "--rounds": (*NOT_NUMBERS, "0", "10001"),
        "--seeds": (*NOT_NUMBERS, "0", "1000001"),
        "--at-once": (*NOT_NUMBERS, "0"),
        "--steps": (*NOT_NUMBERS, "0", "2147483648"),
        "--batch-size": (*NOT_NUMBERS, "0"),
        "--learning-rate": NOT_NUMBERS,
        "--weight-decay": NOT_NUMBERS,
        "--train": (*NOT_NUMBERS, "0"),
        "--test": (*NOT_NUMBERS, "0"),
        "--held-out": (*NOT_NUMBERS, "0"),
        "--label-noise": (*NOT_NUMBERS, "1.1"),
        "--noise": ("junk", ""),
        "--tolerance": (*NOT_NUMBERS, "0", "1"),
        "--measure-every": (*NOT_NUMBERS, "0"),
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_and_the_option_named(name, command):
    for option, values in WRONG[name].items():
        for value in values:
            done = command(name, option, value)
            said = " ".join(done.stderr.replace("│", " ").split())
            assert done.returncode == 2, (option, value)
            assert f"Invalid value for '{option}'" in said, (option, value, said)


@pytest.mark.usefixtures("as_users_call")
def test_names_that_the_library_knows_are_checked_by_it(command):
    for arguments in (
        ("ntk", "--activation", "junk"),
        ("ntk", "--activation", ""),
        ("compare", "--activation", "junk"),
        ("compare", "--widths", "16,16"),
        ("networks", "--figure", "4", "--network", "junk"),
        ("networks", "--figure", "4", "--loss", "junk"),
        ("networks", "--figure", "4", "--targets", ""),
        ("networks", "--network", "junk"),
        ("networks", "--loss", "junk"),
        ("networks", "--targets", ""),
    ):
        done = command(*arguments)
        assert done.returncode == 2
        assert f"{arguments[-2].strip('-')} must" in " ".join(done.stderr.split()), done.stderr


@pytest.mark.usefixtures("as_users_call")
def test_the_two_forms_of_networks_refuse_each_other_s_options(command, tmp_path):
    (tmp_path / "mine.npz").touch()
    for arguments, said in (
        (("--augment",), "--augment goes with --figure only."),
        (("--at-once", "2"), "--at-once goes with --figure only."),
        (("--figure", "4", "--widths", "8"), "--widths goes without --figure only."),
        (("--figure", "4", "--held-out", "8"), "--held-out goes without --figure only."),
        (
            ("--figure", "4", "--weight-decay", "0", "--weight-decay", "1"),
            "--weight-decay may be given once with --figure.",
        ),
        (("--figure", "4", "--dataset", "mine.npz"), "--dataset must be a name with --figure"),
        (("--weight-decay", "0", "--weight-decay", "0"), "never twice alike"),
        (("--train", "100000"), "train and held_out must be at most 1,330"),
        (("--held-out", "100000"), "train and held_out must be at most 1,330"),
        (("--test", "100000"), "test must be"),
        (("--dataset", "mine.npz"), "dataset must be an .npz file with the arrays x_train"),
    ):
        done = command("networks", *arguments)
        assert done.returncode == 2, arguments
        assert said in " ".join(done.stderr.split()), (arguments, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["fully-connected", "convolutional"])
def test_compare_takes_any_images_and_both_architectures(command, tmp_path, architecture):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(12, 5, 4)).astype(np.float32)
    labels = np.arange(12) % 2
    given = {"x_train": images, "y_train": labels, "x_test": images[:5], "y_test": labels[:5]}
    np.savez(tmp_path / "mine.npz", **given)
    options = {"dataset": "mine.npz", "architecture": architecture, "train": 8, "test": 5}
    options |= {"widths": "8,16", "seeds": 2, "rounds": 1, "depth": 1, "steps": 3, "out": "out"}
    done = command("compare", *(f"--{name}={value}" for name, value in options.items()))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("gap ~ width^") == 2
    table = pd.read_parquet(tmp_path / "out" / "comparison.parquet")
    assert sorted(table["width"].unique()) == [8, 16]
    assert (tmp_path / "out" / "gaps.png").exists()


def test_version(command):
    assert command("--version").stdout.startswith(f"sdntk {sdntk.__version__}")
