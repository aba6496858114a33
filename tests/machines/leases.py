"""Leases of due items, beside a model that says row by row what is due, leased, digested, dead and summarized.

Workers claim batches, take turns at summaries, finish, fail, abandon; they lose their sessions and go on as zombies, or come back; leases
run out; texts change in between. What the model does not know is never looked away from: the tables must equal it after every step.
"""

import hashlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from psycopg import AsyncConnection

from starsearch.errors import DigestFailed, LeaseLost
from starsearch.models import Chunk, IndexVersion, Summary, parse_item
from starsearch.store import leases
from starsearch.store.database import connect
from starsearch.store.dead_letters import Choice, retry_dead_letters
from starsearch.store.digests import ATTEMPTS, Digest, Failure, abandon_batch, finish_batch, keep_summaries
from starsearch.store.items import store_chunk
from starsearch.store.leases import BACKFILL, BULK, LIVE, Batch, claim, find_due, release_dead, worker
from starsearch.store.ledger import Call
from starsearch.store.runs import start_run
from starsearch.store.tallies import fold
from starsearch.store.turns import take_turns
from starsearch.store.versions import ensure_version
from tests.machines.place import Machine, Place

VERSION = IndexVersion("stub", "", 4, "recipe", "stub", "v1")
VECTOR = np.array([1, 0, 0, 0], "f4")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
WORKERS = 3
FAILURES = {
    "fails": DigestFailed("bad answer"),
    "fails for good": DigestFailed("too long", permanent=True),
    "was not its fault": DigestFailed("engine", attempt=False),
}
T = TypeVar("T")
numbers = st.integers(1, 5)
texts = st.integers(0, 2)
outcomes = st.lists(st.sampled_from(["ok", "ok", *FAILURES]), min_size=5, max_size=5)
some = st.integers(0, 7)  # of whatever there is


@dataclass
class Due:
    """free: it may be leased now."""

    priority: int
    token: int | None = None
    worker: int | None = None
    attempts: int = 0
    free: bool = True

    def release(self, **changes: int) -> None:
        self.token, self.worker, self.free = None, None, True
        self.__dict__ |= changes


@dataclass
class Held:
    """A batch in the memory of a worker, for as long as the example lasts: it may try to write at any time."""

    batch: Batch
    worker: int
    run: int
    asked: bool = False  # whether it took its turns


@dataclass
class Model:
    texts: dict[int, bytes] = field(default_factory=dict)  # of each item its content hash; and so on
    due: dict[int, Due] = field(default_factory=dict)
    digests: dict[int, tuple[bytes, int]] = field(default_factory=dict)  # and which run wrote it
    dead: dict[int, bytes] = field(default_factory=dict)
    summaries: dict[bytes, int] = field(default_factory=dict)  # which run wrote it
    turns: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # token, worker
    late_turns: set[bytes] = field(default_factory=set)


