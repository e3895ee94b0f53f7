"""States of networks are written at every measurement here, however quick the work."""

import pytest

from sdntk.experiments import checkpoints


@pytest.fixture(autouse=True)
def _write_every_state(monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_STATES", 0)
