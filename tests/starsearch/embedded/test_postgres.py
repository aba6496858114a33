"""The real embedded PostgreSQL, with its users, supervisor and server killed at bad moments and its files left stale."""

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from starsearch.embedded import postgres
from starsearch.embedded.postgres import Place
from starsearch.embedded.postgres_supervisor import alive
from starsearch.errors import DatabaseUnavailable, DatabaseUnsuitable

PATIENCE = 60  # seconds; what is waited for takes one or two on an idle machine
POSTMASTER = r"SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)::int"

USER = """
import sys, time
from pathlib import Path
import psycopg
from starsearch.embedded import postgres
server = postgres.start(Path(sys.argv[1]))
with psycopg.connect(server.dsn) as connection:
    print(connection.execute(sys.argv[2]).fetchone()[0], flush=True)
time.sleep(600)
"""

IMPATIENT_SUPERVISOR = """
import sys, time
from starsearch.embedded import postgres_supervisor as supervisor
supervisor.IDLE_SECONDS, supervisor.CHECK_SECONDS = 0.5, 0.1
halt = supervisor.halt
delay = float(sys.argv.pop())
supervisor.halt = lambda server: (time.sleep(delay), halt(server), time.sleep(delay))
sys.exit(supervisor.main(*sys.argv[1:5]))
"""