class Leases(Machine):
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.version = place.run(ensure_version(self.store.pool, VERSION))
        self.ingest = place.run(start_run(self.store.pool, "ingest"))
        self.model = Model()
        self.ids: dict[int, int] = {}  # by number
        self.clock = BEGIN
        self.workers: dict[int, AbstractAsyncContextManager[int]] = {}
        self.living: set[int] = set()
        self.returned: list[AsyncConnection] = []
        self.held: list[Held] = []

    def teardown(self) -> None:
        for connection in self.returned:
            self.place.run(connection.close())
        for each in self.workers.values():
            self.place.run(each.__aexit__(None, None, None))

    @initialize(number=st.integers(1, 2), items=st.sets(numbers, min_size=2))
    def begin(self, number: int, items: set[int]) -> None:
        for _ in range(number):
            self.begin_work()
        self.store_items(items, 0, LIVE)

    # what is stored

    @rule(numbers=st.sets(numbers, min_size=1, max_size=4), text=texts, priority=st.sampled_from([LIVE, BACKFILL]))
    def store_items(self, numbers: set[int], text: int, priority: int) -> None:
        self.clock += timedelta(minutes=1)
        stored = self._store(numbers, text, priority)
        for number, content in stored.items():
            self._is_stored(self.ids[number], content, priority)

    @precondition(lambda self: self.held)
    @rule(which=some, text=texts)
    def change_what_is_held(self, which: int, text: int) -> None:
        held = {item.id for item in _one(self.held, which).batch.items}
        self.store_items({number for number, item in self.ids.items() if item in held}, text, LIVE)

    @rule(number=numbers, text=texts)
    def store_an_older_one(self, number: int, text: int) -> None:
        now, self.clock = self.clock, BEGIN - timedelta(days=1)
        if number in self.ids:
            self._store({number}, text, LIVE)
        self.clock = now

    def _store(self, numbers: set[int], text: int, priority: int) -> Mapping[int, bytes]:
        items = [
            parse_item(
                {"repo": "quillcap/marlframe", "number": number, "type": "issue", "title": "Totals", "body": f"text {text}", "state": "open",
                 "url": f"https://github.com/quillcap/marlframe/issues/{number}", "created_at": "2026-01-01T00:00:00Z",
                 "updated_at": self.clock.isoformat()}
            )
            for number in sorted(numbers)
        ]  # fmt: skip
        self.place.run(store_chunk(self.store.pool, Chunk(tuple(items)), run_id=self.ingest, priority=priority))
        self.ids |= dict(self.place.rows("SELECT number, id FROM item"))
        return {item.number: item.content_hash for item in items}

    def _is_stored(self, item: int, content: bytes, priority: int) -> None:
        model = self.model
        model.texts[item] = content
        if model.dead.get(item, content) != content:
            del model.dead[item]
        if item in model.dead or (item in model.digests and model.digests[item][0] == content):
            return  # nothing to do; what is leased stays so
        due = model.due.setdefault(item, Due(priority))
        due.attempts, due.priority = 0, min(due.priority, priority)

    # workers

    @precondition(lambda self: len(self.living) < WORKERS)
    @rule()
    def begin_work(self) -> None:
        manager = worker(self.place.dsn)
        number = self.place.run(manager.__aenter__())
        self.workers[number] = manager
        self.living.add(number)

    @precondition(lambda self: self.living)
    @rule(which=some)
    def lose_session(self, which: int) -> None:
        number = _one(sorted(self.living), which)
        self.place.kill(number)
        self.living.remove(number)

    @precondition(lambda self: self.workers.keys() - self.living)
    @rule(which=some)
    def come_back(self, which: int) -> None:
        number = _one(sorted(self.workers.keys() - self.living), which)
        connection = self.place.run(connect(self.place.dsn))
        self.place.run(leases._live(connection, number))
        self.returned.append(connection)
        self.living.add(number)

    # batches

    @precondition(lambda self: self.workers)
    @rule(which=some, size=st.integers(1, 4), priority=st.sampled_from([BACKFILL, BULK]))
    def claim_batch(self, which: int, size: int, priority: int) -> None:
        """A zombie's number may be claimed with too: whoever asks next releases it."""
        number = _one(sorted(self.workers), which)
        batch = self.place.run(claim(self.store.pool, self.version.id, number, size=size, priority=priority))
        free = {item: due for item, due in self.model.due.items() if due.free}
        urgent = min((due.priority for due in free.values()), default=None)
        wanted = sorted((due.attempts, item) for item, due in free.items() if due.priority == urgent)[:size]
        assert [item.id for item in (batch.items if batch else ())] == sorted(item for _, item in wanted)
        if batch:
            for item in batch.items:
                assert item.content_hash == self.model.texts[item.id]
                due = self.model.due[item.id]
                assert item.attempts == due.attempts
                due.token, due.worker, due.free = batch.token, number, False
            self.held.append(Held(batch, number, self.place.run(start_run(self.store.pool, "digest"))))

    @precondition(lambda self: any(not held.asked for held in self.held))
    @rule(which=some)
    def take_turns(self, which: int) -> None:
        held = _one([held for held in self.held if not held.asked], which)
        held.asked = True
        keys = {item.id: _key(item.content_hash) for item in held.batch.items}
        turns = self.place.run(take_turns(self.store.pool, self.version.id, held.batch, held.worker, keys))
        model, wanted = self.model, set(keys.values())
        made = wanted & model.summaries.keys()
        ours = {key for key in wanted - made if key not in model.turns or key in model.late_turns or model.turns[key][1] not in self.living}
        model.turns |= dict.fromkeys(ours, (held.batch.token, held.worker))
        model.late_turns -= ours
        postponed = {item for item, key in keys.items() if key not in made | ours}
        for item in postponed & self._fenced(held):
            model.due[item].release()
        assert (set(turns.made), set(turns.ours), set(turns.postponed)) == (made, ours, postponed)

    @precondition(lambda self: self.held)
    @rule(which=some, each=outcomes)
    def finish(self, which: int, each: list[str]) -> None:
        held = _one(self.held, which)
        told = dict(zip(held.batch.items, each, strict=False))
        digests = [
            Digest(item, Summary(_key(item.content_hash), f"by run {held.run}", "model"), VECTOR) for item in told if told[item] == "ok"
        ]
        failures = [Failure(item, "summarize", FAILURES[what]) for item, what in told.items() if what in FAILURES]
        ours = self._fenced(held)
        work = finish_batch(self.store.pool, self.version, held.batch, digests, failures, [], run_id=held.run)
        try:
            self.place.run(work)
            assert ours
        except LeaseLost:
            assert not ours
        model = self.model
        for digest in digests:
            if digest.item.id in ours:
                self._is_digested(digest.item.id, digest.item.content_hash, held.run)
        for failure in failures:
            if failure.item.id in ours:
                self._has_failed(failure)
        model.turns = {key: turn for key, turn in model.turns.items() if turn[0] != held.batch.token}
        model.late_turns &= model.turns.keys()

    def _is_digested(self, item: int, content: bytes, run: int) -> None:
        model = self.model
        model.digests[item] = (content, run)
        model.summaries.setdefault(_key(content), run)
        if content == model.texts[item]:
            del model.due[item]
        else:
            model.due[item].release(attempts=0)

    def _has_failed(self, failure: Failure) -> None:
        model, item = self.model, failure.item
        attempts = item.attempts + failure.error.attempt
        if item.content_hash != model.texts[item.id]:
            model.due[item.id].release(attempts=0)
        elif attempts < ATTEMPTS and not failure.error.permanent:
            model.due[item.id].release(attempts=attempts)
        else:
            del model.due[item.id]
            model.dead[item.id] = item.content_hash

    @precondition(lambda self: self.held)
    @rule(which=some)
    def keep_summaries(self, which: int) -> None:
        held = _one(self.held, which)
        made = [
            (Summary(_key(item.content_hash), f"by run {held.run}", "model"), Call("summary", "stub", [item.id]))
            for item in held.batch.items
        ]
        self.place.run(keep_summaries(self.store.pool, self.version, held.batch, made, run_id=held.run))
        for summary, call in made:
            if self._fenced(held) & set(call.item_ids):
                self.model.summaries.setdefault(summary.key, held.run)

    @precondition(lambda self: self.held)
    @rule(which=some)
    def abandon(self, which: int) -> None:
        held = _one(self.held, which)
        self.place.run(abandon_batch(self.store.pool, held.batch, []))
        for item in self._fenced(held):
            self.model.due[item].release()
        self.model.turns = {key: turn for key, turn in self.model.turns.items() if turn[0] != held.batch.token}
        self.model.late_turns &= self.model.turns.keys()

    def _fenced(self, held: Held) -> set[int]:
        """The items of a batch that are still its own."""
        return {item.id for item in held.batch.items if item.id in self.model.due and self.model.due[item.id].token == held.batch.token}

    # what passes, and who cleans up

    @precondition(lambda self: self.held)
    @rule(which=some)
    def let_run_out(self, which: int) -> None:
        held = _one(self.held, which)
        self.place.change("UPDATE due SET due_at = now() - interval '1 second' WHERE lease_token = %s", held.batch.token)
        self.place.change("UPDATE summary_lease SET expires_at = now() - interval '1 second' WHERE lease_token = %s", held.batch.token)
        for item in self._fenced(held):
            self.model.due[item].free = True
        self.model.late_turns |= {key for key, (token, _) in self.model.turns.items() if token == held.batch.token}

    @rule()
    def release_dead(self) -> None:
        released = [due for due in self.model.due.values() if due.worker is not None and due.worker not in self.living]
        assert self.place.run(release_dead(self.store.pool)) == len(released)
        for due in released:
            due.release()
        self.model.turns = {
            key: turn for key, turn in self.model.turns.items() if turn[1] in self.living and key not in self.model.late_turns
        }
        self.model.late_turns.clear()

    @rule()
    def find_due(self) -> None:
        assert self.place.run(find_due(self.store.pool)) == 0, "something was forgotten"

    @rule()
    def retry_dead_letters(self) -> None:
        assert self.place.run(retry_dead_letters(self.store.pool, Choice()))["digest"] == len(self.model.dead)
        self.model.due |= {item: Due(LIVE) for item in self.model.dead}
        self.model.dead.clear()

    @rule()
    def fold(self) -> None:
        self.place.run(fold(self.store.pool))

    # what must hold

    @invariant()
    def the_tables_are_as_the_model_says(self) -> None:
        model, rows = self.model, self.place.rows
        assert {
            item: Due(*due)
            for item, *due in rows("SELECT item_id, priority, lease_token, lease_worker, attempts, due_at <= now() FROM due")
        } == model.due
        assert {
            item: (bytes(content), run) for item, content, run in rows("SELECT item_id, content_hash, run_id FROM digest")
        } == model.digests
        assert {item: bytes(content) for item, content in rows("SELECT item_id, content_hash FROM dead_letter")} == model.dead
        assert {bytes(key): run for key, run in rows("SELECT key, run_id FROM summary")} == model.summaries
        assert {
            bytes(key): (token, worker) for key, token, worker in rows("SELECT key, lease_token, worker FROM summary_lease")
        } == model.turns

    @invariant()
    def an_item_is_held_by_at_most_one_living_worker(self) -> None:
        """By those whose result would be taken, whatever its lease says."""
        holders = [item for held in self.held if held.worker in self.living for item in self._fenced(held)]
        assert len(holders) == len(set(holders))

    @invariant()
    def nothing_is_forgotten(self) -> None:
        states = {state for (state,) in self.place.rows("SELECT DISTINCT state FROM item_state WHERE version_id <> 0")}
        assert states <= {"digested", "due", "dead"}

    @invariant()
    def kept_counts_are_right(self) -> None:
        self.place.check_counts()


def _one(those: list[T], which: int) -> T:
    """The newest is drawn most often."""
    return those[-1 - which % len(those)]


def _key(content: bytes) -> bytes:
    """Two items of one text share it."""
    return hashlib.sha256(content).digest()
