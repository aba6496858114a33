"""The HTTP API over a real port: what it answers, what it refuses, and that it lives on."""

import asyncio
import base64
import html
import http.client
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import httpx2
import psutil
import psycopg
import pytest

from starsearch.evaluate import read_questions
from tests.starsearch.web.serving import Served, engine, environment_of, run_command, serving
from tests.starsearch.web.talker import talking

SEARCH = "/v1/search?q=sockets+leak"
FOUND_FIRST = "https://github.com/brasslantern/ferrygate/issues/412"


def test_search_answers_in_the_shape_of_the_command(served: Served):
    answer = served.get(SEARCH + "&limit=3").json()
    assert list(answer) == ["query", "mode", "index_version", "hits", "next_cursor"]
    assert (answer["query"], answer["mode"], len(answer["hits"])) == ("sockets leak", "hybrid", 3)
    assert answer["hits"][0]["url"] == FOUND_FIRST
    assert set(answer["hits"][0]["scores"]) == {"vector", "text"}
    assert "id" not in answer["hits"][0]


@pytest.mark.parametrize(
    ("parameters", "holds"),
    [
        ("type=pull_request", lambda hit: hit["type"] == "pull_request"),
        ("state=open", lambda hit: hit["state"] == "open"),
        ("repo=quillcap/marlframe", lambda hit: hit["repo"] == "quillcap/marlframe"),
        ("author=RivetMoth", lambda hit: hit["author"] == "rivetmoth"),
        ("label=BUG", lambda hit: "bug" in hit["labels"]),
        ("since=2026-06-01", lambda hit: hit["created_at"] >= "2026-06-01"),
        ("until=2026-06-01", lambda hit: hit["created_at"] < "2026-06-02"),
        ("since=2026-03-09&until=2026-03-09", lambda hit: hit["created_at"].startswith("2026-03-09")),
    ],
)
def test_filters_narrow(served: Served, parameters: str, holds: Callable[[dict], bool]):
    hits = served.get(f"{SEARCH}&limit=50&{parameters}").json()["hits"]
    assert hits
    assert all(holds(hit) for hit in hits)


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("", 422, "q: is missing"),
        ("q=", 422, "q: is empty"),
        ("q=%20%09", 422, "q: is empty"),
        ("q=" + "x" * 2_001, 422, "q: String should have at most 2000 characters"),
        ("q=x&limit=0", 422, "limit: "),
        ("q=x&limit=1000000", 422, "limit: "),
        ("q=x&limit=ten", 422, "limit: "),
        ("q=x&mode=psychic", 422, "mode: "),
        ("q=x&colour=red", 422, "colour: there is no such parameter"),
        ("q=x&repo=noslash", 422, "repo: write owner/name"),
        ("q=x&type=discussion", 422, "type: "),
        ("q=x&author=%3Cscript%3E", 422, "author: "),
        ("q=x&label=", 422, "label: is empty"),
        ("q=x&repo=nobody/nothing", 404, "nobody/nothing"),
        ("q=x&since=yesterday", 422, "since: write a day as in 2026-03-01"),
        ("q=x&since=1700000000", 422, "since: write a day"),
        ("q=x&since=9999-99-99", 422, "since: write a day"),
        ("q=%ff%fe", 400, "not valid UTF-8"),
        ("q=%ed%a0%80", 400, "not valid UTF-8"),  # a lone surrogate
        ("q=x&repo=%c3%28/a", 400, "not valid UTF-8"),
        ("q=x&cursor=AAAA", 422, "cursor: not one that this search gave"),
        ("q=x&cursor=%00%f0%9f%98%80", 422, "cursor: not one"),
    ],
)
def test_bad_input_gets_a_status_and_a_sentence(served: Served, query: str, status: int, sentence: str):
    answer = served.get(f"/v1/search?{query}")
    assert answer.status_code == status
    assert sentence in answer.json()["detail"]
    assert answer.json()["status"] == status


def test_a_hundred_thousand_characters_get_a_sentence_too(served: Served):
    connection = http.client.HTTPConnection(urlsplit(served.base).netloc)  # httpx2 would not send it
    connection.request("GET", "/v1/search?q=" + "x" * 100_000)
    answer = connection.getresponse()
    assert (answer.status, b"at most 2000 characters" in answer.read()) == (422, True)


