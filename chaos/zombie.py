"""A worker that wakes after its lease has passed to another: whatever it brings is refused, or there is no fence.

Not left to the schedule, by which a process rarely stands still in the middle of a batch, and wakes while another holds its items.
"""

import contextlib
import signal
import subprocess
import time
from collections.abc import Collection

from chaos.system import END_SECONDS, System
from starsearch.store.leases import BATCH, WORKER_LOCK

TRIES = 5
LOOK_SECONDS = 0.01  # a batch takes a second
BATCH_SECONDS = 90.0  # until a digest that was started has leased something, on a busy machine
DUE_AGAIN = (
    "INSERT INTO due (version_id, item_id) SELECT d.version_id, d.item_id FROM digest d JOIN item i ON i.id = d.item_id "
    "JOIN index_version v ON v.id = d.version_id AND v.status = 'active' WHERE i.tombstoned_at IS NULL AND d.content_hash = i.content_hash "
    "ORDER BY d.item_id LIMIT %s ON CONFLICT DO NOTHING"
)
HOLDERS = "SELECT DISTINCT lease_worker FROM due WHERE lease_worker IS NOT NULL"
END_SESSION = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s"
NEWEST_RUN = "SELECT max(id) FROM run"
WRITTEN = "SELECT count(*) FROM digest WHERE run_id = %s"


def stale_results(system: System) -> list[str]:
    """What a digest wrote whose items another had leased meanwhile. Nothing else may be at work, and nothing due."""
    for number in range(TRIES):
        written = _wake(system, f"stands-still-{number}", f"takes-over-{number}")
        if written is not None:
            print(f"a worker woke while another held its items: {written} of its results were accepted", flush=True)
            return [f"{written} digests were accepted of a worker whose lease had passed to another"] if written else []
    return [f"no digest could be stopped in the middle of a batch, in {TRIES} tries: whether stale results are refused is not known"]


def _wake(system: System, first: str, second: str) -> int | None:
    """How many digests the first wrote after it woke; None where it, or the other, had done its batch before it could be stopped."""
    with system.connect() as connection:
        connection.execute(DUE_AGAIN, [BATCH])
    try:
        if (worker := _stop_with_a_lease(system, first, ())) is None:
            return None
        run = system.number(NEWEST_RUN)
        with system.connect() as connection:
            connection.execute(END_SESSION, [WORKER_LOCK, worker])
        if _stop_with_a_lease(system, second, (worker,)) is None:
            return None
        system.jobs[first].send_signal(signal.SIGCONT)
        return system.number(WRITTEN, run) if system.jobs[first].wait(END_SECONDS) == 0 else None
    finally:
        for name in {first, second} & system.jobs.keys():
            system.jobs[name].send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):  # it is found among what is left over
                system.jobs[name].wait(END_SECONDS)


def _stop_with_a_lease(system: System, name: str, others: Collection[int]) -> int | None:
    """Start a digest, and stop it as soon as it has leased something; returns its number as a worker, None where it was quicker."""
    system.digest_beside(name)
    job, deadline = system.jobs[name], time.monotonic() + BATCH_SECONDS
    with system.connect() as connection:
        while job.poll() is None and time.monotonic() < deadline:
            if {worker for (worker,) in connection.execute(HOLDERS)} - set(others):
                job.send_signal(signal.SIGSTOP)
                holding = {int(worker) for (worker,) in connection.execute(HOLDERS)} - set(others)
                return next(iter(holding), None)
            time.sleep(LOOK_SECONDS)
    return None
