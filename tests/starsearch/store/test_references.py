"""What digests refer to, and refuse to lose: as foreign keys would, whoever comes first; and how they are written."""

import asyncio

import numpy as np
import psycopg
import pytest

from starsearch.models import DueItem, IndexVersion, Summary
from starsearch.store.database import connect, keep_plans
from starsearch.store.digests import Digest, store_digests
from starsearch.store.migrate import migrations
from starsearch.store.runs import start_run
from starsearch.store.versions import GRAPH, ensure_version

VERSION = IndexVersion("embedder", "", 3, "recipe", "summarizer", "v1")
DIGEST = (
    "INSERT INTO digest (version_id, item_id, partition_at, content_hash, summary_key, run_id, embedding) "
    "SELECT %(version)s, id, partition_at, content_hash, %(key)s, %(run)s, '[1,0,0]' FROM item"
)


@pytest.fixture
async def digest(store):
    """What to fill in to digest the one item, with a summary by another model beside the right one."""
    version = await ensure_version(store.pool, VERSION)
    run = await start_run(store.pool, "digest")
    await execute(store.dsn, "INSERT INTO repository (full_name) VALUES ('owner/name')")
    await execute(
        store.dsn,
        "INSERT INTO item (repository_id, number, stored_at, type, state, title, content_hash) "
        "SELECT id, 1, now(), 'issue', 'open', 'Title', 'hash' FROM repository",
    )
    for key, model in (("right", "summarizer"), ("others", "another model"), ("unused", "summarizer")):
        await execute(
            store.dsn,
            "INSERT INTO summary (key, text, source, model, prompt_version, prompt_tokens, completion_tokens) "
            "VALUES (%(key)s, 'text', 'model', %(model)s, 'v1', 0, 0)",
            {"key": key.encode(), "model": model},
        )
    return {"version": version.id, "key": b"right", "run": run}


async def execute(dsn, statement, parameters=None):
    async with await connect(dsn) as connection:
        return (await connection.execute(statement, parameters)).rowcount


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"key": b"nobody's"}, psycopg.errors.ForeignKeyViolation),
        ({"run": 999_999}, psycopg.errors.ForeignKeyViolation),
        ({"key": b"others"}, psycopg.errors.CheckViolation),  # a summary by another model
        ({"version": 99}, psycopg.errors.CheckViolation),  # no partition takes it
    ],
)
@pytest.mark.parametrize("table", ["digest", "digest_v1"])
async def test_a_digest_of_what_is_not_there_is_refused(store, digest, change, error, table):
    with pytest.raises(error):
        await execute(store.dsn, DIGEST.replace("INTO digest", f"INTO {table}"), digest | change)
    assert await execute(store.dsn, DIGEST.replace("INTO digest", f"INTO {table}"), digest | {"run": None}) == 1
    with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.ForeignKeyViolation)):
        await execute(store.dsn, f"UPDATE {table} SET summary_key = 'nobody''s'")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM summary WHERE key = 'right'",
        "DELETE FROM run",
        "DELETE FROM index_version",
        "UPDATE summary SET key = 'new' WHERE key = 'right'",
        "TRUNCATE summary",
    ],
)
async def test_what_a_digest_refers_to_stays(store, digest, statement):
    await execute(store.dsn, DIGEST, digest)
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        await execute(store.dsn, statement)
    assert await execute(store.dsn, "DELETE FROM summary WHERE key = 'unused'") == 1


@pytest.mark.parametrize("first", ["the digest", "the deletion"])
async def test_of_a_digest_and_the_deletion_of_its_summary_at_the_same_time_one_is_refused(store, digest, first):
    statements = [(DIGEST, digest), ("DELETE FROM summary WHERE key = 'right'", None)]
    if first == "the deletion":
        statements.reverse()
    async with await connect(store.dsn) as one, await connect(store.dsn) as other:
        async with one.transaction():
            await one.execute(*statements[0])
            later = asyncio.create_task(other.execute(*statements[1]))
            await wait_until_it_waits(store.dsn, other.info.backend_pid)
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            await later


async def wait_until_it_waits(dsn, backend):
    async with await connect(dsn) as watching, asyncio.timeout(60):
        while await (await watching.execute("SELECT pg_blocking_pids(%s) = '{}'", [backend])).fetchone() == (True,):
            await asyncio.sleep(0.02)


async def test_plans_are_kept_while_a_batch_is_written_and_no_longer(store):
    async with store.pool.connection() as connection:
        await keep_plans(connection)
        assert await (await connection.execute("SHOW plan_cache_mode")).fetchone() == ("auto",)
        await connection.commit()
        assert await (await connection.execute("SHOW plan_cache_mode")).fetchone() == ("force_custom_plan",)


async def test_digests_are_read_as_they_were_written_and_the_later_ones_replace_the_earlier(store, digest):
    ((item, moment),) = await rows(store, "SELECT id, partition_at FROM item")
    due = DueItem(item, "issue", "open", "Title", "", (), b"hash", moment)
    for key, numbers in ((b"unused", [1, 0, 0]), (b"right", [-0.1, 1e-6, 0.70000005])):
        vector = np.array(numbers, np.float32)
        run = await start_run(store.pool, "another")
        async with store.pool.connection() as connection:
            await store_digests(connection, digest["version"], [Digest(due, Summary(key, "text", "model"), vector)], run)
        (stored,) = await rows(store, "SELECT item_id, partition_at, content_hash, summary_key, run_id, embedding FROM digest")
        assert stored[:5] == (item, moment, b"hash", key, run)
        assert (stored[5].to_numpy() == vector.astype(np.float16)).all()


async def rows(store, statement):
    async with store.pool.connection() as connection:
        return await (await connection.execute(statement)).fetchall()


async def test_graphs_made_before_are_rebuilt_as_new_ones_are_and_can_be_added_to_until_then(store, digest):
    wanted = dict(option.split(" = ") for option in GRAPH.split(", "))
    assert await options(store) == wanted
    await execute(store.dsn, "ALTER INDEX digest_v1_embedding_idx SET (m = 16, ef_construction = 64)")
    await execute(store.dsn, "REINDEX INDEX digest_v1_embedding_idx")
    (better,) = [migration for migration in migrations() if migration.name == "0016_more_edges.sql"]
    await execute(store.dsn, better.text.encode())
    assert await options(store) == wanted
    assert await execute(store.dsn, DIGEST, digest) == 1
    await execute(store.dsn, "REINDEX INDEX CONCURRENTLY digest_v1_embedding_idx")


async def options(store):
    async with store.pool.connection() as connection:
        cursor = await connection.execute("SELECT reloptions FROM pg_class WHERE relname = 'digest_v1_embedding_idx'")
        ((found,),) = await cursor.fetchall()
    return dict(option.split("=") for option in found)
