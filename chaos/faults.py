"""What breaks: each fault is one thing done to a system. Which one when is drawn from the seed."""

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable

import psycopg

from chaos.system import Process, System

GITHUB = ("500", "502", "504", "html", "drop", "secondary_403", "429", "resource_limits", "wrong_null", "slow")
STILL_SECONDS = 3.0


def _a_job(system: System) -> tuple[str, Process] | None:
    alive = sorted((name, process) for name, process in system.jobs.items() if process.poll() is None)
    return system.random.choice(alive) if alive else None


def kill_a_job(system: System) -> str:
    if job := _a_job(system):
        job[1].kill()
        job[1].wait()
    return f"kill -9 {job and job[0]}"


def end_a_job(system: System) -> str:
    if job := _a_job(system):
        job[1].terminate()
    return f"SIGTERM {job and job[0]}"


def wake_a_zombie(system: System) -> str:
    """A digest stands still; its sessions end, others take what it leased; then it goes on as if nothing had been."""
    digests = sorted((name, process) for name, process in system.jobs.items() if name != "crawl" and process.poll() is None)
    if not digests:
        return "no digest to stop"
    name, process = system.random.choice(digests)
    process.send_signal(signal.SIGSTOP)
    cut_connections(system)
    spare = system._run(["-m", "starsearch.cli", "digest"])
    time.sleep(STILL_SECONDS)
    process.send_signal(signal.SIGCONT)
    system.jobs[f"spare-{len(system.happened)}"] = spare
    return f"{name} stood still for {STILL_SECONDS:.0f} s, and another took its place"


def kill_an_engine(system: System) -> str:
    port = system.random.choice(sorted(system.engines))
    count_requests(system, port)
    system.engines[port].kill()
    system.engines[port].wait()
    system.lost_count += system.counted.pop(port, 0)
    system.start_engine(port)
    return "kill -9 an engine; it starts again"


def still_an_engine(system: System) -> str:
    port = system.random.choice(sorted(system.engines))
    system.engines[port].send_signal(signal.SIGSTOP)
    time.sleep(STILL_SECONDS)
    system.engines[port].send_signal(signal.SIGCONT)
    return f"an engine stands still for {STILL_SECONDS:.0f} s"


def cut_connections(system: System) -> str:
    try:
        with system.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
            )
    except psycopg.OperationalError:
        return "PostgreSQL was down already"
    return "every connection to PostgreSQL cut"


def crash_the_database(system: System) -> str:
    """Immediate shutdown: memory is lost, the log is replayed. The embedded server is started again by its next user."""
    os.kill(int(system.server.place.pid_file.read_text().split()[0]), signal.SIGQUIT)
    time.sleep(1)
    system.server.close()
    from starsearch.embedded import postgres

    system.server = postgres.start(system.home)
    return "PostgreSQL crashed and recovered"


def disturb_github(system: System) -> str:
    kind = system.random.choice(GITHUB)
    system.control.fault(kind, times=system.random.randint(1, 5), after=system.random.randint(0, 3), seconds=1.0)
    return f"GitHub: {kind}"


def step_the_clock(system: System) -> str:
    seconds = system.random.choice([60, 3_600, 86_400])
    system.control.advance(seconds)
    return f"GitHub's clock steps {seconds} s ahead"


def pause_and_resume(system: System) -> str:
    system.command("pause", "chaos")
    time.sleep(1)
    system.command("resume")
    return "paused and resumed"


def digest_twice(system: System) -> str:
    system.jobs[f"double-{len(system.happened)}"] = system._run(["-m", "starsearch.cli", "digest"])
    return "one more digest at the same time"


def count_requests(system: System, port: int) -> None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/requests", timeout=5) as answer:
            system.counted[port] = json.load(answer).get("chat", 0)
    except OSError:
        pass


FAULTS: dict[Callable[[System], str], int] = {
    kill_a_job: 5, end_a_job: 2, wake_a_zombie: 2, kill_an_engine: 2, still_an_engine: 1, cut_connections: 2, crash_the_database: 1,
    disturb_github: 5, step_the_clock: 1, pause_and_resume: 1, digest_twice: 1,
}  # fmt: skip
