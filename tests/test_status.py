"""Status cannot be fooled: a thousand faults made by hand, each found and named; kept counts that agree with a full count."""

import asyncio
import random

import pytest
from pgvector import HalfVector

from starsearch.audit import GAPS, read_status
from starsearch.explain import explain
from starsearch.models import IndexVersion
from starsearch.store.dead_letters import Choice, count_dead_letters
from starsearch.store.leases import find_due
from starsearch.store.tallies import fold, reconcile
from starsearch.store.versions import ensure_version

ITEMS = 1_600
FAULTS = 1_000
VERSION = IndexVersion("stub", "", 4, "recipe", "stub", "v1")
DEAD, DUE = range(1, 60), range(60, 120)  # numbers of items that are dead letters, and due, before anything is broken


async def run(store, statement, *parameters, replica=False):
    """By hand, as superuser; `replica`: with foreign keys and ordinary triggers switched off."""
    async with store.pool.connection() as connection:
        if replica:
            await connection.execute("SET LOCAL session_replication_role = replica")
        cursor = await connection.execute(statement, parameters)
        return await cursor.fetchall() if cursor.description else cursor.rowcount


async def rows(store, query, *parameters):
    return await run(store, query, *parameters)


@pytest.fixture
async def filled(store):
    """Items in eight repositories, digested in the active version and in a shadow; returns both versions' ids."""
    version = await ensure_version(store.pool, VERSION)
    [(shadow,)] = await run(
        store,
        "INSERT INTO index_version (fingerprint, embedding_model, embedding_revision, dimensions, text_recipe, summary_model, "
        "prompt_version, status) VALUES (repeat('b', 64), 'other', '', 4, 'recipe', 'stub', 'v1', 'shadow') RETURNING id",
    )
    await run(store, f"CREATE TABLE digest_v{shadow} PARTITION OF digest FOR VALUES IN ({shadow})")
    await run(store, f"SELECT watch_items_of('digest_v{shadow}')")
    await run(store, "INSERT INTO repository (full_name) SELECT 'owner/r' || n FROM generate_series(0, 7) AS n")
    await run(
        store,
        "INSERT INTO item (repository_id, number, stored_at, type, state, title, url, content_hash, updated_at) "
        "SELECT 1 + n %% 8, n, now(), 'issue', 'open', 'Title ' || n, 'https://github.com/owner/r' || n %% 8 || '/issues/' || n, "
        "sha256(n::text::bytea), now() FROM generate_series(1, %s) AS n",
        ITEMS,
    )
    await run(
        store,
        "INSERT INTO summary (key, text, source, model, prompt_version, prompt_tokens, completion_tokens) "
        "SELECT content_hash, title, 'model', 'stub', 'v1', 0, 0 FROM item",
    )
    await run(
        store,
        "INSERT INTO digest (version_id, item_id, partition_at, content_hash, summary_key, embedding) "
        "SELECT v.id, i.id, partition_at, content_hash, content_hash, %s FROM item i CROSS JOIN index_version v WHERE number > %s",
        HalfVector([1, 0, 0, 0]),
        max(DUE),
    )
    await run(
        store,
        "INSERT INTO dead_letter (version_id, item_id, stage, reason, detail, attempts, content_hash) "
        "SELECT v.id, i.id, 'summarize', 'empty summary', '', 3, content_hash FROM item i CROSS JOIN index_version v WHERE number <= %s",
        max(DEAD),
    )
    await find_due(store.pool)
    return version.id, shadow


# what is done to one item, by id; and the states that it must then be named with: in no version, in the active one, in the shadow
FAULT_KINDS = {
    "digest deleted": ("DELETE FROM digest WHERE version_id = 1 AND item_id = %s", False, (None, "missing", None)),
    "digest deleted from the partition": ("DELETE FROM digest_v2 WHERE item_id = %s", False, (None, None, "missing")),
    "digest of another text": (
        "UPDATE digest SET content_hash = 'x' WHERE version_id = 1 AND item_id = %s",
        False,
        (None, "outdated", None),
    ),
    "digest filed elsewhere": (
        "UPDATE digest SET partition_at = '2000-01-01' WHERE version_id = 2 AND item_id = %s",
        True,
        (None, None, ("missing", "orphan")),
    ),
    "summary deleted": (
        "DELETE FROM summary USING item WHERE key = content_hash AND id = %s",
        True,
        (None, "no summary", "no summary"),
    ),
    "text changed": ("UPDATE item SET content_hash = 'y' WHERE id = %s", False, (None, "outdated", "outdated")),
    "text lost": ("UPDATE item SET stored_at = NULL WHERE id = %s", False, ("unfetched", None, None)),
    "newer text known": ("UPDATE item SET seen_updated_at = updated_at + interval '1 s' WHERE id = %s", False, ("stale", None, None)),
    "item deleted": ("DELETE FROM item WHERE id = %s", False, ("lost", None, None)),
    "item deleted, its digests not": ("DELETE FROM item WHERE id = %s", True, ("lost", "orphan", "orphan")),
}
OF_DEAD = ("DELETE FROM dead_letter WHERE version_id = 1 AND item_id = %s", False, (None, "missing", None))
OF_DUE = ("DELETE FROM due WHERE version_id = 2 AND item_id = %s", False, (None, None, "missing"))


