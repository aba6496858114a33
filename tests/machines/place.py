"""Where a state machine runs: one database for all of its examples, emptied before each, and what must hold in it after every step.

A machine is synchronous and the store is not, so each step runs on one event loop that stands still in between: nothing happens that
the machine has not asked for. Time stands still too: a lease runs out when a rule says so.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from psycopg import sql

from starsearch.storage import Store
from starsearch.store.database import connect, open_database
from starsearch.store.tallies import read_counts

T = TypeVar("T")
KEPT = ("schema_migration", "tally", "tally_dirty", "lost_item")  # the last three are written by triggers while others are emptied
NUMBERED = ("item", "index_version")
GIVE_UP_SECONDS = 60.0


@dataclass
class Place:
    """`examples` counts the machines that ran in it."""

    dsn: str
    store: Store = field(init=False)
    examples: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    @contextmanager
    def opened(self) -> Iterator["Place"]:
        stack = AsyncExitStack()
        try:
            self.store = Store(self.dsn, self.run(stack.enter_async_context(open_database(self.dsn, size=4))))
            yield self
        finally:
            self.run(stack.aclose())
            self._loop.close()

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(step)

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self.run(self._rows(query, parameters))

    def change(self, query: str, *parameters: object) -> None:
        self.run(self._rows(query, parameters, answered=False))

    async def _rows(self, query: str, parameters: object, *, answered: bool = True) -> list[tuple[Any, ...]]:
        async with self.store.pool.connection() as connection:
            cursor = await connection.execute(query.encode(), parameters)
            return await cursor.fetchall() if answered else []

    def empty(self) -> None:
        """As after the last migration; ids begin anew, so that an example is the same each time."""
        self.examples += 1
        self.run(self._empty())

    async def _empty(self) -> None:
        async with await connect(self.dsn) as connection, connection.transaction():
            await connection.execute("SET LOCAL session_replication_role = replica")  # no reference is checked
            cursor = await connection.execute(
                "SELECT relname, relispartition FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
            )
            names = await cursor.fetchall()
            statements = [
                sql.SQL("DROP TABLE {}" if part else "DELETE FROM {}").format(sql.Identifier(name))
                for name, part in sorted(names, key=lambda row: not row[1])
                if name not in KEPT
            ]
            statements += [sql.SQL("DELETE FROM {}").format(sql.Identifier(name)) for name in KEPT[1:]]
            statements += [sql.SQL("SELECT setval(pg_get_serial_sequence({}, 'id'), 1, false)").format(name) for name in NUMBERED]
            await connection.execute(sql.SQL("; ").join(statements))

    def kill(self, worker: int) -> None:
        """Its session, as when its process is gone; returns when PostgreSQL knows."""
        self.run(self._kill(worker))

    async def _kill(self, worker: int) -> None:
        async with self.store.pool.connection() as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid, %s) FROM pg_locks WHERE locktype = 'advisory' AND classid = 78271 AND objid = %s",
                [int(GIVE_UP_SECONDS * 1_000), worker],
            )

    async def kill_others(self) -> None:
        """Every session but those that stay idle in our own pool: that one is opened anew."""
        async with self.store.pool.connection() as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid, %s) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
                [int(GIVE_UP_SECONDS * 1_000)],
            )

    def check_counts(self) -> None:
        """Kept counts say what counting every item says, whatever has been folded."""
        self.run(self._check_counts())

    async def _check_counts(self) -> None:
        async with self.store.pool.connection() as connection:
            cursor = await connection.execute("SELECT version_id, state, count(*) FROM item_state GROUP BY 1, 2")
            counted = {(version, state): items for version, state, items in await cursor.fetchall()}
            kept = {key: items for key, items in (await read_counts(connection)).items() if items}
        assert kept == counted


class Machine(RuleBasedStateMachine):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.store = place.store
        place.empty()


def drive(machine: Callable[[Place], Machine], place: Place, how: settings) -> None:
    """Run examples; what `tests.fuzz` counts is printed."""
    run_state_machine_as_test(lambda: machine(place), settings=how)
    print(f"{place.examples} passing")
