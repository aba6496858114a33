"""Purge: gone everywhere, remembered, never back; and what is left still adds up."""

import asyncio
import json
import re
import subprocess
import sys

import pytest

from starsearch.audit import read_status
from starsearch.crawling import crawl
from starsearch.github.rest import open_source
from starsearch.jsonl import read_items
from starsearch.models import RepositoryFacts, SeenItem, parse_item
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.store import purges
from starsearch.store.items import store_rows
from starsearch.store.purges import Target, plan, purge, unfinished
from starsearch.store.repositories import listed, store_facts, to_sweep
from starsearch.store.repository_leases import begin_sweep, claim_repositories
from starsearch.store.sweeps import record_seen
from starsearch.store.tallies import reconcile

HOST = "github.com"
TABLES = ("item", "digest", "summary", "due", "dead_letter", "fetch_failure", "lost_item", "rejection")


async def rows(store, query, *parameters):
    async with store.pool.connection() as connection:
        cursor = await connection.execute(query, parameters)
        return await cursor.fetchall() if cursor.description else cursor.rowcount


@pytest.fixture
def records(row):
    """Thirty items of three authors in two repositories; ada's comment stands under one of bob's."""
    authors = ["Ada", "bob", "eve"]
    return [
        row(
            n,
            repo="quillcap/marlframe" if n <= 20 else "tern/gull",
            url=f"https://github.com/{'quillcap/marlframe' if n <= 20 else 'tern/gull'}/issues/{n}",
            author=authors[n % 3],
            body=f"{authors[n % 3]} saw secret number {n} and wrote it down here.",
            comments=[{"body": "the zyzzyva of Ada", "author": "ada"}, {"body": "Eve agrees.", "author": "eve"}] if n == 1 else [],
        )
        for n in range(1, 31)
    ]


@pytest.fixture
async def filled(store, engines, records, jsonl):
    await ingest_and_digest(store, engines, jsonl(*records))
    return records


async def ingest_and_digest(store, engines, path):
    async with recorded_run(store, "ingest") as run:
        await ingest(store, read_items(path), run)
        await digest(store, engines, run)
    return run.counts


async def everything(store):
    """The whole database as text, without what is remembered and the words index."""
    found = []
    for table in TABLES:
        found += [line for (line,) in await rows(store, f"SELECT t::text FROM {table} t")]
    return "\n".join(found)


async def adds_up(store):
    status = await read_status(store.pool)
    assert status.complete, status.gaps
    assert status.known == status.stored == status.summarized == status.embedded
    assert (await reconcile(store.pool)).differences == []
    return status.known


TARGETS = [
    (Target(HOST, "QuillCap/Marlframe"), 20, "quillcap"),
    (Target(HOST, "tern/gull", 25), 1, "secret number 25"),
    (Target(HOST, author="ADA"), 10, "ada"),
]


@pytest.mark.parametrize(("target", "items", "trace"), TARGETS)
async def test_it_is_gone_everywhere_and_a_file_does_not_bring_it_back(store, engines, filled, jsonl, target, items, trace):
    assert re.search(rf"\b{trace}\b", (await everything(store)).lower())
    would = await plan(store.pool, target)
    assert await adds_up(store) == 30
    done = await purge(store.pool, target)
    spent = (await read_status(store.pool)).usage["prompt_tokens"]
    assert (done.items, done.digests, done.comments) == (items, items, would.comments)
    assert would.items == items
    if target.author:
        assert done.comments == 1  # bob's item is digested again, without what ada said
        async with recorded_run(store, "digest") as run:
            await digest(store, engines, run)
        assert run.counts.embedded == 1
        spent = (await read_status(store.pool)).usage["prompt_tokens"]
        await purge(store.pool, target)  # and the summary of the text with it is not left behind
        assert "zyzzyva" not in await everything(store)
    assert await adds_up(store) == 30 - items
    counts = await ingest_and_digest(store, engines, jsonl(*filled))
    assert (counts.inserted, counts.rejected) == (0, items)
    assert not re.search(rf"\b{trace}\b", (await everything(store)).lower())
    assert await adds_up(store) == 30 - items
    assert (await purge(store.pool, target)).items == 0
    assert await rows(store, "SELECT count(*) FROM engine_call c, unnest(item_ids) AS i WHERE i NOT IN (SELECT id FROM item)") == [(0,)]
    assert (await read_status(store.pool)).usage["prompt_tokens"] == spent  # what it cost stays, whom it was for does not


async def test_what_others_use_too_stays(store, engines, row, jsonl):
    same = {"title": "Bump lodash", "body": "Bumps lodash to the newest release."}
    await ingest_and_digest(store, engines, jsonl(row(1, **same, author="ada"), row(2, **same, author="bob")))
    done = await purge(store.pool, Target(HOST, author="ada"))
    assert (done.items, done.summaries) == (1, 0)
    assert await adds_up(store) == 1


async def crawl_finds(store, repository, items):
    """What a crawl does with one repository: tell of items, then store their text; returns what it asked for and what it stored."""
    async with store.pool.connection() as connection:
        seen = [(repository, SeenItem(item.node_id, item.number, "issue", item.updated_at)) for item in items]
        wanted = await record_seen(connection, seen)
        counts = await store_rows(connection, [(repository, item) for item in items if item.node_id in wanted], (), name="x", run_id=1)
    return wanted, counts.inserted