async def test_a_thousand_faults_made_by_hand_are_all_found_and_named(store, filled):
    before = await read_status(store.pool)
    assert (before.known, before.stored, before.dead_letters, before.pending) == (ITEMS, ITEMS, len(DEAD), len(DUE))
    addresses = dict(await rows(store, "SELECT id, url FROM item"))
    numbers = dict(await rows(store, "SELECT id, number FROM item"))
    randomness = random.Random(5)
    expected = set()
    for item in randomness.sample(sorted(addresses), FAULTS):
        number = numbers[item]
        kind = OF_DEAD if number in DEAD else OF_DUE if number in DUE else FAULT_KINDS[randomness.choice(sorted(FAULT_KINDS))]
        statement, replica, named = kind
        assert await run(store, statement, item, replica=replica) > 0
        gone = named[0] == "lost"
        for version, states in zip((0, *filled), named, strict=True):
            for state in [states] if isinstance(states, str) else states or ():
                address = f"item {item}" if gone and state == "orphan" else addresses[item]
                expected.add((*GAPS[state], version, address))

    status = await read_status(store.pool, every_gap=True)
    names = {None: 0} | {each.index_version: version for each, version in zip(status.versions, filled, strict=True)}
    found = {
        (gap.stage, gap.reason, names[gap.index_version], url)
        for gap in status.gaps
        for repository in gap.repositories
        for url in repository["urls"]
    }
    assert found == expected
    assert not status.complete
    assert not any(version.complete for version in status.versions)
    for gap in status.gaps:
        if gap.repositories:
            assert gap.count == sum(len(repository["urls"]) for repository in gap.repositories)
    assert (await reconcile(store.pool)).differences == []


async def test_what_was_found_is_repaired_by_digesting_and_storing_again(store, filled):
    await run(store, "DELETE FROM digest WHERE item_id IN (SELECT id FROM item WHERE number %% 7 = 0 AND number > 120)")
    await run(store, "DELETE FROM due")
    await run(store, "UPDATE item SET content_hash = 'z' WHERE number = 1234")
    [(forgotten,)] = await rows(store, "SELECT count(*) FROM item_state WHERE version_id <> 0 AND state IN ('missing', 'outdated')")
    assert await find_due(store.pool) == forgotten > 2 * ITEMS / 7
    assert await find_due(store.pool) == 0
    reasons = {(gap.stage, gap.reason) for gap in (await read_status(store.pool)).gaps}
    assert reasons == {("digest", "waiting"), ("summarize", "dead letter: empty summary")}


@pytest.mark.parametrize(
    ("breakage", "reason"),
    [
        ("DROP TABLE digest_v1", "no table"),
        ("DROP INDEX digest_v1_embedding_idx", "no valid HNSW index"),
        ("UPDATE index_version SET status = 'retired' WHERE id = 1", "no version is active"),
    ],
)
async def test_a_version_that_is_not_whole_is_named(store, filled, breakage, reason):
    await run(store, breakage)
    status = await read_status(store.pool)
    assert not status.complete
    assert any(gap.stage == "version" and reason in gap.reason and gap.count for gap in status.gaps)


async def test_a_version_begun_by_hand_misses_every_item(store, filled):
    await run(
        store,
        "INSERT INTO index_version (fingerprint, embedding_model, embedding_revision, dimensions, text_recipe, summary_model, "
        "prompt_version, status) VALUES (repeat('c', 64), 'third', '', 4, 'recipe', 'stub', 'v1', 'shadow')",
    )
    status = await read_status(store.pool)
    (half,) = [version for version in status.versions if version.index_version == "c" * 12]
    assert (half.embedded, half.pending, half.complete) == (0, ITEMS, False)
    assert {(gap.stage, gap.count) for gap in status.gaps if gap.index_version == "c" * 12} == {("version", 0), ("digest", ITEMS)}


async def test_kept_counts_agree_with_a_full_count_while_writers_write_and_fold(store, filled):
    """Marks and changes commit together, so no interleaving of writers and folders makes a wrong count."""

    async def writer(seed):
        randomness = random.Random(seed)
        for _ in range(40):
            item = randomness.randrange(1, ITEMS)
            statement = randomness.choice(
                ["DELETE FROM digest WHERE item_id = %s", "UPDATE item SET content_hash = sha256(random()::text::bytea) WHERE id = %s"]
            )
            await run(store, statement, item)
            if randomness.random() < 0.2:
                await fold(store.pool)

    await asyncio.gather(*(writer(seed) for seed in range(4)))
    assert (await reconcile(store.pool)).differences == []
    assert await rows(store, "SELECT count(*) FROM tally_dirty") == [(0,)]


