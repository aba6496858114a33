"""Answers that are too long, or cannot be unpacked: an error of their own request, and no more memory than was allowed."""

import gzip
import tracemalloc
import zlib

import httpx2
import pytest

from starsearch.bounded import TooLong, Unpacker, asked

MB = 2**20
BOMB = gzip.compress(bytes(256 * MB), 9)  # 0.25 MB


def unpacked(encoding, *pieces, most=MB):
    unpacker = Unpacker(encoding, most)
    body = b"".join(unpacker.feed(piece) for piece in pieces)
    unpacker.end()
    return body


@pytest.mark.parametrize("encoding", [None, "", "identity", "gzip", "GZIP", "x-gzip"])
def test_what_was_sent_is_what_is_read(encoding):
    text = bytes(range(256)) * 500
    sent = gzip.compress(text) if encoding and "gzip" in encoding.lower() else text
    assert unpacked(encoding, *(sent[n : n + 100] for n in range(0, len(sent), 100))) == text


@pytest.mark.parametrize("size", [MB, MB + 1])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_the_limit_is_the_last_byte_allowed(encoding, size):
    sent = gzip.compress(bytes(size)) if encoding == "gzip" else bytes(size)
    if size == MB:
        assert len(unpacked(encoding, sent)) == MB
    else:
        with pytest.raises(TooLong, match="longer than 1 MB"):
            unpacked(encoding, sent)


def test_a_bomb_is_not_unpacked():
    tracemalloc.start()
    try:
        with pytest.raises(TooLong):
            unpacked("gzip", BOMB)
        assert tracemalloc.get_traced_memory()[1] < 4 * MB
    finally:
        tracemalloc.stop()


def test_nothing_is_nothing_however_it_is_packed():
    assert unpacked("gzip") == unpacked("gzip", b"") == unpacked(None) == b""


def test_what_follows_a_packed_answer_is_counted():
    with pytest.raises(TooLong):
        unpacked("gzip", gzip.compress(b"{}"), *[bytes(MB // 4)] * 5)


@pytest.mark.parametrize(
    ("encoding", "sent", "reason"),
    [
        ("gzip", b"not packed at all", "cannot be unpacked"),
        ("gzip", gzip.compress(b"cut off" * 100)[:-9], "ended before its end"),
        ("deflate", zlib.compress(b"x"), "packed as 'deflate', and only gzip was asked for"),
        ("gzip, gzip", b"", "only gzip was asked for"),
    ],
    ids=["not packed", "cut off", "deflate", "twice"],
)
def test_what_cannot_be_unpacked_is_a_broken_connection(encoding, sent, reason):
    with pytest.raises(httpx2.ReadError, match=reason):
        unpacked(encoding, sent)


async def test_an_ordinary_clients_answer_is_read_with_its_address_and_links():
    packed = gzip.compress(b'{"a": 1}')
    headers = {"content-encoding": "gzip", "link": '<https://api.example/2>; rel="next"'}

    def answer(request):
        return (
            httpx2.Response(302, headers={"location": "/1"})
            if request.url.path == "/0"
            else httpx2.Response(200, headers=headers, content=packed)
        )

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer), follow_redirects=True, base_url="https://api.example") as http:
        response = await asked(http, "GET", "/0")
    assert (response.json(), response.url.path, response.links["next"]["url"]) == ({"a": 1}, "/1", "https://api.example/2")


async def test_an_answer_without_an_end_is_given_up():
    given = 0

    async def endless():
        nonlocal given
        while True:
            given += MB
            yield bytes(MB)

    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=endless()))
    async with httpx2.AsyncClient(transport=transport) as http:
        with pytest.raises(TooLong, match="longer than 64 MB"):
            await asked(http, "GET", "https://api.example")
    assert given == 65 * MB
