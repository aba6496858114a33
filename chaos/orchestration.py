"""Prefect in a system under test: a real server, a worker for each pool, and the flow runs that a schedule starts, which are processes.

Where they are Jobs of a real Kubernetes API instead, kubernetes.py says what is different.
"""

import contextlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from deployments import one_machine
from starsearch.settings import Settings

CRAWL, SHARD, REAP = "crawl/hourly", "digest/shard", "reap/often"
ENDED = {"COMPLETED", "FAILED", "CRASHED"}
FINAL = {*ENDED, "CANCELLED"}  # of ours only what finds its deployment's place taken
LOOKS_ALIVE = ["RUNNING", "PENDING", "CANCELLING"]
END_SECONDS = (5.0, 5.0)  # after the first SIGTERM, and after the second: see one_machine.TERM_SECONDS
SERVER = "server"
ASK_SECONDS = 10.0
ANSWER_SECONDS = 180.0  # its SQLite is locked for a minute at times where the machine is overloaded


@dataclass
class Orchestration:
    """services: the server and the workers, by name. Asked while the server is down or busy, it answers None."""

    settings: Settings
    port: int
    environment: dict[str, str]
    services: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    deployments: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = one_machine.folder_of(self.settings)
        self.api = one_machine.open_api(self.port)

    def up(self) -> None:
        self.start(SERVER)
        self.wait_for_server()
        self._register()
        one_machine.set_schedules(self.port, lambda _: False)  # hours pass as the system says
        for name in (CRAWL, SHARD, REAP):
            deployment = one_machine.ask(self.api, "GET", f"/deployments/name/{name}")
            self.deployments[name] = deployment["id"]
            variables = deployment["job_variables"] | self._variables(name)
            one_machine.ask(self.api, "PATCH", f"/deployments/{deployment['id']}", {"job_variables": variables})
        for pool in one_machine.POOLS:
            self.start(pool)

    def down(self) -> None:
        """What is no process of the system: here, nothing."""

    def stranded(self) -> list[str]:
        """What looks alive, and no process is at work on it."""
        return [f"flow run {run['name']} is {run['state']['type']}, and no process is at work on it" for run in self.alive()]

    def left_over(self) -> list[str]:
        """What nothing waits for any more, processes apart."""
        return []

    def start(self, name: str) -> None:
        command = one_machine.server_command() if name == SERVER else self._worker_command(name)
        self.services[name] = one_machine.start(self.folder, name, command, self.environment)

    def kill(self, name: str) -> None:
        self.services[name].kill()
        self.services[name].wait()

    def end(self, name: str) -> None:
        service = self.services[name]
        for seconds in END_SECONDS:
            service.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                service.wait(seconds)
                return
        self.kill(name)

    def keep_up(self) -> None:
        """What ended is started again, as systemd or a cluster would."""
        for name, service in self.services.items():
            if service.poll() is not None:
                self.start(name)

    def wait_for_server(self) -> None:
        one_machine.wait_for_answer(self.port, lambda: self.services[SERVER].poll() is None, self.folder)

    def begin(self, deployment: str, parameters: dict[str, Any] | None = None) -> str | None:
        """The flow run that was started."""
        started = self._ask("POST", f"/deployments/{self.deployments[deployment]}/create_flow_run", {"parameters": parameters or {}})
        return started and str(started["id"])

    def state(self, flow_run: str) -> str | None:
        found = self._ask("GET", f"/flow_runs/{flow_run}")
        return found and str(found["state"]["type"])

    def run(self, deployment: str, *, seconds: float, meanwhile: Callable[[], object] = lambda: None) -> str | None:
        """The state in which it ended; None where it did not, or the server has not answered all that time."""
        flow_run, deadline = None, time.monotonic() + seconds
        while time.monotonic() < deadline:
            flow_run = flow_run or self.begin(deployment)
            if flow_run and (state := self.state(flow_run)) in FINAL:
                return state
            meanwhile()
            time.sleep(1)
        return None

    def alive(self) -> list[dict[str, Any]]:
        """The flow runs that look alive to Prefect. Raises TimeoutError where it does not say: nothing may be concluded from that."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            found = self._ask("POST", "/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": LOOKS_ALIVE}}}})
            if found is not None:
                return list(found)
            time.sleep(1)  # asking costs a busy server, too
        raise TimeoutError(f"Prefect's server has not answered for {ANSWER_SECONDS:.0f} s; its log is in {self.folder}")

    def processes(self) -> list[tuple[str, psutil.Process]]:
        """Those of flow runs, by their deployment's name."""
        found = []
        for process in one_machine.ours(self.settings):
            with contextlib.suppress(psutil.Error):
                if "chaos.sooner" in (line := process.cmdline()):
                    found.append((line[-1], process))
        return sorted(found, key=lambda each: (each[0], each[1].pid))

    def _register(self) -> None:
        one_machine.register(self.environment)

    def _variables(self, deployment: str) -> dict[str, Any]:
        """Of its flow runs."""
        return {"command": shlex.join([sys.executable, "-m", "chaos.sooner", deployment])}

    def _worker_command(self, pool: str) -> list[str]:
        return one_machine.worker_command(pool)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            return self.api.request(method, path, json=body, timeout=ASK_SECONDS).raise_for_status().json()
        except httpx.HTTPError:
            return None
