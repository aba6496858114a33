"""The stand-in GitHub keeps GitHub's documented rules: what a crawl proves against it is worth as much as these tests."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import graphql
import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.standin.control import Control
from tests.standin.cost import price
from tests.standin.documents import read_query, schema
from tests.standin.fields import CALLED, PLAIN, RateLimit, Run
from tests.standin.notation import item_node_id, read_node_id, repository_node_id, to_seconds
from tests.standin.search import RESULTS
from tests.standin.server import StandIn
from tests.standin.service import compiled
from tests.standin.things import Repository
from tests.standin.world import FIRST_ADDED_ITEM, World

ROOT = Path(__file__).resolve().parents[1]
QUERIES = {path.stem: path.read_text("utf-8") for path in (ROOT / "starsearch/github/queries").glob("*.graphql")}
LONG_AGO = "2010-01-01T00:00:00Z"
TOKEN = {"Authorization": "Bearer token-a"}

RESOLVE = """query Resolve($o: String!, $n: String!, $follow: Boolean = true) {
  rateLimit { cost limit remaining used resetAt nodeCount }
  viewer { login }
  new: repository(owner: $o, name: $n, followRenames: $follow) { ...Facts }
  none: repository(owner: "nobody", name: "nothing") { ...Facts }
}
fragment Facts on Repository { id databaseId nameWithOwner owner { __typename login } isFork isArchived stargazerCount createdAt }"""
MERGED_FIELDS = """query Merged($ids: [ID!]!, $texts: Boolean!, $number: Int!) {
  nodes(ids: $ids) {
    ... on Node { key: id }
    ... on Comment { body @include(if: $texts) author { login } }
    ... on Issue { repository { name } comments(first: 1) { edges { cursor node { id } } } }
    ... on PullRequest { merged }
    ... on Issue { repository { url issue(number: $number) { title closed } } labels(last: 2) { totalCount } }
    ... on Repository @skip(if: $texts) { issues(first: 2, orderBy: {field: CREATED_AT, direction: ASC}, states: [OPEN]) { ...Page } }
  }
}
fragment Page on IssueConnection { totalCount pageInfo { hasNextPage hasPreviousPage startCursor endCursor } nodes { number state } }"""
HYDRATE = """query Hydrate($ids: [ID!]!, $withComments: Boolean = false) {
  nodes(ids: $ids) {
    ... on Issue { labels(first: 20) { nodes { name } } comments(last: 5) @include(if: $withComments) { nodes { id } } }
    ... on PullRequest {
      labels(first: 20) { nodes { name } }
      closingIssuesReferences(first: 5) { nodes { repository { nameWithOwner } } }
      comments(last: 5) @include(if: $withComments) { nodes { id } }
    }
  }
}"""
NAIVE = """query NaiveRepo($id: ID!, $since: DateTime) {
  node(id: $id) {
    ... on Repository {
      issues(first: 100, filterBy: {since: $since}) { nodes { labels(first: 20) { nodes { name } } comments(first: 10) { nodes { body } } } }
      pullRequests(first: 100) {
        nodes { labels(first: 20) { nodes { name } } comments(first: 10) { nodes { body } } closingIssuesReferences(first: 5) { nodes { id } } }
      }
    }
  }
}"""
PAGES = """query Pages($id: ID!, $ni: Int!, $np: Int!) {
  node(id: $id) { ... on Repository { issues(first: $ni) { nodes { id } } pullRequests(first: $np) { nodes { id } } } }
}"""
DEEP = "query Deep($id: ID!) { node(id: $id) { ... on Repository { issues(first: 100) { nodes { labels(first: 100) { nodes { issues(first: 100) { nodes { id } } } } } } } } }"
COUNTS = '{ a: search(type: ISSUE, query: "is:pr") { issueCount } b: search(type: ISSUE, query: "is:issue") { issueCount } }'


@pytest.fixture
def world() -> World:
    """quillcap/marlframe with six issues and six pull requests, a minute between updates; brindle/oat with one issue."""
    world = World()
    repository = world.add_repository("quillcap/marlframe", stars=1_200)
    for number in range(1, 13):
        type_ = "issue" if number % 2 else "pull_request"
        world.add_item(
            repository, type_, body=f"Column {number} is doubled.", labels=("bug", "docs"), author=None if number == 5 else "maren"
        )
        world.advance(60)
    world.add_item(world.add_repository("brindle/oat", stars=40), "issue")
    world.advance(60)
    return world


@pytest.fixture
def repository(world: World) -> Repository:
    return world.repository("quillcap/marlframe")


@pytest.fixture
def github(world: World) -> Iterator[StandIn]:
    with StandIn(world) as running:
        yield running


@pytest.fixture
def http(github: StandIn) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=github.url, headers=TOKEN, timeout=10) as client:
        yield client


def ask(http: httpx2.Client, query: str, **variables: Any) -> httpx2.Response:
    return http.post("/graphql", json={"query": QUERIES.get(query, query), "variables": variables})


def cost_of(text: str, **variables: Any) -> tuple[int, int, int]:
    """(points, requests, nodes)"""
    query = read_query(text)
    values = query.variables(variables)
    return price(compiled(query, query.switched(values))[1], values)


def ids(number: int) -> list[str]:
    return [repository_node_id(n) for n in range(number)]


# price


@pytest.mark.parametrize(
    ("text", "variables", "cost"),
    [
        # the table of design/github.md 1.3; the sweep, whatever its page size
        (QUERIES["sweep"], {"ids": ids(100), "since": LONG_AGO, "newest": 1}, (2, 201, 300)),
        (QUERIES["sweep"], {"ids": ids(100), "since": LONG_AGO, "newest": 10}, (2, 201, 2_100)),
        (QUERIES["sweep"], {"ids": ids(50), "since": LONG_AGO, "newest": 10}, (1, 101, 1_050)),
        (QUERIES["sweep"], {"ids": ids(1), "since": LONG_AGO, "newest": 10}, (1, 3, 21)),
        # labels of two kinds of items and what a pull request closes, then comments of both
        (HYDRATE, {"ids": ids(100)}, (3, 301, 4_600)),
        (HYDRATE, {"ids": ids(50)}, (2, 151, 2_300)),
        (HYDRATE, {"ids": ids(100), "withComments": True}, (5, 501, 5_600)),
        # the product's: @include decides whether comments are paid for
        (QUERIES["fetch"], {"ids": ids(50)}, (1, 101, 2_050)),
        (QUERIES["fetch"], {"ids": ids(50), "withComments": True}, (2, 201, 2_150)),
        # a connection of which only the count is read is not paged
        (QUERIES["check"], {"ids": ids(100)}, (1, 1, 100)),
        (QUERIES["list_issues"], {"id": "R_1", "since": LONG_AGO}, (1, 1, 100)),
        (QUERIES["list_pulls"], {"id": "R_1"}, (1, 1, 100)),
        (QUERIES["search_repositories"], {"search": "stars:>1"}, (1, 1, 100)),
        (NAIVE, {"id": "R_1"}, (5, 502, 6_700)),
        # each search is one connection
        (COUNTS, {}, (1, 2, 0)),
        (QUERIES["ping"], {}, (1, 0, 0)),
    ],
)
def test_points_are_the_requests_that_fill_each_connection_by_a_hundred(
    text: str, variables: dict[str, Any], cost: tuple[int, int, int]
) -> None:
    assert cost_of(text, **variables) == cost


@pytest.mark.parametrize(
    ("text", "variables", "type_"),
    [
        (QUERIES["sweep"], {"ids": ids(101), "since": LONG_AGO, "newest": 1}, "ARGUMENT_LIMIT"),
        (PAGES, {"id": "R_1", "ni": 101, "np": 1}, "EXCESSIVE_PAGINATION"),
        (PAGES, {"id": "R_1", "ni": 1, "np": 0}, "INVALID_PAGINATION"),
        ('{ search(type: REPOSITORY, query: "x") { nodes { __typename } } }', {}, "MISSING_PAGINATION_BOUNDARIES"),
        (DEEP, {"id": "R_1"}, "MAX_NODE_LIMIT_EXCEEDED"),
    ],
)
def test_a_query_beyond_a_limit_is_refused_before_it_costs_anything(
    github: StandIn, http: httpx2.Client, text: str, variables: dict[str, Any], type_: str
) -> None:
    response = ask(http, text, **variables)
    assert (response.status_code, response.json()["errors"][0]["type"]) == (200, type_)
    assert "data" not in response.json()
    assert github.counters.all_points == 0


def test_the_charge_is_the_price_and_shows_in_headers_and_answer(github: StandIn, http: httpx2.Client, world: World) -> None:
    repositories = ids(100)
    response = ask(http, "sweep", ids=repositories, since=LONG_AGO, newest=1)
    assert response.json()["data"]["rateLimit"] == {"cost": 2}
    assert {name: response.headers[f"x-ratelimit-{name}"] for name in ("limit", "remaining", "used", "resource")} == {
        "limit": "5000", "remaining": "4998", "used": "2", "resource": "graphql"
    }  # fmt: skip
    assert int(response.headers["x-ratelimit-reset"]) == world.seconds + 3_600
    assert response.headers["date"] == "Sat, 10 Jan 2026 12:13:00 GMT"
    assert response.headers["x-github-request-id"]
    assert github.counters.points_by_credential == {"token-a": 2}


def test_a_dry_run_tells_the_price_and_charges_nothing(github: StandIn, http: httpx2.Client) -> None:
    text = "query Dry($ids: [ID!]!) { rateLimit(dryRun: true) { cost nodeCount } nodes(ids: $ids) { ... on Issue { labels(first: 3) { nodes { name } } } } }"
    assert ask(http, text, ids=ids(100)).json() == {"data": {"rateLimit": {"cost": 1, "nodeCount": 400}, "nodes": None}}
    assert github.counters.all_points == 0


def test_an_exhausted_token_is_refused_with_200_until_the_virtual_hour_ends(github: StandIn, http: httpx2.Client, world: World) -> None:
    github.limits.window("token-a").used = 5_000
    response = ask(http, "ping")
    assert (response.status_code, response.json()["errors"][0]["type"], response.headers["x-ratelimit-remaining"]) == (
        200,
        "RATE_LIMITED",
        "0",
    )
    assert ask(http, "{ viewer { login } }").json()["errors"]
    assert "data" in http.post("/graphql", json={"query": QUERIES["ping"]}, headers={"Authorization": "Bearer token-b"}).json()
    world.advance(3_600)
    assert ask(http, "ping").json() == {"data": {"rateLimit": {"cost": 1}}}


# validation and execution


@pytest.mark.parametrize(
    "text", ["{ viewer { shoe_size } }", "{ viewer { login }", "query A { viewer { login } } query B { viewer { login } }"]
)
def test_what_the_schema_does_not_know_is_an_error_and_no_data(http: httpx2.Client, text: str) -> None:
    response = ask(http, text)
    assert response.status_code == 200
    assert set(response.json()) == {"errors"}


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}"])
def test_what_is_no_query_is_a_bad_request(http: httpx2.Client, body: bytes) -> None:
    assert http.post("/graphql", content=body).status_code == 400


def test_variables_are_checked_against_their_declarations(http: httpx2.Client) -> None:
    assert "$since" in ask(http, "sweep", ids=[], newest=1).json()["errors"][0]["message"]


def test_every_query_of_the_product_is_valid() -> None:
    assert {name: graphql.validate(schema(), graphql.parse(text)) for name, text in QUERIES.items()} == {name: [] for name in QUERIES}


def by_core(world: World, text: str, variables: dict[str, Any]) -> dict[str, Any]:
    """The answer of graphql-core's own executor over the same objects."""
    run = Run(world, RateLimit(1, 5_000, 9, 4_999, 1, 0))

    def resolve(source: Any, info: graphql.GraphQLResolveInfo, **given: Any) -> Any:
        called = CALLED.get(info.parent_type.name, {}).get(info.field_name)
        if called is None:
            return PLAIN[info.parent_type.name][info.field_name](source)
        run.key = info.path.key
        return called(source, given, run)

    result = graphql.execute(
        schema(),
        graphql.parse(text),
        run,
        variable_values=variables,
        field_resolver=resolve,
        type_resolver=lambda value, *_: value.typename,
    )
    assert not result.errors
    return {"data": result.data, "errors": run.errors}


