"""What breaks: each fault is one thing done to a system. Which one when, and with which chances, is drawn from the seed."""

import contextlib
import json
import os
import random
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import psutil
import psycopg
from psycopg import sql

from chaos.orchestration import CRAWL, SERVER, SHARD
from chaos.system import System
from deployments.one_machine import POOLS

GITHUB = {  # what the stand-in (tests/standin/faults.py) does. Not that an item is gone, which it alone can know
    "500": "fails",
    "502": "fails, and charges for it",
    "504": "gives up, and charges for it",
    "html": "a proxy's page instead of an answer",
    "drop": "the connection is closed",
    "timeout": "the connection is closed after a second, or stands still for longer than a crawl waits",
    "slow": "answers after a second",
    "secondary_403": "a secondary limit, as 403",
    "secondary_200": "a secondary limit, as 200",
    "429": "a secondary limit, as 429",
    "exhausted": "the token's hour is used up; it ends by GitHub's own clock, with the next hour",
    "401": "the token is refused for a moment",
    "resource_limits": "the second half of a batch is null, with an error",
    "wrong_null": "the second half of a batch is null, without a word",
    "holes": "items within lists are null",
}
TIMEOUT_SECONDS = (1.0, 22.0)  # a crawl waits for 20 s
AHEAD_SECONDS, BACK_SECONDS = (60, 3_600, 86_400), (-10, -30)  # together less than a crawl looks back (300 s)
LEASE_TIMES = (("due", "due_at"), ("summary_lease", "expires_at"), ("repository", "lease_until"))
STILL_SECONDS = 3.0
DOWN_SECONDS = 6.0
FULL_SECONDS = 6.0
MEAN_GAP_SECONDS = 4.0
NO_SHARD = "no shard started twice: none is open, or Prefect does not answer"
COUNT_TRIES = 3
QUIET_SECONDS = 5.0  # until the first fault
Fault = Callable[[System, random.Random], str]


def name_of(fault: Fault) -> str:
    return fault.__name__.replace("_", " ")


def told(fault: Fault) -> str:
    """What it is, in a sentence: the first of its docstring."""
    return (fault.__doc__ or "").split("\n")[0].rstrip(".")


def schedule(
    seed: int, seconds: float, gap_seconds: float = MEAN_GAP_SECONDS, faults: "Mapping[Fault, int] | None" = None
) -> Iterator[tuple[float, Fault, random.Random]]:
    """When, what, and whom it is to choose by: the same for the same seed, whatever becomes of the system."""
    drawn, at, faults = random.Random(seed), QUIET_SECONDS, faults or FAULTS
    while at < seconds:
        [fault] = drawn.choices(list(faults), list(faults.values()))
        yield at, fault, random.Random(drawn.random())
        at += drawn.expovariate(1 / gap_seconds)


def _chosen(system: System, chance: random.Random, *names: str) -> tuple[str, psutil.Process] | None:
    """One of those at work, first its name and then which; of these names, where one is."""
    everyone = system.workers()
    working = [(name, process) for name, process in everyone if name in names] or everyone
    if not working:
        return None
    name = chance.choice(sorted({name for name, _ in working}))
    return chance.choice([(other, process) for other, process in working if other == name])


def _kill(system: System, chance: random.Random, *names: str) -> str:
    if chosen := _chosen(system, chance, *names):
        with contextlib.suppress(psutil.NoSuchProcess):
            chosen[1].kill()
            system.kills += 1
    return f"kill -9 {chosen[0] if chosen else 'nobody: none is at work'}"


def kill_whoever_works(system: System, chance: random.Random) -> str:
    """kill -9 of a crawl, a shard, the reaper or a digest, whichever is at work."""
    return _kill(system, chance)


def kill_a_parent(system: System, chance: random.Random) -> str:
    """kill -9 of the hourly crawl, which dispatches shards."""
    return _kill(system, chance, CRAWL)


def kill_a_shard(system: System, chance: random.Random) -> str:
    """kill -9 of a shard's flow run."""
    return _kill(system, chance, SHARD)


def end_whoever_works(system: System, chance: random.Random) -> str:
    """SIGTERM to whoever is at work."""
    if chosen := _chosen(system, chance):
        with contextlib.suppress(psutil.NoSuchProcess):
            chosen[1].terminate()
            system.kills += 1
    return f"SIGTERM {chosen[0] if chosen else 'nobody: none is at work'}"


