"""GitHub's REST API, faked at the wire: pages, checkpoints, quotas, and everything it answers that is not a page."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from starsearch.errors import RateLimited, SourceUnavailable, StarsearchError
from starsearch.github.rest import OVERLAP, TRIES, Quota, open_source
from starsearch.models import Checkpoint, Chunk

BASE = "https://api.github.com"
REPO = "quillcap/marlframe"
PATH = f"/repos/{REPO}/issues"
HIGH_WATER = datetime(2025, 3, 1, 12, tzinfo=UTC)
CHECKPOINT = Checkpoint(REPO, HIGH_WATER)
SECOND_PAGE = f"{BASE}/repositories/71/issues?page=2"


class GitHub:
    """Answers in the order given, raises what is an exception, and keeps what it was asked."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def open(self, token: str | None = None, base_url: str = BASE):
        return open_source(base_url, token, transport=httpx2.MockTransport(self))

    async def crawl(self, checkpoint: Checkpoint = CHECKPOINT, token: str | None = None, base_url: str = BASE, **how: Any) -> list[Chunk]:
        async with self.open(token, base_url) as source:
            return [chunk async for chunk in source.items(checkpoint, **how)]


def page(*rows: Any, following: str | None = None) -> httpx2.Response:
    return httpx2.Response(200, json=rows, headers={"link": f'<{following}>; rel="next"'} if following else {})


def facts(**fields: Any) -> httpx2.Response:
    """What GitHub says of the repository, which a source with a token asks first."""
    return httpx2.Response(200, json={"full_name": REPO, "private": False} | fields)


def failure(status: int, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, json={"message": "no"}, headers=named)


def issue(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": 9_000 + number,
        "node_id": f"I_{number}",
        "number": number,
        "title": f"Totals are wrong in report {number}",
        "body": "The sum is doubled.",
        "state": "open",
        "html_url": f"https://github.com/{REPO}/issues/{number}",
        "user": {"login": "maren", "id": 1},
        "labels": [{"id": 1, "name": "bug"}],
        "comments": 2,
        "created_at": "2025-03-01T10:00:00Z",
        "updated_at": "2025-03-02T10:00:00Z",
        "closed_at": None,
    } | fields


