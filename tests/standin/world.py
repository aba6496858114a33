"""The stand-in's GitHub: repositories and items with GitHub's habits, a virtual clock, and the truth to compare a crawl with.

    world = World()
    repository = world.add_repository("quillcap/marlframe")
    item = world.add_item(repository, "issue", title="Totals are wrong")
    world.advance(60)
    world.update_item(item, body="They still are")
    world.record()                               # what a crawl must hold at the end

Every change takes the world's lock, so a test may change it while the server answers from another thread.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from threading import RLock
from typing import Any

from tests.standin import filling
from tests.standin.notation import Moment, iso, read_node_id, to_datetime, to_seconds
from tests.standin.population import Population
from tests.standin.search import RepositoryIndex
from tests.standin.things import ITEM_TYPES, Comment, Item, Repository

START = "2026-01-10T12:00:00Z"
FIRST_REPOSITORY = 1_000
FIRST_ADDED_ITEM = 3_000_000_000
REPOSITORY_AGE_SECONDS = 4 * 365 * 86_400


class World:
    def __init__(self, now: Moment = START, *, tick_seconds: float = 0.0) -> None:
        """tick_seconds: added to the clock by every request."""
        self.lock = RLock()
        self.tick_seconds = tick_seconds
        self.repositories: dict[int, Repository] = {}
        self.activity: dict[int, float] = {}  # by database id; 1.0 where not given
        self.texts: Sequence[tuple[str, str]] = ()  # titles and bodies for what an hour brings; none: invented ones
        self.version = 0  # moves with every change to a repository, so that the search index knows
        self._seconds = float(to_seconds(now))
        self._by_name: dict[str, Repository] = {}  # old names of renamed ones stay
        self._added: dict[str, Item] = {}  # by node id
        self._last_repository = FIRST_REPOSITORY
        self._last_item = dict.fromkeys(ITEM_TYPES.values(), FIRST_ADDED_ITEM)  # issues and pull requests are numbered apart
        self._last_comment = 1
        self._index: RepositoryIndex | None = None
        self._hooks: defaultdict[str, list[Callable[[], object]]] = defaultdict(list)

    # time

    @property
    def seconds(self) -> int:
        """Since 1970, in whole seconds."""
        return int(self._seconds)

    @property
    def now(self) -> datetime:
        return to_datetime(self.seconds)

    @now.setter
    def now(self, moment: Moment) -> None:
        self._seconds = float(to_seconds(moment))

    def advance(self, seconds: float) -> None:
        self._seconds += seconds

    def tick(self) -> None:
        self._seconds += self.tick_seconds

    def after(self, operation: str, callback: Callable[[], object]) -> None:
        """Call back after each answer to an operation, before it is sent: items move while a client pages."""
        self._hooks[operation].append(callback)

    def answered(self, operation: str) -> None:
        for callback in list(self._hooks.get(operation, ())):
            callback()

    # repositories

    def add_repository(
        self, full_name: str, *, stars: int = 100, created_at: Moment | None = None, activity: float = 1.0, **flags: bool
    ) -> Repository:
        """flags: is_private, is_archived, is_disabled, is_locked, is_fork, has_issues."""
        with self.lock:
            created = self.seconds - REPOSITORY_AGE_SECONDS if created_at is None else to_seconds(created_at)
            repository = Repository(self._last_repository + 1, full_name, stars=stars, created=created)
            return self._enter(repository, activity, flags)

    def populate(
        self, repositories: int = 40_000, *, items_each: int = 24, seed: int = 0, stars_csv: Path | str | None = None
    ) -> list[Repository]:
        """So many repositories of so many items, made when they are read; with the real list's names, stars and activity if given."""
        rows = filling.ranked(repositories, stars_csv)
        with self.lock:
            items = Population([items_each] * len(rows), [row.activity for row in rows], seed=seed, now=self.seconds)
            created = self.seconds - 3 * REPOSITORY_AGE_SECONDS
            start = self._last_repository + 1
            return [
                self._enter(Repository(start + n, row.full_name, stars=row.stars, created=created, seed=items, row=n), row.activity, {})
                for n, row in enumerate(rows)
            ]

    def fill(self, path: Path | str) -> int:
        """Add the items of a JSON Lines file (.gz too) in the shape of ../shared/data/items.jsonl.gz; returns how many."""
        return filling.fill(self, Path(path))

    def search_index(self, repositories: int = 3_000_000, *, seed: int = 0) -> None:
        """Let search find this many more repositories, with stars as on GitHub; they have names and ids, but no items."""
        self._index = RepositoryIndex.invented(repositories, seed=seed, now=self.seconds)
        self.version += 1

    @property
    def index(self) -> RepositoryIndex:
        """Everything that repository search finds."""
        if self._index is None or self._index.version != self.version:
            self._index = (self._index or RepositoryIndex.empty()).covering(self.visible_repositories(), self.version)
        return self._index

    def repository(self, full_name: str) -> Repository | None:
        """By present or former name."""
        return self._by_name.get(full_name.lower()) or (self._index.named(full_name) if self._index else None)

    def visible_repositories(self) -> Iterator[Repository]:
        return (repository for repository in list(self.repositories.values()) if not repository.is_private)

    def rename_repository(self, repository: Repository, full_name: str) -> None:
        """The old name goes on leading here until somebody else takes it."""
        with self.lock:
            repository.full_name = full_name
            self._by_name[full_name.lower()] = repository
            self.version += 1

    def delete_repository(self, repository: Repository) -> None:
        with self.lock:
            del self.repositories[repository.database_id]
            for name in [name for name, named in self._by_name.items() if named is repository]:
                del self._by_name[name]
            self.version += 1

    def change_repository(self, repository: Repository, **fields: Any) -> None:
        """stars, is_private, is_archived, is_disabled, is_locked, is_fork, has_issues."""
        with self.lock:
            for name, value in fields.items():
                setattr(repository, name, value)
            self.version += 1

    def make_private(self, repository: Repository) -> None:
        self.change_repository(repository, is_private=True)

    def archive(self, repository: Repository) -> None:
        self.change_repository(repository, is_archived=True)

    def disable_issues(self, repository: Repository) -> None:
        self.change_repository(repository, has_issues=False)

    # items

    def add_item(
        self,
        repository: Repository,
        type: str = "issue",
        *,
        number: int | None = None,
        title: str | None = None,
        body: str = "",
        state: str = "open",
        author: str | None = "maren",
        labels: Iterable[str] = (),
        comments: Iterable[Comment] = (),
        created_at: Moment | None = None,
        updated_at: Moment | None = None,
        closed_at: Moment | None = None,
        merged_at: Moment | None = None,
    ) -> Item:
        """type: issue or pull_request; state: open, closed or merged; times default to now."""
        with self.lock:
            updated = self.seconds if updated_at is None else to_seconds(updated_at)
            created = min(updated, self.seconds) if created_at is None else to_seconds(created_at)
            number = number or repository.last_number + 1
            closed = None if state == "open" else updated if closed_at is None else to_seconds(closed_at)
            merged = None if state != "merged" else closed if merged_at is None else to_seconds(merged_at)
            typename = ITEM_TYPES[type]
            self._last_item[typename] += 1
            item = Item(
                repository, number, self._last_item[typename], typename, updated=updated, created=created, closed=closed, merged=merged,
                state=state, author=author, labels=tuple(labels), title=title or f"Totals are wrong in report {number}", body=body,
                comments=list(comments),
            )  # fmt: skip
            repository.enter(item)
            self._added[item.node_id] = item
            return item

    def update_item(self, item: Item, *, updated_at: Moment | None = None, **changes: Any) -> Item:
        """title, body, state, author, labels, closed_at, merged_at. The update time becomes now unless it is given."""
        with self.lock:
            item = item.repository.keep(item)
            state = changes.get("state", item.state)
            if state != item.state:
                changes = {
                    "closed_at": None if state == "open" else self.now,
                    "merged_at": self.now if state == "merged" else None,
                } | changes
            values = {name.removesuffix("_at"): _in_seconds(value) if name.endswith("_at") else value for name, value in changes.items()}
            item.assign(values | ({"labels": tuple(values["labels"])} if "labels" in values else {}))
            now = self.seconds if self.seconds >= item.updated else item.updated + 1  # an item's time does not go back with the clock
            item.repository.move(item, now if updated_at is None else to_seconds(updated_at))
            return item

    def add_comment(self, item: Item, body: str, *, author: str | None = "maren") -> Comment:
        with self.lock:
            self._last_comment += 1
            comment = Comment(self._last_comment, body, self.seconds, author)
            self.update_item(item, comments=[*item.comments, comment])
            return comment

    def delete_comment(self, item: Item, comment: Comment) -> None:
        """Moves no update time, as on GitHub."""
        self.update_item(item, comments=[other for other in item.comments if other is not comment], updated_at=item.updated)

    def delete_item(self, item: Item) -> None:
        with self.lock:
            item.repository.drop(item.repository.keep(item))
            self._added.pop(item.node_id, None)

    def transfer_item(self, item: Item, target: Repository) -> Item:
        """The old node id is gone; the item has a new one, a new number, and its texts and comments."""
        with self.lock:
            new = self.add_item(
                target, item.type, title=item.title, body=item.body, state=item.state, author=item.author, labels=item.labels,
                comments=item.comments, created_at=item.created, closed_at=item.closed, merged_at=item.merged,
            )  # fmt: skip
            self.delete_item(item)
            return new

    def hour(self, updates: int, *, seed: int = 0) -> None:
        """An hour passes with so many updates, spread over it and over the repositories by their activity."""
        with self.lock:
            filling.spread_updates(self, updates, seconds=3_600, seed=seed)

    # what the public sees

    def find(self, node_id: str) -> Repository | Item | None:
        read = read_node_id(node_id)
        repository = read and self._visible(read.repository)
        if not repository or read.item is None:
            return repository
        item = self._added.get(node_id)
        if item is None and repository.seed:
            item = repository.item(repository.seed.number_of(repository, read.typename, read.item))
        if item is None or item.database_id != read.item or item.repository is not repository or item.typename != read.typename:
            return None
        return item if repository.has_issues or item.typename == "PullRequest" else None

    def find_repository(self, database_id: int) -> Repository | None:
        return self._visible(database_id)

    def items(self, *, updated_since: Moment | None = None) -> Iterator[Item]:
        """Every living public item. Issues of a repository whose issues are switched off are not."""
        since = 0 if updated_since is None else to_seconds(updated_since)
        for repository in self.visible_repositories():
            for item in repository.items(since):
                if repository.has_issues or item.typename == "PullRequest":
                    yield item

    def record(self, *, updated_since: Moment | None = None) -> list[dict[str, Any]]:
        """What a crawl must hold, one row an item."""
        with self.lock:
            return [row(item) for item in self.items(updated_since=updated_since)]

    def _visible(self, database_id: int) -> Repository | None:
        repository = self.repositories.get(database_id) or (self._index.numbered(database_id) if self._index else None)
        return None if repository is None or repository.is_private else repository

    def _enter(self, repository: Repository, activity: float, flags: Mapping[str, bool]) -> Repository:
        for name, value in flags.items():
            setattr(repository, name, value)
        self._last_repository = repository.database_id
        self.repositories[repository.database_id] = repository
        self.activity[repository.database_id] = activity
        self._by_name[repository.full_name.lower()] = repository
        self.version += 1
        return repository


def row(item: Item) -> dict[str, Any]:
    """An item as record() tells it; times as GitHub writes them."""
    return {
        "repo": item.repository.full_name,
        "number": item.number,
        "node_id": item.node_id,
        "type": item.type,
        "title": item.title,
        "body": item.body,
        "state": item.state,
        "author": item.author,
        "labels": list(item.labels),
        "created_at": iso(item.created),
        "updated_at": iso(item.updated),
        "closed_at": iso(item.closed),
        "merged_at": iso(item.merged),
        "comments_count": len(item.comments),
    }


def _in_seconds(moment: Moment | None) -> int | None:
    return None if moment is None else to_seconds(moment)
