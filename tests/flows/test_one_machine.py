"""`make up` as it is: a real server, real process workers, shards in processes of their own, the form in a real browser; and `make down`.

Four minutes on two shared cores. SCREENSHOTS=docs/images makes the pictures of the docs again.
"""

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil
import psycopg
import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.processes import free_port
from tests.standin.server import StandIn
from tests.standin.world import World
from tests.starsearch.web.serving import environment_of

pytestmark = pytest.mark.flows
ROOT = Path(__file__).resolve().parents[2]
NAME = "quillcap/marlframe"
ITEMS, SHARD = 48, 16
CHROMIUM = shutil.which("chromium")
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
CLICK_SECONDS = 30.0
PATIENCE_SECONDS = 240.0  # on a busy machine a process takes half a minute to import Prefect


def one_machine(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "deployments" / "one_machine.py"), *arguments]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=500)


@dataclass
class Machine:
    """A machine that is up, the database it works on, and the stand-in GitHub it reads."""

    home: Path
    dsn: str
    port: int
    environment: dict[str, str]
    world: World
    printed: str

    def __post_init__(self) -> None:
        self.api = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}/api", timeout=60)

    def marked(self) -> dict[int, str]:
        """Every process with the mark of this home, the embedded database too."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("STARSEARCH_ONE_MACHINE") == str(self.home):
                    found[process.pid] = " ".join(process.cmdline())
        return found

    def services(self) -> set[int]:
        return {pid for pid, line in self.marked().items() if " start " in f"{line} "}

    def get(self, path: str) -> dict:
        return self._patiently(lambda: self.api.get(path)).raise_for_status().json()

    def post(self, path: str, **body: object) -> httpx2.Response:
        return self._patiently(lambda: self.api.post(path, json=body))

    def _patiently(self, ask: Callable[[], httpx2.Response]) -> httpx2.Response:
        """503: its SQLite is busy."""
        [answer] = wait_for(lambda: (answer := ask()).status_code != 503 and [answer], "an answer")
        return answer

    def deployment(self, name: str) -> dict:
        return self.get(f"/deployments/name/{name}")

    def start(self, name: str, **parameters: object) -> str:
        answer = self.post(f"/deployments/{self.deployment(name)['id']}/create_flow_run", parameters=parameters)
        return answer.raise_for_status().json()["id"]

    def state(self, run: str) -> dict:
        return self.get(f"/flow_runs/{run}")["state"]

    def ended(self, run: str) -> dict:
        return wait_for(lambda: (state := self.state(run))["type"] in FINAL and state)

    def runs(self, flow: str, **filters: object) -> list[dict]:
        return self.post("/flow_runs/filter", flows={"name": {"any_": [flow]}}, **filters).raise_for_status().json()

    def shards(self) -> list[dict]:
        return self.runs("digest")

    def count(self, query: str) -> int:
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(query).fetchone()[0]

    def add_items(self, number: int) -> None:
        repository = self.world.repository(NAME) or self.world.add_repository(NAME)
        for n in range(number):
            self.world.add_item(repository, "issue" if n % 2 else "pull_request", body=f"Report {n} is about subject {n * 7919}.")

    @contextlib.contextmanager
    def shards_held_up(self) -> Iterator[None]:
        """Whoever writes down a call to an engine waits, and only shards do."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_advisory_lock(4242)")
            yield


HOLD_UP = """
CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(4242); RETURN NEW; END';
CREATE TRIGGER hold_up BEFORE INSERT ON engine_call FOR EACH STATEMENT EXECUTE FUNCTION hold_up();
"""


def wait_for(look: Callable[[], object], what: str = "") -> object:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {PATIENCE_SECONDS:.0f} s: {what or look}")