only_as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run PostgreSQL as somebody else")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not tmp_path: pytest keeps that closed to everybody else, and so to the user that root's PostgreSQL runs as."""
    path = Path(tempfile.mkdtemp(prefix="starsearch-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def fresh_home(folder: Path) -> Iterator[Path]:
    """A home folder that does not exist yet."""
    path = folder / "home"
    yield path
    end(path)


@pytest.fixture
def closed_home(folder: Path) -> Iterator[Path]:
    """A home folder that only its owner could walk to."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    path = closed / "home"
    yield path
    end(path)


@pytest.fixture
def spawn() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Runs Python code in a process of its own, killed at the end."""
    with contextlib.ExitStack() as processes:

        def start(code: str, *arguments: str | Path) -> "subprocess.Popen[str]":
            command = [sys.executable, "-c", code, *map(str, arguments)]
            process = processes.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            processes.callback(process.kill)
            return process

        yield start


@pytest.fixture
def impatient(spawn) -> Callable[..., "subprocess.Popen[str]"]:
    """Replaces the supervisor of a server by one that ends it after half a second without users."""

    def replace(home: Path, place: Place, *, shutdown_seconds: float = 0) -> "subprocess.Popen[str]":
        postgres.stop(home)
        process = spawn(IMPATIENT_SUPERVISOR, place.locks, place.folder, place.binaries, place.user or "", str(shutdown_seconds))
        wait_until(lambda: answers(place))
        return process

    return replace


def end(home: Path) -> None:
    """Stop the server and remove what root's server keeps outside the home folder."""
    postgres.stop(home)
    note = home / "embedded-postgres" / "location"
    if note.exists():
        shutil.rmtree(note.read_text(), ignore_errors=True)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answers(place: Place) -> bool:
    try:
        psycopg.connect(place.dsn("postgres")).close()
    except psycopg.OperationalError:
        return False
    return True


def query(server: postgres.EmbeddedPostgres, statement: str) -> int:
    with psycopg.connect(server.dsn) as connection:
        return connection.execute(statement).fetchone()[0]


def create_table(server: postgres.EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")


def supervisor_of(place: Place) -> psutil.Process:
    return psutil.Process(int((place.locks / "supervisor.lock").read_text()))


def kill(process: psutil.Process) -> None:
    process.kill()
    wait_until(lambda: not alive(process))


def modes(path: Path) -> dict[Path, int]:
    return {parent: parent.stat().st_mode for parent in path.parents}


def test_killed_user_does_not_keep_the_server_alive(fresh_home, spawn, impatient):
    server = postgres.start(fresh_home)
    supervisor = impatient(fresh_home, server.place)
    user = spawn(USER, fresh_home, "SELECT 1")
    user.stdout.readline()
    server.close()
    with pytest.raises(subprocess.TimeoutExpired):
        supervisor.wait(1.5)  # a second more than it waits without users
    user.kill()
    assert supervisor.wait(PATIENCE) == 0
    assert not answers(server.place)


def test_start_while_an_idle_server_is_being_stopped_starts_it_again(fresh_home, impatient):
    server = postgres.start(fresh_home)
    impatient(fresh_home, server.place, shutdown_seconds=1)
    ending = query(server, POSTMASTER)
    server.close()
    wait_until(lambda: postgres.is_locked(server.place.locks / "users.lock"))
    assert query(postgres.start(fresh_home), POSTMASTER) != ending


def test_start_after_the_server_was_told_to_stop_starts_it_again(fresh_home, impatient):
    server = postgres.start(fresh_home)
    supervisor = impatient(fresh_home, server.place, shutdown_seconds=1)
    supervisor.terminate()
    wait_until(lambda: not answers(server.place))
    assert query(postgres.start(fresh_home), "SELECT 1") == 1


def test_stale_files_that_name_another_living_process_do_not_stop_a_start(fresh_home):
    place = postgres.start(fresh_home).place
    paths = (place.pid_file, place.socket.with_name(f"{place.socket.name}.lock"))
    texts = {path: path.read_text() for path in paths}
    postgres.stop(fresh_home)
    # as the server's own user: PostgreSQL takes no notice of a process that it may not signal
    sleep = subprocess.Popen(["sleep", "600"], user=place.ids[0])
    try:
        for path, text in texts.items():
            path.write_text("\n".join([str(sleep.pid), *text.split("\n")[1:]]))
            path.chmod(0o600)
            shutil.chown(path, place.user or os.geteuid())
        assert query(postgres.start(fresh_home), POSTMASTER) != sleep.pid
        assert sleep.poll() is None
    finally:
        sleep.kill()
        sleep.wait()


def test_killed_supervisor_and_server_lose_nothing_committed(fresh_home):
    server = postgres.start(fresh_home)
    create_table(server)
    postmaster = query(server, POSTMASTER)
    kill(supervisor_of(server.place))
    psutil.Process(postmaster).kill()  # and start at once, while its children are still ending
    again = postgres.start(fresh_home)
    assert query(again, "SELECT answer FROM kept") == 42
    assert query(again, POSTMASTER) != postmaster


def test_living_server_of_a_killed_supervisor_gets_a_new_one(fresh_home):
    server = postgres.start(fresh_home)
    postmaster = query(server, POSTMASTER)
    killed = supervisor_of(server.place)
    kill(killed)
    assert query(postgres.start(fresh_home), POSTMASTER) == postmaster
    assert supervisor_of(server.place) != killed
    assert postgres.stop(fresh_home)
    assert not answers(server.place)


def test_eight_processes_at_once_share_one_server(fresh_home, spawn):
    users = [spawn(USER, fresh_home, POSTMASTER) for _ in range(8)]
    postmasters = {user.stdout.readline() for user in users}
    assert len(postmasters) == 1
    assert psutil.pid_exists(int(postmasters.pop()))


@only_as_root
def test_as_root_the_server_runs_as_somebody_else_and_no_folder_is_opened_up(closed_home):
    before = modes(closed_home)
    server = postgres.start(closed_home)
    process = psutil.Process(query(server, POSTMASTER))
    assert 0 not in (*process.uids(), *process.gids())
    assert pwd.getpwuid(process.uids().real).pw_name == server.place.user
    assert closed_home not in server.place.folder.parents
    assert modes(closed_home) == before


@only_as_root
def test_as_root_the_server_is_reachable_whatever_the_umask(closed_home, folder, monkeypatch):
    shared = folder / "shared"
    monkeypatch.setattr(postgres, "SHARED_FOLDER", shared)
    monkeypatch.setattr(postgres, "reachable", lambda _: False)  # the binaries too, as in a virtual environment below /root
    before = os.umask(0o077)
    try:
        server = postgres.start(closed_home)
    finally:
        os.umask(before)
    assert shared in server.place.binaries.parents
    assert query(server, "SELECT 1") == 1


def test_data_of_another_major_version_is_refused(fresh_home):
    place = postgres.start(fresh_home).place
    postgres.stop(fresh_home)
    (place.data / "PG_VERSION").write_text("16\n")
    with pytest.raises(DatabaseUnsuitable, match="16"):
        postgres.start(fresh_home)


def test_home_that_cannot_be_created_is_named_with_its_setting(folder):
    (folder / "file").touch()
    with pytest.raises(DatabaseUnavailable, match="STARSEARCH_HOME"):
        postgres.start(folder / "file" / "home")


@pytest.mark.parametrize("supervised", [True, False])
def test_home_deleted_under_a_running_server_can_be_used_again(fresh_home, supervised):
    server = postgres.start(fresh_home)
    create_table(server)
    postmaster = psutil.Process(query(server, POSTMASTER))
    if not supervised:
        kill(supervisor_of(server.place))
    shutil.rmtree(fresh_home)
    again = postgres.start(fresh_home)
    assert not alive(postmaster)  # its end would remove the new server's socket
    assert query(again, "SELECT count(*) FROM pg_tables WHERE tablename = 'kept'") == 0