def by_plan(world: World, text: str, variables: dict[str, Any]) -> dict[str, Any]:
    query = read_query(text)
    values = query.variables(variables)
    run = Run(world, RateLimit(1, 5_000, 9, 4_999, 1, 0))
    data = compiled(query, query.switched(values))[0].execute(run, values)
    return {"data": data, "errors": run.errors}


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        *((QUERIES["sweep"], {"since": since, "newest": newest}) for since in (LONG_AGO, "2026-01-10T12:05:00Z") for newest in (1, 3, 100)),
        *((QUERIES["fetch"], {"withComments": comments, "comments": 2}) for comments in (False, True)),
        (QUERIES["check"], {}),
        (QUERIES["list_issues"], {"since": "2026-01-10T12:02:00Z"}),
        (QUERIES["list_pulls"], {}),
        (QUERIES["ping"], {}),
        (QUERIES["search_repositories"], {"search": "stars:>=10 sort:stars-desc"}),
        (RESOLVE, {"o": "quillcap", "n": "marlframe"}),
        (RESOLVE, {"o": "quillcap", "n": "old-name", "follow": False}),
        *((MERGED_FIELDS, {"texts": texts, "number": 3}) for texts in (False, True)),
        (COUNTS, {}),
    ],
)
def test_the_plan_answers_as_graphql_core_does(world: World, repository: Repository, text: str, variables: dict[str, Any]) -> None:
    world.add_comment(repository.item(3), "It happens in every report.", author="helper[bot]")
    world.update_item(repository.item(4), state="merged")
    nodes = [world.repository("brindle/oat").node_id, repository.node_id, "R_nothing", *(item.node_id for item in repository.items())]
    given = {"ids": nodes, "id": repository.node_id} | variables
    declared = {node.variable.name.value for node in read_query(text).operation.variable_definitions or ()}
    given = {name: value for name, value in given.items() if name in declared}
    assert by_plan(world, text, given) == by_core(world, text, given)


