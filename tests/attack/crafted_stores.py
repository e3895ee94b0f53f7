"""What somebody may do to a Gram store, as tables: name -> a function that does it to the folder,
and, where the store is then refused, a regular expression that the refusal must match.
"""

import dataclasses
import gzip
import json
import os
import shutil
import socket

import numpy as np

from sdntk.gram_matrices.store_description import Description
from sdntk.gram_matrices.tile_files import TileFiles
from sdntk.gram_matrices.tiles import Tiling

HUGE = 3 * 10**9
DEEP = 100_000
NESTED = b"[" * 900 + b"]" * 900


# Changes of zarr.json.


def text(change):
    """A damage that changes the bytes of zarr.json."""

    def damage(store):
        file = store / "zarr.json"
        file.write_bytes(change(file.read_bytes()))

    return damage


def put(value, *keys):
    """A damage that puts a value at a place in zarr.json."""

    def change(content):
        metadata = json.loads(content)
        part = metadata
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        return json.dumps(metadata).encode()

    return text(change)


def drop(*keys):
    """A damage that takes a place out of zarr.json."""

    def change(content):
        metadata = json.loads(content)
        part = metadata
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]
        return json.dumps(metadata).encode()

    return text(change)


def both(*damages):
    """Several damages."""

    def damage(store):
        for part in damages:
            part(store)

    return damage


def codec(name, **configuration):
    return {"name": name, "configuration": configuration}


CHUNK = ("chunk_grid", "configuration", "chunk_shape")
SHARD = ("codecs", 0, "configuration")
OURS = ("attributes", "sdntk")
IDENTITY = (*OURS, "identity")
BYTES = codec("bytes", endian="little")

