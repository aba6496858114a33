"""One machine, the same system: Prefect's server with its UI, a worker for each pool, every deployment. Usage: make up, make down.

What runs is not written down: each process of ours, and whatever it starts, carries MARK in its environment, so the process table
is asked. A kill leaves no file that is wrong, and a process that has got the number of one of ours by now is not touched.
The embedded database is not ours: every command shares it, and it ends by itself.
"""

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from starsearch.embedded.postgres import locked
from starsearch.errors import PreconditionMissing, StarsearchError
from starsearch.settings import Settings, read_settings
from starsearch.terminal import err, out
from tasks import quiet

MARK = "STARSEARCH_ONE_MACHINE"
PORT = 4200
ROOT = Path(__file__).resolve().parents[1]
POOLS = ("starsearch", "starsearch-shards")
ASKS_GITHUB = ("flows.crawl.", "flows.rank.", "flows.maintain.")
START_SECONDS = 180.0  # a fresh server takes 15; on a busy machine two minutes
TERM_SECONDS = (10.0, 5.0, 5.0)  # after the first SIGTERM, the second (one leaves workers alive at times), and SIGKILL
BUSY_SECONDS = 60.0
SERVER_SETTINGS = quiet.DEFAULTS | {
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # SQLite: "database is locked" after 10 s on a busy machine
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # that one asks amplitude.com for its settings from the browser, whatever the server says
    # Which run has a deployment's one place. In memory, the default, a restart forgets it, which ends the crawl under way.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Of its CPU a quarter: what runs tell is recorded by the batch, at most 5 s late, not each event in a transaction of its own; and what
    # is found by looking every 5 s (late, paused and cancelled runs) is not that urgent here.
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "60",
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_LOOP_SECONDS": "60",
    # What an hour leaves behind is gone after a day (events) and a week (runs): see benchmarks/README.md for how much that is.
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P1D",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": "604800",
}
WORKER_SETTINGS = {
    "STARSEARCH_DISPATCH": "deployment",
    "PREFECT_WORKER_QUERY_SECONDS": "3",  # whoever clicks waits for it
}


def up(settings: Settings, port: int) -> None:
    """Start what does not run yet. Raises PreconditionMissing where the port is taken, StarsearchError where something does not start."""
    folder = folder_of(settings)
    with locked(folder / "lock"):
        running = _roles(settings)
        missing = [role for role in ("server", *POOLS) if role not in running]
        if "server" in running:
            port = int(running["server"].environ()["PREFECT_SERVER_API_PORT"])
        environment = environment_of(settings, port)
        if missing:
            _start_server(folder, environment, port, running.get("server"))
            register(environment)
            asks_github = _has_credential(settings)
            set_schedules(port, lambda deployment: asks_github or not deployment["entrypoint"].startswith(ASKS_GITHUB))
            for pool in missing:
                if pool != "server":
                    start(folder, pool, worker_command(pool), environment | WORKER_SETTINGS | _shards_at_once(settings))
        else:
            wait_for_answer(port, running["server"].is_running, folder)
    _tell(settings, port, missing)


def down(settings: Settings) -> None:
    """End what `up` started and what that started; raises StarsearchError where something cannot be ended."""
    folder = folder_of(settings)
    with locked(folder / "lock"):
        server = _roles(settings).get("server")
        port = int(server.environ()["PREFECT_SERVER_API_PORT"]) if server else None
        others = _end(lambda: [process for process in ours(settings) if process != server])
        if port is not None:
            with contextlib.suppress(StarsearchError):  # a server that is gone is told nothing; the reaper finds out
                _end_runs(port)
        ended = others | _end(lambda: ours(settings))
    out.print(f"StarSearch is down: {len(ended)} processes ended." if ended else "StarSearch was not up.", markup=False)