def wake_a_zombie(system: System, chance: random.Random) -> str:
    """One at work stands still; its sessions end, another takes what it leased; then it goes on as if nothing had been."""
    if not (chosen := _chosen(system, chance)):
        return "nobody to stand still"
    name, process = chosen
    with contextlib.suppress(psutil.NoSuchProcess):
        process.suspend()
        cut_connections(system, chance)
        system.digest_beside(f"spare-{system.faults.total()}")
        time.sleep(STILL_SECONDS)
        process.resume()
    return f"{name} stood still for {STILL_SECONDS:.0f} s, and another took its place"


def kill_the_prefect_server(system: System, _: random.Random) -> str:
    """kill -9 of Prefect's server; it starts again."""
    system.prefect.kill(SERVER)
    system.kills += 1
    return "kill -9 Prefect's server; it starts again"


def take_the_prefect_server_down(system: System, _: random.Random) -> str:
    """Prefect's server is away for some seconds."""
    system.prefect.end(SERVER)
    time.sleep(DOWN_SECONDS)
    return f"Prefect's server down for {DOWN_SECONDS:.0f} s, and then it starts"


def still_the_prefect_server(system: System, _: random.Random) -> str:
    """Prefect's server stands still and goes on (SIGSTOP, SIGCONT)."""
    system.prefect.services[SERVER].send_signal(signal.SIGSTOP)
    time.sleep(STILL_SECONDS)
    system.prefect.services[SERVER].send_signal(signal.SIGCONT)
    return f"Prefect's server stands still for {STILL_SECONDS:.0f} s"


def kill_a_prefect_worker(system: System, chance: random.Random) -> str:
    """kill -9 of a worker of Prefect's; it starts again."""
    pool = chance.choice(POOLS)
    system.prefect.kill(pool)
    system.kills += 1
    return f"kill -9 the worker of {pool}; it starts again"


def end_a_prefect_worker(system: System, chance: random.Random) -> str:
    """SIGTERM to a worker of Prefect's; it starts again."""
    pool = chance.choice(POOLS)
    system.prefect.end(pool)
    system.kills += 1
    return f"SIGTERM the worker of {pool}; it starts again"


def kill_an_engine(system: System, chance: random.Random) -> str:
    """kill -9 of an engine; it starts again."""
    port = chance.choice(sorted(system.engines))
    count_requests(system, port)
    system.engines[port].kill()
    system.engines[port].wait()
    system.lost += system.counted.pop(port, Counter())
    system.start_engine(port)
    system.kills += 1
    return "kill -9 an engine; it starts again"


def still_an_engine(system: System, chance: random.Random) -> str:
    """An engine stands still and goes on (SIGSTOP, SIGCONT)."""
    port = chance.choice(sorted(system.engines))
    system.engines[port].send_signal(signal.SIGSTOP)
    time.sleep(STILL_SECONDS)
    system.engines[port].send_signal(signal.SIGCONT)
    return f"an engine stands still for {STILL_SECONDS:.0f} s"


def cut_connections(system: System, _: random.Random) -> str:
    """Every connection to PostgreSQL is cut."""
    try:
        with system.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
            )
    except psycopg.OperationalError:
        return "PostgreSQL was down already"
    return "every connection to PostgreSQL cut"


def crash_the_database(system: System, chance: random.Random) -> str:
    """PostgreSQL ends by SIGQUIT or SIGKILL: its memory is lost, its log is replayed.

    The embedded server is started again by its next user.
    """
    how = chance.choice([signal.SIGQUIT, signal.SIGKILL])
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(system.server.place.pid_file.read_text().split()[0]), how)
        system.kills += 1
    time.sleep(1)
    system.revive_database()
    return f"PostgreSQL ended by {how.name} and recovered"


def fill_the_disk(system: System, chance: random.Random) -> str:
    """The database's disk is full; one time in two its log is at an end too, for which PostgreSQL panics."""
    if system.disk.reason:
        return "disk full: left out"
    log_too = chance.random() < 0.5
    with system.disk.full():
        if log_too:
            with contextlib.suppress(psycopg.Error), system.connect() as connection:
                connection.execute("SELECT pg_switch_wal()")
        time.sleep(FULL_SECONDS)
    system.revive_database()
    return f"the database's disk full for {FULL_SECONDS:.0f} s{', its log at an end' if log_too else ''}"


