"""GitHub's nodes as nouns: pages, items, and what is neither."""

from datetime import UTC, datetime
from typing import Any

import pytest

from starsearch.errors import Rejected
from starsearch.github.nodes import Page, read_facts, read_item, read_page
from starsearch.models import RepositoryFacts, SeenItem

MARCH = datetime(2026, 3, 1, 12, tzinfo=UTC)


def issue(**fields: Any) -> dict[str, Any]:
    return {
        "__typename": "Issue",
        "id": "I_7",
        "fullDatabaseId": "9007199254740993",  # GitHub sends large numbers as text
        "number": 7,
        "title": "Totals are wrong",
        "body": "The sum is doubled.",
        "url": "https://github.com/quillcap/marlframe/issues/7",
        "state": "OPEN",
        "createdAt": "2026-03-01T10:00:00Z",
        "updatedAt": "2026-03-01T12:00:00Z",
        "closedAt": None,
        "author": {"login": "maren"},
        "repository": {"id": "R_1", "nameWithOwner": "quillcap/marlframe", "isPrivate": False},
        "labels": {"nodes": [{"name": "bug"}, {"name": "ui"}]},
    } | fields


def pull(state: str = "OPEN", **fields: Any) -> dict[str, Any]:
    node = issue(__typename="PullRequest", id="PR_8", number=8, url="https://github.com/quillcap/marlframe/pull/8", pullState=state)
    del node["state"]
    return node | {"mergedAt": None} | fields


def seen(number: Any, **fields: Any) -> dict[str, Any]:
    return {"id": f"I_{number}", "number": number, "updatedAt": "2026-03-01T12:00:00Z"} | fields


def page(*items: Any, following: bool = False, cursor: str | None = "Y3Vyc29y", kind: str = "issues") -> dict[str, Any]:
    return {"id": "R_1", kind: {"pageInfo": {"hasNextPage": following, "endCursor": cursor}, "nodes": list(items)}}


def test_an_issue_is_mapped():
    item = read_item(issue(), host="github.com")
    assert (item.repo, item.number, item.type, item.state) == ("quillcap/marlframe", 7, "issue", "open")
    assert (item.title, item.body, item.author, item.labels) == ("Totals are wrong", "The sum is doubled.", "maren", ("bug", "ui"))
    assert (item.node_id, item.database_id, item.host) == ("I_7", 9007199254740993, "github.com")
    assert (item.created_at, item.updated_at, item.closed_at) == (datetime(2026, 3, 1, 10, tzinfo=UTC), MARCH, None)
    assert item.url == "https://github.com/quillcap/marlframe/issues/7"


@pytest.mark.parametrize(
    ("node", "type", "state"),
    [
        (issue(state="CLOSED", closedAt="2026-03-01T12:00:00Z"), "issue", "closed"),
        (pull(), "pull_request", "open"),
        (pull("CLOSED", closedAt="2026-03-01T12:00:00Z"), "pull_request", "closed"),  # turned down
        (pull("MERGED", closedAt="2026-03-01T12:00:00Z", mergedAt="2026-03-01T12:00:00Z"), "pull_request", "merged"),
    ],
)
def test_the_states_of_both_kinds(node, type, state):
    item = read_item(node, host="github.com")
    assert (item.type, item.state) == (type, state)
    assert item.merged_at == (MARCH if state == "merged" else None)


def test_a_deleted_account_leaves_no_author():
    assert read_item(issue(author=None), host="github.com").author is None


@pytest.mark.parametrize(
    ("fields", "comments", "count"),
    [
        ({}, None, None),  # not asked for: what is stored stays
        ({"comments": {"totalCount": 0, "nodes": []}}, [], 0),
        (
            {"comments": {"totalCount": 9, "nodes": [{"body": "Same here.", "createdAt": "2026-03-01T11:00:00Z", "author": None}]}},
            ["Same here."],
            9,
        ),
    ],
)
def test_comments_are_told_apart_from_none_asked_for(fields, comments, count):
    item = read_item(issue(**fields), host="github.com")
    assert (item.comments if item.comments is None else [comment.body for comment in item.comments]) == comments
    assert item.comments_count == count


def test_the_host_is_the_servers():
    assert read_item(issue(), host="git.example").host == "git.example"


