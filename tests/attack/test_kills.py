"""Commands that are killed, and disks that are full or read-only.

Must hold: after any number of SIGKILLs the same command ends with the records of a run that was
left alone, but for times; so it does after a disk was full; on a read-only disk a finished run is
shown, and one that is not says so without a traceback.
"""

import random
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from attack.commands import COMMANDS, differences, left_over, records

pytestmark = pytest.mark.slow


class Alone(NamedTuple):
    """A run of a command that was left alone."""

    command: str
    folder: Path
    seconds: float


@pytest.fixture(scope="module", params=COMMANDS)
def alone(request, server, tmp_path_factory):
    """Tests of one command stand together, most often in one worker: it runs alone once for all
    of them.
    """
    command, folder = request.param, tmp_path_factory.mktemp("alone")
    status, said = server.run(command, folder)
    assert status == 0, said
    started = time.monotonic()  # once more, now that code has been compiled
    assert server.run(command, tmp_path_factory.mktemp("warm"))[0] == 0
    return Alone(command, folder, time.monotonic() - started)


def test_kills_lose_nothing(server, alone, tmp_path, size, score):
    """Kills at random moments of a run's life; after some of them the command runs to its end."""
    moments, kills, wrong, folders = random.Random(alone.command), 0, [], 0
    folder = None
    while kills < size(2, 17):
        if folder is None:
            folder, folders = tmp_path / str(folders), folders + 1
            folder.mkdir()
        process = server.start(alone.command, folder)
        time.sleep(moments.uniform(0, alone.seconds))
        was_killed = server.kill(process)
        kills += was_killed
        if not was_killed or moments.random() < 0.4:
            status, said = server.run(alone.command, folder)
            differs = differences(records(folder), records(alone.folder))
            if status or differs or left_over(folder):
                wrong.append((str(folder), status, differs, said))
            folder = None
    score(f"SIGKILLs of sdntk {alone.command}", kills, len(wrong))
    assert not wrong


def test_a_full_disk_loses_nothing(server, alone, tmp_path, size, score):
    """No file may grow beyond a limit, which the first that does is told as EFBIG: tables, figures,
    tiles, the states of networks. Then there is room again.
    """
    limits, wrong = size((3_000,), (0, 100, 1_000, 3_000, 6_000, 20_000, 50_000, 100_000)), []
    for limit in limits:
        folder = tmp_path / str(limit)
        folder.mkdir()
        full = server.run(alone.command, folder, limits={"RLIMIT_FSIZE": limit})
        is_told = full[0] in (0, 2) and "Traceback" not in full[1]
        again = server.run(alone.command, folder)
        differs = differences(records(folder), records(alone.folder))
        if not is_told or again[0] or differs or left_over(folder):
            wrong.append((limit, full, again, differs))
    score(f"full disks under sdntk {alone.command}", len(limits), len(wrong))
    assert not wrong


def test_a_read_only_disk(server, alone, tmp_path, score):
    wrong = []
    for name in ("finished", "empty"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "finished":
            shutil.copytree(alone.folder / "run", folder / "run")
        make_read_only(folder)
        status, said = server.run(alone.command, folder, as_nobody=True)
        is_right = "warning: no figures are written" in said
        if name == "empty" and alone.command != "illustrate":
            is_right = status == 2 and "error:" in said
        elif status:
            is_right = False
        if not is_right or "Traceback" in said:
            wrong.append((name, status, said))
    score(f"read-only disks under sdntk {alone.command}", 2, len(wrong))
    assert not wrong


def make_read_only(folder):
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