def disturb_github(system: System, chance: random.Random) -> str:
    """GitHub does one of the things below, from one to five times."""
    kind = chance.choice(list(GITHUB))
    times, after = chance.randint(1, 5), chance.randint(0, 3)
    seconds = 1.0
    if kind == "timeout":
        times, seconds = min(times, 2), chance.choice(TIMEOUT_SECONDS)
    system.control.fault(kind, times=times, after=after, seconds=seconds)
    return f"GitHub: {kind}"


def step_the_clock(system: System, chance: random.Random) -> str:
    """GitHub's clock steps: a minute, an hour or a day ahead, or some seconds back."""
    seconds = chance.choice([*AHEAD_SECONDS, *BACK_SECONDS])
    system.control.advance(seconds)
    return f"GitHub's clock steps {abs(seconds)} s {'ahead' if seconds > 0 else 'back'}"


def step_the_databases_clock(system: System, chance: random.Random) -> str:
    """PostgreSQL's clock steps an hour ahead, so that every lease runs out under whoever holds it, or some seconds back.

    No process can set another's clock, so what was written by it is moved the other way: what is left until then comes to the same.
    """
    seconds = chance.choice([AHEAD_SECONDS[1], *BACK_SECONDS])
    try:
        with system.connect() as connection:
            for table, column in LEASE_TIMES:
                moved = sql.SQL("UPDATE {table} SET {column} = {column} - make_interval(secs => %s) WHERE {column} IS NOT NULL")
                connection.execute(moved.format(table=sql.Identifier(table), column=sql.Identifier(column)), [seconds])
    except psycopg.Error:
        return "PostgreSQL was down, and its clock left alone"
    return f"PostgreSQL's clock steps {abs(seconds)} s {'ahead: all leases have run out' if seconds > 0 else 'back'}"


def pause_and_resume(system: System, _: random.Random) -> str:
    """The kill switch, for a second."""
    system.command("pause", "chaos")
    time.sleep(1)
    system.command("resume")
    return "paused and resumed"


def digest_twice(system: System, _: random.Random) -> str:
    """One more plain digest at the same time."""
    system.digest_beside(f"double-{system.faults.total()}")
    return "one more digest at the same time"


def start_a_shard_twice(system: System, _: random.Random) -> str:
    """A shard that is open, the same id, in two more flow runs at once: as if Prefect had forgotten its idempotency key."""
    try:
        with system.connect() as connection:
            newest = connection.execute("SELECT id, size FROM shard WHERE ended_at IS NULL ORDER BY id DESC LIMIT 1").fetchone()
    except psycopg.Error:
        return "PostgreSQL was down, so no shard starts twice"
    if newest is None:
        return NO_SHARD
    shard, size = newest
    started = sum(system.prefect.begin(SHARD, {"shard": shard, "items": size}) is not None for _ in range(2))
    return f"shard {shard} started {started} times more, at once" if started else NO_SHARD


def count_requests(system: System, port: int) -> None:
    """One that is just starting has answered nothing; one that is busy is asked again."""
    for _ in range(COUNT_TRIES):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/requests", timeout=5) as answer:
                system.counted[port] = Counter(json.load(answer))
                return
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                return
        except OSError:
            pass
    system.uncounted += 1


FAULTS: dict[Fault, int] = {
    kill_whoever_works: 4, kill_a_parent: 2, kill_a_shard: 3, end_whoever_works: 3, wake_a_zombie: 2,
    kill_the_prefect_server: 1, take_the_prefect_server_down: 1, still_the_prefect_server: 1,
    kill_a_prefect_worker: 2, end_a_prefect_worker: 1,
    kill_an_engine: 2, still_an_engine: 1,
    cut_connections: 2, crash_the_database: 2, fill_the_disk: 2,
    disturb_github: 5, step_the_clock: 1, step_the_databases_clock: 1, pause_and_resume: 1, digest_twice: 1, start_a_shard_twice: 2,
}  # fmt: skip
