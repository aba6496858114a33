"""The one process that starts and stops an embedded PostgreSQL: python -m starsearch.embedded.postgres_supervisor.

Holds supervisor.lock for as long as it lives, so there is never a second one. Ends the server once nobody has held users.lock
for IDLE_SECONDS. If this process is killed, the server goes on and the next supervisor adopts it.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from enum import Enum, auto
from pathlib import Path
from typing import IO

import psutil

from starsearch.embedded.postgres import POLL_SECONDS, STOP_SECONDS, Place

IDLE_SECONDS = 300  # a second command within five minutes need not wait for a start
CHECK_SECONDS = 1.0
TRIES = 20  # whoever looks whether a lock is held holds it for an instant
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    # an eighth of the memory, used only as the data grows: a search that reads the index through the system's cache costs twice
    "shared_buffers": f"{min(max(psutil.virtual_memory().total // 8, 128 * 2**20), 4 * 2**30) // 2**20}MB",
    "maintenance_work_mem": "256MB",  # an HNSW build that does not fit is twice as slow
    "max_wal_size": "2GB",  # every checkpoint makes HNSW inserts write whole pages again
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "random_page_cost": "1.1",
    "jit": "off",
    "client_connection_check_interval": "10s",  # a killed client's long statement ends with it
}


def main(locks: str, folder: str, binaries: str, user: str) -> int:
    place = Place(Path(locks), Path(folder), Path(binaries), user or None)
    # users first: when idle, it stays locked until the server has ended
    with (place.locks / "users.lock").open("a") as users, (place.locks / "supervisor.lock").open("a+") as lock:
        if not take(lock):
            return 0
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        server = running(place) or launch(place)
        try:
            while watch(place, server, users) is Ending.SOCKET_LOST:
                halt(server)
                server = launch(place)
        finally:
            halt(server)
    return 0


def take(lock: IO[str]) -> bool:
    for _ in range(TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(POLL_SECONDS)
    return False


def running(place: Place) -> psutil.Process | None:
    """The server of this data folder, if one lives. A pid that now belongs to something else is no server: the file goes."""
    pid = _pid(place)
    if pid is None:
        return None
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(pid)
        if is_server(process, place.data):
            return process
    place.pid_file.unlink(missing_ok=True)
    return None


def _pid(place: Place) -> int | None:
    try:
        return int(place.pid_file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def is_server(process: psutil.Process, data: Path) -> bool:
    command = process.cmdline()
    return bool(command) and Path(command[0]).name == "postgres" and str(data) in command


def launch(place: Place) -> psutil.Process:
    end_predecessors(place)
    own_socket_folder(place)
    for stale in (place.socket, place.socket.with_name(f"{place.socket.name}.lock")):
        stale.unlink(missing_ok=True)  # it may name a pid that now belongs to something else, and PostgreSQL believes it
    if not (place.data / "PG_VERSION").exists():
        initialize(place)
    command = [str(place.binaries / "postgres"), "-D", str(place.data), "-k", str(place.sockets)]
    for name, value in SETTINGS.items():
        command += ["-c", f"{name}={value}"]
    with place.log.open("a") as log:
        uid, gid = place.ids
        return psutil.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
        )


def end_predecessors(place: Place) -> None:
    """A server whose folder was deleted would, on ending, take the socket of its successor in the same place with it."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if is_server(process, place.data) and Path(f"/proc/{process.pid}/cwd").readlink().name.endswith(" (deleted)"):
                halt(process)


def own_socket_folder(place: Place) -> None:
    """A folder that only the server's user may enter; one that somebody else prepared is refused."""
    uid = os.geteuid() if place.ids[0] is None else place.ids[0]
    if not place.sockets.exists():
        place.sockets.mkdir(mode=0o700)
        os.chown(place.sockets, uid, -1)
    if place.sockets.stat().st_uid not in {uid, 0}:
        raise PermissionError(f"{place.sockets} belongs to another user")


def initialize(place: Place) -> None:
    """initdb beside the final place and rename: a kill in between leaves nothing that looks finished."""
    unfinished = place.folder / "data.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [str(place.binaries / "initdb"), "-D", str(unfinished), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    # the wheel is built without ICU; the built-in provider sorts the same on every machine
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    uid, gid = place.ids
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        cwd="/",
        user=uid,
        group=gid,
        extra_groups=None if uid is None else [],
    )
    unfinished.rename(place.data)


class Ending(Enum):
    """Why a server is not watched any more."""

    GONE = auto()  # it ended, or its folder was deleted or now belongs to another server
    IDLE = auto()
    SOCKET_LOST = auto()  # it lives, but nobody can reach it


def watch(place: Place, server: psutil.Process, users: IO[str]) -> Ending:
    """Returns when the server cannot or need not go on. When idle, the exclusive lock then keeps new users out."""
    idle_since = time.monotonic()
    reachable = False  # a starting server has neither pid file nor socket yet
    while alive(server):
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            idle_since = time.monotonic()
        else:
            if time.monotonic() - idle_since > IDLE_SECONDS:
                return Ending.IDLE
            fcntl.flock(users, fcntl.LOCK_UN)
        reachable = reachable or place.socket.exists()
        if reachable and _pid(place) != server.pid:
            return Ending.GONE
        if reachable and not place.socket.exists():
            return Ending.SOCKET_LOST
        time.sleep(CHECK_SECONDS)
    return Ending.GONE


def alive(server: psutil.Process) -> bool:
    """Not so for a zombie: the first process of a container may never collect the ones it inherits."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(server.is_running() and server.status() != psutil.STATUS_ZOMBIE)
    return False


def halt(server: psutil.Process) -> None:
    """PostgreSQL's fast shutdown: open sessions end, everything committed is on disk."""
    with contextlib.suppress(psutil.NoSuchProcess):
        server.send_signal(signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    while alive(server) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
