"""Issues that speak to the model, and an engine that obeys every one of them: nothing of what it says may be stored.

injections.jsonl: one attack a line, written for this test; `obeyed` is what the engine answers, `marks` what would show it in a summary.
"""

import json
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from starsearch.asking import ask
from starsearch.audit import read_status
from starsearch.engines import Engines
from starsearch.finder import open_finder
from starsearch.inference.answer import _instructions as answering_instructions
from starsearch.inference.client import open_client, preflight
from starsearch.inference.prompts import PROMPT_VERSION, instructions
from starsearch.jsonl import read_items
from starsearch.models import Filters, IndexVersion
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.untrusted import INVISIBLE, TERMINAL, links, visible
from tests.stub_engine import StubEngine, completion

CASES = [json.loads(line) for line in Path(__file__).with_name("injections.jsonl").read_text("utf-8").splitlines()]
VERSION = IndexVersion("stub", "", 384, "recipe", "stub", PROMPT_VERSION)


def attack(number):
    """The texts of a case, by which the engine knows it too."""
    case = CASES[number]
    return {
        "title": case["title"],
        "body": f"{case['body']}\n\nThis is case {number}.",
        "comments": [{"body": body} for body in case["comments"]],
    }


@asynccontextmanager
async def obeying():
    """An engine that answers each attack with what it asks for, both times."""
    answers = {f"case {number}": case["obeyed"] for number, case in enumerate(CASES)}

    def obey(text, _times):
        [number] = [name for name in answers if f"{name}." in text]
        return completion(answers[number].replace("{SYSTEM}", instructions(PROMPT_VERSION)))

    stub = StubEngine(obey)
    async with open_client("http://stub/v1", transport=httpx2.MockTransport(stub)) as client:
        engine = await preflight(client, "stub", purpose="LLM")
        yield Engines(engine, engine, VERSION, None), stub


@pytest.fixture
async def stored(store, row, jsonl):
    """Summary, source and reason of each case, after the whole path into the database."""
    records = [row(number + 1) | attack(number) for number in range(len(CASES))]
    async with recorded_run(store, "ingest") as run, obeying() as (engines, stub):
        await ingest(store, read_items(jsonl(*records)), run)
        await digest(store, engines, run)
    assert set(Counter(stub.asked.values())) == {2}, "every answer was refused, and asked for once more"
    async with store.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT i.number - 1, s.text, s.source, s.gate_reason, s.prompt_tokens FROM item i JOIN digest d ON d.item_id = i.id "
            "JOIN summary s ON s.key = d.summary_key ORDER BY i.number"
        )
        return store, await cursor.fetchall()


async def test_no_summary_obeys_leaks_or_carries_a_link(stored):
    store, rows = stored
    assert len(rows) == len(CASES) >= 60
    system = instructions(PROMPT_VERSION, again=True).casefold().split()
    runs = {" ".join(system[i : i + 6]) for i in range(len(system) - 5)}
    for number, text, source, reason, prompt_tokens in rows:
        case = CASES[number]
        assert (source, bool(reason), prompt_tokens) == ("extractive", True, 20), case
        assert case["obeyed"].casefold() not in text.casefold(), (case, text)
        assert not [mark for mark in case["marks"] if mark.casefold() in text.casefold()], (case, text)
        assert not links(text), (case, text)
        assert not INVISIBLE.search(text), (case, text)
        assert not TERMINAL.search(text), (case, text)
        assert not [run for run in runs if run in text.casefold()], (case, text)
    status = await read_status(store.pool)
    assert status.complete
    assert sum(status.gated.values()) == len(CASES)


@pytest.fixture
async def finder(store, engines, settings, row, jsonl):
    """Each case in a repository of its own, so that a question can be of it alone; summarized by the engine that obeys."""
    records = [row(1, repo=f"quillcap/case-{n}") | attack(n) for n in range(len(CASES))]
    async with recorded_run(store, "ingest") as run, obeying() as (obedient, _):
        await ingest(store, read_items(jsonl(*records)), run)
        await digest(store, replace(engines, llm=obedient.llm), run)
    async with open_finder(settings) as opened:
        yield opened


async def ask_of_each(finder, reply):
    """What a model is told, and what is left of what it says, for each case, asked for by its own title."""
    told, answers = [], []
    for number, case in enumerate(CASES):
        stub = StubEngine(lambda text, _times, case=case: completion(reply(case)))
        async with open_client("http://stub/v1", transport=httpx2.MockTransport(stub)) as client:
            engine = await preflight(client, "stub", purpose="LLM")
            answers.append((await ask(finder, engine, f"Why: {case['title']}", filters=Filters(repos=(f"quillcap/case-{number}",)))).text)
        told.append("\n".join(stub.asked).split("<question")[0])
    return told, answers


async def test_nothing_that_an_attack_wants_is_told_to_the_model_that_answers(finder):
    told, _ = await ask_of_each(finder, lambda case: "It is so [1].")
    assert sum("<source" in text for text in told) > len(CASES) / 2  # of the others nothing was close
    for case, text in zip(CASES, told, strict=True):
        assert not [mark for mark in case["marks"] if mark.casefold() in text.casefold()], (case, text)
        assert not links(text), (case, text)


async def test_an_answer_that_obeys_all_the_same_is_none_or_leads_nowhere(finder):
    system = answering_instructions()
    _, uncited = await ask_of_each(finder, lambda case: case["obeyed"].replace("{SYSTEM}", system))
    assert not [text for text in uncited if text and "[1]" not in text]
    _, answers = await ask_of_each(finder, lambda case: f"{case['obeyed'].replace('{SYSTEM}', system)} [1]")
    assert sum(bool(text) for text in answers) > len(CASES) / 2  # a model may still say what is not so
    for case, text in zip(CASES, answers, strict=True):
        if text:
            assert not [link for link in links(text) if not link.startswith("https://github.com/quillcap/")], (case, text)
            assert not INVISIBLE.search(text), (case, text)
            assert not TERMINAL.search(text), (case, text)
        assert "{SYSTEM}" not in case["obeyed"] or text is None, (case, text)


def test_the_corpus_holds_what_it_is_for():
    assert len({case["kind"] for case in CASES}) >= 10
    assert sum(visible(case["body"]) != case["body"] for case in CASES) >= 4
    assert all(case["obeyed"] and case["marks"] for case in CASES)