@pytest.mark.parametrize(
    "query",
    [
        "'; DROP TABLE item; --",
        "cat & dog | !fish <-> :* ((",
        "\x1b[31mred\x1b[0m \x9b2J",
        "<script>alert(1)</script>",
        "\0 NUL in the middle",
        "the of and",
        "😀" * 500,
        "日本語 العربية עברית हिन्दी ελληνικά",
        "\u202etxet desrever",
        "%s %(q)s {} {0} $1",
    ],
)
def test_any_text_is_a_question(served: Served, query: str):
    assert served.get(f"/v1/search?q={quote(query)}").status_code == 200


def test_pages_follow_each_other_whatever_is_stored_meanwhile(served: Served):
    everything = [hit["url"] for hit in served.get("/v1/search?q=memory&limit=100").json()["hits"]]
    first = served.get("/v1/search?q=memory&limit=7").json()
    urls, cursor = [hit["url"] for hit in first["hits"]], first["next_cursor"]
    with psycopg.connect(served.dsn, autocommit=True) as connection:
        gone = everything[20]
        connection.execute("UPDATE item SET tombstoned_at = now() WHERE url = %s", [gone])
        connection.execute("UPDATE item SET title = 'memory memory memory' WHERE url = %s", [everything[-1]])  # it would come first now
        try:
            while cursor:
                page = served.get(f"/v1/search?{urlencode({'q': 'memory', 'limit': 7, 'cursor': cursor})}").json()
                urls += [hit["url"] for hit in page["hits"]]
                cursor = page["next_cursor"]
        finally:
            connection.execute("UPDATE item SET tombstoned_at = NULL WHERE url = %s", [gone])
    assert urls == [url for url in everything if url != gone]


def test_a_cursor_that_was_tampered_with_is_refused(served: Served):
    cursor = served.get(SEARCH + "&limit=2").json()["next_cursor"]
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    for position in (0, 15, 16, 23, len(raw) - 1):
        changed = raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]
        forged = base64.urlsafe_b64encode(changed).decode().rstrip("=")
        assert served.get(f"{SEARCH}&cursor={forged}").status_code == 422
    for cut in (raw[:-1], raw[:16], b"", raw + raw):
        assert served.get(f"{SEARCH}&cursor={base64.urlsafe_b64encode(cut).decode()}").status_code in ({422} if cut else {422, 200})
    assert served.get(f"/v1/search?q=another+question&cursor={cursor}").status_code == 422
    assert served.get(f"{SEARCH}&cursor={cursor}").status_code == 200


def test_an_item_tells_its_text_and_where_its_digest_came_from(served: Served):
    item = served.get("/v1/items/BrassLantern/ferrygate/412").json()
    assert (item["repo"], item["url"]) == ("brasslantern/ferrygate", FOUND_FIRST)
    assert "CLOSE_WAIT" in item["body"]
    assert item["provenance"]["summary_model"] == "embedded-extractive-v1"
    assert served.get("/v1/items/brasslantern/ferrygate/999999").status_code == 404
    assert served.get("/v1/items/brasslantern/ferrygate/0").status_code == 422


def test_similar_items_leave_the_item_itself_out(served: Served):
    answer = served.get("/v1/items/brasslantern/ferrygate/412/similar?limit=5").json()
    assert len(answer["hits"]) == 5
    assert FOUND_FIRST not in [hit["url"] for hit in answer["hits"]]
    assert answer["hits"][0]["scores"]["vector"] >= answer["hits"][-1]["scores"]["vector"]
    assert served.get("/v1/items/brasslantern/ferrygate/999999/similar").status_code == 404
    assert served.get("/v1/items/brasslantern/ferrygate/412/similar?limit=0").status_code == 422


