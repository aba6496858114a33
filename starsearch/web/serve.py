"""Serving: which address, who may ask there, and a process that ends politely."""

import ipaddress

import uvicorn

from starsearch.settings import Settings
from starsearch.web.app import build_app
from starsearch.web.guard import Access, is_loopback
from starsearch.web.site import open_site

LONGEST_ADDRESS = 256 * 1024  # read, so that a question that is too long gets a sentence, not a broken connection
KEEP_ALIVE_SECONDS = 75  # longer than the 60 s of most balancers: whoever closes first loses the request that is just coming
GRACE_SECONDS = 20  # for answers under way when the process is told to stop


def access_for(host: str, *, anyone: bool, requests_per_minute: int) -> Access:
    """On this machine only: no keys, and only this machine's names. Elsewhere: keys, unless `anyone` may ask."""
    if is_loopback(host):
        return Access(False, requests_per_minute, frozenset({"localhost", "127.0.0.1", "[::1]", _in_address(host)}))
    return Access(not anyone, requests_per_minute)


async def serve(settings: Settings, *, host: str, port: int, access: Access) -> None:
    """Until told to stop. Raises PreconditionMissing where the database is missing; the engine may come later."""
    async with open_site(settings) as site:
        config = uvicorn.Config(
            build_app(site, access),
            host=host,
            port=port,
            log_level="warning",
            log_config=None,  # in our form, on stderr
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=LONGEST_ADDRESS,
        )
        await uvicorn.Server(config).serve()


def _in_address(host: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host
