"""The wire under the OpenAI client: aiohttp's connections in the shape of an httpx2 transport.

httpx2's own spend 0.6 ms of CPU a request on their pool, three times as much as everything else that the client does with it
(benchmarks/README.md). The SDK brings a transport like this one (DefaultAioHttpClient); this one tells a connection that was never
made from one that broke off, which decides whether an item may be at fault, and reads each answer to its end, but for events.
"""

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx2
import yarl

from starsearch.bounded import ACCEPTED, Unpacker, of_the_content, whole

NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # headers that aiohttp would add of its own
CONNECTED = "starsearch.connected"
"""Key of a request's extension: an async function to be called when a new connection was made for it."""
EVENTS = "text/event-stream"
"""What an answer says that it is when it comes piece by piece."""

# the first that fits; whatever else goes wrong while an answer is awaited is a connection that broke off
_ERRORS: list[tuple[type[Exception], type[httpx2.TransportError]]] = [
    (aiohttp.ConnectionTimeoutError, httpx2.ConnectTimeout),
    (aiohttp.ClientConnectorError, httpx2.ConnectError),
    (aiohttp.ServerTimeoutError, httpx2.ReadTimeout),
    (aiohttp.InvalidURL, httpx2.UnsupportedProtocol),
    (aiohttp.ClientHttpProxyError, httpx2.ProxyError),
    (aiohttp.ClientResponseError, httpx2.RemoteProtocolError),
    (aiohttp.ClientError, httpx2.ReadError),
]


class Network(httpx2.AsyncBaseTransport):
    """As many connections as there are requests in flight; how many those may be is the balancer's business."""

    def __init__(self, *, keep_alive_seconds: float, context: ssl.SSLContext, proxy: str | None = None) -> None:
        """To be made where an event loop runs. `proxy`: the address of one for all requests."""
        self._proxy = proxy
        traces = aiohttp.TraceConfig()
        traces.on_connection_create_end.append(_tell_connected)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=keep_alive_seconds, ssl=context),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # done here, up to a size
            skip_auto_headers=NOT_ADDED,
            trace_configs=[traces],
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Raises httpx2.TransportError."""
        timeout = request.extensions.get("timeout", {})
        with _translated():
            answer = await self._session.request(
                request.method,
                yarl.URL(str(request.url), encoded=True),
                headers=_accepting(request.headers),
                data=request.content or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(connect=timeout.get("connect"), sock_read=timeout.get("read")),
                server_hostname=request.extensions.get("sni_hostname"),
                proxy=self._proxy,
                trace_request_ctx=request.extensions.get(CONNECTED),
            )
            headers = of_the_content(answer.raw_headers)
            if answer.content_type == EVENTS:
                return httpx2.Response(answer.status, headers=headers, stream=_Coming(answer))
            async with answer:
                body = await whole(answer.content.iter_any(), answer.headers.get("content-encoding"))
        return httpx2.Response(answer.status, headers=headers, stream=httpx2.ByteStream(body))

    async def aclose(self) -> None:
        await self._session.close()


class _Coming(httpx2.AsyncByteStream):
    """An answer as it comes in. Its connection is kept where it came to its end."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated():
            unpacker = Unpacker(self._answer.headers.get("content-encoding"))
            async for piece in self._answer.content.iter_any():
                yield unpacker.feed(piece)

    async def aclose(self) -> None:
        self._answer.release()


def _accepting(headers: httpx2.Headers) -> list[tuple[str, str]]:
    """The SDK would take whatever httpx2 can unpack."""
    return [(name, ACCEPTED if name == "accept-encoding" else value) for name, value in headers.multi_items()]


async def _tell_connected(_: aiohttp.ClientSession, context: Any, __: aiohttp.TraceConnectionCreateEndParams) -> None:
    if context.trace_request_ctx:
        await context.trace_request_ctx()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, OSError) as error:
        kind = next((ours for theirs, ours in _ERRORS if isinstance(error, theirs)), httpx2.ReadError)
        raise kind(str(error) or type(error).__name__) from error
