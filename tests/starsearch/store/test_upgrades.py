"""A database of every earlier schema, with data in it, comes up to date: nothing is lost, and what was due, dead or digested still is."""

import json

import numpy as np
import pytest
from pgvector import HalfVector
from pgvector.psycopg import register_vector_async

from starsearch.audit import read_status
from starsearch.models import IndexVersion
from starsearch.store import migrate as module
from starsearch.store.database import connect, open_database
from starsearch.store.dead_letters import Choice, find_dead_letters
from starsearch.store.leases import claim, find_due
from starsearch.store.migrate import migrate, migrations
from starsearch.store.search import search
from starsearch.store.tallies import reconcile
from starsearch.store.versions import active_version

VERSION = IndexVersion("axes", "", 4, "recipe", "model", "v1")
VECTOR = np.array([0.6, 0.8, 0, 0], np.float32)
EARLIER = [migration.number for migration in migrations()[:-1]]
DIGESTED, DUE, DEAD, UNFETCHED = 1, 2, 3, 4
GRAPH = "USING hnsw ((embedding::halfvec(4)) halfvec_cosine_ops) WITH (m = 16, ef_construction = 64)"


async def fill(connection):
    """What every version of the code stored, into the columns that every schema has."""
    await register_vector_async(connection)
    await add_items(connection)
    await add_version(connection)
    await add_outcomes(connection)
    await add_costs(connection)
    if await has(connection, "SELECT FROM pg_class WHERE relname = 'fetch_failure'"):
        await add_failed_fetches(connection)


async def add_items(connection):
    await connection.execute("INSERT INTO repository (full_name, node_id, database_id) VALUES ('quillcap/marlframe', 'R_1', 1)")
    await connection.execute("INSERT INTO run (kind, finished_at, counts) VALUES ('ingest', now(), %s)", [json.dumps({"items": 4})])
    for number in (DIGESTED, DUE, DEAD):
        await connection.execute(
            "INSERT INTO item (repository_id, number, node_id, stored_at, type, state, title, body, url, author, created_at, updated_at, "
            "content_hash, hash_recipe) VALUES (1, %s, %s, now(), 'issue', 'open', %s, 'Doubled in autumn.', %s, 'ada', now(), now(), %s, 'v1')",
            [
                number,
                f"I_{number}",
                f"Totals are wrong in report {number}",
                f"https://github.com/quillcap/marlframe/issues/{number}",
                hash_of(number),
            ],
        )
    await connection.execute("INSERT INTO item (repository_id, number, node_id) VALUES (1, %s, 'I_4')", [UNFETCHED])


async def add_version(connection):
    await connection.execute(
        "INSERT INTO index_version (fingerprint, embedding_model, embedding_revision, dimensions, text_recipe, summary_model, prompt_version, status) "
        "VALUES (%s, 'axes', '', 4, 'recipe', 'model', 'v1', 'shadow')",
        [VERSION.fingerprint],
    )
    if await has(connection, "SELECT FROM information_schema.columns WHERE column_name = 'activated_at'"):
        await connection.execute("UPDATE index_version SET activated_at = now()")
    await connection.execute("UPDATE index_version SET status = 'active'")
    await connection.execute("CREATE TABLE digest_v1 PARTITION OF digest FOR VALUES IN (1)")
    await connection.execute(f"CREATE INDEX digest_v1_embedding_idx ON digest_v1 {GRAPH}")
    for guard in ("refuse_mixed_digests_of", "watch_items_of"):
        if await has(connection, f"SELECT FROM pg_proc WHERE proname = '{guard}'"):
            await connection.execute(f"SELECT {guard}('digest_v1')")


async def add_outcomes(connection):
    """One item digested, one due, one dead."""
    await connection.execute(
        "INSERT INTO summary (key, text, source, model, prompt_version, prompt_tokens, completion_tokens, run_id) "
        "VALUES ('key', 'Totals are doubled.', 'model', 'model', 'v1', 700, 40, 1)"
    )
    await connection.execute(
        "INSERT INTO digest (version_id, item_id, partition_at, content_hash, summary_key, embedding, run_id) "
        "SELECT 1, id, partition_at, content_hash, 'key', %s, 1 FROM item WHERE number = %s",
        [HalfVector(VECTOR), DIGESTED],
    )
    await connection.execute("INSERT INTO due (version_id, item_id) SELECT 1, id FROM item WHERE number = %s", [DUE])
    await connection.execute(
        "INSERT INTO dead_letter (version_id, item_id, stage, reason, detail, attempts, content_hash) "
        "SELECT 1, id, 'summarize', 'empty summary', '', 3, content_hash FROM item WHERE number = %s",
        [DEAD],
    )


