"""Files written whole or not at all: what was there stays when a write fails, and nothing else is
left; of several that create a file, the first does; a full disk names the file.
"""

import resource

import pytest

from sdntk import _atomic


def half(file):
    file.write(b"half of it")
    raise ArithmeticError


@pytest.mark.parametrize("write", [_atomic.replace, _atomic.create])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, write):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ArithmeticError):
        write(path, half)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_replace_and_create(tmp_path):
    path = tmp_path / "file"
    for content in (b"first", b"second"):
        _atomic.create(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == b"first"
    _atomic.replace(path, lambda file: file.write(b"third"))
    assert path.read_bytes() == b"third"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(_atomic.os, "link", no_links)
    _atomic.create(tmp_path / "file", lambda file: file.write(b"first"))
    assert (tmp_path / "file").read_bytes() == b"first"


def test_a_full_disk_names_the_file(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/file'"):
            _atomic.replace(tmp_path / "file", lambda file: file.write(bytes(2000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
