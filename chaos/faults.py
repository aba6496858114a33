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

from chaos.orchestration import CRAWL, SERVER, SHARD
from chaos.system import System
from deployments.one_machine import POOLS

GITHUB = ("500", "502", "504", "html", "drop", "secondary_403", "429", "resource_limits", "wrong_null", "slow")
STILL_SECONDS = 3.0
DOWN_SECONDS = 6.0
FULL_SECONDS = 6.0
MEAN_GAP_SECONDS = 4.0
COUNT_TRIES = 3
QUIET_SECONDS = 5.0  # until the first fault
Fault = Callable[[System, random.Random], str]


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
    return _kill(system, chance)


def kill_a_parent(system: System, chance: random.Random) -> str:
    return _kill(system, chance, CRAWL)


def kill_a_shard(system: System, chance: random.Random) -> str:
    return _kill(system, chance, SHARD)


def end_whoever_works(system: System, chance: random.Random) -> str:
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
    system.prefect.kill(SERVER)
    system.kills += 1
    return "kill -9 Prefect's server; it starts again"


def take_the_prefect_server_down(system: System, _: random.Random) -> str:
    system.prefect.end(SERVER)
    time.sleep(DOWN_SECONDS)
    return f"Prefect's server down for {DOWN_SECONDS:.0f} s, and then it starts"


def still_the_prefect_server(system: System, _: random.Random) -> str:
    system.prefect.services[SERVER].send_signal(signal.SIGSTOP)
    time.sleep(STILL_SECONDS)
    system.prefect.services[SERVER].send_signal(signal.SIGCONT)
    return f"Prefect's server stands still for {STILL_SECONDS:.0f} s"


def kill_a_prefect_worker(system: System, chance: random.Random) -> str:
    pool = chance.choice(POOLS)
    system.prefect.kill(pool)
    system.kills += 1
    return f"kill -9 the worker of {pool}; it starts again"


def end_a_prefect_worker(system: System, chance: random.Random) -> str:
    pool = chance.choice(POOLS)
    system.prefect.end(pool)
    system.kills += 1
    return f"SIGTERM the worker of {pool}; it starts again"


def kill_an_engine(system: System, chance: random.Random) -> str:
    port = chance.choice(sorted(system.engines))
    count_requests(system, port)
    system.engines[port].kill()
    system.engines[port].wait()
    system.lost += system.counted.pop(port, Counter())
    system.start_engine(port)
    system.kills += 1
    return "kill -9 an engine; it starts again"


def still_an_engine(system: System, chance: random.Random) -> str:
    port = chance.choice(sorted(system.engines))
    system.engines[port].send_signal(signal.SIGSTOP)
    time.sleep(STILL_SECONDS)
    system.engines[port].send_signal(signal.SIGCONT)
    return f"an engine stands still for {STILL_SECONDS:.0f} s"


def cut_connections(system: System, _: random.Random) -> str:
    try:
        with system.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
            )
    except psycopg.OperationalError:
        return "PostgreSQL was down already"
    return "every connection to PostgreSQL cut"


def crash_the_database(system: System, chance: random.Random) -> str:
    """Its memory is lost, its log is replayed. The embedded server is started again by its next user."""
    how = chance.choice([signal.SIGQUIT, signal.SIGKILL])
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(system.server.place.pid_file.read_text().split()[0]), how)
        system.kills += 1
    time.sleep(1)
    system.revive_database()
    return f"PostgreSQL ended by {how.name} and recovered"


def fill_the_disk(system: System, chance: random.Random) -> str:
    """Nothing more can be written for the database; one time in two not even its log, for which PostgreSQL panics."""
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
    kind = chance.choice(GITHUB)
    system.control.fault(kind, times=chance.randint(1, 5), after=chance.randint(0, 3), seconds=1.0)
    return f"GitHub: {kind}"


def step_the_clock(system: System, chance: random.Random) -> str:
    seconds = chance.choice([60, 3_600, 86_400])
    system.control.advance(seconds)
    return f"GitHub's clock steps {seconds} s ahead"


def pause_and_resume(system: System, _: random.Random) -> str:
    system.command("pause", "chaos")
    time.sleep(1)
    system.command("resume")
    return "paused and resumed"


def digest_twice(system: System, _: random.Random) -> str:
    system.digest_beside(f"double-{system.faults.total()}")
    return "one more digest at the same time"


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
    disturb_github: 4, step_the_clock: 1, pause_and_resume: 1, digest_twice: 1,
}  # fmt: skip
