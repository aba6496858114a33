"""Items from JSON Lines: a file, a gzipped file, or standard input ("-").

A bad line costs only itself: it is rejected with its number and reason. A file that ends in the middle of a line, or of its
compressed stream, gives everything before that point.
"""

import asyncio
import gzip
import json
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO

import orjson

from starsearch.errors import Rejected
from starsearch.models import Chunk, Item, Rejection, clean, parse_item

ITEMS_PER_CHUNK = 500  # rows of one transaction
BYTES_PER_CHUNK = 64_000_000  # they are one parameter, and PostgreSQL takes at most 1 GB
STDIN = Path("-")


async def read_items(path: Path) -> AsyncIterator[Chunk]:
    """Chunks of a file, in order, parsed in a thread one ahead of whoever stores them."""
    chunks = read_chunks(path)
    following = asyncio.create_task(asyncio.to_thread(next, chunks, None))
    while chunk := await following:
        following = asyncio.create_task(asyncio.to_thread(next, chunks, None))
        yield chunk


def read_chunks(path: Path) -> Iterator[Chunk]:
    items: list[Item] = []
    rejections: list[Rejection] = []
    read, name = 0, clean(path.name)
    for number, line in _lines(path):
        read += len(line) if isinstance(line, bytes) else 0
        try:
            items += _parse(line)
        except Rejected as error:
            rejections.append(Rejection(number, str(error)))
        if len(items) + len(rejections) >= ITEMS_PER_CHUNK or read >= BYTES_PER_CHUNK:
            yield Chunk(tuple(items), tuple(rejections), name=name, bytes_read=read)
            items, rejections, read = [], [], 0
    yield Chunk(tuple(items), tuple(rejections), name=name, bytes_read=read)


def _lines(path: Path) -> Iterator[tuple[int, bytes | Rejected]]:
    """Numbered lines; a stream that breaks off ends with the reason in a line's place."""
    number = 0
    with _open(path) as file:
        try:
            for number, line in enumerate(file, 1):
                yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield number + 1, Rejected(f"the compressed file is damaged or ends early: {error}")


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path == STDIN:
        return sys.stdin.buffer
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    return path.open("rb")


def _parse(line: bytes | Rejected) -> list[Item]:
    if isinstance(line, Rejected):
        raise line
    if len(line) > BYTES_PER_CHUNK:
        raise Rejected(f"a line of more than {BYTES_PER_CHUNK:,} bytes")
    if not line.strip():
        return []
    return [parse_item(_json(line))]


def _json(line: bytes) -> object:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    # orjson refuses lone surrogates and broken UTF-8, which json takes and the model then cleans
    try:
        return json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        ending = "" if line.endswith(b"\n") else " (the file ends in the middle of this line)"
        raise Rejected(f"not JSON: {error}{ending}"[:300]) from error
