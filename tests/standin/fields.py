"""What GitHub's objects answer, field by field: PLAIN fields take the object, CALLED ones also their arguments and the run.

Only what some query of the project asks; a valid field that is missing here is refused loudly (plan.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.standin.notation import iso
from tests.standin.pages import Arguments, Connection, Edge, items_page, listed_page
from tests.standin.search import RESULTS, find_items
from tests.standin.things import Comment, Item, Repository
from tests.standin.world import World

STAND_IN_USER = "stand-in"


class Run:
    """One execution; the root object of the query."""

    typename = "Query"

    def __init__(self, world: World, rate_limit: "RateLimit", *, incomplete: bool = False, dry: bool = False) -> None:
        """incomplete: searches return fewer nodes than they found; dry: everything but the rate limit is null."""
        self.world, self.rate_limit, self.incomplete, self.dry = world, rate_limit, incomplete, dry
        self.errors: list[dict[str, Any]] = []
        self.key = ""
        self._bound: dict[int, Arguments] = {}
        self._read: Callable[[int], Arguments] = dict

    def bind(self, read: Callable[[int], Arguments]) -> None:
        self._read = read

    def arguments(self, call: int) -> Arguments:
        """Of one place in the query: the same for every object of the answer."""
        found = self._bound.get(call)
        if found is None:
            found = self._bound[call] = self._read(call)
        return found

    def not_found(self, path: list[str | int], message: str) -> None:
        self.errors.append({"type": "NOT_FOUND", "path": path, "message": message})


@dataclass(frozen=True)
class RateLimit:
    cost: int
    limit: int
    node_count: int
    remaining: int
    used: int
    reset_at: int
    typename = "RateLimit"


@dataclass(frozen=True)
class Actor:
    login: str

    @property
    def typename(self) -> str:
        return "Bot" if self.login.endswith("[bot]") else "User"


@dataclass(frozen=True)
class Label:
    name: str
    typename = "Label"


def _node(_: Run, given: Arguments, run: Run) -> Repository | Item | None:
    return _found(run, given["id"], [run.key])


def _nodes(_: Run, given: Arguments, run: Run) -> list[Repository | Item | None]:
    key = run.key
    return [_found(run, node_id, [key, position]) for position, node_id in enumerate(given["ids"])]


def _found(run: Run, node_id: str, path: list[str | int]) -> Repository | Item | None:
    found = run.world.find(node_id)
    if found is None:
        run.not_found(path, f"Could not resolve to a node with the global id of '{node_id}'")
    return found


def _repository(_: Run, given: Arguments, run: Run) -> Repository | None:
    full_name = f"{given['owner']}/{given['name']}"
    found = run.world.repository(full_name)
    moved = found and found.full_name.lower() != full_name.lower() and not given.get("followRenames", True)
    if found is None or found.is_private or moved:
        run.not_found([run.key], f"Could not resolve to a Repository with the name '{full_name}'.")
        return None
    return found


@dataclass
class Results:
    """A search's answer."""

    page: Connection
    counts: Mapping[str, int]
    typename = "SearchResultItemConnection"