# repositories and items


def test_node_ids_carry_their_numbers_and_nothing_else_is_one() -> None:
    assert read_node_id(repository_node_id(71)) == ("Repository", 71, None)
    assert read_node_id(item_node_id("PullRequest", 71, 3_000_000_001)) == ("PullRequest", 71, 3_000_000_001)
    for text in ("", "R_", "R_71", "X_kgDOAAAARw", "I_kgDOAAAARw", repository_node_id(71) + "A", "MDEwOlJlcG9zaXRvcnkx"):
        assert read_node_id(text) is None


def page_through(http: httpx2.Client, query: str, **variables: Any) -> list[str]:
    seen: list[str] = []
    after = None
    while True:
        connection = ask(http, query, after=after, **variables).json()["data"]["node"]["pullRequests"]
        seen += [node["id"] for node in connection["nodes"]]
        if not connection["pageInfo"]["hasNextPage"]:
            return seen
        after = connection["pageInfo"]["endCursor"]


def test_keyset_pages_lose_only_what_moves_in_front_of_them(world: World, github: StandIn, http: httpx2.Client) -> None:
    repository = world.add_repository("tessel/long")
    items = []
    for _ in range(250):
        items.append(world.add_item(repository, "pull_request"))
        world.advance(1)
    assert page_through(http, "list_pulls", id=repository.node_id) == [item.node_id for item in reversed(items)]
    world.after("ListPulls", lambda: world.update_item(items[0]) and world.advance(1))  # the last page's first goes to the front
    assert set(page_through(http, "list_pulls", id=repository.node_id)) == {item.node_id for item in items[1:]}


