"""Dead letters from both ends, fetch and digest: listed, shown, brought back; and never obeyed by a terminal."""

import json
import subprocess
import sys

import httpx2
import pytest

from starsearch.audit import read_status
from starsearch.store.dead_letters import Choice, count_dead_letters, find_dead_letters, retry_dead_letters
from tests.stub_engine import StubEngine, nonsense
from tests.test_accounts import digest_with, ingest_file, one, rows

HOSTILE = "no \x1b]0;owned\x07 \x1b[2Jmercy [bold]at all[/bold]"


pytestmark = pytest.mark.usefixtures("quick_retries")


def refuses(text, times):
    if "report 1\n" in text:
        return httpx2.Response(400, json={"error": {"message": HOSTILE}})
    return nonsense() if "report 2\n" in text else None


@pytest.fixture
async def letters(store, row, jsonl):
    """Items 1 to 3 stored, 1 and 2 dead in the digest, and item 9 dead in the fetch."""
    await ingest_file(store, jsonl(*(row(n) for n in (1, 2, 3))))
    counts = await digest_with(store, StubEngine(refuses))
    assert counts.dead_letters == 2
    async with store.pool.connection() as connection:
        await connection.execute("INSERT INTO item (repository_id, number, node_id, type) SELECT id, 9, 'n9', 'issue' FROM repository")
        await connection.execute(
            "INSERT INTO fetch_failure (item_id, attempts, dead, reason, detail) SELECT id, 3, true, 'RateLimited', %s FROM item "
            "WHERE number = 9",
            [HOSTILE],
        )
    return store


@pytest.mark.parametrize(
    ("choice", "numbers"),
    [
        (Choice(), {1, 2, 9}),
        (Choice(stage="fetch"), {9}),
        (Choice(stage="summarize"), {1, 2}),
        (Choice(stage="embed"), set()),
        (Choice(error="http 400"), {1}),
        (Choice(error="MERCY"), {1, 9}),  # in the detail, without case
        (Choice(stage="summarize", error="mercy"), {1}),
        (Choice(error="%"), set()),  # a character, not a pattern
        (Choice(address={"host": "github.com", "repo": "QuillCap/Marlframe", "number": 2}), {2}),
        (Choice(address={"host": "other.example", "repo": "quillcap/marlframe", "number": 2}), set()),
    ],
)
async def test_stage_error_and_address_choose_and_retry_brings_back_those_alone(letters, choice, numbers):
    found = await find_dead_letters(letters.pool, choice)
    assert {letter.number for letter in found} == numbers
    assert all(letter.url == f"https://github.com/quillcap/marlframe/issues/{letter.number}" for letter in found)
    assert sum(count for *_, count in await count_dead_letters(letters.pool, choice)) == len(numbers)
    assert sum((await retry_dead_letters(letters.pool, choice)).values()) == len(numbers)
    left = await find_dead_letters(letters.pool, Choice())
    assert {letter.number for letter in left} == {1, 2, 9} - numbers


async def test_what_is_retried_has_all_its_attempts_and_is_digested_once_the_cause_is_cured(letters):
    assert await retry_dead_letters(letters.pool, Choice()) == {"digest": 2, "fetch": 1}
    assert await rows(letters, "SELECT attempts FROM due") == [(0,), (0,)]
    assert (await digest_with(letters, StubEngine())).embedded == 2
    status = await read_status(letters.pool)
    assert status.dead_letters == 0
    assert [(gap.stage, gap.reason) for gap in status.gaps] == [("fetch", "known, text not fetched yet")]
    assert await one(letters, "SELECT count(*) FROM fetch_failure") == (0,)


async def test_what_fails_again_is_a_dead_letter_again(letters):
    await retry_dead_letters(letters.pool, Choice(stage="summarize"))
    assert (await digest_with(letters, StubEngine(refuses))).dead_letters == 2
    assert len(await find_dead_letters(letters.pool, Choice())) == 3


async def test_the_command_lists_shows_and_retries_and_a_terminal_obeys_nothing(letters, environment):
    def starsearch(*arguments):
        command = [sys.executable, "-m", "starsearch.cli", "dead-letters", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    listed = starsearch("list")
    assert listed.returncode == 0
    assert "3 dead letters" in listed.stdout
    assert "1 summarize: HTTP 400" in listed.stdout
    shown = starsearch("show", "quillcap/marlframe#1")
    for text in (listed.stdout, shown.stdout):
        assert "\x1b" not in text
        assert "[bold]at all[/bold]" in text
    found = json.loads(starsearch("list", "--stage", "fetch", "--json").stdout)
    assert (found["total"], found["reasons"]) == (1, [{"stage": "fetch", "reason": "RateLimited", "count": 1}])
    assert found["dead_letters"][0]["detail"] == HOSTILE
    nothing = starsearch("retry")
    assert (nothing.returncode, "--all" in nothing.stderr) == (2, True)
    alive = starsearch("show", "quillcap/marlframe#3")
    assert (alive.returncode, "no dead letter" in alive.stderr) == (1, True)
    assert json.loads(starsearch("retry", "--error", "mercy", "--json").stdout) == {"digest": 1, "fetch": 1}