def _search(_: Run, given: Arguments, run: Run) -> Results:
    found: Sequence[Any]
    if given["type"] == "REPOSITORY":
        count, ids = run.world.index.find(given["query"])
        found, counts = ids, {"repositoryCount": count}
    elif given["type"] == "ISSUE":
        found = find_items(run.world, given["query"])
        counts = {"issueCount": len(found)}
    else:
        found, counts = (), {}
    page = listed_page("SearchResultItemConnection", found[:RESULTS], given)
    if run.incomplete:
        page.nodes = page.nodes[: len(page.nodes) // 2]
        page.keys = page.keys[: len(page.nodes)]
    if given["type"] == "REPOSITORY":
        page.nodes = [run.world.find_repository(int(number)) for number in page.nodes]
    return Results(page, counts)


def _items(typename: str, repository: Repository, given: Arguments, run: Run) -> Connection:
    return items_page(typename, repository, given)


def _comments(item: Item, given: Arguments, run: Run) -> Connection:
    return listed_page("IssueCommentConnection", item.comments, given)


def _labels(item: Item, given: Arguments, run: Run) -> Connection:
    return listed_page("LabelConnection", [Label(name) for name in item.labels], given)


def _actor(login: str | None) -> Actor | None:
    return Actor(login) if login else None


def _numbered(typename: str, repository: Repository, given: Arguments, run: Run) -> Item | None:
    item = repository.item(given["number"])
    return item if item and item.typename == typename else None


_REPOSITORY: dict[str, Callable[[Repository], Any]] = {
    "id": lambda r: r.node_id,
    "databaseId": lambda r: r.database_id,
    "name": lambda r: r.full_name.partition("/")[2],
    "nameWithOwner": lambda r: r.full_name,
    "owner": lambda r: Actor(r.full_name.partition("/")[0]),
    "url": lambda r: r.url,
    "stargazerCount": lambda r: r.stars,
    "isArchived": lambda r: r.is_archived,
    "isDisabled": lambda r: r.is_disabled,
    "isLocked": lambda r: r.is_locked,
    "isPrivate": lambda r: r.is_private,
    "isFork": lambda r: r.is_fork,
    "isMirror": lambda r: False,
    "hasIssuesEnabled": lambda r: r.has_issues,
    "createdAt": lambda r: iso(r.created),
    "updatedAt": lambda r: iso(r.created),  # does not move with issues, as on GitHub
    "pushedAt": lambda r: iso(r.created),
}
_ITEM: dict[str, Callable[[Item], Any]] = {
    "id": lambda i: i.node_id,
    "databaseId": lambda i: i.database_id if i.database_id < 2**31 else None,
    "fullDatabaseId": lambda i: str(i.database_id),
    "number": lambda i: i.number,
    "title": lambda i: i.title,
    "body": lambda i: i.body,
    "bodyText": lambda i: i.body,
    "url": lambda i: i.url,
    "state": lambda i: i.state.upper(),
    "closed": lambda i: i.state != "open",
    "createdAt": lambda i: iso(i.created),
    "updatedAt": lambda i: iso(i.updated),
    "closedAt": lambda i: iso(i.closed),
    "author": lambda i: _actor(i.author),
    "repository": lambda i: i.repository,
}
_COMMENT: dict[str, Callable[[Comment], Any]] = {
    "id": lambda c: f"IC_{c.database_id}",
    "databaseId": lambda c: c.database_id,
    "body": lambda c: c.body,
    "bodyText": lambda c: c.body,
    "createdAt": lambda c: iso(c.created),
    "updatedAt": lambda c: iso(c.updated),
    "author": lambda c: _actor(c.author),
}
_CONNECTION: dict[str, Callable[[Connection], Any]] = {
    "nodes": lambda c: c.nodes,
    "edges": lambda c: c.edges,
    "totalCount": lambda c: c.total(),
    "pageInfo": lambda c: c.page_info,
}
_EDGE: dict[str, Callable[[Edge], Any]] = {"node": lambda e: e.node, "cursor": lambda e: e.cursor}
_CONNECTIONS = ("Issue", "PullRequest", "IssueComment", "Label")
PLAIN: dict[str, dict[str, Callable[[Any], Any]]] = {
    "Query": {"viewer": lambda _: Actor(STAND_IN_USER)},
    "Repository": _REPOSITORY,
    "Issue": _ITEM,
    "PullRequest": _ITEM | {"mergedAt": lambda i: iso(i.merged), "merged": lambda i: i.merged is not None},
    "IssueComment": _COMMENT,
    "User": {"login": lambda a: a.login},
    "Bot": {"login": lambda a: a.login},
    "Label": {"name": lambda label: label.name},
    "PageInfo": {
        "hasNextPage": lambda p: p.has_next,
        "hasPreviousPage": lambda p: p.has_previous,
        "startCursor": lambda p: p.start,
        "endCursor": lambda p: p.end,
    },
    "RateLimit": {
        "cost": lambda r: r.cost,
        "limit": lambda r: r.limit,
        "nodeCount": lambda r: r.node_count,
        "remaining": lambda r: r.remaining,
        "used": lambda r: r.used,
        "resetAt": lambda r: iso(r.reset_at),
    },
    "SearchResultItemConnection": {
        "nodes": lambda s: s.page.nodes,
        "edges": lambda s: s.page.edges,
        "pageInfo": lambda s: s.page.page_info,
        **{name: lambda s, name=name: s.counts.get(name, 0) for name in ("repositoryCount", "issueCount", "userCount", "codeCount")},
    },
    **{f"{name}Connection": _CONNECTION for name in _CONNECTIONS},
    **{f"{name}Edge": _EDGE for name in (*_CONNECTIONS, "SearchResultItem")},
}
CALLED: dict[str, dict[str, Callable[[Any, Arguments, Run], Any]]] = {
    "Query": {
        "node": _node,
        "nodes": _nodes,
        "repository": _repository,
        "search": _search,
        "rateLimit": lambda _, given, run: run.rate_limit,
    },
    "Repository": {
        "issues": partial(_items, "Issue"),
        "pullRequests": partial(_items, "PullRequest"),
        "issue": partial(_numbered, "Issue"),
        "pullRequest": partial(_numbered, "PullRequest"),
    },
    "Issue": {"comments": _comments, "labels": _labels},
    "PullRequest": {"comments": _comments, "labels": _labels},
}
