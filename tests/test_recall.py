"""The recall monitor measures what search gives against every vector, records it, and warns when it falls."""

import pytest

from starsearch import recall
from starsearch.audit import read_status
from starsearch.jsonl import read_items
from starsearch.models import Found
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.recall import measure_recall
from starsearch.store.search import search
from starsearch.store.versions import active_version

ITEMS = 120


@pytest.fixture
async def version(store, engines, row, jsonl):
    records = [
        row(n, repo=f"owner/r{n % 3}", url=f"https://github.com/owner/r{n % 3}/issues/{n}", title=f"Report {n} fails on {n * 7919}")
        for n in range(1, ITEMS + 1)
    ]
    async with recorded_run(store, "ingest") as run:
        await ingest(store, read_items(jsonl(*records)), run)
        await digest(store, engines, run)
    return await active_version(store.pool)


async def change(store, statement, *parameters):
    async with store.pool.connection() as connection:
        await connection.execute(statement, parameters)


async def test_search_finds_what_a_count_of_every_vector_finds(store, engines, version):
    measured = await measure_recall(store.pool, version, engines.embedding, questions=5)
    assert measured == {"no filter": 1.0, "repository": 1.0, "open issues": 1.0}  # nothing here is younger than 30 days
    status = await read_status(store.pool)
    assert {each["filter"]: each["recall"] for each in status.recall} == measured
    assert status.warnings == []


async def test_what_search_does_not_find_counts_against_it(store, engines, version, monkeypatch):
    async def half(*arguments, **options):
        return Found((await search(*arguments, **options)).hits[::2])

    monkeypatch.setattr(recall, "search", half)
    measured = await measure_recall(store.pool, version, engines.embedding, questions=4)
    assert set(measured.values()) == {0.5}


async def test_a_recall_below_its_target_is_a_warning(store, engines, version):
    await change(store, "INSERT INTO recall (version_id, filter, queries, recall) VALUES (1, 'no filter', 20, 0.91)")
    status = await read_status(store.pool)
    assert status.warnings == ["recall@10 is 0.91 (no filter), below 0.95: see docs/operations.md"]
    assert status.complete
