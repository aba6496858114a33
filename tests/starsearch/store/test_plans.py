"""Every hot statement outside search reads by index, however large the tables are: what EXPLAIN says at some thousands of rows."""

import asyncio
import re
from datetime import UTC, datetime

import psycopg
import pytest
from pgvector import HalfVector
from psycopg.types.json import Json

from starsearch.models import HASH_RECIPE, IndexVersion
from starsearch.store import leases, repository_leases, sweeps, tallies, unfetched
from starsearch.store.database import open_database
from starsearch.store.statements import statement
from starsearch.store.versions import ensure_version
from tests.conftest import cloned

# with fewer, a sequential scan of these narrow rows is rightly cheaper and the tests would prove nothing
ITEMS, REPOSITORIES, MANY = 20_000, 3_000, 5_000
NOW = datetime(2026, 11, 24, tzinfo=UTC)


FILLED = "starsearch_filled"


@pytest.fixture(scope="module")
def filled(server, template):
    """A database that is filled once and cloned for each test."""
    with psycopg.connect(server.place.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {FILLED} TEMPLATE {template}")
    asyncio.run(fill(server.place.dsn(FILLED)))
    return FILLED


@pytest.fixture
def dsn(server, filled):
    yield from cloned(server, filled)


async def fill(dsn):
    async with open_database(dsn) as pool:
        version = await ensure_version(pool, IndexVersion("stub", "", 4, "recipe", "stub", "v1"))
        async with pool.connection() as connection:
            await connection.execute(
                "INSERT INTO repository (full_name, node_id, followed) SELECT 'o/r' || n, 'R_' || n, true FROM generate_series(1, %s) AS n",
                [REPOSITORIES],
            )
            await connection.execute(
                "INSERT INTO item (repository_id, number, node_id, stored_at, type, state, title, content_hash) "
                "SELECT 1 + n %% %s, n, 'I_' || n, now(), 'issue', 'open', 'Title', sha256(n::text::bytea) FROM generate_series(1, %s) AS n",
                [REPOSITORIES, ITEMS],
            )
            await connection.execute(
                "INSERT INTO summary (key, text, source, model, prompt_version, prompt_tokens, completion_tokens) "
                "SELECT content_hash, title, 'model', 'stub', 'v1', 0, 0 FROM item"
            )
            await connection.execute(
                "INSERT INTO digest (version_id, item_id, partition_at, content_hash, summary_key, embedding) "
                "SELECT %s, id, partition_at, content_hash, content_hash, %s FROM item WHERE id %% 2 = 0",
                [version.id, HalfVector([1, 0, 0, 0])],
            )
        await leases.find_due(pool)
        await tallies.fold(pool)
        async with pool.connection() as connection:
            await connection.execute("INSERT INTO tally_dirty VALUES (3), (4)")
            await connection.commit()
            await connection.set_autocommit(True)
            # as autovacuum would, which leaves tables of a few rows alone
            await connection.execute("VACUUM ANALYZE repository, item, summary, digest, due, tally")
            await connection.set_autocommit(False)


class Recorder:
    """Stands for a connection: keeps the statements that a function of ours would run, with their parameters."""

    def __init__(self):
        self.ran = []

    async def execute(self, query, parameters=None):
        self.ran.append((query, parameters))
        return self

    async def fetchall(self):
        return []


async def told(work):
    recorder = Recorder()
    await work(recorder)
    return recorder.ran


async def plan(store, query, parameters=None):
    query = query if isinstance(query, bytes) else query.encode()
    async with store.pool.connection() as connection:
        cursor = await connection.execute(b"EXPLAIN " + query, parameters)
        return "\n".join(line for (line,) in await cursor.fetchall())


def scanned(text):
    """Tables read from end to end."""
    return set(re.findall(r"Seq Scan on (\w+)", text))


def read_whole(text):
    """Tables of which most is read, be it through an index."""
    scans = re.findall(r"Scan (?:using \w+ )?on (\w+)[^(]* \(cost=\S+ rows=(\d+)", text)
    return scanned(text) | {table for table, number in scans if int(number) >= MANY}


LARGE = {"item", "repository", "digest_v1", "summary", "due"}
BY_BLOCK = {"item", "digest_v1", "summary"}
ROW = {
    "repository_id": 1,
    "number": 7_001,
    "type": "issue",
    "state": "open",
    "title": "x",
    "body": "",
    "url": "",
    "labels": [],
    "comments": [],
    "excerpt": False,
    "content_hash": "00",
}
SWEEPER = {"host": "github.com", "worker": 1, "began": NOW, "now": NOW, "since": NOW, "size": 500, "lease": repository_leases.LEASE}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("store_items", {"rows": Json([ROW]), "recipe": HASH_RECIPE}),
        ("due", {"ids": [1, 2, 3], "priority": 0}),
        ("claim_repositories", SWEEPER | {"size": 20}),
        ("to_sweep", {"host": "github.com", "since": NOW, "nodes": ["R_1", "R_2"]}),
    ],
)
async def test_statements_of_crawl_and_ingest(store, name, parameters):
    assert not scanned(await plan(store, statement(name), parameters)) & LARGE


async def test_a_claim_takes_the_next_batch_from_the_index(store):
    parameters = {"version": 1, "priority": 0, "size": 64, "worker": 1, "lease": leases.LEASE}
    text = await plan(store, leases.CLAIM, parameters)
    assert "due_next" in text
    assert re.findall(r"Sort Key: (.*)", text) == ["item.id"]  # of what was leased; what is due comes sorted


async def test_what_a_sweep_tells_and_how_far_it_got(store):
    from starsearch.models import SeenItem

    ran = await told(lambda recorder: sweeps.record_seen(recorder, [(1, SeenItem("I_9", 9, "issue", NOW))]))
    ran += await told(lambda recorder: sweeps.advance(recorder, [sweeps.Reached(1, "issue", NOW, NOW)]))
    ran += await told(lambda recorder: sweeps.entomb(recorder, "github.com", ["I_9"]))
    ran += await told(lambda recorder: sweeps.end_failures(recorder, [1], [9]))
    assert len(ran) >= 6
    for query, parameters in ran:
        if not query.startswith("LOCK"):
            assert not scanned(await plan(store, query, parameters)) & LARGE, query


async def test_finding_what_was_forgotten_looks_at_the_blocks_that_miss_something(store):
    assert not read_whole(await plan(store, statement("forgotten"))) & BY_BLOCK


async def test_finding_what_is_still_to_be_fetched_reads_an_index_and_then_the_blocks_it_names(store):
    async with store.pool.connection() as connection:
        await connection.execute("SET LOCAL enable_seqscan = off")  # of a few hundred rows the planner rightly reads all
        cursor = await connection.execute("EXPLAIN " + unfetched.BLOCKS)
        assert "Index Only Scan using tally_gaps" in "\n".join(line for (line,) in await cursor.fetchall())
    parameters = {"blocks": list(range(50)), "host": "github.com", "repositories": None, "run": 1}
    assert not read_whole(await plan(store, statement("unfetched"), parameters)) & BY_BLOCK


async def test_status_reads_counts_and_the_blocks_that_changed(store):
    for query, parameters in (
        (tallies.COUNTS, None),
        (tallies.RECOUNT, [[3, 4]]),
        (statement("gap_items"), {"versions": [0, 1], "repositories": 5, "examples": 3, "blocks": 400}),
    ):
        assert not read_whole(await plan(store, query, parameters)) & BY_BLOCK, query