def pull(number: int, merged_at: str | None = None, **fields: Any) -> dict[str, Any]:
    link = f"https://github.com/{REPO}/pull/{number}"
    return issue(number, html_url=link, pull_request={"html_url": link, "merged_at": merged_at}, **fields)


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """Waiting takes no time; what was waited is told."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("starsearch.github.rest.asyncio.sleep", sleep)
    return waited


async def test_pages_are_followed_until_the_last():
    github = GitHub(page(issue(3), following=SECOND_PAGE), page(issue(2), following=f"{SECOND_PAGE}&after=x"), page(issue(1)))
    chunks = await github.crawl()
    assert [item.number for chunk in chunks for item in chunk.items] == [3, 2, 1]
    assert [str(request.url) for request in github.asked[1:]] == [SECOND_PAGE, f"{SECOND_PAGE}&after=x"]


async def test_the_listing_is_asked_newest_update_first_in_pages_of_100():
    github = GitHub(page())
    await github.crawl()
    url = github.asked[0].url
    assert url.path == PATH
    assert dict(url.params) == {
        "state": "all",
        "sort": "updated",
        "direction": "desc",
        "per_page": "100",
        "since": "2025-03-01T11:59:00Z",
    }


async def test_the_checkpoint_comes_with_the_last_page_and_is_the_first_pages_newest_update():
    first = page(issue(1, updated_at="2025-03-05T10:00:00Z"), issue(2, updated_at="2025-03-04T10:00:00Z"), following=SECOND_PAGE)
    # changed while page one was read, and moved to the front: only the next crawl may say that it has seen this
    last = page(issue(3, updated_at="2025-03-06T10:00:00Z"))
    chunks = await GitHub(first, last).crawl()
    assert [chunk.checkpoint for chunk in chunks] == [None, Checkpoint(REPO, datetime(2025, 3, 5, 10, tzinfo=UTC))]


async def test_a_crawl_that_breaks_off_yields_no_checkpoint():
    github = GitHub(page(issue(1), following=SECOND_PAGE), failure(404))
    chunks = []
    async with github.open() as source:
        with pytest.raises(StarsearchError):
            async for chunk in source.items(CHECKPOINT):
                chunks.append(chunk)  # noqa: PERF401 - what came before the error is kept
    assert [chunk.checkpoint for chunk in chunks] == [None]


@pytest.mark.parametrize(
    ("high_water", "since", "asked"),
    [
        (HIGH_WATER, None, HIGH_WATER - OVERLAP),
        (HIGH_WATER, datetime(2024, 1, 1, tzinfo=UTC), HIGH_WATER - OVERLAP),  # a first reach does not move a later crawl back
        (None, datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC) - OVERLAP),
    ],
)
async def test_since_is_the_checkpoint_less_the_overlap(high_water, since, asked):
    github = GitHub(page())
    await github.crawl(Checkpoint(REPO, high_water), since=since)
    assert github.asked[0].url.params["since"] == asked.strftime("%Y-%m-%dT%H:%M:%SZ")


async def test_a_first_crawl_reaches_back_one_day():
    github = GitHub(page())
    await github.crawl(Checkpoint(REPO, None))
    since = datetime.fromisoformat(github.asked[0].url.params["since"])
    assert timedelta(days=1) < datetime.now(UTC) - since < timedelta(days=1, minutes=10)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [issue(1, updated_at="2025-02-01T10:00:00Z")],  # older than the checkpoint: a lagging replica
        [issue(1, title="")],  # nothing of the page could be read
    ],
)
async def test_a_page_without_news_leaves_the_checkpoint_where_it_was(rows):
    chunks = await GitHub(page(*rows)).crawl()
    assert [chunk.checkpoint for chunk in chunks] == [CHECKPOINT]


async def test_an_empty_repository_gets_a_checkpoint_too():
    since = datetime(2024, 1, 1, tzinfo=UTC)
    chunks = await GitHub(page()).crawl(Checkpoint(REPO, None), since=since)
    assert [(chunk.items, chunk.checkpoint) for chunk in chunks] == [((), Checkpoint(REPO, since))]


async def test_newest_asks_for_so_many_and_nothing_else():
    github = GitHub(page(issue(1), following=SECOND_PAGE))
    chunks = await github.crawl(Checkpoint(REPO, None), newest=30)
    assert [chunk.checkpoint for chunk in chunks] == [Checkpoint(REPO, datetime(2025, 3, 2, 10, tzinfo=UTC))]
    assert len(github.asked) == 1
    assert github.asked[0].url.params["per_page"] == "30"
    assert "since" not in github.asked[0].url.params


async def test_newest_does_not_move_a_checkpoint_over_the_gap_that_it_leaves():
    chunks = await GitHub(page(issue(1))).crawl(newest=30)
    assert [chunk.checkpoint for chunk in chunks] == [CHECKPOINT]


async def test_an_issues_fields_are_mapped():
    [chunk] = await GitHub(page(issue(7, state="closed", closed_at="2025-03-02T10:00:00Z", labels=[{"name": "bug"}, "ui"]))).crawl()
    [item] = chunk.items
    assert (item.repo, item.number, item.type, item.state) == (REPO, 7, "issue", "closed")
    assert (item.title, item.body) == ("Totals are wrong in report 7", "The sum is doubled.")
    assert (item.url, item.author, item.labels) == (f"https://github.com/{REPO}/issues/7", "maren", ("bug", "ui"))
    assert (item.comments, item.comments_count) == (None, 2)
    assert (item.node_id, item.database_id) == ("I_7", 9_007)
    assert item.created_at == datetime(2025, 3, 1, 10, tzinfo=UTC)
    assert item.updated_at == item.closed_at == datetime(2025, 3, 2, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("row", "state"),
    [
        (pull(1), "open"),
        (pull(1, state="closed", closed_at="2025-03-02T10:00:00Z"), "closed"),  # turned down
        (pull(1, merged_at="2025-03-02T10:00:00Z", state="closed", closed_at="2025-03-02T10:00:00Z"), "merged"),
    ],
)
async def test_pull_requests_are_recognised(row, state):
    [chunk] = await GitHub(page(row)).crawl()
    [item] = chunk.items
    assert (item.type, item.state, item.url) == ("pull_request", state, f"https://github.com/{REPO}/pull/1")
    assert item.database_id is None  # the row's id is the issue's


async def test_a_deleted_users_item_has_no_author():
    [chunk] = await GitHub(page(issue(1, user=None, body=None))).crawl()
    assert (chunk.items[0].author, chunk.items[0].body) == (None, "")


@pytest.mark.parametrize(
    "bad",
    [
        issue(2, title=""),
        issue(2, title=None),
        issue(2) | {"number": "2"},
        issue(2, labels=None),
        issue(2, labels=[{"id": 1}]),  # a label without a name
        issue(2, user="maren"),  # not an object
        issue(2, updated_at=1_740_000_000),  # seconds or milliseconds: not guessed
        None,
        "row",
        [],
    ],
)
async def test_a_bad_row_costs_only_itself(bad):
    [chunk] = await GitHub(page(issue(1), bad, issue(3))).crawl()
    assert [item.number for item in chunk.items] == [1, 3]
    assert [rejection.line for rejection in chunk.rejections] == [2]
    assert chunk.rejections[0].reason


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(200, html="<h1>Sign in</h1>"),  # a proxy's or Enterprise Server's login page
        httpx2.Response(200, json={"message": "moved"}),
        httpx2.Response(200, content=b'[{"number": 1'),  # cut off
        httpx2.Response(204),
    ],
)
async def test_what_is_not_a_list_is_not_an_empty_page(answer):
    with pytest.raises(StarsearchError, match="did not answer with a list of issues"):
        await GitHub(answer).crawl()


async def test_a_used_up_quota_ends_the_crawl_and_says_until_when():
    quota = {"x_ratelimit_limit": "60", "x_ratelimit_remaining": "0", "x_ratelimit_reset": "1740830400"}
    with pytest.raises(RateLimited, match="0 of 60 GitHub requests left until 12:00 UTC; a token") as caught:
        await GitHub(failure(403, **quota)).crawl()
    assert caught.value.resets_at == datetime(2025, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (429, {}),
        (403, {}),  # the short-term limit answers either
        (429, {"x_ratelimit_limit": "60", "x_ratelimit_remaining": "50", "x_ratelimit_reset": "1740830400"}),  # the hour's is another
    ],
)
async def test_github_that_asks_to_wait_is_obeyed(status, headers):
    with pytest.raises(RateLimited, match="asks to wait 90 s") as caught:
        await GitHub(failure(status, retry_after="90", **headers)).crawl()
    wait = caught.value.resets_at - datetime.now(UTC)
    assert timedelta(0) < wait <= timedelta(seconds=90)


async def test_too_many_requests_without_a_word_is_a_limit_too():
    with pytest.raises(RateLimited, match="did not say") as caught:
        await GitHub(failure(429)).crawl()
    assert caught.value.resets_at is None


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (404, StarsearchError, "not found"),
        (410, StarsearchError, "switched off"),
        (451, StarsearchError, "legal"),
        (403, StarsearchError, "403"),  # without a limit's headers: forbidden, and waiting does not help
        (422, StarsearchError, "422"),
        (401, SourceUnavailable, "STARSEARCH_GITHUB_TOKENS"),
    ],
)
async def test_refusals_are_told_and_not_repeated(status, kind, message):
    github = GitHub(failure(status))
    with pytest.raises(StarsearchError, match=message) as caught:
        await github.crawl()
    assert type(caught.value) is kind
    assert len(github.asked) == 1


async def test_a_server_error_is_tried_again(naps):
    github = GitHub(failure(500), failure(502), page(issue(1)))
    async with github.open() as source:
        [chunk] = [chunk async for chunk in source.items(CHECKPOINT)]
        assert source.requests == len(github.asked) == 3
    assert len(chunk.items) == 1
    assert naps == sorted(naps)
    assert len(naps) == 2


async def test_a_server_that_keeps_failing_fails_the_repository_only(naps):
    github = GitHub(*[failure(500)] * TRIES)
    with pytest.raises(StarsearchError, match=f"{PATH} answered 500 3 times") as caught:
        await github.crawl()
    assert caught.value.exit_code == 1
    assert len(github.asked) == TRIES


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (httpx2.ConnectError("All connection attempts failed"), 1),  # nobody there: asking again is idle
        (httpx2.ReadTimeout("timed out"), TRIES),
        (httpx2.RemoteProtocolError("peer closed"), TRIES),
        (httpx2.DecodingError("not gzip"), TRIES),
    ],
)
async def test_no_answer_names_what_to_do(error, tries):
    github = GitHub(*[error] * tries)
    with pytest.raises(
        SourceUnavailable, match=r"api\.github\.com does not answer.*STARSEARCH_GITHUB_REST_URL.*starsearch ingest"
    ) as caught:
        await github.crawl()
    assert caught.value.exit_code == 3
    assert len(github.asked) == tries


async def test_one_lost_answer_is_no_reason_to_stop():
    chunks = await GitHub(httpx2.ReadTimeout("timed out"), page(issue(1))).crawl()
    assert len(chunks[0].items) == 1


async def test_a_next_page_on_another_host_is_refused():
    github = GitHub(facts(), page(issue(1), following="https://api.github.com.example/issues?page=2"))
    with pytest.raises(StarsearchError, match=r"another host: api\.github\.com\.example"):
        await github.crawl(token="gho_secret")
    assert len(github.asked) == 2


@pytest.mark.parametrize(("token", "sent"), [("gho_secret", "Bearer gho_secret"), (None, None)])
async def test_the_token_is_sent_with_every_page(token, sent):
    github = GitHub(*([facts()] if token else []), page(following=SECOND_PAGE), page())
    await github.crawl(token=token)
    assert [request.headers.get("authorization") for request in github.asked[-2:]] == [sent, sent]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (facts(private=True), "it is private"),
        (facts(private=None), "does not say that it is public"),
        (httpx2.Response(200, text="<html>"), "does not say that it is public"),  # a proxy's page
        (httpx2.Response(200, json=[]), "does not say that it is public"),
    ],
)
async def test_a_private_repository_that_the_token_may_read_is_refused_before_its_issues_are_asked_for(answer, reason):
    github = GitHub(answer, page(issue(1)))
    with pytest.raises(StarsearchError, match=f"{reason}.*private repositories are not followed"):
        await github.crawl(token="gho_secret", newest=30)
    assert [request.url.path for request in github.asked] == [f"/repos/{REPO}"]


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        (f"{BASE}/repositories/71/issues", "Bearer gho_secret"),  # a renamed repository
        ("https://elsewhere.example/issues", None),
    ],
)
async def test_a_redirect_is_followed_and_the_token_stays_on_its_host(target, sent):
    github = GitHub(facts(), httpx2.Response(301, headers={"location": target}), page(issue(1)))
    chunks = await github.crawl(token="gho_secret")
    assert len(chunks[0].items) == 1
    assert github.asked[2].headers.get("authorization") == sent


async def test_an_enterprise_servers_path_is_kept():
    github = GitHub(page(following="https://git.example/api/v3/issues?page=2"), page())
    await github.crawl(base_url="https://git.example/api/v3")
    assert [request.url.path for request in github.asked] == [f"/api/v3{PATH}", "/api/v3/issues"]


async def test_a_checkpoint_keeps_its_host():
    chunks = await GitHub(page()).crawl(Checkpoint(REPO, HIGH_WATER, "git.example"))
    assert chunks[0].checkpoint.host == "git.example"


async def test_ping_reads_the_quota():
    headers = {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "42", "x-ratelimit-reset": "1740830400"}
    async with GitHub(httpx2.Response(200, json={}, headers=headers)).open() as source:
        assert str(source.quota) == "GitHub did not say how many requests are left"
        await source.ping()
        assert str(source.quota) == "42 of 60 GitHub requests left until 12:00 UTC"


async def test_a_real_page_becomes_items(shared_data):
    rows = json.loads((shared_data / "rest_issues_page.json").read_text("utf-8"))
    start = Checkpoint("duckdb/duckdb", datetime(2020, 1, 1, tzinfo=UTC))
    [chunk] = await GitHub(page(*rows)).crawl(start)
    assert not chunk.rejections
    assert len(chunk.items) == 100
    assert sum(item.type == "pull_request" for item in chunk.items) == 25
    assert all(item.state == "merged" for item in chunk.items if item.merged_at)
    assert chunk.checkpoint.high_water == datetime(2023, 2, 21, 10, 10, 32, tzinfo=UTC)


@pytest.mark.parametrize("reset", ["soon", "9" * 30])
def test_a_quota_that_cannot_be_read_is_not_read_by_half(reset):
    quota = Quota()
    quota.read({"x-ratelimit-limit": "60", "x-ratelimit-remaining": "42", "x-ratelimit-reset": reset})
    assert str(quota) == "GitHub did not say how many requests are left"


async def test_a_retry_after_beyond_any_limit_is_a_day():
    with pytest.raises(RateLimited) as caught:
        await GitHub(httpx2.Response(429, headers={"retry-after": "9" * 400})).crawl()
    assert timedelta(hours=23) < caught.value.resets_at - datetime.now(UTC) <= timedelta(days=1)
