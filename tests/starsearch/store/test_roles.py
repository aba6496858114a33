"""The roles: what each can do and what none can, tried in sessions of their own; and an administrator who is somebody else."""

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from starsearch.audit import read_status
from starsearch.errors import DatabaseUnsuitable, PreconditionMissing
from starsearch.jsonl import read_items
from starsearch.models import Spending
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.storage import Store
from starsearch.store.database import connect, open_database
from starsearch.store.ledger import Call, account_answer
from starsearch.store.migrate import migrate
from starsearch.store.pauses import used_today
from starsearch.store.purges import Target, purge
from starsearch.store.roles import ROLES, set_up_roles
from starsearch.store.search import search
from starsearch.store.versions import active_version


@pytest.fixture
async def roles(server, store, engines, row, jsonl):
    """A database with digested items and roles of this test's own; yields their addresses."""
    await fill(store, engines, jsonl(*(row(n) for n in range(1, 6))))
    prefix = "trial_" + server.place.folder.parent.name[-6:].lower().replace("-", "_") + "_"
    async with await connect(store.dsn) as connection:
        made = await set_up_roles(connection, prefix=prefix)
    assert made == [f"{prefix}{role}" for role in ROLES]
    yield {role: make_conninfo(store.dsn, user=f"{prefix}{role}") for role in ROLES}
    async with await connect(store.dsn) as connection:
        for role in reversed(ROLES):
            name = sql.Identifier(f"{prefix}{role}")
            await connection.execute(sql.SQL("REASSIGN OWNED BY {} TO postgres").format(name))
            await connection.execute(sql.SQL("DROP OWNED BY {}").format(name))
            await connection.execute(sql.SQL("DROP ROLE {}").format(name))


async def fill(store, engines, path):
    async with recorded_run(store, "ingest") as run:
        await ingest(store, read_items(path), run)
        await digest(store, engines, run)
    return run.counts


async def test_the_reader_searches_and_asks_for_the_status_and_writes_nothing(store, roles):
    async with open_database(roles["reader"]) as pool:
        version = await active_version(pool)
        assert (await search(pool, version, "totals in a report", None, mode="text")).hits
        assert (await read_status(pool)).complete


async def test_a_reader_who_would_write_is_told_which_role_may(roles, row, jsonl):
    with pytest.raises(DatabaseUnsuitable, match="does not let this user"):
        async with open_database(roles["reader"]) as pool, recorded_run(Store(roles["reader"], pool), "ingest"):
            pass


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM item",
        "UPDATE summary SET text = 'x'",
        "INSERT INTO purge (author) VALUES ('x')",
        "INSERT INTO engine_call (purpose, model, lease_token, items) VALUES ('answer', 'x', 0, 0)",
        "TRUNCATE digest CASCADE",
        "CREATE TABLE mine (a int)",
        "DROP TABLE item CASCADE",
        "ALTER TABLE item DISABLE TRIGGER ALL",
        "SELECT nextval('worker')",
        "SET ROLE postgres",
        "COPY item TO PROGRAM 'cat'",
    ],
)
async def test_what_the_reader_may_not_do(roles, statement):
    async with await connect(roles["reader"]) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(statement)


async def test_the_reader_adds_what_its_answers_cost(store, roles):
    async with open_database(roles["reader"]) as pool:
        await account_answer(pool, Call("answer", "stub", [], outcome="ok", spent=Spending(requests=1, prompt_tokens=10)))
    async with store.pool.connection() as connection:
        assert [each.prompt_tokens for each in await used_today(connection) if each.purpose == "answer"] == [10]


async def test_the_readers_statements_end_after_five_seconds(roles):
    async with await connect(roles["reader"]) as connection:
        assert await (await connection.execute("SHOW statement_timeout")).fetchone() == ("5s",)


async def test_the_writer_ingests_digests_and_purges_and_leaves_the_schema_alone(store, roles, engines, row, jsonl):
    async with open_database(roles["writer"]) as pool:
        writer = Store(roles["writer"], pool)
        counts = await fill(
            writer, engines, jsonl(*(row(n, body=f"New text {n}.") | {"updated_at": "2026-05-01T00:00:00Z"} for n in (1, 9)))
        )
        assert (counts.inserted, counts.updated, counts.embedded) == (1, 1, 2)
        assert (await purge(pool, Target("github.com", "quillcap/marlframe", 2))).items == 1
        assert (await read_status(pool)).complete
    async with await connect(roles["writer"]) as connection:
        for statement in (
            "CREATE TABLE mine (a int)",
            "DROP TABLE item CASCADE",
            "ALTER TABLE item ADD COLUMN x int",
            "ALTER TABLE digest DISABLE TRIGGER ALL",
            "TRUNCATE due",
            "UPDATE index_version SET status = 'retired'",
            "DELETE FROM schema_migration",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute(statement)


async def test_the_owner_changes_the_schema_and_the_others_get_their_rights_on_what_is_new(roles):
    async with await connect(roles["owner"]) as connection:
        assert await migrate(connection) == []
        await connection.execute("ALTER TABLE item ADD COLUMN added int")
        await connection.execute("CREATE TABLE later (a int)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("CREATE ROLE more")
    async with await connect(roles["writer"]) as connection:
        await connection.execute("INSERT INTO later VALUES (1)")
    async with await connect(roles["reader"]) as connection:
        assert await (await connection.execute("SELECT a FROM later")).fetchone() == (1,)


async def test_again_changes_nothing(store, roles):
    async with await connect(store.dsn) as connection:
        prefix = psycopg.conninfo.conninfo_to_dict(roles["owner"])["user"].removesuffix("owner")
        assert await set_up_roles(connection, prefix=prefix) == []


async def test_who_may_not_make_roles_is_told_what_an_administrator_must_run(roles):
    async with await connect(roles["owner"]) as connection:
        with pytest.raises(PreconditionMissing, match=r"CREATE ROLE other_reader LOGIN;.*and then this command again"):
            await set_up_roles(connection, prefix="other_")
