"""Attacks: many random or crafted inputs against the truth. Each tells how many it tried and how
many were wrong; pytest prints these lines at the end of the run.

`uv run pytest --slow tests/attack` tries a small number, `uv run pytest --long tests/attack` the
number that the page docs/attacks.md speaks of.
"""

import pytest
from attack.commands import Server


@pytest.fixture
def size(request):
    """``size(small, full)``: the full number in the long tier, else the small one."""
    long = request.config.getoption("--long")
    return lambda small, full: full if long else small


@pytest.fixture
def score(record_property):
    """``score(what, tried, wrong, undecidable)``: one line of the summary."""

    def tell(what, tried, wrong, undecidable=0):
        line = f"{what}: {tried:,} tried, {wrong:,} wrong"
        if undecidable:
            line += f", {undecidable:,} undecidable ({undecidable / tried:.2%})"
        record_property("attack", line)

    return tell


@pytest.fixture(scope="module")
def server():
    """Starts the commands; see commands.py."""
    server = Server()
    yield server
    server.close()
