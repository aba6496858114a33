"""One crawl of the followed list, in a process of its own: prints as JSON what it did, what GitHub charged, its CPU and its memory."""

import asyncio
import json
import time

from starsearch.crawling import crawl
from starsearch.pipeline import recorded_run
from starsearch.settings import read_settings
from starsearch.sources import crawl_options, open_graphql
from starsearch.storage import open_store
from tests.standin.control import peak_memory_mb


async def main() -> None:
    settings = read_settings()
    async with open_store(settings) as store, open_graphql(settings) as github, recorded_run(store, "crawl") as run:
        cpu = time.process_time()
        failed = await crawl(store, github, (), run, crawl_options(settings))
        cpu = time.process_time() - cpu
    counts = run.counts.as_dict()
    print(json.dumps(github.usage.as_dict() | counts | {"failed": failed, "cpu_seconds": cpu, "peak_memory_mb": peak_memory_mb()}))


if __name__ == "__main__":
    asyncio.run(main())
