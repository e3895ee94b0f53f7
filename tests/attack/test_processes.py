"""Several processes of one command on one folder: the second waits and says for whom, then finds
the work done.

Must hold: the records are those of one process, but for times; every process ends well.
"""

import pytest
from attack.commands import COMMANDS, Server, left_over, records, same

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.mark.parametrize("command", COMMANDS)
def test_processes_on_one_folder_record_what_one_would(server, tmp_path, size, score, command):
    alone = tmp_path / "alone"
    alone.mkdir()
    assert server.run(command, alone) == 0, (alone / "output.txt").read_text()
    for count in size((2,), (2, 4)):
        trials, wrong, waited = size(1, 20), [], 0
        for trial in range(trials):
            folder = tmp_path / f"{count}-{trial}"
            folder.mkdir()
            started = [server.start(command, folder, name=f"out{i}") for i in range(count)]
            ends = [server.wait(process) for process in started]
            said = [(folder / f"out{i}.txt").read_text() for i in range(count)]
            waited += sum(f"is in use by process {started[0]} on" in text for text in said)
            if any(ends) or not same(records(folder), records(alone)) or left_over(folder):
                wrong.append((trial, ends, said))
        score(f"{count} processes of sdntk {command} on one folder", trials, len(wrong))
        assert not wrong
        assert waited or trials == 1  # else nothing was tried