def test_a_cursor_that_github_never_gave_is_refused(repository: Repository, http: httpx2.Client) -> None:
    answer = ask(http, "list_pulls", id=repository.node_id, after="page-2").json()
    assert answer["errors"][0]["type"] == "INVALID_CURSOR_ARGUMENTS"


def test_since_is_inclusive_and_ascending_pages_see_what_moves_again(world: World, repository: Repository, http: httpx2.Client) -> None:
    text = """query Up($id: ID!, $since: DateTime!, $after: String) { node(id: $id) { ... on Repository {
      issues(first: 2, after: $after, filterBy: {since: $since}, orderBy: {field: UPDATED_AT, direction: ASC}) {
        totalCount pageInfo { hasNextPage endCursor } nodes { number } } } } }"""
    variables = {"id": repository.node_id, "since": "2026-01-10T12:04:00Z"}
    page = ask(http, text, **variables).json()["data"]["node"]["issues"]
    assert (page["totalCount"], [node["number"] for node in page["nodes"]]) == (4, [5, 7])
    world.update_item(repository.item(7))
    page = ask(http, text, **variables, after=page["pageInfo"]["endCursor"]).json()["data"]["node"]["issues"]
    assert [node["number"] for node in page["nodes"]] == [9, 11]
    assert page["pageInfo"]["hasNextPage"]


def test_what_is_gone_is_null_with_not_found_at_its_place(world: World, repository: Repository, http: httpx2.Client) -> None:
    other = world.repository("brindle/oat")
    deleted, moved, kept = (repository.item(number) for number in (1, 2, 3))
    new = world.transfer_item(moved, other)
    world.delete_item(deleted)
    answer = ask(http, "check", ids=[deleted.node_id, moved.node_id, kept.node_id, new.node_id]).json()
    assert [node and node["number"] for node in answer["data"]["nodes"]] == [None, None, 3, 2]
    assert answer["errors"] == [
        {"type": "NOT_FOUND", "path": ["nodes", n], "message": f"Could not resolve to a node with the global id of '{item.node_id}'"}
        for n, item in enumerate((deleted, moved))
    ]
    world.make_private(repository)
    world.delete_repository(other)
    errors = ask(http, "check", ids=[repository.node_id, other.node_id, kept.node_id, new.node_id]).json()["errors"]
    assert [error["path"] for error in errors] == [["nodes", n] for n in range(4)]


def test_a_renamed_repository_answers_to_its_old_name_until_another_takes_it(
    world: World, repository: Repository, http: httpx2.Client
) -> None:
    world.rename_repository(repository, "quillcap/new")
    names = {"o": "quillcap", "n": "marlframe"}
    assert ask(http, RESOLVE, **names).json()["data"]["new"]["nameWithOwner"] == "quillcap/new"
    assert ask(http, RESOLVE, **names, follow=False).json()["data"]["new"] is None
    taken = world.add_repository("quillcap/marlframe")
    assert ask(http, RESOLVE, **names).json()["data"]["new"]["id"] == taken.node_id != repository.node_id


def test_comments_move_the_update_time_when_made_and_not_when_deleted(world: World, repository: Repository) -> None:
    item = repository.item(1)
    comment = world.add_comment(item, "It is still there.")
    assert item.updated_at == world.now
    world.advance(60)
    world.delete_comment(item, comment)
    assert (item.comments, item.updated_at) == ([], world.now - timedelta(seconds=60))


def test_an_items_update_time_does_not_go_back_with_the_clock():
    world = World()
    item = world.add_item(world.add_repository("quillcap/marlframe"), "issue")
    before = world.update_item(item, title="One").updated_at
    world.advance(-30)
    assert world.update_item(item, title="Two").updated_at == before + timedelta(seconds=1)
    world.advance(60)
    assert world.update_item(item, title="Three").updated_at == world.now


def test_closing_and_reopening_set_and_clear_the_times(world: World, repository: Repository) -> None:
    pull = world.update_item(repository.item(2), state="merged")
    assert pull.merged_at == pull.closed_at == world.now
    assert world.update_item(pull, state="open").merged_at is None


def test_items_of_switched_off_issues_are_hidden(world: World, repository: Repository, http: httpx2.Client) -> None:
    issue = repository.item(1).node_id
    world.disable_issues(repository)
    answer = ask(http, "sweep", ids=[repository.node_id, issue], since=LONG_AGO, newest=5).json()
    assert not answer["data"]["nodes"][0]["hasIssuesEnabled"]
    assert answer["data"]["nodes"][0]["issues"]["nodes"] == []
    assert answer["data"]["nodes"][1] is None
    assert {row["type"] for row in world.record() if row["repo"] == "quillcap/marlframe"} == {"pull_request"}


# populations