@pytest.mark.parametrize(
    "node",
    [
        {},
        {"__typename": "Repository", "id": "R_1"},
        issue(title=""),
        issue(title=None),
        issue(number="7"),
        issue(number=0),
        issue(state=None),
        issue(state="LOCKED"),
        issue(updatedAt=1_740_000_000),
        issue(createdAt="yesterday"),
        issue(repository=None),
        issue(repository={"nameWithOwner": "marlframe"}),
        issue(labels=None),
        issue(labels={"nodes": [None]}),
        issue(author="maren"),
        issue(fullDatabaseId="many"),
        issue(fullDatabaseId=float("inf")),
        issue(fullDatabaseId=str(2**63)),
        issue(comments={"totalCount": 1, "nodes": [{"body": "x", "createdAt": "then", "author": None}]}),
        issue(comments={"totalCount": 1}),
        issue(comments=[]),
        pull(pullState=None),
    ],
)
def test_what_is_no_item_is_rejected_with_a_reason(node):
    with pytest.raises(Rejected) as caught:
        read_item(node, host="github.com")
    assert str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [("issue", "issues"), ("pull_request", "pullRequests")])
def test_a_page_tells_items_and_where_the_next_begins(kind, name):
    found = read_page(page(seen(2, createdAt="2026-02-01T00:00:00Z"), seen(1), following=True, kind=name), kind, MARCH)
    assert found == Page(
        (SeenItem("I_2", 2, kind, MARCH, datetime(2026, 2, 1, tzinfo=UTC)), SeenItem("I_1", 1, kind, MARCH, None)), "Y3Vyc29y"
    )


@pytest.mark.parametrize("cursor", ["Y3Vyc29y", None])
def test_the_last_page_has_no_next(cursor):
    assert read_page(page(cursor=cursor), "issue", MARCH) == Page((), None)


def test_what_is_older_is_left_out_and_ends_the_list():
    node = page(seen(2), seen(1, updatedAt="2026-02-28T23:59:59Z"), following=True)
    assert read_page(node, "issue", MARCH) == Page((SeenItem("I_2", 2, "issue", MARCH, None),), None)


def test_a_null_among_the_items_is_a_hole_and_does_not_end_the_list():
    found = read_page(page(seen(2), None, seen(1)), "issue", MARCH)
    assert ([item.number for item in found.items], found.holes) == ([2, 1], 1)
    assert read_page(page(None, None, following=True, cursor="c"), "issue", MARCH) == Page((), "c", holes=2)


@pytest.mark.parametrize(
    "node",
    [
        {},
        {"issues": None},
        {"issues": []},
        {"issues": {"nodes": []}},
        {"issues": {"nodes": None, "pageInfo": {"hasNextPage": False, "endCursor": None}}},
        {"issues": {"nodes": [], "pageInfo": None}},
        page(following=False, kind="pullRequests"),  # the other kind's
        page({"id": "I_1", "number": 1}),
        page(seen("one")),
        page(seen(0)),
        page(seen(2**31)),
        page(seen(1.5)),
        page(seen(float("inf"))),
        page(seen(1, id="I_\0")),
        page(seen(1, id=None)),
        page(seen(1, updatedAt=None)),
        page(seen(1, updatedAt="then")),
        page("I_1"),
    ],
)
def test_what_is_no_page_is_not_an_empty_one(node):
    with pytest.raises((KeyError, TypeError, ValueError)):
        read_page(node, "issue", MARCH)


def test_facts_that_were_not_asked_for_are_unknown():
    assert read_facts({"id": "R_1", "nameWithOwner": "a/b"}) == RepositoryFacts("R_1", "a/b", None, None, None)
    assert read_facts({"id": "R_1", "nameWithOwner": "a/b", "databaseId": 5, "isArchived": True, "stargazerCount": 0}) == RepositoryFacts(
        "R_1", "a/b", 5, True, 0
    )


@pytest.mark.parametrize(
    "told",
    [
        {"id": ""},
        {"nameWithOwner": "a/\0"},
        {"databaseId": "5"},
        {"databaseId": 2**63},
        {"isArchived": "no"},
        {"stargazerCount": 1e30},
        {"stargazerCount": -1},
        {"stargazerCount": True},
    ],
)
def test_facts_that_no_column_takes_are_refused_before_they_meet_one(told):
    with pytest.raises(ValueError, match=r"not a|archived is"):
        read_facts({"id": "R_1", "nameWithOwner": "a/b"} | told)
