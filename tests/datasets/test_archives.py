"""Files of data sets: found, fetched, checked, read.

Must hold, on small files of the published layout that go through the same code:
- found: the unpacked folder, the folder above it, the archive, the archive's folder, gzipped files,
  the user's cache;
- a missing, truncated, overlong or altered file is an error that names the file, what was expected
  and what came, and how to get the file; nothing that was there is replaced or deleted;
- an archive is checked before it is opened; members outside its folder, links and devices are
  refused; nothing is written to disk (which also means that no killed process leaves half an
  archive unpacked);
- no more is read from a compressed file than it should hold;
- a download happens only when asked for, through pooch, over a real connection (to a server on this
  machine); an altered, broken or refused download leaves nothing behind.
"""

import dataclasses
import functools
import gc
import gzip
import hashlib
import http.server
import io
import re
import tarfile
import threading
import tracemalloc
import warnings

import pytest

from sdntk.datasets._files import File, Source, read_files

CONTENTS = {"train.bin": b"train" * 40, "test.bin": b"test" * 10}
TRAIN, TEST = CONTENTS.values()


def regular(name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def device(name):
    member = tarfile.TarInfo(name)
    member.type = tarfile.CHRTYPE
    return member, b""


WHOLE = [regular(f"data/{name}", content) for name, content in CONTENTS.items()]


def tar_gz(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def published(name, content):
    return File(name, len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")


def source(archive, url="http://localhost:1/"):
    """A source of which ``archive`` is the published archive."""
    files = tuple(
        File(name, len(content), f"md5:{hashlib.md5(content).hexdigest()}")
        for name, content in CONTENTS.items()
    )
    return Source("Small", files, url, (published("small.tar.gz", archive),), folder="data")


def gzipped_source(url="http://localhost:1/"):
    plain = source(b"").files
    downloads = tuple(
        File(f"{n}.gz", None, published("", gzip.compress(c, mtime=0)).checksum)
        for n, c in CONTENTS.items()
    )
    return Source("Gzipped", plain, url, downloads)


def unpack(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)


def everything_below(folder):
    return {
        path.relative_to(folder).as_posix(): path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def read(source, folder, *, download=False):
    """read_files, after which the disk is as it was."""
    before = everything_below(folder.parent)
    try:
        return read_files(source, folder, download=download)
    finally:
        assert download or everything_below(folder.parent) == before


class TestFound:
    @pytest.mark.parametrize("folder", ["", "data"])
    @pytest.mark.parametrize("kind", [str, lambda path: path])
    def test_unpacked(self, tmp_path, folder, kind):
        unpack(tmp_path / "data")
        assert read_files(source(b""), kind(tmp_path / folder), download=False) == [TRAIN, TEST]

    @pytest.mark.parametrize("folder", ["", "small.tar.gz"])
    def test_archive(self, tmp_path, folder):
        archive = tar_gz(regular("data/readme.html", b"x"), *WHOLE)
        (tmp_path / "small.tar.gz").write_bytes(archive)
        assert read(source(archive), tmp_path / folder) == [TRAIN, TEST]

    def test_archive_with_dots_and_folders(self, tmp_path):
        folder = tarfile.TarInfo("./data")
        folder.type = tarfile.DIRTYPE
        archive = tar_gz(
            (folder, b""),
            *(regular(f"./data/{name}", content) for name, content in CONTENTS.items()),
        )
        (tmp_path / "small.tar.gz").write_bytes(archive)
        assert read(source(archive), tmp_path) == [TRAIN, TEST]

    def test_gzipped_in_part(self, tmp_path):
        (tmp_path / "train.bin").write_bytes(TRAIN)
        (tmp_path / "test.bin.gz").write_bytes(gzip.compress(TEST))
        assert read(gzipped_source(), tmp_path) == [TRAIN, TEST]

    def test_system_folder_and_cache_when_no_folder_is_named(self, tmp_path, monkeypatch):
        import pooch

        monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
        packaged = dataclasses.replace(gzipped_source(), system_folders=(str(tmp_path / "system"),))
        with pytest.raises(FileNotFoundError, match=r"system.*cache"):
            read_files(packaged, None, download=False)
        unpack(tmp_path / "cache" / "sdntk")
        assert read_files(packaged, None, download=False) == [TRAIN, TEST]
        unpack(tmp_path / "system")
        (tmp_path / "cache" / "sdntk" / "test.bin").unlink()
        assert read_files(packaged, None, download=False) == [TRAIN, TEST]


class TestMissing:
    def test_everything(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"train\.bin, test\.bin") as caught:
            read(source(b""), tmp_path / "nowhere")
        for part in (
            "Small was not found",
            str(tmp_path / "nowhere"),
            "download=True",
            "http://localhost:1/small.tar.gz",
        ):
            assert part in str(caught.value)

    def test_one_file(self, tmp_path):
        unpack(tmp_path / "data")
        (tmp_path / "data" / "test.bin").unlink()
        with pytest.raises(
            FileNotFoundError, match=re.escape(f"{tmp_path / 'data'} lacks test.bin. ")
        ):
            read(source(b""), tmp_path)

    def test_a_file_where_a_folder_should_be(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(FileNotFoundError, match="Gzipped was not found"):
            read(gzipped_source(), tmp_path / "file")


DAMAGE = {
    "truncated": (lambda content: content[:-1], "expected 40 bytes, got 39"),
    "empty": (lambda _: b"", "expected 40 bytes, got 0"),
    "overlong": (lambda content: content + b"!", "expected 40 bytes, got more"),
    "altered": (
        lambda content: b"!" + content[1:],
        f"expected md5 {hashlib.md5(TEST).hexdigest()}, got ",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("form", ["file", "gzipped", "in the archive"])
def test_damaged_content(tmp_path, case, form):
    change, message = DAMAGE[case]
    content = change(TEST)
    archive = tar_gz(WHOLE[0], regular("data/test.bin", content))
    if form == "in the archive":
        (tmp_path / "small.tar.gz").write_bytes(archive)
    else:
        unpack(tmp_path)
        (tmp_path / "test.bin").unlink()
        name, content = (
            ("test.bin", content) if form == "file" else ("test.bin.gz", gzip.compress(content))
        )
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(source(archive), tmp_path)
    assert "test.bin" in str(caught.value)
    assert "Get Small with download=True" in str(caught.value)


def test_damaged_gzip(tmp_path):
    whole = gzip.compress(TEST, mtime=0)
    unpack(tmp_path)
    (tmp_path / "test.bin").unlink()
    for damaged in (
        whole[:-4],
        whole[:5],
        b"no gzip at all",
        whole[:12] + b"\xff\xff\xff" + whole[15:],
    ):
        (tmp_path / "test.bin.gz").write_bytes(damaged)
        with pytest.raises(
            ValueError, match=re.escape(str(tmp_path / "test.bin.gz")) + " is damaged"
        ):
            read(gzipped_source(), tmp_path)


class TestArchive:
    def refused(self, folder, archive, *, published=None):
        (folder / "inner").mkdir()
        (folder / "inner" / "small.tar.gz").write_bytes(archive)
        with pytest.raises(
            ValueError, match=r"small\.tar\.gz is damaged or not the published file"
        ) as caught:
            read(source(published or archive), folder / "inner")
        return str(caught.value)

    def test_is_checked_before_it_is_opened(self, tmp_path, monkeypatch):
        whole = tar_gz(*WHOLE)
        monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("opened unchecked"))
        altered = bytes([*whole[:40], whole[40] ^ 1, *whole[41:]])
        message = self.refused(tmp_path, altered, published=whole)
        assert (
            f"expected sha256 {hashlib.sha256(whole).hexdigest()}, got "
            f"{hashlib.sha256(altered).hexdigest()}" in message
        )

    def test_truncated(self, tmp_path):
        whole = tar_gz(*WHOLE)
        message = self.refused(tmp_path, whole[:-1], published=whole)
        assert f"expected {len(whole)} bytes, got {len(whole) - 1}" in message

    def test_no_archive_at_all(self, tmp_path):
        self.refused(tmp_path, b"neither gzip nor tar")

    def test_a_file_missing(self, tmp_path):
        assert "it holds no file data/test.bin" in self.refused(tmp_path, tar_gz(WHOLE[0]))

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ([regular("../evil", b"x")], "'../evil' lies outside"),
            ([regular("data/../../evil", b"x")], "lies outside"),
            ([regular("/tmp/evil", b"x")], "'/tmp/evil' lies outside"),
            (
                [link("data/way", ".."), regular("data/way/evil", b"x")],
                "'data/way' is neither a file nor a folder",
            ),
            (
                [link("way", "/tmp"), regular("way/evil", b"x")],
                "'way' is neither a file nor a folder",
            ),
            (
                [link("data/hard", "../outside", tarfile.LNKTYPE)],
                "'data/hard' is neither a file nor a folder",
            ),
            ([device("data/null")], "'data/null' is neither a file nor a folder"),
        ],
    )
    def test_malicious(self, tmp_path, members, message):
        """Refused wherever in the archive the members stand; that nothing is written, ``read``
        asserts.
        """
        (tmp_path / "outside").write_bytes(b"mine")
        assert message in self.refused(tmp_path, tar_gz(*WHOLE, *members))

    def test_a_link_in_place_of_a_file(self, tmp_path):
        (tmp_path / "secret").write_bytes(TEST)
        message = self.refused(tmp_path, tar_gz(WHOLE[0], link("data/test.bin", "../../secret")))
        assert "'data/test.bin' is neither" in message


def test_bombs_are_not_inflated(tmp_path):
    """A gzipped file and an archive's member of 64 MB each where 40 bytes are due."""
    bomb = bytes(2**26)
    archive = tar_gz(WHOLE[0], regular("data/test.bin", bomb))
    compressed = gzip.compress(bomb)
    del bomb
    for name, content in (("test.bin.gz", compressed), ("small.tar.gz", archive)):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / "train.bin").write_bytes(TRAIN)
        (folder / name).write_bytes(content)
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match="expected 40 bytes, got more"):
                read_files(source(archive), folder, download=False)
            assert tracemalloc.get_traced_memory()[1] < 2**23
        finally:
            tracemalloc.stop()


class TestDownload:
    @pytest.fixture
    def server(self, tmp_path, monkeypatch):
        """A folder, its address and what was asked for."""
        requests, folder = [], tmp_path / "server"
        folder.mkdir()

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                requests.append(self.path)

        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
        ) as http_server:
            thread = threading.Thread(target=http_server.serve_forever)
            thread.start()
            yield folder, f"http://127.0.0.1:{http_server.server_port}/", requests
            http_server.shutdown()
            thread.join()
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            # pooch leaves the connection of a failed download to the garbage collector
            gc.collect()

    def test_archive(self, server, tmp_path):
        folder, url, requests = server
        archive = tar_gz(*WHOLE)
        (folder / "small.tar.gz").write_bytes(archive)
        target = tmp_path / "new" / "folder"
        with pytest.raises(FileNotFoundError):
            read_files(source(archive, url), target, download=False)
        assert not requests
        assert read_files(source(archive, url), target, download=True) == [TRAIN, TEST]
        assert everything_below(target) == {"small.tar.gz": archive}
        fetched = len(requests)
        assert fetched > 0
        assert read_files(source(archive, url), target, download=True) == [TRAIN, TEST]
        assert len(requests) == fetched

    def test_into_the_cache(self, server, tmp_path, monkeypatch):
        import pooch

        monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
        folder, url, _ = server
        archive = tar_gz(*WHOLE)
        (folder / "small.tar.gz").write_bytes(archive)
        assert read_files(source(archive, url), None, download=True) == [TRAIN, TEST]
        assert read_files(source(archive, url), None, download=False) == [TRAIN, TEST]

    def test_gzipped_files_that_are_missing(self, server, tmp_path):
        folder, url, _ = server
        (folder / "test.bin.gz").write_bytes(gzip.compress(TEST, mtime=0))
        mine = gzip.compress(TRAIN, 1)  # another compression of the same content stays
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "train.bin.gz").write_bytes(mine)
        assert read_files(gzipped_source(url), tmp_path / "mine", download=True) == [TRAIN, TEST]
        assert (tmp_path / "mine" / "train.bin.gz").read_bytes() == mine

    def test_altered(self, server, tmp_path):
        folder, url, _ = server
        (folder / "small.tar.gz").write_bytes(tar_gz(*WHOLE, regular("more", b"")))
        with pytest.raises(ValueError, match="hash of downloaded file") as caught:
            read_files(source(tar_gz(*WHOLE), url), tmp_path / "new", download=True)
        assert "while fetching small.tar.gz" in caught.value.__notes__[0]
        assert everything_below(tmp_path / "new") == {}

    def test_broken_off(self, server, tmp_path, monkeypatch):
        folder, url, _ = server
        archive = tar_gz(*WHOLE)
        (folder / "small.tar.gz").write_bytes(archive)

        def half(_, file, connection):
            connection.write(file.read(len(archive) // 2))

        monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "copyfile", half)
        with pytest.raises((OSError, ValueError)) as caught:
            read_files(source(archive, url), tmp_path / "new", download=True)
        assert "while fetching small.tar.gz" in caught.value.__notes__[0]
        assert everything_below(tmp_path / "new") == {}

    def test_not_there(self, server, tmp_path):
        with pytest.raises(OSError, match="404") as caught:
            read_files(source(tar_gz(*WHOLE), server[1]), tmp_path / "new", download=True)
        assert "Get Small" in caught.value.__notes__[0]

    def test_what_is_there_and_damaged_is_not_replaced(self, server, tmp_path):
        folder, url, requests = server
        (folder / "small.tar.gz").write_bytes(tar_gz(*WHOLE))
        (tmp_path / "small.tar.gz").write_bytes(b"mine")
        with pytest.raises(ValueError, match=r"damaged.*expected"):
            read_files(source(tar_gz(*WHOLE), url), tmp_path, download=True)
        assert (tmp_path / "small.tar.gz").read_bytes() == b"mine"
        assert not requests
