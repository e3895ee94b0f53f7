"""What is installed.

Must hold: the wheel and the sdist hold the package, its type marker and its licence, and neither
data nor tests of size; installed in a clean environment without this checkout, `sdntk illustrate`
runs. (CI does it with both; here is what can be seen without an environment.)
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_version_is_the_changelogs_first():
    import sdntk

    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    headings = [line.split()[1] for line in lines if line.startswith("## ")]
    released = headings[1:] if headings[0] == "Unreleased" else headings
    assert released[0] == sdntk.__version__


def test_every_wing_is_a_package_with_a_docstring():
    for folder in sorted((ROOT / "sdntk").rglob("*")):
        if folder.is_dir() and any(folder.glob("*.py")):
            assert (folder / "__init__.py").read_text().startswith('"""'), folder


def test_the_type_marker_is_there():
    assert (ROOT / "sdntk" / "py.typed").is_file()


def test_dependencies_that_only_tests_need_are_not_the_users():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {entry.split(">")[0].split("=")[0] for entry in project["dependencies"]}
    assert not needed & {"pytest", "hypothesis", "beartype", "mpmath", "chex"}
