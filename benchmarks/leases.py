"""Leases under load and kill -9: many processes sweep one list of repositories, some of them die half-way.

Each process does what a crawl does: lease 20, work 2 ms on each lease, end it in one transaction that also writes down what it did.
Wall time counts here, since waiting is what leases could add; the machine's other work only lowers the figures.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from benchmarks.measure import Figure
from starsearch.embedded import postgres
from starsearch.models import Followed
from starsearch.store.database import Pool, connect, open_database
from starsearch.store.leases import worker
from starsearch.store.migrate import migrate
from starsearch.store.repository_leases import Sweeper, claim_repositories, end_leases

HOST = "github.com"
REPOSITORIES, WORKERS, KILLED, SIZE = 40_000, 24, 4, 20
WORK_SECONDS = 0.002
NOW = datetime(2026, 11, 24, tzinfo=UTC)


def repositories_per_second() -> list[Figure]:
    """24 processes over 40,000 repositories, 4 of them killed half-way."""
    folder = Path(tempfile.mkdtemp(prefix="starsearch-bench-"))
    folder.chmod(0o755)
    server = postgres.start(folder)
    try:
        dsn = server.dsn
        asyncio.run(_prepare(dsn))
        seconds = _race(dsn)
        with psycopg.connect(dsn) as connection:
            done = connection.execute("SELECT count(*), count(DISTINCT repository_id) FROM swept").fetchone() or (0, 0)
            by_worker = dict(connection.execute("SELECT process, count(*) FROM swept GROUP BY 1").fetchall())
            killed = {process for (process,) in connection.execute("SELECT process FROM victim").fetchall()}
            left = (connection.execute("SELECT count(*) FROM repository WHERE lease_token IS NOT NULL").fetchone() or (0,))[0]
    finally:
        server.close()
        postgres.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)
    living = [count for process, count in by_worker.items() if process not in killed]
    return [
        Figure("store.leases.repositories_per_second", round(REPOSITORIES / seconds), "repositories/s", ">=", 1_000),
        Figure("store.leases.fairness", round(min(living) / max(living), 2), f"min/max of {len(living)} living workers", ">=", 0.6),
        Figure("store.leases.not_done_once", REPOSITORIES - done[1] + done[0] - done[1] + left, f"of {REPOSITORIES:,}", "==", 0),
    ]


async def _prepare(dsn: str) -> None:
    async with await connect(dsn) as connection:
        await migrate(connection)
        await connection.execute(
            "INSERT INTO repository (full_name, node_id, followed, rank) "
            "SELECT 'owner/r' || n, 'R_' || n, true, n FROM generate_series(1, %s) AS n",
            [REPOSITORIES],
        )
        await connection.execute("CREATE TABLE swept (repository_id bigint, process integer)")
        await connection.execute("CREATE TABLE victim (process integer)")
        await connection.execute("CREATE TABLE ready (process integer)")
        await connection.execute("ANALYZE")


def _race(dsn: str) -> float:
    """Seconds from the moment all processes may begin until the last one finds nothing left."""
    command = [sys.executable, "-m", "benchmarks.leases", dsn]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        started, began = time.perf_counter(), datetime.now(UTC)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{began}\n")  # one crawl: all of them share its beginning
            process.stdin.flush()
        _kill_half_way(dsn, processes)
        for process in processes:
            process.wait(600)
        return time.perf_counter() - started
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _kill_half_way(dsn: str, processes: list[subprocess.Popen[str]]) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        while (connection.execute("SELECT count(*) FROM swept").fetchone() or (0,))[0] < REPOSITORIES // 2:
            time.sleep(0.05)
        for process in processes[:KILLED]:
            os.kill(process.pid, signal.SIGKILL)
            connection.execute("INSERT INTO victim VALUES (%s)", [process.pid])


async def _sweep(dsn: str) -> None:
    async with open_database(dsn, size=1) as pool, worker(dsn) as number:
        print("ready", flush=True)
        began = datetime.fromisoformat(sys.stdin.readline().strip())
        sweeper = Sweeper(HOST, number, began, now=NOW, since=NOW)
        while claimed := await claim_repositories(pool, sweeper, size=SIZE):
            await asyncio.sleep(WORK_SECONDS)
            await _finish(pool, claimed)


async def _finish(pool: Pool, claimed: list[Followed]) -> None:
    async with pool.connection() as connection:
        if await end_leases(connection, claimed, at=NOW) == len(claimed):
            ids = [repository.id for repository in claimed]
            await connection.execute("INSERT INTO swept SELECT unnest(%s::bigint[]), %s", [ids, os.getpid()])


if __name__ == "__main__":
    asyncio.run(_sweep(sys.argv[1]))