async def add_failed_fetches(connection):
    """All dead: of a text that was stored after all, of the text that is known, and of an older one than that."""
    await connection.execute("UPDATE item SET seen_updated_at = updated_at - interval '1 day'")
    await connection.execute("UPDATE item SET seen_updated_at = updated_at + interval '1 hour' WHERE number IN (%s, %s)", [DUE, DEAD])
    await connection.execute(
        "INSERT INTO fetch_failure (item_id, attempts, dead, reason, detail, seen_updated_at) "
        "SELECT id, 3, true, 'FORBIDDEN', '', CASE number WHEN %s THEN seen_updated_at ELSE updated_at - interval '1 day' END "
        "FROM item WHERE stored_at IS NOT NULL",
        [DEAD],
    )


async def add_costs(connection):
    await connection.execute(
        "INSERT INTO engine_call (run_id, purpose, model, lease_token, items, settled_at, outcome, requests, prompt_tokens, completion_tokens) "
        "VALUES (1, 'summary', 'model', 1, 1, now(), 'ok', 1, 700, 40)"
    )

    if await has(connection, "SELECT FROM pg_class WHERE relname = 'engine_usage'"):  # for older ones the migration adds it up
        await connection.execute(
            "INSERT INTO engine_usage SELECT run_id, purpose, model, 1, 0, items, requests, 0, prompt_tokens, 0, completion_tokens, 0, "
            "intended_at, settled_at FROM engine_call"
        )


async def has(connection, query):
    return bool(await (await connection.execute(query)).fetchall())


def hash_of(number):
    return bytes([number]) * 32


async def tables(connection):
    """How many rows each table has that all schemas have."""
    names = ("repository", "item", "run", "summary", "digest", "due", "dead_letter", "engine_call", "index_version")
    return {name: (await (await connection.execute(f"SELECT count(*) FROM {name}")).fetchone())[0] for name in names}


@pytest.mark.parametrize("earlier", EARLIER)
async def test_a_database_of_every_earlier_schema_comes_up_to_date_with_its_data(empty_dsn, monkeypatch, earlier):
    everything = migrations()
    async with await connect(empty_dsn) as connection:
        with monkeypatch.context() as patched:
            patched.setattr(module, "migrations", lambda: everything[:earlier])
            await migrate(connection)
        await fill(connection)
        before = await tables(connection)
        assert await migrate(connection) == [migration.name for migration in everything[earlier:]]
        assert await tables(connection) == before
    async with open_database(empty_dsn) as pool:
        version = await active_version(pool)
        assert (version.embedding_model, version.dimensions) == ("axes", 4)
        assert await find_due(pool) == 0  # what is digested or dead is not asked for again
        status = await read_status(pool)
        assert (status.known, status.stored, status.embedded) == (4, 3, 1)
        assert {gap.stage for gap in status.gaps} >= {"fetch"}
        if earlier >= 2:  # with fetch_failure: what failed before the text was stored is over, what failed of an older text counts no more
            reasons = {gap.reason: gap.count for gap in status.gaps if gap.stage == "fetch"}
            assert reasons == {
                "known, text not fetched yet": 1,
                "changed, new text not fetched yet": 1,
                "changed, its new text is a dead letter: FORBIDDEN": 1,
            }
            assert [letter.number for letter in await find_dead_letters(pool, Choice(stage="fetch"))] == [DEAD]
            async with pool.connection() as connection:  # migration 0020 removed such rows, and none has come since
                over = await has(connection, "SELECT FROM fetch_failure f JOIN item i ON i.id = f.item_id WHERE i.number = 1")
                assert over == (earlier >= 20)
            assert (await reconcile(pool)).differences == []
        assert status.usage["prompt_tokens"] == 700
        (hit, *_) = (await search(pool, version, "totals", VECTOR)).hits
        assert (hit.number, hit.summary, hit.scores["vector"]) == (DIGESTED, "Totals are doubled.", 1.0)
        batch = await claim(pool, version.id, 1)
        assert [item.title for item in batch.items] == [f"Totals are wrong in report {DUE}"]