def test_a_populated_world_keeps_no_item_that_nobody_changed() -> None:
    world = World()
    repositories = world.populate(300, items_each=24, seed=7)
    same = World()
    same.populate(300, items_each=24, seed=7)
    record = world.record()
    assert len(record) == 300 * 24
    assert record == same.record()
    assert all(repository._kept is None for repository in repositories)
    assert all(to_seconds(row["created_at"]) <= to_seconds(row["updated_at"]) < world.seconds for row in record)
    assert {row["node_id"] for row in record} == {world.find(row["node_id"]).node_id for row in record}
    assert len({row["state"] for row in record}) == 3
    numbered = [sorted(repository.items(), key=lambda item: item.number) for repository in repositories]
    assert all([item.created for item in items] == sorted(item.created for item in items) for items in numbered)


def test_issues_and_pull_requests_are_numbered_apart_so_that_some_share_a_database_id() -> None:
    world = World()
    (repository,) = world.populate(1, items_each=200, seed=7)
    for type in ("issue", "pull_request"):
        world.add_item(repository, type)
    ids = {name: [item.database_id for item in repository.items() if item.typename == name] for name in ("Issue", "PullRequest")}
    assert all(len(set(of_kind)) == len(of_kind) for of_kind in ids.values())
    shared = set(ids["Issue"]) & set(ids["PullRequest"])
    assert len(shared) > 20
    assert any(number > FIRST_ADDED_ITEM for number in shared)
    found = [(item, world.find(item.node_id)) for item in repository.items()]
    assert all((item.number, item.typename) == (same.number, same.typename) for item, same in found)


def test_an_hour_brings_the_texts_it_is_given_under_titles_of_their_own() -> None:
    world = World()
    world.populate(50, seed=1)
    world.texts = [("Login fails", "After the update."), ("Slow", "Ten seconds each.")]
    world.hour(200, seed=1)
    changed = world.record(updated_since=World().now)
    titles = [row["title"] for row in changed if row["title"].startswith(("Login fails (", "Slow ("))]
    assert 40 < len(titles) == len(set(titles))
    assert sum(row["body"].startswith(("After the update.", "Ten seconds each.")) for row in changed) > len(titles)


def test_untouched_items_keep_their_text_when_their_repository_is_renamed() -> None:
    world = World()
    repository = world.populate(1)[0]
    before = [(item.title, item.body) for item in repository.items()]
    world.rename_repository(repository, "quillcap/new")
    assert [(item.title, item.body) for item in repository.items()] == before


def test_an_hour_spreads_its_updates_and_repeats_for_the_same_seed() -> None:
    def after_an_hour(seed: int) -> World:
        world = World()
        world.populate(500, seed=1)
        world.hour(400, seed=seed)
        return world

    world = after_an_hour(3)
    assert world.record() == after_an_hour(3).record() != after_an_hour(4).record()
    assert world.now == World().now + timedelta(hours=1)
    changed = world.record(updated_since=World().now)
    assert 200 < len(changed) < 400  # some twice and more
    assert all(World().seconds <= to_seconds(row["updated_at"]) < world.seconds for row in changed)
    assert len({row["repo"] for row in changed}) > 50


def test_real_items_fill_a_world(tmp_path: Path) -> None:
    rows = [
        {"repo": "quillcap/marlframe", "number": 7, "type": "pull_request", "title": "Sum once", "body": None, "state": "merged", "labels": None,
         "author": None, "created_at": None, "updated_at": None, "closed_at": None},
        {"repo": "quillcap/marlframe", "number": 9, "type": "issue", "title": "Wrong", "body": "b", "state": "closed", "labels": ["bug"],
         "author": "maren", "created_at": "2026-03-01T10:00:00Z", "updated_at": "2026-03-02T10:00:00Z", "closed_at": "2026-03-02T10:00:00Z",
         "comments": [{"author": None, "created_at": None, "body": "Yes"}]},
    ]  # fmt: skip
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    world = World()
    assert world.fill(path) == 2
    assert world.now > world.repository("quillcap/marlframe").item(9).updated_at
    assert [(row["number"], row["body"], row["state"], row["comments_count"]) for row in world.record()] == [
        (9, "b", "closed", 1),
        (7, "", "merged", 0),
    ]


# tokens and Apps


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nobody"}, {"Authorization": "Basic"}])
def test_graphql_needs_a_known_token(github: StandIn, headers: dict[str, str]) -> None:
    response = httpx2.post(github.graphql_url, json={"query": QUERIES["ping"]}, headers=headers)
    assert response.status_code == 401
    assert response.headers["date"]


@pytest.fixture(scope="module")
def keys() -> tuple[str, str]:
    """(private, public), PEM"""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


def proof(github: StandIn, private_key: str, *, issued: int = -60, expires: int = 540, app: str = "7") -> dict[str, str]:
    now = github.world.seconds
    claims = {"iss": app, "iat": now + issued, "exp": now + expires}
    return {"Authorization": f"Bearer {jwt.encode(claims, private_key, algorithm='RS256')}"}


def test_an_app_gets_a_token_that_lives_an_hour_of_the_virtual_clock(github: StandIn, world: World, keys: tuple[str, str]) -> None:
    github.limits.register_app("7", keys[1], ["41"])
    answer = httpx2.post(f"{github.url}/app/installations/41/access_tokens", headers=proof(github, keys[0]))
    assert (answer.status_code, answer.json()["expires_at"]) == (201, "2026-01-10T13:13:00Z")
    token = {"Authorization": f"Bearer {answer.json()['token']}"}
    assert httpx2.post(github.graphql_url, json={"query": QUERIES["ping"]}, headers=token).status_code == 200
    assert github.counters.requests_by_credential["installation 41"] == 1
    assert github.counters.tokens_issued == 1
    world.advance(3_600)
    assert httpx2.post(github.graphql_url, json={"query": QUERIES["ping"]}, headers=token).status_code == 401


