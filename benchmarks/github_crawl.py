"""One crawl of the followed list, in a process of its own: prints as JSON what it did, what GitHub charged, its CPU and its memory."""

import asyncio
import json
import time

import httpx2

from starsearch.crawling import crawl
from starsearch.github.client import query_text
from starsearch.pipeline import recorded_run
from starsearch.settings import read_settings
from starsearch.sources import crawl_options, open_graphql
from starsearch.storage import open_store
from tests.standin.control import peak_memory_mb

BARE_REQUESTS = 200
YARDSTICK = "Yardstick"  # the operation that they ask for, so that nobody takes them for the crawl's


async def main() -> None:
    settings = read_settings()
    async with open_store(settings) as store, open_graphql(settings) as github, recorded_run(store, "crawl") as run:
        cpu = time.process_time()
        failed = await crawl(store, github, (), run, crawl_options(settings))
        cpu = time.process_time() - cpu
    told = {"failed": failed, "cpu_seconds": cpu, "peak_memory_mb": peak_memory_mb()}
    bare = await bare_request_ms(settings.github_graphql_url, settings.graphql_tokens[0])
    print(json.dumps(github.usage.as_dict() | run.counts.as_dict() | told | {"bare_request_ms": bare}))


async def bare_request_ms(url: str, token: str) -> float:
    """CPU milliseconds of a small query by the same HTTP library, without anything of ours around it."""
    body = json.dumps({"query": query_text("ping").replace("Ping", YARDSTICK)}).encode()
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as http:
        await http.post(url, content=body)
        cpu = time.process_time()
        for _ in range(BARE_REQUESTS):
            await http.post(url, content=body)
        return 1_000 * (time.process_time() - cpu) / BARE_REQUESTS


if __name__ == "__main__":
    asyncio.run(main())