def ours(settings: Settings) -> list[psutil.Process]:
    """The processes that `up` started in this home, and theirs; without the embedded database, which a flow may have started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(settings.home) and not is_database(process):
                found.append(process)
    return found


def is_database(process: psutil.Process) -> bool:
    return process.name() == "postgres" or "starsearch.embedded.postgres_supervisor" in process.cmdline()


def _roles(settings: Settings) -> dict[str, psutil.Process]:
    """Of our processes the server and the workers, by what they were started with."""
    commands = {"server": server_command(), **{pool: worker_command(pool) for pool in POOLS}}
    found = {}
    for process in ours(settings):
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()[1:]
            found |= {role: process for role, command in commands.items() if line == command[1:]}
    return found


def server_command() -> list[str]:
    return [sys.executable, str(ROOT / "deployments" / "prefect_server.py"), "server", "start", "--host", "127.0.0.1"]


def worker_command(pool: str, kind: str = "process") -> list[str]:
    return [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", kind, "--name", f"one-machine-{pool}"]


def folder_of(settings: Settings) -> Path:
    folder = settings.home / "one-machine"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreconditionMissing(f"cannot create {folder}: {error.strerror}; set STARSEARCH_HOME to a folder you may write to") from error
    return folder


def environment_of(settings: Settings, port: int, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Of every process of ours. Settings of Prefect that were meant for another server stay out."""
    others = {name: value for name, value in base.items() if not name.startswith("PREFECT_")}
    return others | SERVER_SETTINGS | {
        MARK: str(settings.home),
        "STARSEARCH_HOME": str(settings.home),
        "PREFECT_HOME": str(folder_of(settings) / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_API_PORT": str(port),  # the UI asks the API there; --port alone would leave it asking 4200
    }  # fmt: skip


def _shards_at_once(settings: Settings) -> dict[str, str]:
    """A shard is a process with an engine of its own here: half the cores, unless the settings say otherwise."""
    if "max_shards" in settings.model_fields_set:
        return {}
    return {"STARSEARCH_MAX_SHARDS": str(max(2, (os.cpu_count() or 2) // 2))}


def _has_credential(settings: Settings) -> bool:
    """One that was meant for StarSearch: a token that merely happens to be in the environment starts no traffic every hour."""
    return bool(settings.github_tokens or settings.github_app_id)


def _start_server(folder: Path, environment: Mapping[str, str], port: int, running: psutil.Process | None) -> None:
    if running:
        wait_for_answer(port, running.is_running, folder)
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PreconditionMissing(f"port {port} is taken by another program: make up PORT={port + 1}, or another free one") from error
    out.print("Starting Prefect's server (15 seconds, the first time) …", markup=False)
    server = start(folder, "server", server_command(), environment)
    wait_for_answer(port, lambda: server.poll() is None, folder)


def start(folder: Path, role: str, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    (folder / "work").mkdir(exist_ok=True)
    with (folder / f"{role}.log").open("a") as log:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C on make is not meant for them
            cwd=folder / "work",  # not a checkout, whose .env Prefect would read
        )


def wait_for_answer(port: int, lives: Callable[[], bool], folder: Path) -> None:
    log = folder / "server.log"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=10).status_code == 200:
                return
        if not lives():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise StarsearchError(f"Prefect's server ended; its log is {log}, and ends:\n{tail}")
        time.sleep(0.2)
    raise StarsearchError(f"Prefect's server runs and does not answer on port {port}: make down, then make up; its log is {log}")


def register(environment: Mapping[str, str], *pools: str) -> None:
    """pools: what set_up.py is told of them."""
    out.print("Registering the deployments …", markup=False)
    for command in (["deployments/set_up.py", *pools], ["-m", "prefect", "--no-prompt", "deploy", "--all"]):
        done = subprocess.run(
            [sys.executable, *command],
            env=dict(environment),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise StarsearchError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")


def set_schedules(port: int, may_fire: Callable[[Mapping[str, Any]], bool]) -> None:
    """Switch each off, which also drops the runs that came due while nobody was there, and on again where its deployment may fire."""
    with open_api(port) as api:
        for deployment in ask(api, "POST", "/deployments/filter", {}):
            for schedule in deployment["schedules"]:
                for active in (False, True)[: 1 + may_fire(deployment)]:
                    path = f"/deployments/{deployment['id']}/schedules/{schedule['id']}"
                    ask(api, "PATCH", path, {"active": active})


def _end_runs(port: int) -> None:
    """Their processes are gone: without a word they would seem to run, and hold their deployment's only place."""
    wanted = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}}
    with open_api(port) as api:
        for run in ask(api, "POST", "/flow_runs/filter", wanted):
            cancelled = run["state"]["type"] == "CANCELLING"
            state = {"type": "CANCELLED" if cancelled else "CRASHED", "message": "Ended by make down; the next run goes on."}
            ask(api, "POST", f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})


def open_api(port: int) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}/api", timeout=60)