@pytest.mark.parametrize(
    ("claims", "installation", "status", "said"),
    [
        ({"issued": 30}, "41", 401, "'Issued at' claim ('iat')"),
        ({"expires": 601}, "41", 401, "too far in the future"),
        ({"expires": 0}, "41", 401, "'Expiration time' claim ('exp') must be"),
        ({"app": "8"}, "41", 404, "Integration not found"),
        ({}, "42", 404, "Not Found"),
    ],
)
def test_an_apps_wrong_proof_is_refused_with_the_date(
    github: StandIn, keys: tuple[str, str], claims: dict[str, Any], installation: str, status: int, said: str
) -> None:
    github.limits.register_app("7", keys[1], ["41"])
    answer = httpx2.post(f"{github.url}/app/installations/{installation}/access_tokens", headers=proof(github, keys[0], **claims))
    assert (answer.status_code, said in answer.json()["message"], "date" in answer.headers) == (status, True, True)


def test_a_proof_signed_by_another_key_is_refused(github: StandIn, keys: tuple[str, str]) -> None:
    other = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    github.limits.register_app("7", keys[1], ["41"])
    pem = other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    answer = httpx2.post(f"{github.url}/app/installations/41/access_tokens", headers=proof(github, pem))
    assert (answer.status_code, answer.json()["message"]) == (401, "A JSON web token could not be decoded")


# faults


def sweep(http: httpx2.Client, world: World, number: int = 2) -> httpx2.Response:
    repositories = [repository.node_id for repository in world.visible_repositories()][:number]
    return ask(http, "sweep", ids=repositories, since=LONG_AGO, newest=2)


@pytest.mark.parametrize(
    ("kind", "status", "points", "wait"),
    [
        ("502", 502, 2, None),
        ("504", 504, 2, None),
        ("500", 500, 0, None),
        ("401", 401, 0, None),
        ("429", 429, 0, "1"),
        ("secondary_403", 403, 0, "1"),
        ("forbidden_403", 403, 0, None),
        ("secondary_200", 200, 0, "1"),
        ("insufficient_scopes", 200, 0, None),
        ("exhausted", 200, 0, None),
    ],
)
def test_a_fault_without_data(
    github: StandIn, world: World, http: httpx2.Client, kind: str, status: int, points: int, wait: str | None
) -> None:
    github.faults.add(kind, operation="Sweep")
    response = sweep(http, world)
    assert (response.status_code, response.headers.get("retry-after"), "data" in response.json()) == (status, wait, False)
    assert github.counters.points["Sweep"] == points
    assert response.headers["x-ratelimit-remaining"] == ("0" if kind == "exhausted" else str(5_000 - points))
    assert github.counters.log[-1].faults == (kind,)
    if kind != "exhausted":
        assert sweep(http, world).json()["data"]["nodes"]


def test_a_captive_portals_page_is_html_with_200(github: StandIn, world: World, http: httpx2.Client) -> None:
    github.faults.add("html")
    response = sweep(http, world)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")


@pytest.mark.parametrize("kind", ["drop", "timeout"])
def test_a_dropped_connection_ends_without_an_answer(github: StandIn, world: World, http: httpx2.Client, kind: str) -> None:
    github.faults.add(kind, seconds=0.05)
    with pytest.raises(httpx2.RemoteProtocolError):
        sweep(http, world)
    assert github.counters.statuses == {0: 1}
    assert sweep(http, world).status_code == 200


@pytest.mark.parametrize(
    ("kind", "type_"),
    [("resource_limits", "RESOURCE_LIMITS_EXCEEDED"), ("forbidden", "FORBIDDEN"), ("not_found", "NOT_FOUND"), ("wrong_null", None)],
)
def test_a_partial_answer_has_nulls_and_says_where(
    github: StandIn, world: World, http: httpx2.Client, kind: str, type_: str | None
) -> None:
    github.faults.add(kind, min_ids=2)
    assert "errors" not in sweep(http, world, 1).json()
    answer = sweep(http, world).json()
    assert [node is None for node in answer["data"]["nodes"]] == [False, True]
    assert [(error["type"], error["path"]) for error in answer.get("errors", ())] == ([(type_, ["nodes", 1])] if type_ else [])


def test_a_rule_names_ids_operation_credential_and_order(github: StandIn, world: World, http: httpx2.Client) -> None:
    node_id = world.repository("quillcap/marlframe").node_id
    github.faults.add("forbidden", ids={node_id}, times=None)
    for _ in range(2):
        answer = sweep(http, world).json()
        assert answer["data"]["nodes"][0] is None
        assert answer["errors"][0]["type"] == "FORBIDDEN"
    github.faults.clear()
    github.faults.add("502", operation="Fetch")
    github.faults.add("504", credential="token-b")
    github.faults.add("500", after=1)
    assert [sweep(http, world).status_code for _ in range(3)] == [200, 500, 200]
    with pytest.raises(ValueError, match="no such fault"):
        github.faults.add("503")


