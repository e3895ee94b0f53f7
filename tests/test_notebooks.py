"""Every notebook runs from top to bottom in a kernel of its own, its assertions included."""

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore:.*Proactor.*:RuntimeWarning"
)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.long
def test_notebook(path, monkeypatch):
    monkeypatch.delenv(
        "JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False
    )  # they compute more than they compile
    notebook = jupytext.read(path)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    assert sum(cell.cell_type == "code" and bool(cell.outputs) for cell in notebook.cells) >= 5


def test_there_are_notebooks():
    assert NOTEBOOKS
