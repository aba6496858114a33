"""Repositories, issues, pull requests and comments as the stand-in keeps them.

An item that nobody has changed since the world was populated is made from its seed whenever it is asked for and forgotten again
(population.py); only what changed is kept. A repository keeps the order of its items as sorted 64-bit keys, update time before
number: eight bytes an item, and pages are slices.
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from tests.standin.notation import item_node_id, repository_node_id, to_datetime

if TYPE_CHECKING:
    from tests.standin.population import Population

ITEM_TYPES = {"issue": "Issue", "pull_request": "PullRequest"}
NUMBER_BITS = 32
NUMBERS = (1 << NUMBER_BITS) - 1


def order_key(updated: int, number: int) -> int:
    return updated << NUMBER_BITS | number


@dataclass
class Comment:
    """created, updated: seconds since 1970. author None: a deleted account."""

    database_id: int
    body: str
    created: int
    author: str | None = "maren"
    updated: int = 0
    typename = "IssueComment"

    def __post_init__(self) -> None:
        self.updated = self.updated or self.created


class Item:
    """An issue or a pull request; change it through the world, which moves its update time as GitHub does."""

    __slots__ = (
        "_body", "_comments", "_title", "author", "closed", "created", "database_id", "labels", "merged", "number", "repository", "state",
        "typename", "updated",
    )  # fmt: skip

    def __init__(
        self,
        repository: "Repository",
        number: int,
        database_id: int,
        typename: str,
        *,
        updated: int,
        created: int,
        closed: int | None = None,
        merged: int | None = None,
        state: str = "open",
        author: str | None = None,
        labels: tuple[str, ...] = (),
        title: str | None = None,
        body: str | None = None,
        comments: list[Comment] | None = None,
    ) -> None:
        """title, body, comments None: made from the population's seed when read."""
        self.repository, self.number, self.database_id, self.typename = repository, number, database_id, typename
        self.updated, self.created, self.closed, self.merged = updated, created, closed, merged
        self.state, self.author, self.labels = state, author, labels
        self._title, self._body, self._comments = title, body, comments

    @property
    def node_id(self) -> str:
        return item_node_id(self.typename, self.repository.database_id, self.database_id)

    @property
    def type(self) -> str:
        return "issue" if self.typename == "Issue" else "pull_request"

    @property
    def title(self) -> str:
        if self._title is None:
            self._title = self.repository.seed.title(self)
        return self._title

    @property
    def body(self) -> str:
        if self._body is None:
            self._body = self.repository.seed.body(self)
        return self._body

    @property
    def comments(self) -> list[Comment]:
        if self._comments is None:
            self._comments = self.repository.seed.comments(self)
        return self._comments

    @property
    def url(self) -> str:
        return f"https://github.com/{self.repository.full_name}/{'issues' if self.typename == 'Issue' else 'pull'}/{self.number}"

    @property
    def updated_at(self) -> datetime:
        return to_datetime(self.updated)

    @property
    def created_at(self) -> datetime:
        return to_datetime(self.created)

    @property
    def closed_at(self) -> datetime | None:
        return to_datetime(self.closed)

    @property
    def merged_at(self) -> datetime | None:
        return to_datetime(self.merged)

    def assign(self, changes: dict[str, object]) -> None:
        """The world's way to change fields, texts included."""
        for name, value in changes.items():
            setattr(self, f"_{name}" if name in {"title", "body", "comments"} else name, value)

    def __repr__(self) -> str:
        return f"<{self.typename} {self.repository.full_name}#{self.number}>"


class Repository:
    """seed, row: the population that its untouched items come from, and its row there; None and 0 in a world made by hand."""

    typename = "Repository"
    __slots__ = (
        "_gone", "_kept", "_keys", "created", "database_id", "full_name", "has_issues", "is_archived", "is_disabled", "is_fork",
        "is_locked", "is_private", "last_number", "row", "seed", "stars",
    )  # fmt: skip

    def __init__(
        self, database_id: int, full_name: str, *, stars: int, created: int, seed: "Population | None" = None, row: int = 0
    ) -> None:
        self.database_id, self.full_name, self.stars, self.created = database_id, full_name, stars, created
        self.is_private = self.is_archived = self.is_disabled = self.is_locked = self.is_fork = False
        self.has_issues = True
        self.seed, self.row = seed, row
        self.last_number = seed.count(row) if seed else 0
        self._keys: dict[str, array[int]] | None = None
        self._kept: dict[int, Item] | None = None
        self._gone: set[int] | None = None

    @property
    def node_id(self) -> str:
        return repository_node_id(self.database_id)

    @property
    def url(self) -> str:
        return f"https://github.com/{self.full_name}"

    def keys(self, typename: str) -> "array[int]":
        """Order keys of all issues or pull requests, oldest update first."""
        if self._keys is None:
            self._keys = self.seed.keys(self.row) if self.seed else {"Issue": array("q"), "PullRequest": array("q")}
        return self._keys[typename]

    def item(self, number: int) -> Item | None:
        kept = self._kept.get(number) if self._kept else None
        if kept or not self.seed or (self._gone and number in self._gone):
            return kept
        return self.seed.item(self, number)

    def items(self, since: int = 0) -> Iterator[Item]:
        """Those updated at or after `since`: issues first, then pull requests, oldest update first."""
        for typename in ITEM_TYPES.values():
            keys = self.keys(typename)
            for key in keys[bisect_left(keys, order_key(since, 0)) :]:
                item = self.item(key & NUMBERS)
                if item:
                    yield item

    def keep(self, item: Item) -> Item:
        """Remember an item from now on; one that was kept before stays the one."""
        if self._kept is None:
            self._kept = {}
        return self._kept.setdefault(item.number, item)

    def enter(self, item: Item) -> None:
        self.last_number = max(self.last_number, item.number)
        insort(self.keys(item.typename), order_key(item.updated, item.number))
        self.keep(item)

    def move(self, item: Item, updated: int) -> None:
        keys = self.keys(item.typename)
        keys.pop(bisect_left(keys, order_key(item.updated, item.number)))
        item.updated = updated
        insort(keys, order_key(updated, item.number))

    def drop(self, item: Item) -> None:
        keys = self.keys(item.typename)
        keys.pop(bisect_left(keys, order_key(item.updated, item.number)))
        if self._kept:
            self._kept.pop(item.number, None)
        self._gone = (self._gone or set()) | {item.number}

    def __repr__(self) -> str:
        return f"<Repository {self.full_name}>"