def test_a_listing_that_met_a_limit_is_null_too(github: StandIn, repository: Repository, http: httpx2.Client) -> None:
    github.faults.add("resource_limits", operation="ListPulls")
    answer = ask(http, "list_pulls", id=repository.node_id).json()
    assert (answer["data"]["node"], answer["errors"][0]["path"]) == (None, ["node"])


def test_slow_answers_come_late_and_requests_in_flight_are_counted(github: StandIn, world: World) -> None:
    github.faults.add("slow", times=None, seconds=0.3)
    body = json.dumps({"query": QUERIES["ping"]}).encode()
    head = f"POST /graphql HTTP/1.1\r\nhost: x\r\nauthorization: Bearer token-a\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    host, port = github.url.removeprefix("http://").split(":")
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(3)]
        for connection in sockets:
            connection.sendall(head + body)
        assert all(connection.recv(4_096).startswith(b"HTTP/1.1 200") for connection in sockets)
    assert time.monotonic() - begun >= 0.3
    assert github.counters.peak_in_flight == github.counters.peak_by_credential["token-a"] == 3


def test_the_scripted_hour_holds_the_faults_of_the_design(github: StandIn) -> None:
    github.faults.fault_hour(seed=1)
    kinds = [rule.kind for rule in github.faults.rules]
    assert (len(kinds), kinds.count("502"), kinds.count("resource_limits"), kinds.count("slow")) == (47, 12, 5, 20)


# what was served


def test_the_same_state_served_twice_is_counted(github: StandIn, world: World, repository: Repository, http: httpx2.Client) -> None:
    items = [repository.item(1), repository.item(2)]
    for _ in range(2):
        ask(http, "fetch", ids=[item.node_id for item in items])
        world.update_item(items[1])
    assert github.counters.fetched_twice == {(items[0].node_id, "2026-01-10T12:00:00Z"): 2}


# search


@pytest.fixture(scope="module")
def millions() -> World:
    world = World()
    world.search_index(3_000_000, seed=2)
    return world


def test_the_index_has_stars_as_on_github(millions: World) -> None:
    assert 55_000 <= int((millions.index.stars >= 1_000).sum()) <= 70_000


def test_a_wide_search_finds_four_thousand_and_tells_a_thousand(millions: World) -> None:
    count, found = millions.index.find("stars:>=1000 sort:stars-desc")
    assert (4_000 <= count < 4_500, len(found)) == (True, RESULTS)
    stars = [millions.find_repository(int(number)).stars for number in found[:100]]
    assert stars == sorted(stars, reverse=True)


def test_a_narrow_search_is_exact(millions: World) -> None:
    index = millions.index
    matching = (index.stars >= 2_500) & (index.stars <= 2_600)
    assert index.find("stars:2500..2600 fork:true")[0] == int(matching.sum()) < 4_000
    live = matching & (index.flags == 0)
    count, found = index.find("stars:2500..2600 archived:false is:public")
    assert (count, set(found.tolist()) <= set(index.ids[live].tolist())) == (int(live.sum()), True)
    parts = [
        index.find(f"stars:2500..2600 fork:true created:{days}")[0] for days in ("<2020-01-01", "2020-01-01..2022-12-31", ">=2023-01-01")
    ]
    assert sum(parts) == int(matching.sum())
    assert index.find("stars:2500..2600")[1].tolist() == index.find("stars:2500..2600")[1].tolist()


def test_what_search_finds_resolves_by_name_and_id(millions: World) -> None:
    found = millions.find_repository(int(millions.index.find("stars:>5000")[1][0]))
    assert millions.repository(found.full_name).node_id == found.node_id == millions.find(found.node_id).node_id
    assert millions.repository("maker-1/project-1500000000") is None


def test_known_repositories_take_the_place_of_invented_ones() -> None:
    world = World()
    world.search_index(100_000)
    before = int((world.index.stars >= 1_000).sum())
    world.populate(2_000)
    assert abs(int((world.index.stars >= 1_000).sum()) - before) < 5
    world.add_repository("quillcap/marlframe")
    assert world.index.find("repo:quillcap/marlframe")[0] == 1


def test_search_pages_end_at_a_thousand(millions: World) -> None:
    with StandIn(millions) as github, httpx2.Client(base_url=github.url, headers=TOKEN) as http:
        seen, after = [], None
        while True:
            answer = ask(http, "search_repositories", search="stars:>=1000 sort:stars-desc", after=after).json()["data"]["search"]
            seen += [node["id"] for node in answer["nodes"]]
            if not answer["pageInfo"]["hasNextPage"]:
                break
            after = answer["pageInfo"]["endCursor"]
        assert len(seen) == len(set(seen)) == RESULTS
        rest = http.get("/search/repositories", params={"q": "stars:>=1000", "sort": "stars", "per_page": 100, "page": 2}).json()
        assert (rest["incomplete_results"], rest["total_count"] >= 4_000, len(rest["items"])) == (False, True, 100)
        assert http.get("/search/repositories", params={"q": "stars:>=1000", "per_page": 100, "page": 11}).status_code == 422


def test_an_incomplete_search_returns_less_than_it_found(github: StandIn, http: httpx2.Client) -> None:
    github.faults.add("incomplete", times=2)
    answer = ask(http, "search_repositories", search="stars:>1").json()["data"]["search"]
    assert (answer["repositoryCount"], len(answer["nodes"])) == (2, 1)
    rest = http.get("/search/repositories", params={"q": "stars:>1"}).json()
    assert (rest["incomplete_results"], rest["total_count"], len(rest["items"])) == (True, 2, 1)