@pytest.fixture
async def crawled(store, row):
    """A repository known by node id with three crawled items."""
    async with recorded_run(store, "crawl"):
        pass
    facts = RepositoryFacts("R_1", "quillcap/marlframe")
    async with store.pool.connection() as connection:
        ids = await store_facts(connection, HOST, [facts])
        await connection.execute("UPDATE repository SET followed = true")
    items = [parse_item(row(n, node_id=f"I_{n}", author="Ada" if n == 1 else "bob")) for n in (1, 2, 3)]
    await crawl_finds(store, ids["R_1"], items)
    return ids["R_1"], items


async def test_a_crawl_does_not_bring_back_an_item_or_an_author(store, crawled):
    repository, items = crawled
    await purge(store.pool, Target(HOST, "quillcap/marlframe", 2))
    await purge(store.pool, Target(HOST, author="ada"))
    wanted, inserted = await crawl_finds(store, repository, items)
    assert (wanted, inserted) == ({"I_1"}, 0)  # a sweep cannot know whose it is, and so asks
    assert await rows(store, "SELECT number FROM item") == [(3,)]
    assert (await read_status(store.pool)).known == 1


async def test_a_purged_item_stays_away_when_it_is_transferred(store, crawled):
    _, (_, item, _) = crawled
    await purge(store.pool, Target(HOST, "quillcap/marlframe", 2))
    async with store.pool.connection() as connection:
        elsewhere = (await store_facts(connection, HOST, [RepositoryFacts("R_2", "tern/gull")]))["R_2"]
    wanted, inserted = await crawl_finds(store, elsewhere, [item.model_copy(update={"number": 77, "repo": "tern/gull"})])
    assert (wanted, inserted) == (set(), 0)


async def test_a_purged_repository_is_not_swept_under_any_name_and_its_name_is_free(store, crawled):
    _, items = crawled
    await purge(store.pool, Target(HOST, "quillcap/marlframe"))
    facts = [RepositoryFacts("R_1", "quillcap/renamed"), RepositoryFacts("R_9", "quillcap/marlframe")]
    async with store.pool.connection() as connection:
        ids = await store_facts(connection, HOST, facts)
        await connection.execute("UPDATE repository SET followed = true")
    assert await crawl_finds(store, ids["R_1"], items) == (set(), 0)
    now = items[0].updated_at
    assert [each.node_id for each in await to_sweep(store.pool, HOST, ["R_1", "R_9"], since=now)] == ["R_9"]
    sweeper = await begin_sweep(store.pool, HOST, 1, now=now, since=now)
    assert [each.node_id for each in await claim_repositories(store.pool, sweeper)] == ["R_9"]
    assert await listed(store.pool, HOST) == [("R_9", "quillcap/marlframe")]
    _, inserted = await crawl_finds(store, ids["R_9"], [items[2].model_copy(update={"node_id": "I_9"})])
    assert inserted == 1


async def test_a_crawl_that_names_it_is_refused(store, crawled):
    await purge(store.pool, Target(HOST, "quillcap/marlframe"))
    async with open_source("http://127.0.0.1:1") as source, recorded_run(store, "crawl") as run:
        failed = await crawl(store, source, ["QuillCap/Marlframe"], run)
    assert failed == {"QuillCap/Marlframe": "was purged, and is not taken back"}


async def test_a_purge_that_died_goes_on(store, filled, monkeypatch):
    monkeypatch.setattr(purges, "CHUNK", 4)

    def die(done):
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await purge(store.pool, Target(HOST, "quillcap/marlframe"), die)
    assert await rows(store, "SELECT count(*) FROM item") == [(22,)]
    (left,) = await unfinished(store.pool)
    assert (await purge(store.pool, left)).items == 12
    assert await unfinished(store.pool) == []
    assert await adds_up(store) == 10


async def test_nothing_slips_in_behind_a_purge(store, row, crawled):
    """A writer that looked at the purges before is waited for; one that comes later sees it."""
    repository, _ = crawled
    late = parse_item(row(50, node_id="I_50", author="ada"))
    async with store.pool.connection() as connection:
        await store_rows(connection, [(repository, late)], (), name="x", run_id=1)
        purging = asyncio.create_task(purge(store.pool, Target(HOST, author="Ada")))
        await asyncio.sleep(0.3)
        assert not purging.done()
    assert (await purging).items == 2
    assert await rows(store, "SELECT count(*) FROM item WHERE author = 'ada'") == [(0,)]


def test_the_command(environment, filled):
    def starsearch(*arguments):
        command = [sys.executable, "-m", "starsearch.cli", "purge", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)

    would = json.loads(starsearch("--repo", "tern/gull", "--dry-run", "--json").stdout)
    assert would == {"items": 10, "digests": 10, "summaries": 10, "dead_letters": 0, "comments": 0}
    assert json.loads(starsearch("--repo", "tern/gull", "--json").stdout) == would
    assert json.loads(starsearch("--item", "https://github.com/quillcap/marlframe/issues/3", "--json").stdout)["items"] == 1
    assert "items" in starsearch("--author", "nobody").stdout
    assert [starsearch(*wrong).returncode for wrong in ([], ["--repo", "x"], ["--item", "x"], ["--author", "@"])] == [2] * 4
    assert starsearch("--repo", "a/b", "--author", "c").returncode == 2
