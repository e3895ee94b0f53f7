"""Several processes of one command on one folder: the second waits and says for whom, then finds
the work done.

Must hold: the records are those of one process, but for times; every process ends well.
"""

import pytest
from attack.commands import COMMANDS, differences, left_over, records

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("command", COMMANDS)
def test_processes_on_one_folder_record_what_one_would(server, tmp_path, size, score, command):
    alone = tmp_path / "alone"
    alone.mkdir()
    status, said = server.run(command, alone)
    assert status == 0, said
    for count in size((2,), (2, 4)):
        trials, wrong, waited = size(1, 20), [], 0
        for trial in range(trials):
            folder = tmp_path / f"{count}-{trial}"
            folder.mkdir()
            started = [server.start(command, folder) for _ in range(count)]
            ends, said = zip(*map(server.wait, started), strict=True)
            waited += sum("is in use by process" in text for text in said)
            differs = differences(records(folder), records(alone))
            if any(ends) or differs or left_over(folder):
                wrong.append((trial, ends, differs, said))
        score(f"{count} processes of sdntk {command} on one folder", trials, len(wrong))
        assert not wrong
        assert waited or trials == 1  # else nothing was tried
