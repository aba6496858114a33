"""The pages in Debian's Chromium: what a person does, on a desktop and on a phone; what strangers' text cannot do; axe-core's rules."""

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from starsearch.web.pages import GOES_HERE, environment
from tests.starsearch.web.serving import Served, environment_of, run_command, serving
from tests.starsearch.web.strangers import VECTORS
from tests.starsearch.web.talker import listening, talking

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
LONG = 60_000.0  # milliseconds: the first question waits for the model to be loaded
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PAGES = (
    "/",
    "/?q=sockets+leak&state=closed",
    "/?q=x&repo=a/b",
    "/items/brasslantern/ferrygate/412",
    "/items/brasslantern/ferrygate/412/similar",
    "/ask",
    "/ask?q=sockets+leak",
    "/status",
    "/sign-in",
    "/nowhere",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # root may not use Chromium's sandbox
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@contextmanager
def visitor(browser: Browser, served: Served, **how: object) -> Iterator[tuple[Page, list[str]]]:
    """A page, and everything that must not happen there: dialogs, errors, requests to anywhere else."""
    context = browser.new_context(**how)
    happened: list[str] = []
    page = context.new_page()
    page.on("dialog", lambda dialog: (happened.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("console", lambda message: happened.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: happened.append(f"error: {error}"))
    page.on("request", lambda request: None if request.url.startswith(served.base) else happened.append(f"request: {request.url}"))
    try:
        yield page, happened
    finally:
        context.close()


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_person_finds_narrows_shares_opens_and_reads(browser: Browser, served: Served, viewport: dict):
    with visitor(browser, served, viewport=viewport) as (page, happened):
        page.goto(served.base)
        page.keyboard.type("sockets leak after a reset")  # the box has the focus
        page.keyboard.press("Enter")
        expect(page.locator(".hit").first).to_contain_text("CLOSE_WAIT sockets leak")
        expect(page.locator(".hit").first.locator("mark").first).to_be_visible()
        page.get_by_text("Filters", exact=True).click()
        page.get_by_label("State").select_option("merged")
        expect(page.locator(".chips")).to_contain_text("merged")
        expect(page.locator(".hit .state.open")).to_have_count(0)
        address = page.url
        assert address.endswith("/?q=sockets+leak+after+a+reset&state=merged")
        titles = page.locator(".hit h2").all_inner_texts()
        second = page.context.new_page()
        second.goto(address)
        assert second.locator(".hit h2").all_inner_texts() == titles
        page.go_back()
        expect(page.locator(".hit").first).to_contain_text("CLOSE_WAIT sockets leak")
        page.locator(".hit h2 a").first.click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("CLOSE_WAIT sockets leak")
        expect(page.get_by_role("link", name="Open on GitHub")).to_have_attribute(
            "href", "https://github.com/brasslantern/ferrygate/issues/412"
        )
        page.get_by_role("link", name="Similar items").click()
        expect(page.locator(".hit")).to_have_count(10)
        page.get_by_role("link", name="Ask").click()
        page.get_by_label("Your question").fill("why do sockets stay in CLOSE_WAIT?")
        page.get_by_role("button", name="Ask").click()
        expect(page.locator(".waiting")).to_be_hidden()
        page.locator(".answer a.cite").first.click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("CLOSE_WAIT sockets leak")
        page.go_back()
        page.get_by_role("link", name="Status").click()
        expect(page.locator(".verdict")).to_contain_text("Complete")
        page.get_by_text("Numbers").first.click()
        expect(page.get_by_role("rowheader", name="known")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert happened == []


def test_an_answer_is_shown_while_it_is_written(browser: Browser, home: Path, sample_dsn: str):
    parts = ("A half-closed <b>socket</b> stays [1]. See", " https://evil.example/x [2].")
    with (
        talking(*parts) as (talker, settings),
        serving(home, sample_dsn, **settings) as served,
        visitor(browser, served, viewport=PHONE) as (page, happened),
    ):
        page.goto(served.base + "/ask?q=why+do+sockets+stay+in+CLOSE_WAIT", wait_until="commit")
        expect(page.locator(".waiting")).to_be_visible()
        talker.go_on()
        expect(page.locator(".answer")).to_have_text("A half-closed <b>socket</b> stays [1].", timeout=LONG)
        expect(page.locator(".waiting")).to_be_hidden()
        assert page.locator(".hit").count() == 0  # the engine has not said more yet
        talker.go_on()
        expect(page.locator(".answer")).to_have_text("A half-closed <b>socket</b> stays [1]. See [link removed] [2].")
        expect(page.locator(".answer a.cite")).to_have_count(2)
        expect(page.locator(".thumbs")).to_be_visible()
        assert happened == []


def test_a_page_that_comes_in_pieces_still_says_that_it_waits(browser: Browser):
    before, between, after = environment.get_template("ask.html").render(given={"q": "x"}, asking=True).split(GOES_HERE)
    until_waiting, waiting = before.split('<p class="waiting', 1)
    pieces = until_waiting, '<p class="waiting' + waiting, "It is so [1].", between + "<p>And more.</p>" + after
    let = threading.Semaphore(1)

    async def ask(_: Request) -> Response:
        async def said() -> AsyncIterator[str]:
            for piece in pieces:
                while not let.acquire(blocking=False):
                    await asyncio.sleep(0.01)
                yield piece

        return StreamingResponse(said(), media_type="text/html; charset=utf-8")

    app = Starlette(routes=[Route("/ask", ask), Mount("/static", StaticFiles(packages=[("starsearch.web", "static")]))])
    with listening(app) as base, closing(browser.new_page()) as page:
        page.goto(base + "/ask", wait_until="commit")
        expect(page.get_by_role("button", name="Ask")).to_be_visible()
        let.release()
        expect(page.locator(".waiting")).to_be_visible()
        let.release()
        expect(page.locator(".answer")).to_have_text("It is so [1].")
        expect(page.locator(".waiting")).to_be_hidden()
        let.release()
        expect(page.get_by_text("And more.")).to_be_visible()
        expect(page.locator(".waiting")).to_be_hidden()


def test_an_answer_that_turns_out_to_be_none_is_hidden_again(browser: Browser, home: Path, sample_dsn: str):
    with (
        talking("It is so [1]. But", " no: NOT FOUND") as (talker, settings),
        serving(home, sample_dsn, **settings) as served,
        visitor(browser, served, viewport=PHONE, java_script_enabled=False) as (page, _),
    ):
        page.goto(served.base + "/ask?q=why+do+sockets+stay+in+CLOSE_WAIT", wait_until="commit")
        talker.go_on()
        expect(page.locator(".answer")).to_be_visible(timeout=LONG)
        talker.go_on()
        expect(page.get_by_role("heading", name="Nothing close was found")).to_be_visible()
        expect(page.locator(".answer")).to_be_hidden()


def test_a_thumb_is_taken_without_leaving_the_page(browser: Browser, served: Served):
    with visitor(browser, served, viewport=PHONE) as (page, happened):
        page.goto(served.base + "/?q=sockets+leak")
        page.get_by_title("This is what I was looking for").first.click()
        expect(page.locator(".thanks")).to_have_text("Noted: useful")
        assert page.url == served.base + "/?q=sockets+leak"
        assert happened == []


def test_everything_is_there_without_javascript(browser: Browser, served: Served):
    with visitor(browser, served, viewport=PHONE, java_script_enabled=False) as (page, _):
        page.goto(served.base)
        page.get_by_label("Search issues and pull requests").fill("memory grows")
        page.get_by_role("button", name="Search").click()
        assert page.url == served.base + "/?q=memory+grows"  # nothing in it but what was chosen
        expect(page.locator(".hit")).to_have_count(10)
        page.get_by_role("link", name="More results").click()
        expect(page.locator(".hit")).to_have_count(10)
        page.get_by_title("This is what I was looking for").first.click()
        assert page.url.startswith(served.base + "/?q=memory+grows&cursor=")
        page.goto(served.base + "/status")
        expect(page.locator("svg.plot").first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_serious(browser: Browser, served: Served, path: str, scheme: str):
    with visitor(browser, served, viewport=PHONE if scheme == "dark" else DESKTOP, color_scheme=scheme) as (page, _):
        page.goto(served.base + path)
        violations = Axe().run(page).response["violations"]
    serious = [(v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in {"serious", "critical"}]
    assert serious == []


@pytest.fixture(scope="module")
def hostile(home: Path, template: str, copy_of: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server over items whose every text is a vector; summaries and addresses are put into the rows by hand."""
    dsn = copy_of(template)
    file = tmp_path_factory.mktemp("hostile") / "items.jsonl"
    rows = [
        {
            "repo": "strange/texts",
            "number": number,
            "type": "issue",
            "state": "open",
            "title": f"{vector} strangers wrote this",
            "body": f"{vector}\n\nstrangers wrote {vector} this",
            "labels": [vector[:90], "bug"],
            "author": vector[:60],
            "url": f"https://github.com/strange/texts/issues/{number}",
            "created_at": "2026-03-01T10:00:00Z",
        }
        for number, vector in enumerate(VECTORS, 1)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    run_command(environment_of(home, dsn), "ingest", str(file))
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number, vector in enumerate(VECTORS, 1):
            connection.execute(
                "UPDATE summary SET text = %s WHERE key = (SELECT summary_key FROM digest d JOIN item i ON i.id = d.item_id WHERE number = %s)",
                [vector.replace("\0", "") + " strangers wrote this", number],
            )
        connection.execute("UPDATE item SET url = 'javascript:alert(1)//' || number WHERE number % 3 = 0")
    with serving(home, dsn) as running:
        yield running


def test_what_strangers_write_is_shown_and_does_nothing(browser: Browser, hostile: Served):
    assert len(VECTORS) >= 40
    with visitor(browser, hostile, viewport=DESKTOP) as (page, happened):
        page.goto(hostile.base + "/?q=strangers+wrote+this")
        shown: list[str] = []
        while True:
            shown += page.locator(".hit .number").all_inner_texts()
            page.mouse.move(200, 300)
            more = page.get_by_role("link", name="More results")
            if not more.count():
                break
            more.click()
        assert sorted(int(number.lstrip("#")) for number in shown) == list(range(1, len(VECTORS) + 1))
        for number in range(1, len(VECTORS) + 1):
            page.goto(f"{hostile.base}/items/strange/texts/{number}")
            assert page.locator("article h1").count() == 1
            assert page.locator("main script, main img, main iframe, main object, main [onerror], main [onload], main style").count() == 0
        assert happened == []


def test_what_is_asked_is_shown_and_does_nothing(browser: Browser, hostile: Served):
    with visitor(browser, hostile, viewport=PHONE) as (page, happened):
        for vector in VECTORS:
            page.goto(f"{hostile.base}/?q={quote(vector[:1_900])}&mode=text")
            assert page.locator("#q").count() == 1
            assert page.locator("main script, main img, main iframe").count() == 0
        for vector in VECTORS[:12]:
            page.goto(f"{hostile.base}/ask?q={quote(vector)}")
            assert page.locator("main script, main img, main iframe").count() == 0
        assert happened == []


def test_no_link_leads_anywhere_but_to_the_web(browser: Browser, hostile: Served):
    with visitor(browser, hostile) as (page, _):
        page.goto(hostile.base + "/?q=strangers+wrote+this")
        links = page.eval_on_selector_all("a[href]", "all => all.map(one => one.href)")
        page.goto(hostile.base + "/items/strange/texts/3")
        links += page.eval_on_selector_all("a[href]", "all => all.map(one => one.href)")
    assert links
    assert {link for link in links if not link.startswith((hostile.base, "https://github.com/"))} == set()
