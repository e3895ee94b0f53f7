"""Commands that are killed, and disks that are full or read-only.

Must hold: after any number of SIGKILLs the same command ends with the records of a run that was
left alone, but for times; so it does after a disk was full; on a read-only disk a finished run is
shown, and one that is not says so without a traceback.
"""

import random
import shutil
import time

import pytest
from attack.commands import COMMANDS, differences, left_over, records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory):
    """Of each command: the folder of a run that was left alone, and the seconds that it took."""
    runs = {}
    for command in COMMANDS:
        folder = tmp_path_factory.mktemp("undisturbed")
        status, said = server.run(command, folder)
        assert status == 0, said
        started = time.monotonic()  # once more, now that code has been compiled
        warm = tmp_path_factory.mktemp("warm")
        assert server.run(command, warm)[0] == 0
        runs[command] = folder, time.monotonic() - started
    return runs


@pytest.mark.parametrize("command", COMMANDS)
def test_kills_lose_nothing(server, undisturbed, tmp_path, size, score, command):
    """Kills at random moments of a run's life; after some of them the command runs to its end."""
    moments, kills, wrong, folders = random.Random(command), 0, [], 0
    alone, seconds = undisturbed[command]
    folder = None
    while kills < size(2, 17):
        if folder is None:
            folder, folders = tmp_path / str(folders), folders + 1
            folder.mkdir()
        process = server.start(command, folder)
        time.sleep(moments.uniform(0, seconds))
        was_killed = server.kill(process)
        kills += was_killed
        if not was_killed or moments.random() < 0.4:
            status, said = server.run(command, folder)
            differs = differences(records(folder), records(alone))
            if status or differs or left_over(folder):
                wrong.append((str(folder), status, differs, said))
            folder = None
    score(f"SIGKILLs of sdntk {command}", kills, len(wrong))
    assert not wrong


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_loses_nothing(server, undisturbed, tmp_path, size, score, command):
    """No file may grow beyond a limit, which the first that does is told as EFBIG: tables, figures,
    tiles, the states of networks. Then there is room again.
    """
    alone, _ = undisturbed[command]
    limits, wrong = size((3_000,), (0, 100, 1_000, 3_000, 6_000, 20_000, 50_000, 100_000)), []
    for limit in limits:
        folder = tmp_path / str(limit)
        folder.mkdir()
        full = server.run(command, folder, limits={"RLIMIT_FSIZE": limit})
        is_told = full[0] in (0, 2) and "Traceback" not in full[1]
        again = server.run(command, folder)
        differs = differences(records(folder), records(alone))
        if not is_told or again[0] or differs or left_over(folder):
            wrong.append((limit, full, again, differs))
    score(f"full disks under sdntk {command}", len(limits), len(wrong))
    assert not wrong


@pytest.mark.parametrize("command", COMMANDS)
def test_a_read_only_disk(server, undisturbed, tmp_path, score, command):
    alone, _ = undisturbed[command]
    wrong = []
    for name in ("finished", "empty"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "finished":
            shutil.copytree(alone / "run", folder / "run")
        make_read_only(folder)
        status, said = server.run(command, folder, as_nobody=True)
        is_right = "warning: no figures are written" in said
        if name == "empty" and command != "illustrate":
            is_right = status == 2 and "error:" in said
        elif status:
            is_right = False
        if not is_right or "Traceback" in said:
            wrong.append((name, status, said))
    score(f"read-only disks under sdntk {command}", 2, len(wrong))
    assert not wrong


def make_read_only(folder):
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