def test_rest_search_allows_thirty_a_minute(http: httpx2.Client, world: World) -> None:
    answers = [http.get("/search/repositories", params={"q": "oat"}) for _ in range(31)]
    assert {answer.status_code for answer in answers[:30]} == {200}
    assert (answers[30].status_code, answers[30].headers["x-ratelimit-remaining"]) == (403, "0")
    world.advance(60)
    assert http.get("/search/repositories", params={"q": "oat"}).json()["total_count"] == 1


def test_items_are_counted_by_repository_kind_and_time(http: httpx2.Client) -> None:
    text = "query Count($q: String!) { search(type: ISSUE, query: $q, first: 100) { issueCount nodes { ... on Issue { number } ... on PullRequest { number } } } }"
    for query, numbers in {
        "repo:quillcap/marlframe is:issue updated:>=2026-01-10T12:06:00Z": [11, 9, 7],
        "repo:quillcap/marlframe is:pr created:<=2026-01-10T12:03:00Z": [4, 2],
        "is:pr is:closed": [],
        "repo:nobody/nothing": [],
    }.items():
        found = ask(http, text, q=query).json()["data"]["search"]
        assert (found["issueCount"], [node["number"] for node in found["nodes"]]) == (len(numbers), numbers)


# REST


def test_rest_pages_hold_the_same_items_as_graphql(world: World, repository: Repository, http: httpx2.Client) -> None:
    world.update_item(repository.item(2), state="merged")
    rows: list[dict[str, Any]] = []
    url = "/repos/quillcap/marlframe/issues?state=all&sort=updated&per_page=5"
    while url:
        page = http.get(url)
        rows += page.json()
        url = page.links.get("next", {}).get("url", "")
    nodes = ask(http, "fetch", ids=[row["node_id"] for row in rows]).json()["data"]["nodes"]
    assert len(rows) == 12
    assert [(row["number"], row["title"], row["body"], row["updated_at"], row["user"] and row["user"]["login"]) for row in rows] == [
        (node["number"], node["title"], node["body"], node["updatedAt"], node["author"] and node["author"]["login"]) for node in nodes
    ]
    assert ["pull_request" in row for row in rows] == [node["__typename"] == "PullRequest" for node in nodes]
    assert [(row["number"], row["state"]) for row in rows if row.get("pull_request", {}).get("merged_at")] == [(2, "closed")]
    assert [str(row["id"]) == node["fullDatabaseId"] for row, node in zip(rows, nodes, strict=True)] == [
        "pull_request" not in row for row in rows
    ]


def test_rest_filters_by_since_and_state(http: httpx2.Client, world: World, repository: Repository) -> None:
    world.update_item(repository.item(11), state="closed", updated_at="2026-01-10T12:10:00Z")
    url = f"/repositories/{repository.database_id}/issues"
    rows = http.get(url, params={"since": "2026-01-10T12:10:00Z", "sort": "updated", "direction": "asc"}).json()
    assert [row["number"] for row in rows] == [12]
    assert [row["number"] for row in http.get(url, params={"state": "closed"}).json()] == [11]


def test_rest_redirects_refuses_and_counts(github: StandIn, world: World, repository: Repository) -> None:
    with httpx2.Client(base_url=github.url) as http:
        world.rename_repository(repository, "quillcap/new")
        moved = http.get("/repos/quillcap/marlframe/issues?state=all")
        assert (moved.status_code, moved.headers["location"]) == (
            301,
            f"{github.url}/repositories/{repository.database_id}/issues?state=all",
        )
        assert http.get("/repos/quillcap/marlframe/issues", follow_redirects=True).status_code == 200
        world.disable_issues(repository)
        assert http.get("/repos/quillcap/new/issues").status_code == 410
        assert http.get("/repos/nobody/nothing/issues").status_code == 404
        core = http.get("/rate_limit").json()["resources"]["core"]
        assert (core["limit"], core["used"]) == (60, 5)
        github.limits.window("anonymous", "core").used = 60
        refused = http.get("/repos/quillcap/new/issues")
        assert (refused.status_code, refused.headers["x-ratelimit-remaining"]) == (403, "0")


# a process of its own


def test_forty_thousand_repositories_fit_a_process_that_another_drives() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.standin", "--port", str(port), "--repositories", "40000", "--items-each", "20"]
    process = subprocess.Popen(command, cwd=ROOT)
    control = Control(f"http://127.0.0.1:{port}")
    try:
        control.wait_until_up()
        begun = control.counters()["now"]
        control.hour(1_000, seed=5)
        changed = control.record(since=begun)
        control.fault("502", operation="Ping")
        assert httpx2.post(f"{control.url}/graphql", json={"query": QUERIES["ping"]}, headers=TOKEN).status_code == 502
        counters = control.counters()
        assert (counters["repositories"], counters["requests"], counters["now"]) == (40_000, {"Ping": 1}, "2026-01-10T13:00:00Z")
        assert 500 < len(changed) <= 1_000
        assert counters["peak_memory_mb"] < 300
        assert control.reset()["all_requests"] == 0
    finally:
        process.terminate()
        process.wait(10)
