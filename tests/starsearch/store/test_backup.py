"""pg_dump and pg_restore: a restored database is complete, searches, goes on, and its kept counts and triggers work."""

import subprocess

import psycopg

from starsearch.audit import read_status
from starsearch.jsonl import read_items
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.storage import Store
from starsearch.store.database import open_database
from starsearch.store.search import search
from starsearch.store.tallies import reconcile
from starsearch.store.versions import active_version


async def fill(store, engines, path):
    async with recorded_run(store, "ingest") as run:
        await ingest(store, read_items(path), run)
        await digest(store, engines, run)


def tool(server, name, *arguments):
    subprocess.run([server.place.binaries / name, *map(str, arguments)], check=True, timeout=120)


async def test_a_dump_restored_into_an_empty_database_goes_on_where_it_was(server, store, engines, row, jsonl, empty_dsn, tmp_path):
    await fill(store, engines, jsonl(*(row(n) for n in range(1, 41))))
    before = await read_status(store.pool)
    dump = tmp_path / "starsearch.dump"
    tool(server, "pg_dump", "--format=custom", "--no-owner", f"--file={dump}", store.dsn)
    tool(server, "pg_restore", "--no-owner", "--exit-on-error", "--jobs=2", f"--dbname={empty_dsn}", dump)

    async with open_database(empty_dsn) as pool:
        restored = Store(empty_dsn, pool)
        status = await read_status(pool)
        assert (status.known, status.embedded, status.complete) == (before.known, before.embedded, True) == (40, 40, True)
        assert (await reconcile(pool)).differences == []
        assert (await search(pool, await active_version(pool), "totals in a report", None, mode="text")).hits
        await fill(restored, engines, jsonl(*(row(n) for n in range(1, 46))))
        assert (await read_status(pool)).embedded == 45
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM digest WHERE item_id = 7")
    async with open_database(empty_dsn) as pool:
        assert [gap.count for gap in (await read_status(pool)).gaps] == [1]
