"""The files of a data set: found or fetched, checked, and read into memory.

Archives are read, not unpacked: nothing that an archive says is ever written to disk, and there is
no half-unpacked folder to be taken for a whole one. No more bytes are read from compressed data
than the file is known to have.
"""

import dataclasses
import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from sdntk._arguments import PathLike, as_flag, as_path


@dataclasses.dataclass(frozen=True)
class File:
    """A file as it was published.

    Attributes:
        name: without folders.
        size: in bytes; None where it is not known (the checksum guards the file then).
        checksum: "md5:..." or "sha256:..."; None where none is published.
    """

    name: str
    size: int | None = None
    checksum: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set comes from and what it consists of. Its loader reads nothing else, so tests
    bring a small one.

    Attributes:
        title: the data set's name, for messages.
        files: what the data set consists of, uncompressed.
        url: the address of the folder that the downloads lie in, with a slash at its end.
        downloads: what is fetched: one tar archive of the files, or each file gzipped.
        folder: the folder of the files inside the archive.
        system_folders: where a distribution's package puts the files.
    """

    title: str
    files: tuple[File, ...]
    url: str
    downloads: tuple[File, ...]
    folder: str = "."
    system_folders: tuple[str, ...] = ()

    @property
    def archive(self) -> File | None:
        """The download that holds all the files, if there is one."""
        return self.downloads[0] if self.downloads[0].name.endswith(".tar.gz") else None

    @property
    def remedy(self) -> str:
        """The end of a message about a file that is missing or damaged."""
        urls = ", ".join(self.url + item.name for item in self.downloads)
        return (
            f"Get {self.title} with download=True, or put what is at {urls} into a folder and name "
            "the folder."
        )


def read_files(source: Source, folder: PathLike | None, *, download: bool) -> list[bytes]:
    """The bytes of each of the source's files, checked.

    Args:
        source: the data set.
        folder: the files' folder, the folder above it, the archive or its folder. Left out: the
            folders of the distribution's package, then the user's cache (where pooch puts it).
        download: fetch what is not there, into ``folder`` or the cache; files that are there are
            never replaced.

    Raises:
        FileNotFoundError: a file is missing. ValueError: a file is truncated, damaged or not what
            was published.
    """
    download = as_flag("download", download)
    places = [*map(Path, source.system_folders), _cache()]
    if folder is not None:
        places = [as_path("folder", folder)]
    found = _find(source, places)
    if found is None and download:
        _fetch(source, places[-1])
        found = _find(source, places)
    if found is None:
        raise FileNotFoundError(_not_found(source, places))
    if found.is_dir():
        return [
            _read_file(path, file, source)
            for path, file in zip(_paths(source, found), source.files, strict=True)
        ]
    return _read_archive(found, source)


def _cache() -> Path:
    import pooch  # here and below: an import that only few users need

    return Path(pooch.os_cache("sdntk"))


def _fetch(source: Source, folder: Path) -> None:
    import pooch

    for item in source.downloads:
        if not (folder / item.name).exists():
            try:
                pooch.retrieve(source.url + item.name, item.checksum, fname=item.name, path=folder)
            except (
                OSError,
                ValueError,
            ) as error:  # no connection, no such address, another checksum
                error.add_note(f"while fetching {item.name} to {folder}. {source.remedy}")
                raise


def _find(source: Source, places: list[Path]) -> Path | None:
    """The first folder with all the files, or the first archive."""
    for place in places:
        for folder in (place, place / source.folder):
            if all(path.is_file() for path in _paths(source, folder)):
                return folder
        if source.archive is not None:
            for archive in (place, place / source.archive.name):
                if archive.is_file():
                    return archive
    return None


def _paths(source: Source, folder: Path) -> list[Path]:
    """Where each file lies in the folder: as it is, or gzipped."""
    plain = [folder / file.name for file in source.files]
    return [path if path.is_file() else path.with_name(path.name + ".gz") for path in plain]


def _not_found(source: Source, places: list[Path]) -> str:
    """Which files are missing where the fewest are."""
    folders = [folder for place in places for folder in (place, place / source.folder)]
    missing = [
        [path.name.removesuffix(".gz") for path in _paths(source, folder) if not path.is_file()]
        for folder in folders
    ]
    names, folder = min(zip(missing, folders, strict=True), key=lambda pair: len(pair[0]))
    searched = ", ".join(map(str, places))
    return (
        f"{source.title} was not found in {searched}: {folder} lacks {', '.join(names)}. "
        f"{source.remedy}"
    )


def _read_file(path: Path, file: File, source: Source) -> bytes:
    """A file from a folder, gzipped or not."""
    with (
        _named(path, source),
        gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream,
    ):
        return _read_checked(stream.read, file)


def _read_archive(path: Path, source: Source) -> list[bytes]:
    """The files from a tar archive, checked before anything in it is looked at; in one pass, since
    gzip cannot go back.
    """
    published = source.downloads[0]
    wanted = {PurePosixPath(source.folder) / file.name: file for file in source.files}
    contents = {}
    with _named(path, source), path.open("rb") as stream:
        _check_size(published, os.fstat(stream.fileno()).st_size)
        _check_sum(published, stream)
        stream.seek(0)
        with gzip.open(stream) as inflated, tarfile.open(fileobj=inflated, mode="r|") as tar:
            for member in tar:
                inside = _safe_path(member)
                if inside in wanted:
                    contents[inside] = _read_member(tar, member, wanted[inside])
        if missing := wanted.keys() - contents.keys():
            raise ValueError(f"it holds no file {', '.join(sorted(map(str, missing)))}")
    return [contents[inside] for inside in wanted]


def _safe_path(member: tarfile.TarInfo) -> PurePosixPath:
    """The member's path; a member that no data set has reason to hold is an attack or an
    accident.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"its member {member.name!r} lies outside the archive's folder")
    if not (member.isfile() or member.isdir()):
        raise ValueError(
            f"its member {member.name!r} is neither a file nor a folder but a link or a device"
        )
    return path


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, file: File) -> bytes:
    stream = tar.extractfile(member)
    if stream is None:
        raise ValueError(f"its member {member.name!r} is not a file")
    try:
        return _read_checked(stream.read, file)
    except ValueError as error:
        raise ValueError(f"in its member {member.name!r}: {error}") from None


def _read_checked(read: Callable[[int], bytes], file: File) -> bytes:
    """At most one byte more than the file should have: enough to see that there are too many."""
    content = read(-1 if file.size is None else file.size + 1)
    _check_size(file, len(content))
    _check_sum(file, io.BytesIO(content))
    return content


def _check_size(file: File, size: int) -> None:
    if file.size is not None and size != file.size:
        raise ValueError(
            f"expected {file.size:,} bytes, got {f'{size:,}' if size < file.size else 'more'}"
        )


def _check_sum(file: File, stream: io.BufferedReader | io.BytesIO) -> None:
    if file.checksum is not None:
        algorithm, expected = file.checksum.split(":")
        got = hashlib.file_digest(
            stream, lambda: hashlib.new(algorithm, usedforsecurity=algorithm != "md5")
        ).hexdigest()
        if got != expected:
            raise ValueError(f"expected {algorithm} {expected}, got {got}")


@contextmanager
def _named(path: Path, source: Source) -> Iterator[None]:
    """Say of which file the errors inside are, and what helps."""
    try:
        yield
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise ValueError(
            f"{path} is damaged or not the published file: {error}. Delete it. {source.remedy}"
        ) from error
