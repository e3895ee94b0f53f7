"""Must hold: what the documentation promises. The README's Python runs as it stands; every number
that a docstring cites, of the paper or of a page of theory, leads to its place; every public name
has a place on the reference pages. (The site itself is built by CI.)
"""

import ast
import doctest
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sdntk

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def load_citations():
    spec = importlib.util.spec_from_file_location("citations", ROOT / "docs" / "citations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


citations = load_citations()


def page(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_readme_is_short_and_has_python_early():
    lines = README.splitlines()
    assert len(lines) <= 120
    start = lines.index("```python") + 1
    end = lines.index("```", start)
    assert end < 60
    assert end - start <= 20


def test_python_of_the_readme_runs_as_it_stands(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    environment = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    command = [sys.executable, "-W", "error", "-c", example]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    # What its comments say.
    assert re.search(r"error: +\[0\.142 .*0\.025", done.stdout)
    assert re.search(r"collapsed in: 6\n", done.stdout)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_files_that_are_linked_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / target.strip()).exists(), target


def docstrings():
    for path in sorted((ROOT / "sdntk").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield f"{path.relative_to(ROOT)}, {getattr(node, 'name', 'module')}", text


def test_every_number_cited_in_a_docstring_has_an_anchor():
    known = citations.anchors(citations.with_anchors(page("theory.md"), "eq-"))
    known += citations.anchors(citations.with_anchors(page("krylov_bounds.md"), "krylov-eq-"))
    assert len(known) == len(set(known))
    cited = [(c.anchor, place) for place, text in docstrings() for c in citations.citations(text)]
    assert len(cited) > 40
    assert [(anchor, place) for anchor, place in cited if anchor not in known] == []
    labels = set(re.findall(r"\$\$ \(([a-z]+-\w+)\)", page("krylov_bounds.md")))
    roles = {label for _, text in docstrings() for label in re.findall(r":eq:`([^`]+)`", text)}
    assert roles <= labels


def test_citations():
    assert doctest.testmod(citations).failed == 0
    of = citations.citations
    assert [c.anchor for c in of("eqs. 27-31, 4\n and 45 (eq. 10)")] == [
        "eq-27", "eq-31", "eq-4", "eq-45", "eq-10"
    ]  # fmt: skip
    assert of("Rasmussen and Williams 2006, eqs. 4.9-4.10") == []
    assert of("Theorem 8 of Bartlett and Mendelson 2002") == []
    assert of("He et al. 2016, section 4.2") == []
    pages = citations.with_anchors("$$\na\n\\tag{5, 7-9}\n$$\n\n$$ b $$ (any-12)\n", "eq-")
    assert citations.anchors(pages) == ["eq-5", "eq-7", "eq-8", "eq-9", "eq-12"]


def public_names():
    modules = ("bounds", "filters", "losses", "mixing")
    wings = ("kernels", "networks", "datasets")
    for name in sdntk.__all__:
        if name not in (*modules, *wings, "architectures", "optimisers"):
            yield f"sdntk.{name}"
    for wing in wings:
        for name in getattr(sdntk, wing).__all__:
            yield f"sdntk.{wing}.{name}"
    for module in modules:
        source = Path(getattr(sdntk, module).__file__).read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield f"sdntk.{module}.{node.name}"


def test_every_public_name_is_on_a_reference_page():
    reference = "".join(path.read_text("utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r":: (?:sdntk\.)?([\w.]+)", reference))
    missing = [
        name
        for name in public_names()
        if name.removeprefix("sdntk.") not in documented and name.split(".")[-1] not in documented
    ]
    assert missing == []