@pytest.fixture(scope="module")
def machine(server, template, home: Path) -> Iterator[Machine]:
    with psycopg.connect(server.place.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE one_machine TEMPLATE {template}")
    port, dsn, world = free_port(), server.place.dsn("one_machine"), World()
    with psycopg.connect(dsn) as connection:
        connection.execute(HOLD_UP)
    with StandIn(world) as github:
        settings = {"GITHUB_GRAPHQL_URL": github.graphql_url, "GITHUB_REST_URL": github.url, "GITHUB_TOKENS": "token-a"}
        settings |= {"SHARD_SIZE": str(SHARD), "SINCE": "2025-01-01"}
        environment = environment_of(home, dsn, **{f"STARSEARCH_{name}": value for name, value in settings.items()})
        environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"  # somebody's other server: not for us
        try:
            done = one_machine(environment, "up", str(port))
            assert done.returncode == 0, done.stderr + done.stdout
            yield Machine(home, dsn, port, environment, world, done.stdout)
        finally:
            one_machine(environment, "down")


def test_everything_is_registered_and_a_second_up_changes_nothing(machine):
    assert f"StarSearch is up.\n  Prefect's UI       http://127.0.0.1:{machine.port}\n" in machine.printed
    names = {each["entrypoint"].split(".")[1] for each in machine.post("/deployments/filter").json()}
    assert names == {"rank", "crawl", "digest", "backfill", "maintain", "reprocess", "reap"}
    before = machine.services()
    assert len(before) == 3
    again = one_machine(machine.environment, "up", str(free_port()))
    assert (again.returncode, "is up already" in again.stdout, f":{machine.port}\n" in again.stdout) == (0, True, True)
    assert machine.services() == before


def test_a_schedule_really_makes_runs(machine):
    """With the wrong SQLAlchemy everything looks well and no run is ever scheduled."""
    scheduled = {"state": {"type": {"any_": ["SCHEDULED"]}}}
    runs = wait_for(lambda: machine.runs("crawl", flow_runs=scheduled), "a crawl that is scheduled")
    assert {datetime.fromisoformat(run["expected_start_time"]).minute for run in runs} == {7}


def test_schedules_ask_github_only_with_a_credential_of_their_own(machine):
    """And from here on nothing fires by itself: a crawl on the schedule would take the place of those below."""

    def active() -> dict[str, bool]:
        return {name: any(s["active"] for s in machine.deployment(name)["schedules"]) for name in ("crawl/hourly", "reap/often")}

    assert active() == {"crawl/hourly": True, "reap/often": True}
    psutil.Process(next(pid for pid, line in machine.marked().items() if "--pool starsearch-shards" in line)).kill()
    without = {name: value for name, value in machine.environment.items() if name != "STARSEARCH_GITHUB_TOKENS"}
    without |= {"GH_TOKEN": "somebody-elses"}
    half_dead = one_machine(without, "up")
    assert "is up again (starsearch-shards had ended)" in half_dead.stdout
    assert "registered and paused: set STARSEARCH_GITHUB_TOKENS" in half_dead.stdout
    assert active() == {"crawl/hourly": False, "reap/often": True}
    wait_for(lambda: all(run["state"]["type"] in FINAL for run in machine.runs("crawl")), "no crawl that was scheduled before")


def test_a_crawl_is_digested_by_shards_in_processes_of_their_own(machine):
    machine.add_items(ITEMS)
    state = machine.ended(machine.start("crawl/hourly", repositories=[NAME]))
    assert state["type"] == "COMPLETED", state
    assert machine.count("SELECT count(*) FROM item WHERE stored_at IS NOT NULL") == ITEMS
    assert machine.count("SELECT count(*) FROM due") == 0
    assert machine.count("SELECT sum((counts->>'embedded')::int) FROM run WHERE kind = 'digest'") == ITEMS
    shards = machine.shards()
    assert len(shards) == ITEMS / SHARD
    assert {shard["state"]["type"] for shard in shards} == {"COMPLETED"}
    assert {shard["work_pool_name"] for shard in shards} == {"starsearch-shards"}


@pytest.fixture
def page() -> Iterator[Page]:
    """In which every request to anywhere else is an error."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.set_default_timeout(PATIENCE_SECONDS * 1_000)
        expect.set_options(timeout=PATIENCE_SECONDS * 1_000)
        strangers: list[str] = []
        opened.on(
            "request",
            lambda request: None if "//127.0.0.1:" in request.url or ":" not in request.url[:6] else strangers.append(request.url),
        )
        yield opened
        browser.close()
    assert strangers == []


def photograph(page: Page, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"prefect-{name}.png")


def field(page: Page, name: str) -> Locator:
    label = page.locator(".schema-form-property__label", has_text=name)
    return page.locator(".schema-form-property").filter(has=label).first


def begun(submit: Locator, runs: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A busy server says 503 to a form at times: then the form is still there, and a person clicks again."""
    if submit.is_visible():
        submit.click()
    deadline = time.monotonic() + CLICK_SECONDS
    while not (found := runs()) and time.monotonic() < deadline:
        submit.page.wait_for_timeout(500)
    return found


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_a_person_fills_in_the_backfill_form_and_reads_what_happened(machine, page):
    name = "quillcap/oat_flakes"
    repository = machine.world.add_repository(name)
    for kind in ("issue", "pull_request"):
        machine.world.add_item(repository, kind, created_at="2025-12-01", updated_at="2026-01-02")
    page.goto(f"http://127.0.0.1:{machine.port}/deployments/deployment/{machine.deployment('backfill/manual')['id']}/run")
    submit = page.get_by_role("button", name="Submit")
    submit.click()
    expect(field(page, "since")).to_contain_text("'since' is a required property")
    field(page, "since").locator("textarea").fill("last week")
    submit.click()
    expect(page.get_by_text("Validation failed for field 'since'. Failure reason: 'last week' does not match").first).to_be_visible()
    assert machine.runs("backfill") == []

    field(page, "since").locator("textarea").fill("2024-12-01")
    field(page, "repositories").get_by_role("button", name="list").click()
    for position, repository_name in enumerate((name, "no/such")):
        field(page, "repositories").get_by_role("button", name="Add item").click()
        field(page, "repositories").locator("textarea").nth(position).fill(repository_name)
    field(page, "confirmed").get_by_role("switch").click()
    field(page, "since").scroll_into_view_if_needed()
    photograph(page, "form")
    [run] = wait_for(lambda: begun(submit, lambda: machine.runs("backfill")), "the run that was submitted")
    page.goto(f"http://127.0.0.1:{machine.port}/runs/flow-run/{run['id']}")
    expect(page.locator(".state-badge").first).to_have_text("Completed")
    page.get_by_text("Artifacts", exact=True).first.click()
    expect(page.get_by_text("backfill-counts")).to_be_visible()
    photograph(page, "run")
    page.get_by_text("backfill-explained").click()
    expect(page.get_by_role("heading", name="Backfill: done")).to_be_visible()
    expect(page.get_by_text("2: 2 new, 0 changed, 0 as they were")).to_be_visible()
    expect(page.get_by_text("not found, or private")).to_be_visible()
    photograph(page, "artifact")


def test_a_wrong_value_is_refused_with_its_field(machine):
    path = f"/deployments/{machine.deployment('backfill/manual')['id']}/create_flow_run"
    refused = machine.post(path, parameters={"since": "7d", "kinds": ["discussion"]})
    assert refused.status_code == 409
    assert "Validation failed for field 'kinds" in refused.json()["detail"]


def test_cancelling_the_parent_cancels_its_shards(machine):
    machine.add_items(SHARD)
    before = {shard["id"] for shard in machine.shards()}
    with machine.shards_held_up():
        parent = machine.start("crawl/hourly", repositories=[NAME])
        wait_for(lambda: machine.count("SELECT count(*) FROM shard WHERE began_at IS NOT NULL AND ended_at IS NULL"), "a shard at work")
        [shard] = [shard["id"] for shard in machine.shards() if shard["id"] not in before]
        machine.post(f"/flow_runs/{parent}/set_state", state={"type": "CANCELLING"}).raise_for_status()
        assert machine.ended(parent)["type"] == "CANCELLED"
        assert machine.ended(shard)["type"] == "CANCELLED"
        wait_for(lambda: not any("prefect.engine" in line for line in machine.marked().values()), "no run has a process")
    assert machine.count("SELECT count(*) FROM due") == SHARD  # the next run's


def test_down_ends_all_of_it_and_nothing_else(machine):
    with machine.shards_held_up():
        parent = machine.start("crawl/hourly", repositories=[NAME])
        wait_for(lambda: machine.count("SELECT count(*) FROM shard WHERE began_at IS NOT NULL AND ended_at IS NULL"), "a shard at work")
        stranger = subprocess.Popen([sys.executable, "-m", "prefect", "--version"], stdout=subprocess.PIPE)
        assert len(machine.marked()) >= 5  # server, two workers, parent, shard
        items = machine.count("SELECT count(*) FROM item")
        done = one_machine(machine.environment, "down")
        assert done.returncode == 0, done.stderr
    assert machine.marked() == {}
    assert stranger.wait(60) == 0
    assert machine.count("SELECT count(*) FROM item") == items  # the database is there
    with sqlite3.connect(machine.home / "one-machine" / "prefect" / "prefect.db") as history:
        states = dict(history.execute("SELECT id, state_type FROM flow_run WHERE state_type IN ('RUNNING', 'PENDING', 'CANCELLING')"))
        assert states == {}, parent
    again = one_machine(machine.environment, "down")
    assert (again.returncode, again.stdout) == (0, "StarSearch was not up.\n")


def test_a_taken_port_is_said(machine, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = one_machine(environment_of(tmp_path, machine.dsn), "up", str(port))
    assert (done.returncode, done.stdout) == (3, "")
    assert f"port {port} is taken by another program: make up PORT={port + 1}" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("up", "http"), ("up", "70000"), ("down", "4200")])
def test_wrong_usage_is_refused(arguments):
    done = one_machine(environment_of(Path("/nowhere"), ""), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage:" in done.stderr