def events_of(text: str) -> list[tuple[str, dict]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [(block.split("\n")[0].removeprefix("event: "), json.loads(block.split("\n")[1].removeprefix("data: "))) for block in blocks]


def stream_of(answer: httpx2.Response) -> Iterator[tuple[str, dict]]:
    lines = answer.iter_lines()
    return ((line.removeprefix("event: "), json.loads(next(lines).removeprefix("data: "))) for line in lines if line.startswith("event: "))


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_answer_streams_with_citations_that_resolve(served: Served):
    answer = served.get("/v1/ask?q=why+do+sockets+stay+in+CLOSE_WAIT")
    assert answer.headers["content-type"].startswith("text/event-stream")
    [(first, _), *pieces, (last, whole)] = events_of(answer.text)
    assert (first, {name for name, _ in pieces}, last) == ("asked", {"text"}, "answer")
    assert "".join(piece["text"] for _, piece in pieces) == whole["answer"]
    assert whole["kind"] == "quotes"
    assert [each for _, piece in pieces for each in piece["citations"] if each not in whole["citations"]] == []
    assert {f"[{each['number']}]" in whole["answer"] for each in whole["citations"]} == {True}
    assert FOUND_FIRST in {each["url"] for each in whole["citations"]}


ASK = "/v1/ask?q=why+do+sockets+stay+in+CLOSE_WAIT"


def test_an_answer_streams_while_it_is_written(home: Path, sample_dsn: str):
    parts = ("A half-closed socket stays [1]. See", " https://evil.example/x [9] and [2], it says [1]. Or", " NOT so.")
    with talking(*parts) as (talker, settings), serving(home, sample_dsn, **settings) as served:
        with httpx2.stream("GET", served.base + ASK, timeout=60) as answer:
            events = stream_of(answer)
            assert next(events)[0] == "asked"
            talker.go_on()
            name, first = next(events)
            assert (name, first["text"]) == ("text", "A half-closed socket stays [1].")  # the engine has not said more yet
            assert [(each["number"], each["repo"]) for each in first["citations"]] == [(1, "brasslantern/ferrygate")]
            talker.go_on()
            _, second = next(events)
            assert second["text"] == " See [link removed] and [2], it says [1]."
            assert [each["number"] for each in second["citations"]] == [2, 1]
            talker.go_on()
            _, third = next(events)
            (last, whole), *more = events
        assert (last, more, whole["kind"]) == ("answer", [], "model")
        assert whole["answer"] == first["text"] + second["text"] + third["text"]
        assert [each["number"] for each in whole["citations"]] == [1, 2]


def test_an_answer_that_turns_out_to_be_none_is_taken_back(home: Path, sample_dsn: str):
    with talking("It is so [1]. But", " no: NOT FOUND") as (talker, settings), serving(home, sample_dsn, **settings) as served:
        talker.go_on(2)
        [_, (name, said), (last, whole)] = events_of(served.get(ASK).text)
        assert (name, said["text"], last) == ("text", "It is so [1].", "answer")
        assert (whole["answer"], whole["kind"], whole["citations"]) == (None, "nothing close", [])


def test_an_engine_that_goes_away_in_mid_answer_is_said(home: Path, sample_dsn: str):
    with talking("It is so [1]. And", breaks=True) as (talker, settings), serving(home, sample_dsn, **settings) as served:
        talker.go_on()
        [_, (_, said), (last, problem)] = events_of(served.get(ASK).text)
        assert (said["text"], last, problem["status"]) == ("It is so [1].", "problem", 503)
        assert served.get("/healthz").status_code == 200


def test_whoever_leaves_ends_the_work(home: Path, sample_dsn: str):
    with talking("It is so [1]. And", " so", " on.") as (talker, settings), serving(home, sample_dsn, **settings) as served:
        with httpx2.stream("GET", served.base + ASK, timeout=60) as answer:
            events = stream_of(answer)
            talker.go_on()
            assert [next(events)[0], next(events)[0]] == ["asked", "text"]
            assert talker.answering == 1
        until(lambda: talker.answering == 0)


def test_nothing_close_is_said(served: Served):
    *_, (name, whole) = events_of(served.get("/v1/ask?q=how+do+I+bake+sourdough+bread+with+rye").text)
    assert (name, whole["answer"], whole["kind"], whole["citations"]) == ("answer", None, "nothing close", [])
    assert "Nothing close was found" in served.get("/ask?q=how+do+I+bake+sourdough+bread+with+rye").text


def test_a_question_that_cannot_be_asked_gets_a_sentence(served: Served):
    assert served.get("/v1/ask").status_code == 422
    assert served.get("/v1/ask?q=x&colour=red").status_code == 422
    [_, (name, problem)] = events_of(served.get("/v1/ask?q=x&repo=nobody/nothing").text)
    assert (name, problem["status"], "nobody/nothing" in problem["detail"]) == ("problem", 404, True)


def test_status_is_that_of_the_command(served: Served):
    status = served.get("/v1/status").json()
    assert status["known"] == status["embedded"] > 60
    assert status["complete"] is True
    assert status["gaps"] == []


def test_the_report_is_one_file_that_fetches_nothing(served: Served, tmp_path: Path):
    file = tmp_path / "report.html"
    run_command(served.environment, "report", str(file))
    text = file.read_text("utf-8")
    for title in ("Completeness", "Freshness", "Items an hour", "Tokens an hour", "Cost", "An API or engines of our own"):
        assert f">{title}</h2>" in text
    assert text.count("<svg") >= 4
    assert not re.search(r"<script|<link|<img|\bsrc=|\bhref=|url\(|@import", text)
    assert re.search(r">Recall by mode</h2>\s*<p class=\"headline\">Not measured</p>", text)


def test_the_report_measures_recall_by_mode_as_the_command_does(served: Served, tmp_path: Path):
    questions, file = tmp_path / "questions.jsonl", tmp_path / "report.html"
    asked = [("why do sockets stay in CLOSE_WAIT", FOUND_FIRST), ("how do I bake bread", FOUND_FIRST + "0000")]  # one can be found
    questions.write_text("".join(json.dumps({"question": text, "url": url}) + "\n" for text, url in asked), "utf-8")
    measured = json.loads(run_command(served.environment, "evaluate", str(questions), "--json"))["modes"]
    assert {found["recall_at_10"] for found in measured.values()} == {0.5}
    run_command(served.environment, "report", str(file), "--questions", str(questions))
    text = file.read_text("utf-8")
    assert "50% of 2 questions find their item among the first ten" in text
    for name, mode in (("meaning and words", "hybrid"), ("meaning only", "vector"), ("words only", "text")):
        cells = "".join(f"<td>{measured[mode][measure]:.3f}</td>" for measure in ("recall_at_1", "recall_at_10", "mrr"))
        assert re.search(rf'<th scope="row">{name}</th>\s*{cells}', text)


def test_metrics_hold_what_the_alerts_need(served: Served):
    served.get(SEARCH)
    text = served.get("/metrics").text
    for name in ("backlog_items", "freshness_seconds", "digests_per_hour", "complete"):
        assert f"\nstarsearch_{name} " in text
    assert "\nstarsearch_requests_per_minute 600.0\n" in text  # counted by each process for itself
    assert 'starsearch_search_seconds_count{mode="hybrid"}' in text
    assert 'starsearch_http_requests_total{status="200",surface="/v1/search"}' in text


def test_health_and_readiness(served: Served):
    assert served.get("/healthz").text == "ok\n"
    assert served.get("/readyz").text == "ok\n"


def test_every_answer_ties_the_browsers_hands(served: Served):
    for path in ("/", SEARCH, "/v1/search", "/static/style.css", "/nowhere"):
        headers = served.get(path, headers={"Accept": "text/html"}, follow_redirects=True).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"


def test_bodies_are_bounded_whatever_they_say(served: Served):
    big = b'{"query": "' + b"x" * 100_000 + b'"}'
    assert httpx2.post(served.base + "/v1/feedback", content=big, headers={"content-type": "application/json"}).status_code == 413

    def unsized():
        for _ in range(100):
            yield b"x" * 1_000

    answer = httpx2.post(served.base + "/v1/feedback", content=unsized(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert served.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\xff\xfe\x00", 422),
        (b"{", 422),
        (b"[]", 422),
        (b'{"query": "x"}', 422),
        (b'{"query": "x", "useful": true, "index_version": "000000000000", "url": "https://github.com/a/b/issues/1"}', 404),
        (b'{"query": "x", "useful": true, "index_version": "not hexadecimal", "url": "https://github.com/a/b/issues/1"}', 422),
        (b'{"query": "x", "useful": true, "index_version": "000000000000"}', 422),
        (b'{"query": "x", "useful": true, "index_version": "000000000000", "who": "me"}', 422),
        (b'{"query": "\\ud800", "useful": true, "index_version": "000000000000", "about": "answer"}', 422),
    ],
)
def test_feedback_is_checked(served: Served, body: bytes, status: int):
    answer = httpx2.post(served.base + "/v1/feedback", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {status, 400} if status == 422 else answer.status_code == status
    if answer.status_code != 204:
        assert answer.json()["detail"]


def test_feedback_becomes_questions_for_evaluate(served: Served, tmp_path: Path):
    found = served.get("/v1/search?q=half+closed+connections&limit=3").json()
    for hit, useful in zip(found["hits"], (True, True, False), strict=True):
        given = {"query": "half closed connections", "url": hit["url"], "useful": useful, "index_version": found["index_version"]}
        assert httpx2.post(served.base + "/v1/feedback", json=given).status_code == 204
    file = tmp_path / "questions.jsonl"
    run_command(served.environment, "feedback", str(file))
    [question] = [each for each in read_questions(file) if each.text == "half closed connections"]
    assert question.right == {found["hits"][0]["url"], found["hits"][1]["url"]}


def test_another_sites_page_cannot_speak_for_anybody(served: Served):
    given = {"query": "x", "useful": True, "about": "answer", "index_version": "000000000000"}
    for headers in ({"Origin": "https://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert httpx2.post(served.base + "/v1/feedback", json=given, headers=headers).status_code == 403
    assert httpx2.post(served.base + "/v1/feedback", json=given, headers={"Origin": served.base}).status_code == 204


def test_a_name_that_was_rebound_to_loopback_is_refused(served: Served):
    connection = http.client.HTTPConnection(urlsplit(served.base).netloc)
    connection.request("GET", SEARCH, headers={"Host": "attacker.example"})
    answer = connection.getresponse()
    assert (answer.status, b"own name only" in answer.read()) == (421, True)


def test_a_thousand_requests_at_once_are_all_answered(served: Served):
    process = psutil.Process(served.process.pid)
    before = process.memory_info().rss

    async def storm() -> list[int]:
        limits = httpx2.Limits(max_connections=1_000)
        async with httpx2.AsyncClient(base_url=served.base, limits=limits, timeout=90) as client:
            answers = await asyncio.gather(*(client.get(f"/v1/search?q=memory+{n % 7}&mode=text") for n in range(1_000)))
        return [answer.status_code for answer in answers]

    statuses = asyncio.run(storm())
    assert len(statuses) == 1_000
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 100
    assert process.memory_info().rss - before < 150 * 2**20
    assert served.get(SEARCH).status_code == 200


def test_a_database_that_goes_away_is_said_and_comes_back(served: Served):
    name = psycopg.conninfo.conninfo_to_dict(served.dsn)["dbname"]
    with psycopg.connect(psycopg.conninfo.make_conninfo(served.dsn, dbname="postgres"), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            answer = served.get(SEARCH)
            page = served.get("/?q=sockets", headers={"Accept": "text/html"})
            ready = served.get("/readyz")
        finally:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["detail"] == "the database does not answer right now"
    assert (page.status_code, "the database does not answer right now" in page.text) == (503, True)
    assert ready.status_code == 503
    statuses = []
    while len(statuses) < 4 and 200 not in statuses:  # a pool that found nobody waits a little longer each time until it tries again
        statuses.append(served.get(SEARCH).status_code)
    assert statuses[-1] == 200


def test_an_engine_that_goes_away_leaves_the_search_by_words(
    home: Path, template: str, copy_of: Callable[[str], str], row: Callable[..., dict], jsonl: Callable[..., Path]
):
    dsn = copy_of(template)
    with engine(home) as (address, process):
        settings = {"STARSEARCH_EMBEDDING_BASE_URL": address, "STARSEARCH_EMBEDDING_MODEL": "minilm-l6-v2"}
        run_command(environment_of(home, dsn, **settings), "ingest", str(jsonl(*(row(n) for n in range(1, 13)))))
        with serving(home, dsn, **settings) as served:
            assert len(served.get("/v1/search?q=doubled+totals").json()["hits"]) == 10
            process.kill()
            process.wait()
            answer = served.get("/v1/search?q=doubled+totals")
            assert (answer.status_code, "mode=text" in answer.json()["detail"]) == (503, True)
            assert len(served.get("/v1/search?q=report&mode=text").json()["hits"]) == 10
            page = served.get("/?q=report", headers={"Accept": "text/html"})
            assert (page.status_code, "found by their words only" in page.text, page.text.count('class="hit"')) == (200, True, 10)
            [more] = re.findall(r'href="(/[^"]*cursor=[^"]*)"', page.text)
            page = served.get(html.unescape(more), headers={"Accept": "text/html"})
            assert (page.status_code, page.text.count('class="hit"')) == (200, 2)
            [_, (name, problem)] = events_of(served.get("/v1/ask?q=why+are+totals+doubled").text)
            assert (name, problem["status"]) == ("problem", 503)
