"""Connections against servers that misbehave on a real wire: each failure by the name that decides who is asked again."""

import asyncio
import gzip
import socket
import time
from contextlib import asynccontextmanager

import httpx2
import pytest

from starsearch.bounded import MOST_BYTES, TooLong
from starsearch.inference.network import CONNECTED, Network
from tests.processes import free_port

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: "


@asynccontextmanager
async def server(answer):
    """`answer` reads and writes; what it has read of a request so far is its head."""

    async def handle(reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await answer(head, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as serving:
        yield f"http://127.0.0.1:{serving.sockets[0].getsockname()[1]}/v1"


@asynccontextmanager
async def opened():
    network = Network(keep_alive_seconds=60, context=httpx2.create_ssl_context())
    try:
        yield network
    finally:
        await network.aclose()


def request(url, read_seconds=5.0, **extensions):
    timeout = httpx2.Timeout(5.0, read=read_seconds).as_dict()
    return httpx2.Request("POST", url, content=b"{}", headers={"x-a": "1"}, extensions={"timeout": timeout} | extensions)


def says(answer):
    async def write(head, reader, writer):
        await reader.readexactly(2)
        writer.write(answer)
        if not answer.endswith(b"\r\n\r\n{}"):
            writer.close()

    return write


async def silent(head, reader, writer):
    await asyncio.sleep(30)


async def aborts(head, reader, writer):
    writer.transport.abort()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (says(b""), httpx2.ReadError),  # perhaps this text is what killed it: not the same as an engine that is not there
        (aborts, httpx2.ReadError),
        (says(HEAD + b"9\r\n\r\n{}!"), httpx2.ReadError),  # cut off
        (says(b"Hello.\r\n\r\n"), httpx2.RemoteProtocolError),  # not HTTP
        (silent, httpx2.ReadTimeout),
    ],
)
async def test_a_connection_that_was_made_and_failed(answer, error):
    async with server(answer) as url, opened() as network:
        with pytest.raises(error) as caught:
            await network.handle_async_request(request(url, read_seconds=0.3))
    assert not isinstance(caught.value, httpx2.ConnectError | httpx2.ConnectTimeout)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_engine_that_is_not_there(scheme):
    async with opened() as network:
        with pytest.raises(httpx2.ConnectError):
            await network.handle_async_request(request(f"{scheme}://127.0.0.1:{free_port()}/v1"))


async def test_a_name_that_is_not_found(monkeypatch):
    async def unknown(*_, **__):
        raise socket.gaierror("no such name")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    async with opened() as network:
        with pytest.raises(httpx2.ConnectError):
            await network.handle_async_request(request("http://engine/v1"))


async def test_an_engine_that_takes_no_connection(monkeypatch):
    async def never(*_, **__):
        await asyncio.sleep(30)

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never)
    started = time.monotonic()
    async with opened() as network:
        asked = httpx2.Request("POST", "http://127.0.0.1:1/v1", extensions={"timeout": {"connect": 0.2, "read": 5.0}})
        with pytest.raises(httpx2.ConnectTimeout):
            await network.handle_async_request(asked)
    assert time.monotonic() - started < 5


async def test_what_is_sent_is_the_request_and_nothing_else():
    heads = []

    async def answer(head, reader, writer):
        heads.append(head.decode().lower())
        await reader.readexactly(2)
        writer.write(HEAD + b"2\r\n\r\n{}")

    async with server(answer) as url, opened() as network:
        await network.handle_async_request(request(url + "/a%2Fb?c=d%20e"))
    lines = heads[0].split("\r\n")
    assert lines[0] == "post /v1/a%2fb?c=d%20e http/1.1"
    assert sorted(line.split(":")[0] for line in lines[1:-2]) == ["content-length", "host", "x-a"]


async def test_an_answer_is_unpacked_and_its_headers_kept():
    body = gzip.compress(b'{"a": 1}')
    packed = b"HTTP/1.1 429 Slow\r\ncontent-encoding: gzip\r\nretry-after: 3\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    async with server(says(packed)) as url, opened() as network:
        answer = await network.handle_async_request(request(url))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
        assert await answer.aread() == b'{"a": 1}'


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_a_bomb_ends_its_own_request(kind):
    body = gzip.compress(bytes(MOST_BYTES + 1))
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-encoding: gzip\r\ncontent-length: {len(body)}\r\n\r\n"
    async with server(says(head.encode() + body)) as url, opened() as network:
        with pytest.raises(TooLong):
            await (await network.handle_async_request(request(url))).aread()


async def test_nothing_is_accepted_that_is_not_unpacked_here():
    heads = []

    async def answer(head, reader, writer):
        heads.append(head.decode().lower())
        writer.write(HEAD + b"2\r\n\r\n{}")

    async with server(answer) as url, opened() as network:
        await network.handle_async_request(httpx2.Request("GET", url, headers={"accept-encoding": "gzip, br, zstd"}))
    assert "\r\naccept-encoding: gzip\r\n" in heads[0]


async def test_a_connection_is_kept_and_only_a_new_one_is_told_of():
    connected = []

    async def told():
        connected.append(True)

    async with server(says(HEAD + b"2\r\n\r\n{}")) as url, opened() as network:
        for _ in range(3):
            await network.handle_async_request(request(url, **{CONNECTED: told}))
    assert len(connected) == 1


async def test_events_come_piece_by_piece():
    heard = asyncio.Event()

    async def events(head, reader, writer):
        await reader.readexactly(2)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await heard.wait()  # the second is written when the first was read
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async with server(events) as url, opened() as network:
        answer = await network.handle_async_request(request(url))
        pieces = aiter(answer.stream)
        assert await anext(pieces) == b"one"
        heard.set()
        assert [piece async for piece in pieces] == [b"two"]
        await answer.aclose()


async def test_events_that_break_off_are_a_lost_connection():
    broken = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n"
    async with server(says(broken)) as url, opened() as network:
        answer = await network.handle_async_request(request(url))
        with pytest.raises(httpx2.ReadError):
            [piece async for piece in answer.stream]
        await answer.aclose()
