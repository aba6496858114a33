"""Pages of connections: cursors, what is before and after, and the order of a repository's items.

By update time a cursor is the order key itself, so that a page goes on where the last one ended, whatever has moved meanwhile.
"""

from base64 import b64decode, b64encode
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.standin.documents import Refused
from tests.standin.notation import to_seconds
from tests.standin.things import NUMBER_BITS, NUMBERS, Item, Repository

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class PageInfo:
    has_next: bool
    has_previous: bool
    start: str | None
    end: str | None
    typename = "PageInfo"


@dataclass(frozen=True)
class Edge:
    typename: str
    node: Any
    cursor: str


@dataclass
class Connection:
    """One page. keys: what its cursors tell of each node."""

    typename: str
    nodes: list[Any]
    keys: Sequence[int]
    total: Callable[[], int]
    has_next: bool = False
    has_previous: bool = False

    @property
    def page_info(self) -> PageInfo:
        ends = (_cursor(self.keys[0]), _cursor(self.keys[-1])) if self.keys else (None, None)
        return PageInfo(self.has_next, self.has_previous, *ends)

    @property
    def edges(self) -> list[Edge]:
        kind = self.typename.removesuffix("Connection") + "Edge"
        return [Edge(kind, node, _cursor(key)) for node, key in zip(self.nodes, self.keys, strict=True)]


def items_page(typename: str, repository: Repository, given: Arguments) -> Connection:
    """Issues or pull requests, as GitHub orders and filters them."""
    connection = f"{typename}Connection"
    if typename == "Issue" and not repository.has_issues:
        return listed_page(connection, (), given)
    order = given.get("orderBy") or {"field": "CREATED_AT", "direction": "ASC"}
    filters = {name: value for name, value in (given.get("filterBy") or {}).items() if value}  # an unset one may have a default
    if set(filters) - {"since", "states"}:
        raise NotImplementedError(f"the stand-in filters by since and states, not by {sorted(filters)}")
    states = given.get("states") or filters.get("states")
    if order["field"] != "UPDATED_AT" or states or given.get("last") is not None:
        return listed_page(connection, _sorted(typename, repository, order, states, filters.get("since")), given)
    keys = repository.keys(typename)
    low = bisect_left(keys, to_seconds(filters["since"]) << NUMBER_BITS) if filters.get("since") else 0
    high = len(keys)
    total = high - low
    after, first = given.get("after"), given.get("first") or 0
    if order["direction"] == "DESC":
        high = bisect_left(keys, _key(after)) if after else high
        page = keys[max(low, high - first) : max(low, high)][::-1]
        more = high - first > low
    else:
        low = max(low, bisect_right(keys, _key(after))) if after else low
        page = keys[low : min(high, low + first)]
        more = low + first < high
    nodes = [repository.item(key & NUMBERS) for key in page]
    return Connection(connection, nodes, page, lambda: total, more, after is not None)


def listed_page(typename: str, everything: Sequence[Any], given: Arguments) -> Connection:
    """A page of a list that is at hand; its cursors are positions."""
    start = _key(given["after"]) + 1 if given.get("after") else 0
    end = _key(given["before"]) if given.get("before") else len(everything)
    if given.get("first") is not None:
        end = min(end, start + given["first"])
    elif given.get("last") is not None:
        start = max(start, end - given["last"])
    start, end = min(start, len(everything)), min(end, len(everything))
    page = list(everything[start:end])
    return Connection(typename, page, range(start, start + len(page)), lambda: len(everything), end < len(everything), start > 0)


def _sorted(typename: str, repository: Repository, order: Arguments, states: Sequence[str] | None, since: str | None) -> list[Item]:
    items = [item for item in repository.items(to_seconds(since) if since else 0) if item.typename == typename]
    if states:
        items = [item for item in items if item.state.upper() in states]
    by = {
        "CREATED_AT": lambda item: (item.created, item.number),
        "UPDATED_AT": lambda item: (item.updated, item.number),
        "COMMENTS": lambda item: (len(item.comments), item.number),
    }
    return sorted(items, key=by[order["field"]], reverse=order["direction"] == "DESC")


def _cursor(key: int) -> str:
    return b64encode(b"cursor:v2:%d" % key).decode("ascii")


def _key(cursor: str) -> int:
    try:
        return int(b64decode(cursor).removeprefix(b"cursor:v2:"))
    except ValueError as error:
        raise Refused({"type": "INVALID_CURSOR_ARGUMENTS", "message": f"`{cursor}` does not appear to be a valid cursor."}) from error