def ask(api: httpx.Client, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The answer of a server that says 503 while its SQLite is busy. Raises StarsearchError."""
    deadline = time.monotonic() + BUSY_SECONDS
    try:
        while (answer := api.request(method, path, json=body)).status_code == 503 and time.monotonic() < deadline:
            time.sleep(1)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise StarsearchError(f"Prefect's server did not do what was asked: {error}") from error
    return answer.json() if answer.content else None


def _end(find: Callable[[], list[psutil.Process]]) -> set[psutil.Process]:
    """TERM, wait, TERM, wait, KILL; whatever they start meanwhile ends too."""
    ended: set[psutil.Process] = set()
    for signal, seconds in zip(("terminate", "terminate", "kill"), TERM_SECONDS, strict=True):
        signalled: set[psutil.Process] = set()
        deadline = time.monotonic() + seconds
        while living := set(find()):
            for process in living - signalled:
                with contextlib.suppress(psutil.NoSuchProcess):
                    getattr(process, signal)()
            signalled |= living
            ended |= living
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        else:
            return ended
    raise StarsearchError(f"could not be ended: {', '.join(str(process.pid) for process in find())}")


def _tell(settings: Settings, port: int, started: list[str]) -> None:
    url = f"http://127.0.0.1:{port}"
    with open_api(port) as api:
        form = ask(api, "GET", "/deployments/name/backfill/manual")["id"]
        crawl = ask(api, "GET", "/deployments/name/crawl/hourly")
    on = any(schedule["active"] for schedule in crawl["schedules"])
    state = "is up" if len(started) > len(POOLS) else f"is up again ({', '.join(started)} had ended)" if started else "is up already"
    lines = [
        f"StarSearch {state}.",
        f"  Prefect's UI       {url}",
        f"  a crawl now        {url}/deployments/deployment/{crawl['id']}/run",
        '                     repositories: ["pgvector/pgvector"], newest: 30 needs no credential',
        f"  the backfill form  {url}/deployments/deployment/{form}/run",
        "  the search page    .venv/bin/starsearch serve",
        f"  logs and history   {folder_of(settings)}",
        f"The hourly crawl, the daily rank and maintain are {'scheduled' if on else 'registered and paused'}"
        + ("." if on else ": set STARSEARCH_GITHUB_TOKENS, make down, make up, or switch them on"),
        *([] if on else ["in the UI under Deployments. Nothing asks GitHub until you do."]),
        "make down ends all of it; what was stored stays.",
    ]
    out.print("\n".join(lines), markup=False, highlight=False)


def main(arguments: list[str]) -> int:
    match arguments:
        case ["up"]:
            up(read_settings(), PORT)
        case ["up", port] if port.isdecimal() and 0 < int(port) < 65_536:
            up(read_settings(), int(port))
        case ["down"]:
            down(read_settings())
        case _:
            err.print("usage: python deployments/one_machine.py up [PORT] | down", markup=False)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StarsearchError as error:
        err.print(f"starsearch: {error}", markup=False)
        sys.exit(error.exit_code)
