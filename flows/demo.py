"""demo: what `make demo` runs; the main job once, on this machine, ending with a question and its answer.

GitHub where it answers, else a bundled sample, and it says which. Needs no GPU, key or cluster.
"""

import asyncio
import os
import sys
from importlib import resources
from pathlib import Path

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")  # the demo tells its own story

from prefect import flow

from flows.crawl import crawl
from starsearch.audit import read_status
from starsearch.errors import RateLimited, SourceUnavailable, StarsearchError
from starsearch.finder import open_finder
from starsearch.github.rest import open_source
from starsearch.models import Hit
from starsearch.settings import read_settings
from starsearch.storage import open_store
from starsearch.terminal import err, out, print_counts, print_hits, print_status
from tasks.digesting import digest_due
from tasks.stages import ingest_file, prepared, report

REPOSITORIES = ["pgvector/pgvector", "psycopg/psycopg", "encode/uvicorn"]
NEWEST = 30
QUESTIONS = {
    "sample": "why does the player get killed while my phone is locked",
    "GitHub": "something stopped working after upgrading to a newer release",
}


@flow(name="demo-sample")
async def crawl_sample() -> dict[str, float]:
    """The main job on the bundled sample: store, summarize, embed, report."""
    async with prepared():
        with resources.as_file(resources.files("starsearch.embedded") / "sample.jsonl") as path:
            stored = await ingest_file(Path(path))
        digested = await digest_due()
        return (await report("crawl-counts", [stored, digested], {})).as_dict()


async def choose_source() -> str:
    settings = read_settings()
    try:
        async with open_source(settings.github_rest_url, settings.github_token) as source:
            await source.ping()
    except (SourceUnavailable, RateLimited) as error:
        out.print(f"GitHub cannot be used now ({str(error).split(':')[0]}).", markup=False)
        return "sample"
    if source.quota.remaining is not None and source.quota.remaining < len(REPOSITORIES):
        return "sample"
    return "GitHub"


async def ask(question: str) -> list[Hit]:
    async with open_finder(read_settings()) as finder:
        return (await finder.find(question, limit=3)).hits


async def main() -> int:
    """Exit code: 0 with a hit, else 1."""
    out.print("[bold]StarSearch[/]: crawl, summarize, embed, search; on this machine, without a GPU or a key\n")
    source = await choose_source()
    if source == "GitHub":
        out.print(f"1. Crawling the newest {NEWEST} issues and pull requests of {', '.join(REPOSITORIES)} (GitHub).")
    else:
        out.print("1. Crawling a bundled sample of invented issues and pull requests instead.")
    out.print("   A Prefect flow does it, on a server that it starts for itself; that takes most of the time.")
    counts = await (crawl(REPOSITORIES, newest=NEWEST) if source == "GitHub" else crawl_sample())
    print_counts(counts)
    out.print("\n2. What the database holds now:")
    async with open_store(read_settings()) as store:
        print_status(await read_status(store.pool))
    question = QUESTIONS[source]
    out.print(f"\n3. A question, asked in other words than the right answer uses: [bold]{question}[/]\n")
    hits = await ask(question)
    print_hits(hits)
    out.print(
        "\nTry next (in this folder):\n"
        '  .venv/bin/starsearch search "your own words"\n'
        "  .venv/bin/starsearch crawl --repo owner/name\n"
        "  .venv/bin/starsearch status\n"
        "  .venv/bin/starsearch --help",
        markup=False,
    )
    return 0 if hits else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except StarsearchError as error:
        err.print(f"starsearch: {error}", markup=False)
        sys.exit(error.exit_code)
