"""Index versions: begun, built, activated against a gate, rolled back and dropped while items are stored, changed, buried and digested.

The real activation and rollback run, on digests that the machine makes itself: a digest's summary names the version that it is of, so
that a hit tells where it comes from. Batches taken at any time are finished late, by then perhaps for a version that is gone.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from starsearch import activation
from starsearch.compare import Measured, Questions
from starsearch.errors import DigestFailed, GateRefused, LeaseLost, PreconditionMissing, StarsearchError
from starsearch.models import Chunk, IndexVersion, Summary, parse_item
from starsearch.pipeline import make_due
from starsearch.store import versions
from starsearch.store.dead_letters import Choice, retry_dead_letters
from starsearch.store.digests import Digest, Failure, finish_batch
from starsearch.store.items import store_chunk
from starsearch.store.leases import BULK, Batch, claim
from starsearch.store.runs import start_run
from starsearch.store.search import search
from starsearch.store.swap import missing
from starsearch.store.sweeps import entomb
from starsearch.store.versions import active_version, begin_shadow, build_index, ensure_version, has_index
from tests.machines.place import Machine, Place

HOST = "github.com"
WANTED = [IndexVersion("stub", "", 4, "recipe", f"model-{n}", "v1") for n in range(3)]
VECTOR = np.array([1, 0, 0, 0], "f4")
NOBODY = 1_000_000  # a worker without a session: whoever asks next takes what it holds
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
ITEMS = 6

numbers = st.integers(1, ITEMS)
texts = st.integers(0, 3)
some = st.integers(0, 7)


@dataclass
class Model:
    """Versions by their place in WANTED, items by number. served: versions that are kept, the one that served last at the end."""

    serving: int = 0
    shadows: set[int] = field(default_factory=set)
    served: list[int] = field(default_factory=list)
    texts: dict[int, bytes] = field(default_factory=dict)
    buried: set[int] = field(default_factory=set)
    digests: dict[tuple[int, int], bytes] = field(default_factory=dict)  # (version, item): of which text


class Versions(Machine):
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.run = place.run(start_run(self.store.pool, "digest"))
        self.versions = {0: place.run(ensure_version(self.store.pool, WANTED[0]))}
        self.model = Model()
        self.clock = BEGIN
        self.ids: dict[int, int] = {}  # of items, by number
        self.spoiled: set[tuple[int, int]] = set()  # texts that a version's engine cannot digest
        self.taken: list[tuple[int, Batch]] = []
        self.meanwhile: set[int] = set()  # items that change while a gate measures

    @initialize(items=st.sets(numbers, min_size=2))
    def begin(self, items: set[int]) -> None:
        self.store_items(items, 0)
        self.digest(0, ITEMS)
        self.begin_version(1)

    # items

    @rule(numbers=st.sets(numbers, min_size=1, max_size=3), text=texts)
    def store_items(self, numbers: set[int], text: int) -> None:
        self.place.run(self._store(numbers, text))

    @precondition(lambda self: self.ids.keys() - self.model.buried)
    @rule(which=some)
    def bury(self, which: int) -> None:
        number = _one(sorted(self.ids.keys() - self.model.buried), which)
        self.place.run(self._bury(number))
        self.model.buried.add(number)

    @rule(which=some, text=texts)
    def spoil(self, which: int, text: int) -> None:
        self.spoiled.add((self._live(which), text))

    @rule()
    def repair(self) -> None:
        self.spoiled.clear()
        self.place.run(retry_dead_letters(self.store.pool, Choice()))

    # digests

    @rule(which=some, size=st.integers(1, ITEMS))
    def digest(self, which: int, size: int) -> None:
        version = self._live(which)
        batch = self.place.run(claim(self.store.pool, self.versions[version].id, NOBODY, size=size, priority=BULK))
        if batch:
            assert self.place.run(self._finish(version, batch))

    @rule(which=some, size=st.integers(1, 3))
    def take(self, which: int, size: int) -> None:
        version = self._live(which)
        if batch := self.place.run(claim(self.store.pool, self.versions[version].id, NOBODY, size=size, priority=BULK)):
            self.taken.append((version, batch))

    @precondition(lambda self: self.taken)
    @rule(which=some)
    def finish_late(self, which: int) -> None:
        version, batch = _one(self.taken, which)
        self.taken.remove((version, batch))
        self.place.run(self._finish(version, batch))

    # versions

    @rule(which=st.integers(0, len(WANTED) - 1))
    def begin_version(self, which: int) -> None:
        self.versions[which] = self.place.run(begin_shadow(self.store.pool, WANTED[which]))
        if which != self.model.serving:
            self.model.shadows.add(which)

    @rule(which=some)
    def build(self, which: int) -> None:
        version = self.versions[self._live(which)]
        self.place.run(build_index(self.place.dsn, version))
        assert self.place.run(has_index(self.store.pool, version))

    @precondition(lambda self: self.model.shadows)
    @rule(which=some, force=st.booleans(), meanwhile=st.sets(numbers, max_size=2))
    def activate(self, which: int, force: bool, meanwhile: set[int]) -> None:
        version, before = _one(sorted(self.model.shadows), which), self.model.serving
        self.meanwhile = meanwhile
        call = activation.activate(
            self._settings(), self.store, SimpleNamespace(id=self.run), name=self.versions[version].fingerprint, force=force
        )
        try:
            self.place.run(call)
        except GateRefused:
            assert self.spoiled, "everything could be digested"
            return
        self._now_serves(version, before, lossless=not force)

    @rule()
    def roll_back(self) -> None:
        before = self.model.serving
        self.meanwhile = set()
        try:
            self.place.run(activation.roll_back(self._settings(), self.store, SimpleNamespace(id=self.run)))
        except PreconditionMissing:
            assert not self.model.served
            return
        self._now_serves(self.model.served[-1], before, lossless=False)

    def _now_serves(self, version: int, before: int, *, lossless: bool) -> None:
        model = self.model
        found, current = self._found(version), self._current(version)
        dead = {
            number
            for (number,) in self.place.rows(
                "SELECT number FROM dead_letter x JOIN item i ON i.id = item_id WHERE version_id = %s", self.versions[version].id
            )
        }
        allowed = set() if lossless else dead
        assert self._found(before) - found <= allowed, "found before, and not found now"
        assert self._current(before) - current <= dead, "digested in its newest text before, and not now"
        model.served = [each for each in model.served if each != version] + [before]
        model.shadows = model.shadows - {version} | {before}
        model.serving = version

    @rule(which=some)
    def drop(self, which: int) -> None:
        version = self._live(which)
        try:
            self.place.run(versions.drop_version(self.store.pool, self.versions[version]))
        except StarsearchError:
            assert version == self.model.serving
            return
        model = self.model
        assert version in model.shadows
        model.shadows.remove(version)
        model.served = [each for each in model.served if each != version]
        model.digests = {key: content for key, content in model.digests.items() if key[0] != version}

    # what must hold

    @invariant()
    def one_version_serves(self) -> None:
        live = dict(self.place.rows("SELECT id, status FROM index_version WHERE status <> 'retired'"))
        model = self.model
        assert live == {self.versions[each].id: "shadow" for each in model.shadows} | {self.versions[model.serving].id: "active"}

    @invariant()
    def digests_are_those_that_were_made(self) -> None:
        rows = self.place.rows("SELECT version_id, number, d.content_hash FROM digest d JOIN item i ON i.id = item_id")
        numbered = {self.versions[each].id: each for each in (*self.model.shadows, self.model.serving)}
        assert {(numbered[version], number): bytes(content) for version, number, content in rows} == self.model.digests

    @invariant()
    def search_answers_from_it(self) -> None:
        for path in ("exact", "index"):
            answered = self.place.run(self._search(path))
            assert {hit.number for hit in answered} == self._found(self.model.serving)
            assert all(hit.summary.startswith(f"By {WANTED[self.model.serving].summary_model}: ") for hit in answered)

    @invariant()
    def what_served_once_forgets_nothing(self) -> None:
        """What it has not digested in its newest text is due there, or a dead letter."""
        states = self.place.rows(
            "SELECT DISTINCT state FROM item_state s JOIN index_version v ON v.id = version_id WHERE v.activated_at IS NOT NULL"
        )
        assert {state for (state,) in states} <= {"digested", "due", "dead"}

    @invariant()
    def nothing_is_left_of_what_was_dropped(self) -> None:
        for table in ("due", "dead_letter", "digest"):
            assert (
                self.place.rows(f"SELECT FROM {table} WHERE version_id NOT IN (SELECT id FROM index_version WHERE status <> 'retired')")
                == []
            )
        [(partitions,)] = self.place.rows("SELECT count(*) FROM pg_inherits WHERE inhparent = 'digest'::regclass")
        assert partitions == len(self.model.shadows) + 1

    @invariant()
    def kept_counts_are_right(self) -> None:
        self.place.check_counts()

    # how

    def _live(self, which: int) -> int:
        return _one([self.model.serving, *sorted(self.model.shadows)], which)

    def _found(self, version: int) -> set[int]:
        return {number for each, number in self.model.digests if each == version} - self.model.buried

    def _current(self, version: int) -> set[int]:
        return {number for number in self._found(version) if self.model.digests[version, number] == self.model.texts[number]}

    async def _search(self, path: Any):
        active = await active_version(self.store.pool)
        assert active
        return (await search(self.store.pool, active, "", VECTOR, mode="vector", limit=2 * ITEMS, path=path)).hits

    async def _store(self, numbers: set[int], text: int) -> None:
        self.clock += timedelta(minutes=1)
        items = [
            parse_item(
                {"repo": "quillcap/marlframe", "number": number, "type": "issue", "title": "Totals", "body": str(text), "state": "open",
                 "url": f"https://github.com/quillcap/marlframe/issues/{number}", "node_id": f"I_{number}",
                 "created_at": "2026-01-01T00:00:00Z", "updated_at": self.clock.isoformat()}
            )
            for number in sorted(numbers)
        ]  # fmt: skip
        await store_chunk(self.store.pool, Chunk(tuple(items)), run_id=self.run)
        async with self.store.pool.connection() as connection:
            cursor = await connection.execute("SELECT number, id FROM item")
            self.ids = dict(await cursor.fetchall())
        self.model.texts |= {item.number: item.content_hash for item in items}
        self.model.buried -= numbers

    async def _bury(self, number: int) -> None:
        async with self.store.pool.connection() as connection:
            assert await entomb(connection, HOST, [f"I_{number}"]) == 1

    async def _finish(self, version: int, batch: Batch) -> bool:
        """Whether anything of it was written."""
        digests, failures = [], []
        for item in batch.items:
            if (version, int(item.body)) in self.spoiled:
                failures.append(Failure(item, "summarize", DigestFailed("too long", permanent=True)))
            else:
                name = WANTED[version].summary_model
                digests.append(Digest(item, Summary(f"{name} {item.body}".encode(), f"By {name}: {item.body}", "model"), VECTOR))
        async with self.store.pool.connection() as connection:
            cursor = await connection.execute("SELECT item_id FROM due WHERE lease_token = %s", [batch.token])
            ours = {item for (item,) in await cursor.fetchall()}
        try:
            await finish_batch(self.store.pool, self.versions[version], batch, digests, failures, [], run_id=self.run)
        except LeaseLost:
            assert not ours
            return False
        number_of = {item: number for number, item in self.ids.items()}
        self.model.digests |= {(version, number_of[each.item.id]): each.item.content_hash for each in digests if each.item.id in ours}
        return bool(ours)

    async def _drain(self, version: int) -> None:
        while batch := await claim(self.store.pool, self.versions[version].id, NOBODY, priority=BULK):
            await self._finish(version, batch)

    def _settings(self) -> SimpleNamespace:
        """What activation is told, which hands it on; see `StandIns`."""
        return SimpleNamespace(workers=1, concurrency=1, machine=self)


class StandIns:
    """For activation's engines and for what they would be asked; for its items that change while a gate measures."""

    @staticmethod
    @asynccontextmanager
    async def open_version(settings, version: IndexVersion) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(version=version, machine=settings.machine)

    @staticmethod
    async def digest_lanes(store, lanes, run, **how) -> None:
        await make_due(store)
        await StandIns.drain(store, lanes, run)

    @staticmethod
    async def drain(store, lanes, run, **how) -> None:
        [lane] = lanes
        await lane.engines.machine._drain(_place_of(lane.engines.version))

    @staticmethod
    async def choose_questions(store, path) -> Questions:
        return Questions("titles", [])

    @staticmethod
    async def measure(settings, store, engines, serving: IndexVersion, asked: Questions) -> Measured:
        lost = await missing(store.pool, engines.version, serving)
        machine = settings.machine
        if machine.meanwhile:
            await machine._store(machine.meanwhile, 3)
            machine.meanwhile = set()
            await machine._drain(machine.model.serving)
        return Measured(engines.version, lost, True, {}, {}, 1.0)


def _place_of(version: IndexVersion) -> int:
    return next(place for place, wanted in enumerate(WANTED) if wanted.fingerprint == version.fingerprint)


def _one(those, which):
    """The newest is drawn most often."""
    return those[-1 - which % len(those)]
