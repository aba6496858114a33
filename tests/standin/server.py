"""A stand-in GitHub over real HTTP, for tests and benchmarks: GraphQL, REST, App tokens, limits, a virtual clock, faults.

    world = World()                                      # world.py: repositories, items, changes, the oracle
    repository = world.add_repository("quillcap/marlframe", stars=1_200)
    item = world.add_item(repository, "issue", title="Totals are wrong", body="…")
    with StandIn(world) as github:                       # uvicorn in a thread, on a free port
        github.graphql_url, github.url                   # GraphQL, REST
        github.tokens                                    # accepted bearer tokens: token-a, token-b, token-c; add more
        world.advance(60)
        world.update_item(item, body="They still are")
        world.after("ListIssues", lambda: world.update_item(item))   # items move while a client pages
        github.faults.add("502", operation="Sweep", times=2)         # faults.py lists the kinds
        github.counters.requests["Sweep"], github.counters.all_points, github.counters.fetched_twice, github.counters.log[-1]
        world.record()                                   # what a crawl must hold
    World().populate(40_000, items_each=24)              # many repositories, items made when read; world.hour(4_167, seed=1)
    python -m tests.standin --port 8010 …                # a process of its own, driven by control.Control(url)

What it cannot tell: GitHub's real latency, its CPU limit, and whether ids multiply a query's price (the higher price is charged).
"""

import asyncio
import threading
import time
from typing import Any

import uvicorn

from tests.standin.counters import Counters
from tests.standin.faults import Faults
from tests.standin.limits import Limits
from tests.standin.service import Service
from tests.standin.world import World

START_SECONDS = 30.0


class StandIn:
    """The stand-in for as long as the block lasts. options: see Service."""

    def __init__(self, world: World | None = None, **options: Any) -> None:
        self.world = world or World()
        self.service = Service(self.world, **options)
        self._server = uvicorn.Server(configuration(self.service, port=0))
        self._thread = threading.Thread(target=self._serve, daemon=True, name="stand-in GitHub")

    @property
    def faults(self) -> Faults:
        return self.service.faults

    @property
    def counters(self) -> Counters:
        return self.service.counters

    @property
    def limits(self) -> Limits:
        return self.service.limits

    @property
    def tokens(self) -> set[str]:
        return self.service.limits.tokens

    @property
    def url(self) -> str:
        """Of the REST API."""
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    @property
    def graphql_url(self) -> str:
        return f"{self.url}/graphql"

    def __enter__(self) -> "StandIn":
        self._thread.start()
        end = time.monotonic() + START_SECONDS
        while not self._server.started:
            if time.monotonic() > end or not self._thread.is_alive():
                raise RuntimeError("the stand-in did not start")
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True  # a slow fault may still hold a request
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.run(self._server.serve())


def configuration(service: Service, *, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        service,
        host="127.0.0.1",
        port=port,
        access_log=False,
        log_level="error",
        lifespan="off",
        date_header=False,
        server_header=False,
        proxy_headers=False,
    )