async def test_a_full_count_finds_and_names_what_no_trigger_told(store, filled):
    await read_status(store.pool)
    await run(store, "ALTER TABLE digest DISABLE TRIGGER ALL")
    await run(store, "DELETE FROM digest WHERE version_id = 1 AND item_id = 1000")
    await run(store, "ALTER TABLE digest ENABLE TRIGGER ALL")
    assert not any("not digested" in gap.reason for gap in (await read_status(store.pool)).gaps)
    found = await reconcile(store.pool)
    assert {(each["state"], each["kept"] - each["counted"]) for each in found.differences} == {("digested", 1), ("missing", -1)}
    status = await read_status(store.pool)
    assert [gap.count for gap in status.gaps if "not digested" in gap.reason] == [1]
    assert "another state than counted" in status.warnings[0]
    assert (await reconcile(store.pool)).differences == []


async def test_items_of_a_repository_that_is_gone_are_not_counted(store, filled):
    await run(store, "UPDATE repository SET gone_at = now() WHERE id = 1")
    assert (await read_status(store.pool)).known == ITEMS * 7 / 8
    await run(store, "UPDATE repository SET gone_at = NULL WHERE id = 1")
    assert (await read_status(store.pool)).known == ITEMS


async def test_gaps_name_every_dead_letter_that_is_counted_and_no_other(store, filled):
    await run(store, "UPDATE item SET stored_at = NULL WHERE id BETWEEN 1001 AND 1016")  # two of each repository
    failure = "INSERT INTO fetch_failure (item_id, attempts, dead, reason, detail) SELECT id, 3, true, 'too heavy', '' FROM item WHERE "
    await run(store, failure + "id BETWEEN 1001 AND 1016")
    await run(store, "UPDATE repository SET gone_at = now() WHERE id = 1")
    await run(store, "UPDATE item SET tombstoned_at = now() WHERE id IN (2, 1002)")
    await run(store, "UPDATE item SET seen_updated_at = now() WHERE id = 1003")  # newer than what failed
    status = await read_status(store.pool)
    named = {(gap.stage, gap.reason): gap.count for gap in status.gaps if "dead letter" in gap.reason}
    stored = sum(1 for number in DEAD if number % 8 and number != 2)
    assert named == {("summarize", "dead letter: empty summary"): stored, ("fetch", "dead letter: too heavy"): 14 - 2}
    assert sum(named.values()) == status.dead_letters == sum(count for *_, count in await count_dead_letters(store.pool, Choice())) - stored
    assert (await reconcile(store.pool)).differences == []


async def test_what_is_waiting_and_what_was_slow_is_told(store, filled):
    await run(store, "UPDATE due SET since = now() - interval '3 hours' WHERE item_id = 61")
    await run(store, "INSERT INTO latency (version_id, seconds) VALUES (1, '{60, 120, 600}'), (2, '{9000}')")
    await run(store, "INSERT INTO run (kind, finished_at) VALUES ('crawl', now())")
    for purpose, hour, items in (("embedding", 1, 40), ("embedding", 0, 7), ("summary", 1, 3)):
        await run(
            store,
            "INSERT INTO engine_call (lease_token, run_id, purpose, model, items, requests, intended_at, settled_at, outcome) "
            f"SELECT 1, max(id), '{purpose}', 'm', {items}, 1, now(), date_trunc('hour', now()) - interval '{hour} hours', 'ok' FROM run",
        )
    status = await read_status(store.pool)
    assert status.digests_per_hour == 40
    assert status.oldest_due_seconds == pytest.approx(3 * 3600, abs=60)
    assert status.lag_seconds() == status.oldest_due_seconds
    assert status.searchable_seconds == {"p50": 120, "p95": pytest.approx(552)}


async def test_an_item_is_explained_as_status_counts_it(store, filled):
    await run(store, "DELETE FROM digest WHERE version_id = 2 AND item_id = 1000")
    await run(store, "UPDATE item SET stored_at = NULL WHERE id = 1001")
    await run(store, "INSERT INTO fetch_failure (item_id, attempts, dead, reason, detail) VALUES (1001, 3, true, 'too heavy', 'a page')")
    explained = {}
    for item in (1, 61, 1000, 1001):
        [(repo, number)] = await rows(
            store, "SELECT full_name, number FROM item i JOIN repository r ON r.id = repository_id WHERE i.id = %s", item
        )
        explained[number] = await explain(store.pool, {"host": "github.com", "repo": repo, "number": number})
    one, two = VERSION.fingerprint[:12], "b" * 12
    assert explained[1]["states"] == {"fetch": "stored", one: "dead", two: "dead"}
    assert (explained[1]["failure"], explained[1]["attempts"]) == ("empty summary", 3)
    assert explained[61]["states"][one] == "due"
    assert explained[61]["waiting_since"]
    assert explained[1000]["states"] == {"fetch": "stored", one: "digested", two: "missing"}
    assert (explained[1001]["states"], explained[1001]["failure"]) == ({"fetch": "unfetchable"}, "too heavy")
