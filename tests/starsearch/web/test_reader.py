"""What the web process can do to the database, tried through its own connections."""

import psycopg
import pytest

from starsearch.errors import DatabaseUnsuitable
from starsearch.settings import Settings
from starsearch.storage import open_reader, open_store
from starsearch.store.reader import check_role

WRITES = (
    "INSERT INTO repository (full_name) VALUES ('a/b')",
    "UPDATE item SET title = 'x'",
    "DELETE FROM item",
    "TRUNCATE item CASCADE",
    "UPDATE index_version SET status = 'retired'",
    "INSERT INTO summary (key, text, source, model, prompt_version, prompt_tokens, completion_tokens) VALUES ('x','x','model','m','v',0,0)",
    "DELETE FROM digest",
    "DELETE FROM due",
    "INSERT INTO due (version_id, item_id) VALUES (1, 1)",
    "DELETE FROM engine_call",
    "DELETE FROM purge",
    "INSERT INTO api_key (name, sha256) VALUES ('x', sha256('x'))",
    "UPDATE api_key SET revoked_at = NULL",
    "UPDATE feedback SET useful = true",
    "DELETE FROM feedback",
    "UPDATE web_secret SET secret = 'x'",
    "CREATE TABLE x (y integer)",
    "DROP TABLE item",
    "ALTER TABLE item ADD COLUMN x integer",
    "CREATE ROLE x",
    "COPY item TO PROGRAM 'cat'",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT nextval('lease_token')",
    "SELECT setval('lease_token', 1)",
    "LOCK TABLE item IN ACCESS EXCLUSIVE MODE",
)


@pytest.mark.parametrize("statement", WRITES)
async def test_it_cannot_write(settings: Settings, statement: str):
    async with open_reader(settings, size=1) as pool, pool.connection() as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(statement)
        await connection.rollback()


async def test_it_reads_every_table_of_ours_and_those_made_later(settings: Settings):
    async with open_store(settings) as store, store.pool.connection() as connection:
        await connection.execute("CREATE TABLE made_later (x integer)")
    async with open_reader(settings, size=1) as pool, pool.connection() as connection:
        tables = await (await connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).fetchall()
        assert len(tables) > 20
        for (name,) in tables:
            await connection.execute(psycopg.sql.SQL("SELECT FROM {} LIMIT 1").format(psycopg.sql.Identifier(name)))


async def test_it_adds_feedback_and_is_stopped_when_it_takes_too_long(settings: Settings):
    async with open_reader(settings, size=1) as pool, pool.connection() as connection:
        await connection.execute(
            "INSERT INTO feedback (about, query, mode, index_version, useful) VALUES ('answer', 'x', 'hybrid', '0123456789ab', true)"
        )
        timeout = await (await connection.execute("SHOW statement_timeout")).fetchone()
    assert timeout == ("10s",)


async def test_a_user_without_the_role_is_told_what_to_do(store):
    async with store.pool.connection() as connection:
        await connection.execute("CREATE ROLE stranger_to_reading")
        await connection.execute("SET LOCAL ROLE stranger_to_reading")
        with pytest.raises(DatabaseUnsuitable, match="not granted to this user"):
            await check_role(connection)
        await connection.rollback()