DESCRIPTIONS = {
    # shape and chunks
    "a huge shape": (put([10**9, 10**9], "shape"), "tiles"),
    "a shape beyond int64": (put([2**70, 2**70], "shape"), "shape"),
    "a huge chunk": (put([10**6, 10**6], *CHUNK), "chunk_grid"),
    "a huge shape of huge chunks": (
        both(put([10**9, 10**9], "shape"), put([10**6, 10**6], *CHUNK)),
        "codecs",
    ),
    "a smaller shape": (put([22, 22], "shape"), "attributes"),
    "a larger shape": (put([24, 24], "shape"), "attributes"),
    "a symmetric matrix that is not square": (put([23, 24], "shape"), "symmetric"),
    "a negative shape": (put([-23, 23], "shape"), "shape"),
    "a shape of 0": (put([0, 0], "shape"), "shape"),
    "a shape of bool": (put([True, True], "shape"), "shape"),
    "a shape of floats": (put([23.0, 23.0], "shape"), "shape"),
    "a shape of strings": (put(["23", "23"], "shape"), "shape"),
    "a shape of lists": (put([[23], [23]], "shape"), "shape"),
    "one axis": (put([23], "shape"), "shape"),
    "three axes": (put([23, 23, 1], "shape"), "shape"),
    "no shape": (drop("shape"), "shape"),
    "a number for a shape": (put(23, "shape"), "shape"),
    "a chunk of 0": (put([0, 0], *CHUNK), "chunks"),
    "a negative chunk": (put([-5, -5], *CHUNK), "chunks"),
    "a chunk larger than the matrix": (put([50, 50], *CHUNK), "chunk_grid"),
    "a chunk that is not square": (put([5, 4], *CHUNK), "chunk_grid"),
    "chunks of one entry": (put([1, 1], *CHUNK), "codecs"),
    "another grid": (put("rectangular", "chunk_grid", "name"), "chunk_grid"),
    "no grid": (drop("chunk_grid"), "chunk_grid"),
    "a list for a grid": (put([5, 5], "chunk_grid"), "configuration"),
    # codecs
    "a transpose": (put([codec("transpose", order=[1, 0]), BYTES], *SHARD, "codecs"), "codecs"),
    "gzip": (put([BYTES, codec("gzip", level=9)], *SHARD, "codecs"), "codecs"),
    "zstd": (put([BYTES, codec("zstd", level=9, checksum=False)], *SHARD, "codecs"), "codecs"),
    "blosc": (put([BYTES, codec("blosc", cname="lz4", clevel=9)], *SHARD, "codecs"), "codecs"),
    "no codecs": (put([], "codecs"), "codecs"),
    "no shard": (put([BYTES, {"name": "crc32c"}], "codecs"), "codecs"),
    "big endian": (put([codec("bytes", endian="big")], *SHARD, "codecs"), "codecs"),
    "an index at the end": (put("end", *SHARD, "index_location"), "codecs"),
    "shards in shards": (put([codec("sharding_indexed")], *SHARD, "codecs"), "codecs"),
    "an unknown codec": (put([codec("evil", run="me")], "codecs"), "codecs"),
    "storage transformers": (put([codec("evil")], "storage_transformers"), "storage_transformers"),
    # values and names
    **{
        f"dtype {name}": (put(name, "data_type"), "data_type")
        for name in (
            "int64",
            "complex64",
            "bool",
            "object",
            "r16",
            "f8,f8",
            "O",
            "",
            8,
            ["float64"],
        )
    },
    "dtype float32": (put("float32", "data_type"), "data_type|attributes"),
    "dtype of another spelling": (put(">f8", "data_type"), "data_type"),
    "filled with 0": (put(0, "fill_value"), "fill_value"),
    "filled with a long string": (put("x" * 50_000, "fill_value"), "fill_value"),
    "other names of chunks": (
        put({"name": "v2", "configuration": {"separator": "."}}, "chunk_key_encoding"),
        "chunk_key_encoding",
    ),
    "another separator": (
        put(".", "chunk_key_encoding", "configuration", "separator"),
        "chunk_key_encoding",
    ),
    "names of axes": (put(["x", "y"], "dimension_names"), "dimension_names"),
    "what must be understood": (put({"must_understand": True}, "evil"), "evil"),
    "zarr 2": (put(2, "zarr_format"), "zarr_format"),
    "a group": (put("group", "node_type"), "node_type"),
    # attributes
    "no attributes": (drop("attributes"), "attributes"),
    "a list of attributes": (put([], "attributes"), "sdntk"),
    "attributes of others": (put({"them": {}}, "attributes"), "sdntk"),
    "more attributes": (put("mine", "attributes", "note"), "attributes"),
    "huge attributes": (put("x" * 10**6, "attributes", "note"), "bytes"),
    "a string for ours": (put("sdntk", *OURS), "version"),
    "an older format": (drop(*OURS, "version"), "another version of sdntk, in format 1"),
    "a newer format": (put(3, *OURS, "version"), "another version of sdntk, in format 3"),
    "a format in words": (put("2", *OURS, "version"), "another version"),
    "no identity": (drop(*IDENTITY), "identity"),
    "a list for an identity": (put([], *IDENTITY), "identity"),
    "more in the identity": (put(1, *IDENTITY, "more"), "identity"),
    "less in the identity": (drop(*IDENTITY, "points"), "identity"),
    "symmetric as a number": (put(1, *IDENTITY, "symmetric"), "symmetric"),
    "not symmetric": (put(False, *IDENTITY, "symmetric"), "attributes"),
    "points as a number": (put(5, *IDENTITY, "points"), "points"),
    "other points": (put("0" * 64, *IDENTITY, "points"), "attributes"),
    "computed in another dtype": (put("float32", *IDENTITY, "computed_in"), "attributes"),
    "values in words": (put([["1"]], *IDENTITY, "kernel_values"), "kernel_values"),
    "values in rows of two lengths": (put([[1.0], []], *IDENTITY, "kernel_values"), "matrix"),
    "no values": (put([], *IDENTITY, "kernel_values"), "kernel_values"),
    "values of nan": (put([[np.nan]], *IDENTITY, "kernel_values"), "kernel_values"),
    "values of infinity": (put([[np.inf]], *IDENTITY, "kernel_values"), "kernel_values"),
    "values as whole numbers": (put([[1]], *IDENTITY, "kernel_values"), "kernel_values"),
    "another checksum": (put("0" * 64, *OURS, "checksum"), "attributes"),
    "no checksum": (drop(*OURS, "checksum"), "attributes"),
    # the text itself
    "an empty file": (text(lambda _: b""), "JSON"),
    "half of it": (text(lambda content: content[: len(content) // 2]), "JSON"),
    "null": (text(lambda _: b"null"), "JSON"),
    "a list": (text(lambda _: b"[]"), "JSON"),
    "bytes that are no text": (text(lambda _: bytes(range(256))), "JSON"),
    "UTF-16": (text(lambda content: content.decode().encode("utf-16")), "JSON"),
    "a byte order mark": (text(lambda content: b"\xef\xbb\xbf" + content), "JSON"),
    "lists nested deep": (text(lambda _: b"[" * DEEP + b"]" * DEEP), "bytes"),
    "lists nested deep, in few bytes": (text(lambda _: b"[" * 30_000 + b"]" * 30_000), "JSON"),
    "objects nested deep": (text(lambda _: b'{"a":' * 9_000 + b"1" + b"}" * 9_000), "JSON"),
    "attributes nested below the limit": (
        text(
            lambda c: c.replace(b'"sdntk": {', b'"a": ' + b"[" * 900 + b"]" * 900 + b', "sdntk": {')
        ),
        "attributes|JSON",
    ),
    "a shape nested below the limit": (
        text(lambda c: c.replace(b"[23, 23]", NESTED)),
        "shape|JSON|recursion",
    ),
    "a key twice": (text(lambda c: c.replace(b"{", b'{"shape": [10, 10], ', 1)), "not written"),
    "more behind it": (text(lambda content: content + b"{}"), "JSON"),
    "blanks": (text(lambda content: content + b"\n"), "not written"),
    "another order": (
        text(lambda c: json.dumps(dict(reversed(json.loads(c).items()))).encode()),
        "not written",
    ),
    "a number of 5,000 digits": (text(lambda c: c.replace(b"[23,", b"[" + b"9" * 5000 + b",")), ""),
    "a number beyond all floats": (text(lambda c: c.replace(b"[23,", b"[1e999,")), "shape"),
    "escapes of half characters": (put("\ud800", *IDENTITY, "points"), "attributes"),
}


# What lies in a file's place.


def instead(name, make):
    """A damage that puts something in the place of a file or folder."""

    def damage(store):
        path = store / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return damage


def sparse(size):
    def make(path):
        with path.open("wb") as file:
            file.truncate(size)

    return make


def unix_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's address has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


def link_to(target):
    return lambda path: path.symlink_to(target)


def moved_and_linked(path_of_copy):
    """The file itself, moved elsewhere, behind a link."""

    def damage(store):
        path = store / path_of_copy
        path.rename(store / "elsewhere")
        path.symlink_to(store / "elsewhere")

    return damage


DESCRIPTION_FILES = {
    "zarr.json of 3 GB": (instead("zarr.json", sparse(HUGE)), "bytes"),
    "zarr.json is a folder": (instead("zarr.json", os.mkdir), "zarr.json"),
    "zarr.json is a pipe": (instead("zarr.json", os.mkfifo), "no regular file"),
    "zarr.json is a socket": (instead("zarr.json", unix_socket), "no regular file"),
    "zarr.json is a link to itself": (
        instead("zarr.json", link_to("zarr.json")),
        "no regular file",
    ),
    "zarr.json is a link to nothing": (instead("zarr.json", link_to("none")), "no regular file"),
    "zarr.json is a link to a device": (
        instead("zarr.json", link_to("/dev/zero")),
        "no regular file",
    ),
    "zarr.json behind a link": (moved_and_linked("zarr.json"), "no regular file"),
}

TILE = "c/1/3"
#: Of a tile in its file: the index, the checksum.
INDEX, HEADER = 16, 48


def tile(change):
    """A damage that changes the bytes of a tile's file."""

    def damage(store):
        path = store / TILE
        path.write_bytes(change(path.read_bytes()))

    return damage


def swap(first, second):
    def damage(store):
        one, other = store / first, store / second
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)

    return damage


def copy_over(source, target):
    return lambda store: shutil.copyfile(store / source, store / target)


def described_as(store, **changes):
    """The files of a store whose description is changed, and signed again."""
    description = Description.from_json((store / "zarr.json").read_bytes())
    return TileFiles(store, dataclasses.replace(description, **changes))


def of_another_store(store):
    """A tile of the same place in a store of the same matrix, of another kernel by its identity."""
    files = described_as(store)
    identity = dataclasses.replace(files.description.identity, kernel_values=[[0.5]])
    described_as(store, identity=identity).write((1, 3), files.read((1, 3)))


def of_another_dtype(store):
    values = described_as(store).read((1, 3))
    described_as(store, dtype=np.dtype(np.float32)).write((1, 3), values)


def transposed(content):
    values = np.frombuffer(content[HEADER:], "<f8").reshape(5, 5)
    return content[:HEADER] + np.ascontiguousarray(values.T).tobytes()


TILES = {
    "two tiles swapped": swap(TILE, "c/0/1"),
    "two tiles of the diagonal swapped": swap("c/1/1", "c/2/2"),
    "a tile of another place": copy_over("c/0/1", TILE),
    "a tile of another store": of_another_store,
    "a tile of another dtype": of_another_dtype,
    "a tile transposed": tile(transposed),
    "a tile in another byte order": tile(
        lambda c: c[:HEADER] + np.frombuffer(c[HEADER:], "<f8").astype(">f8").tobytes()
    ),
    "an empty tile": tile(lambda _: b""),
    "a tile of a header only": tile(lambda content: content[:HEADER]),
    "a tile without its last byte": tile(lambda content: content[:-1]),
    "a tile of one byte more": tile(lambda content: content + b"\0"),
    "a tile of zeros": tile(lambda content: bytes(len(content))),
    "values of zeros": tile(lambda content: content[:HEADER] + bytes(len(content) - HEADER)),
    "values of nan": tile(lambda c: c[:HEADER] + np.full(25, np.nan).tobytes()),
    "a tile without its checksum": tile(lambda c: c[:INDEX] + bytes(32) + c[HEADER:]),
    "another index": tile(lambda c: np.array([48, 2**62], "<u8").tobytes() + c[INDEX:]),
    "the older format": tile(lambda content: content[HEADER:] + b"\1\2\3\4"),
    "a tile that is zipped": tile(gzip.compress),
    "a bomb": tile(lambda _: gzip.compress(bytes(10**7))),
    "a tile of 3 GB": instead(TILE, sparse(HUGE)),
    "a tile is a pipe": instead(TILE, os.mkfifo),
    "a tile is a socket": instead(TILE, unix_socket),
    "a tile is a link to itself": instead(TILE, link_to("3")),
    "a tile is a link to nothing": instead(TILE, link_to("none")),
    "a tile is a link to a device": instead(TILE, link_to("/dev/zero")),
    "a tile is a link to a file outside": instead(TILE, link_to("../../../bystander")),
    "a tile behind a link": moved_and_linked(TILE),
}

IN_THE_WAY = {
    "a tile is a folder": (instead(TILE, os.mkdir), "folder"),
    "a tile is a store": (
        instead(TILE, lambda path: shutil.copytree(path.parents[2], path, ignore=lambda *_: "c")),
        "folder",
    ),
    "a row is a file": (instead("c/1", lambda path: path.write_bytes(b"")), "in the way"),
    "a row is a link to nothing": (instead("c/1", link_to("none")), "in the way"),
    "a row is a link to a folder": (instead("c/1", link_to("../..")), "in the way"),
    "all rows are a file": (instead("c", lambda path: path.write_bytes(b"")), "in the way"),
    "all rows are a link": (instead("c", link_to("..")), "in the way"),
}


# Descriptions that are signed again.


def forge(shape, block_size, *, symmetric=True, tile_bytes=None):
    """A damage: a consistent description of another matrix and, of its first tile, as many bytes as
    it should have, which no disk needs to hold.
    """

    def damage(store):
        identity = dataclasses.replace(
            described_as(store).description.identity, symmetric=symmetric
        )
        files = described_as(store, tiling=Tiling(shape, block_size, symmetric), identity=identity)
        (store / "zarr.json").write_bytes(files.description.to_json())
        if tile_bytes is not None:
            shutil.rmtree(store / "c")
            files.path((0, 0)).parent.mkdir(parents=True)
            sparse(tile_bytes)(files.path((0, 0)))

    return damage


def signed_dtype(name):
    def damage(store):
        files = described_as(store, dtype=np.dtype(name))
        (store / "zarr.json").write_bytes(files.description.to_json())

    return damage


FORGED = {
    "forged: too many tiles": (forge((10**9, 10**9), 5), "tiles"),
    "forged: tiles of one entry": (forge((10**7, 10**7), 1), "tiles"),
    "forged: integers": (signed_dtype(np.int64), "data_type"),
    "forged: complex numbers": (signed_dtype(np.complex64), "data_type"),
    "forged: longer floats": (signed_dtype(np.longdouble), "data_type"),
}

#: What can be opened, but holds nothing.
EMPTY = {
    "forged: a huge matrix": forge((10**9, 10**9), 10**6),
    "forged: a huge tile": forge((10**6, 10**6), 10**6),
    "forged: a tall matrix": forge((2**50, 3), 2**40, symmetric=False),
    "forged: a million tiles": forge((10**6, 10**6), 1000),
    "forged: other points": forge((24, 24), 5),
    "forged: tiles of 8 TB": forge((10**6, 10**6), 10**6, tile_bytes=HEADER + 8 * 10**12),
    "forged: a tile of 400 MB": forge((7_000, 7_000), 7_000, tile_bytes=HEADER + 392 * 10**6),
}
