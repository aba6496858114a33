"""Answers of other servers, read and unpacked up to a size: one that never ends, or unpacks to more than a process holds, ends its own
request and no process. Unpacked here, because a client that unpacks a piece at once makes a thousand times its size of it.
"""

import zlib
from collections.abc import AsyncIterable, Iterable
from typing import Any

import httpx2

MOST_BYTES = 64 * 2**20  # of one answer, unpacked; a hundred items of GitHub's longest bodies are 25 MB, 2,048 vectors of 4,096 numbers 45
ACCEPTED = "gzip"
ABOUT_THE_PACKING = {b"content-encoding", b"content-length", b"transfer-encoding"}


class TooLong(httpx2.ReadError):
    """An answer of more than MOST_BYTES."""


class Unpacker:
    """The pieces of one answer, one after the other, as they are meant."""

    def __init__(self, encoding: str | None, most: int = MOST_BYTES) -> None:
        """`encoding`: Content-Encoding. Raises httpx2.ReadError for one that was not asked for."""
        encoding = (encoding or "identity").strip().lower()
        if encoding not in {"identity", "gzip", "x-gzip"}:
            raise httpx2.ReadError(f"the answer is packed as {encoding[:40]!r}, and only {ACCEPTED} was asked for")
        self._gzip = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._most = self._left = most
        self._began = False

    def feed(self, piece: bytes) -> bytes:
        """Raises TooLong, and httpx2.ReadError for what cannot be unpacked."""
        self._began = self._began or bool(piece)
        if self._gzip and not self._gzip.eof:
            try:
                piece = self._gzip.decompress(piece, self._left + 1)
            except zlib.error as error:
                raise httpx2.ReadError(f"the answer cannot be unpacked: {error}") from error
        self._left -= len(piece)
        if self._left < 0:
            raise TooLong(f"the answer is longer than {self._most // 2**20} MB")
        return piece

    def end(self) -> None:
        """Raises httpx2.ReadError where something is missing; nothing at all, as a proxy's error may be, is whole."""
        if self._gzip and self._began and not self._gzip.eof:
            raise httpx2.ReadError("the answer ended before its end")


def of_the_content(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers without those of the wire, which are wrong once an answer is unpacked."""
    return [(name, value) for name, value in headers if name.lower() not in ABOUT_THE_PACKING]


async def whole(pieces: AsyncIterable[bytes], encoding: str | None) -> bytes:
    """An answer read to its end. Raises httpx2.ReadError, TooLong among them."""
    unpacker = Unpacker(encoding)
    body = b"".join([unpacker.feed(piece) async for piece in pieces])
    unpacker.end()
    return body


async def asked(http: httpx2.AsyncClient, method: str, url: str, **options: Any) -> httpx2.Response:
    """One request of an ordinary client, its answer read. Raises httpx2.RequestError, TooLong among them."""
    async with http.stream(method, url, **options) as answer:
        assert isinstance(answer.stream, httpx2.AsyncByteStream)  # of an AsyncClient
        body = await whole(answer.stream, answer.headers.get("content-encoding"))
        return httpx2.Response(answer.status_code, headers=of_the_content(answer.headers.raw), content=body, request=answer.request)
