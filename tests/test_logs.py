"""Logs: who a line is about, one event a line, whatever was written into it."""

import asyncio
import json
import logging
import os
import subprocess
import sys

import httpx2
import pytest

from starsearch.logs import Entry, Json, Text, about, write_logs
from starsearch.pipeline import digest, recorded_run
from tests.crawls import crawl_now
from tests.stub_engine import StubEngine
from tests.test_pipeline import engines_of

pytestmark = pytest.mark.usefixtures("quick_retries")
log = logging.getLogger("starsearch.test")
HOSTILE = [
    "two\nlines",
    "carriage\r\nreturn",
    'ends": null}\n{"level": "CRITICAL", "message": "forged',
    "\x1b]0;owned\x07\x1b[2J\x9b31m",
    "next\x85line\u2028separated\u2029paragraph",
    "right\u202eto left",
    "lone \ud800 surrogate, NUL \x00",
    "100% of %s {braces}",
]


def record(message, *arguments, error=None):
    exc_info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("starsearch.test", logging.WARNING, __file__, 1, message, arguments, exc_info)


def raised(message):
    try:
        raise ValueError(message)
    except ValueError as error:
        return error


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("error", [None, "in the message"])
def test_an_event_is_one_line_and_inert_whatever_strangers_wrote(text, error):
    event = record("%s", text, error=raised(text) if error else None)
    with about(run=12, shard=3, repository="a/b", item=17):
        plain, formatted = Text().format(event), Json().format(event)
    assert plain.endswith(" run=12 shard=3 repo=a/b item=17")
    parsed = json.loads(formatted)
    assert {name: parsed[name] for name in ("run", "shard", "repository", "item")} == {
        "run": 12,
        "shard": 3,
        "repository": "a/b",
        "item": 17,
    }
    for line in (plain, formatted):
        line.encode("utf-8")
        assert len(line.splitlines()) == 1
    for shown in (plain, parsed["message"] + (parsed["exception"] or "")):
        assert not set(shown) & set("\x00\x07\r\x1b\x85\x9b\u202e")
    assert ("ValueError" in (parsed["exception"] or "")) is bool(error)


def test_an_event_has_these_fields_and_those_that_say_nothing_are_null():
    assert list(json.loads(Json().format(record("Hello")))) == [
        "time", "level", "logger", "message", "run", "shard", "repository", "item", "exception"
    ]  # fmt: skip
    event = json.loads(Json().format(record("Hello")))
    assert (event["level"], event["logger"], event["message"], event["run"], event["exception"]) == (
        "WARNING",
        "starsearch.test",
        "Hello",
        None,
        None,
    )
    assert event["time"].endswith("+00:00")


def test_in_prefects_ui_a_trace_keeps_its_lines():
    told = Entry().format(record("it\nbroke", error=raised("over\x1b")))
    first, *trace = told.splitlines()
    assert first == "it\\nbroke"
    assert (trace[0], trace[-1]) == ("Traceback (most recent call last):", "ValueError: over\ufffd")


async def test_items_at_the_same_time_keep_their_own_names(told):
    async def work(item):
        with about(item=item):
            for _ in range(5):
                await asyncio.sleep(0)
                log.info("item %d", item)

    with about(run=1):
        await asyncio.gather(*(work(item) for item in range(20)))
    log.info("over")
    assert len(told) == 101
    assert all(line["message"] == f"item {line['item']}" and line["run"] == 1 for line in told[:-1])
    assert [line["item"] for line in told[:10]] == list(range(10))  # they took turns
    assert (told[-1]["run"], told[-1]["item"]) == (None, None)


async def test_a_crawl_and_a_digest_tell_what_an_on_call_person_needs(store, standin, world, told):
    repository = world.add_repository("quillcap/marlframe")
    items = [world.add_item(repository, "issue", title=f"Totals are wrong in report {n}", body="Doubled.") for n in range(1, 41)]
    world.update_item(items[16], title='"}\n{"level": "CRITICAL"}\x1b[2J fails')
    standin.faults.add("forbidden", operation="Fetch", ids={items[7].node_id}, times=None)
    await crawl_now(store, standin, "quillcap/marlframe", "nobody/nothing")

    def refuse(text, _times):
        if "fails" in text:
            return httpx2.Response(500, json={"error": {"message": 'no\n{"run": 99}\x1b[2J'}}, headers={"retry-after-ms": "1"})
        return None

    async with engines_of(StubEngine(refuse)) as engines, recorded_run(store, "digest") as run:
        await digest(store, engines, run)

    assert run.counts.embedded == 38
    crawl_id, digest_id = run.id - 1, run.id
    lines = [(line["run"], line["repository"], line["item"], line["message"]) for line in told]
    assert [line for line in lines if line[1] == "nobody/nothing"] == [
        (crawl_id, "nobody/nothing", None, "nobody/nothing: not found, or private")
    ]
    fetch = [line for line in lines if line[2] == 8]
    assert [line[:3] for line in fetch] == [(crawl_id, "quillcap/marlframe", 8)] * len(fetch)
    assert fetch[-1][3].startswith("failed, and is tried again: fetch, attempt 1: FORBIDDEN")
    failed = [line for line in lines if line[2] == 17]
    assert {line[:3] for line in failed} == {(digest_id, "quillcap/marlframe", 17)}
    outcomes = [line[3].partition(": HTTP")[0] for line in failed if "attempt" in line[3]]
    assert outcomes == [
        "failed, and is tried again: summarize, attempt 1",
        "failed, and is tried again: summarize, attempt 2",
        "dead letter: summarize, attempt 3",
    ]
    tries = [line for line in lines if line[3].startswith("try ")]
    assert tries and {line[2] for line in tries} == {17}  # what the engine's client tells is about the item that it was asked for
    assert [line["level"] for line in told if "dead letter" in line["message"]] == ["WARNING"]
    for run_id, kind in ((crawl_id, "crawl"), (digest_id, "digest")):
        own = [line[3] for line in lines if line[0] == run_id]
        assert (own[0], own[-1].partition(":")[0]) == (f"{kind} began", f"{kind} ended")
    assert "embedded=38" in lines[-1][3]
    assert {line[2] for line in lines} == {None, 8, 17}  # nothing is told of the 38 that went well
    assert all(line[0] for line in lines)


def test_every_line_of_a_command_is_json_on_request(environment, jsonl, row):
    def run(*arguments):
        command = [sys.executable, "-m", "starsearch.cli", *arguments]
        return subprocess.run(
            command, env=os.environ | environment | {"STARSEARCH_LOG": "json"}, capture_output=True, text=True, timeout=300, check=False
        )

    done = run("ingest", "--no-digest", str(jsonl(row(1), "nonsense\x1b[2J", row(2))))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["message"].partition(":")[0].split()[0] for line in lines] == ["ingest", "rejected", "ingest"]
    assert len({line["run"] for line in lines}) == 1 and lines[0]["run"]

    refused = run("explain", "quillcap/marlframe#99")
    assert refused.returncode == 1
    [line] = map(json.loads, refused.stderr.splitlines())
    assert (line["level"], "not stored" in line["message"]) == ("ERROR", True)


def test_a_command_writes_text_to_people_unless_asked(logs_restored, capsys):
    root = logging.getLogger()
    root.handlers[:] = []
    write_logs("text", "WARNING")
    with about(run=12, repository="a/b"):
        log.info("not shown")
        log.warning("a/b: %s", "not\nfound")
    assert capsys.readouterr().err == "a/b: not\\nfound run=12 repo=a/b\n"
    write_logs("json", None)
    log.info("shown")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["shown"]
