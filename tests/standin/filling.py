"""Worlds by the thousand: repositories ranked as on GitHub, real items out of a file, and an hour's worth of updates."""

import csv
import gzip
import random
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from tests.standin.notation import to_seconds
from tests.standin.population import AUTHORS, LABELS, SENTENCES
from tests.standin.things import Comment, Item, Repository

if TYPE_CHECKING:
    from tests.standin.world import World

ACTIVITY_EXPONENT = 0.7  # updates grow slower than open issues
NEW_ITEMS, EDITS, STATES = 0.35, 0.75, 0.9  # shares of an hour's updates, summed up; the rest only changes labels
RECENT = 8.0  # on average the eighth-newest item is touched: some are touched again and again


class Ranked(NamedTuple):
    full_name: str
    stars: int
    activity: float


def ranked(number: int, stars_csv: Path | str | None = None) -> list[Ranked]:
    """The first rows of the real list, or of power laws like it."""
    rows = _listed(Path(stars_csv)) if stars_csv else _invented()
    return [row for row, _ in zip(rows, range(number), strict=False)]


def _listed(path: Path) -> Iterator[Ranked]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield Ranked(row["full_name"], int(row["stars"]), (1 + int(row["open_issues"] or 0)) ** ACTIVITY_EXPONENT)


def _invented() -> Iterator[Ranked]:
    rank = 0
    while True:
        rank += 1
        yield Ranked(f"owner-{rank % 997}/repository-{rank}", int(450_000 * rank**-0.55), rank**-0.6)


def fill(world: "World", path: Path) -> int:
    """Times that a row leaves out lie in the year before the world's now; the clock moves past the newest of all."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        count = sum(_fill_row(world, orjson.loads(line)) for line in file)
    newest = max((item.updated for item in world.items()), default=0)
    world.advance(max(0, newest + 3_600 - world.seconds))
    return count


def _fill_row(world: "World", row: dict[str, Any]) -> bool:
    repository = world.repository(row["repo"]) or world.add_repository(row["repo"])
    if repository.item(row["number"]):
        return False
    updated = row["updated_at"] or row["closed_at"] or row["created_at"] or world.seconds - 86_400 - row["number"] * 977 % 31_000_000
    world.add_item(
        repository,
        row["type"],
        number=row["number"],
        title=row["title"],
        body=row["body"] or "",
        state=row["state"] or "open",
        author=_login(row["author"]),
        labels=row["labels"] or (),
        created_at=row["created_at"] or to_seconds(updated) - 86_400,
        updated_at=updated,
        closed_at=row["closed_at"],
        comments=[_comment(world, comment, updated, n) for n, comment in enumerate(row.get("comments") or ())],
    )
    return True


def _comment(world: "World", comment: dict[str, Any], updated: Any, position: int) -> Comment:
    created = to_seconds(comment.get("created_at") or updated)
    return Comment(created % 1_000_000 * 1_000 + position, comment["body"] or "", created, _login(comment.get("author")))


def _login(person: Any) -> str | None:
    """Some sources tell a whole user object instead of a login."""
    return (person.get("login") or person.get("username")) if isinstance(person, dict) else person


def spread_updates(world: "World", updates: int, *, seconds: int, seed: int) -> None:
    """The same updates for the same world and seed."""
    rng = random.Random(seed)
    living = [repository for repository in world.visible_repositories() if not (repository.is_archived or repository.is_locked)]
    cumulative = list(accumulate(world.activity.get(repository.database_id, 1.0) for repository in living))
    begun = world.seconds
    for offset in sorted(rng.randrange(seconds) for _ in range(updates)):
        world.now = begun + offset
        _update(world, living[bisect(cumulative, rng.random() * cumulative[-1], hi=len(living) - 1)], rng)
    world.now = begun + seconds


def read_texts(path: Path) -> list[tuple[str, str]]:
    """Titles and bodies of real items, for `World.texts`."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        return [(row["title"], row["body"] or "") for row in map(orjson.loads, file)]


def _text(world: "World", rng: random.Random) -> tuple[str, str]:
    """A title that no other item has, and a body: a real item's where there are any."""
    if world.texts:
        title, body = rng.choice(world.texts)
        return f"{title} ({rng.randrange(10**6)})", body
    return f"Counted twice since revision {rng.randrange(10**6)}", " ".join(rng.choices(SENTENCES, k=rng.randint(2, 12)))


def _update(world: "World", repository: Repository, rng: random.Random) -> None:
    item = _recent(repository, rng)
    kind = rng.random()
    if item is None or kind < NEW_ITEMS:
        typed = "issue" if rng.random() < 0.42 else "pull_request"
        title, body = _text(world, rng)
        world.add_item(
            repository,
            typed,
            title=title,
            body=body,
            author=rng.choice(AUTHORS),
            labels=rng.choice(LABELS),
        )
    elif kind < EDITS:
        body = _text(world, rng)[1] if world.texts else item.body
        world.update_item(item, body=f"{body[:2_000]} Edited: {rng.choice(SENTENCES)} ({rng.randrange(10**6)})")
    elif kind < STATES and item.state != "merged":  # which nobody can undo
        closed = "closed" if item.typename == "Issue" else rng.choice(("closed", "merged"))
        world.update_item(item, state=closed if item.state == "open" else "open")
    else:
        world.update_item(item, labels=rng.choice(LABELS))


def _recent(repository: Repository, rng: random.Random) -> Item | None:
    number = repository.last_number - int(rng.expovariate(1 / RECENT))
    item = repository.item(number) if number > 0 else None
    return item if item and (repository.has_issues or item.typename == "PullRequest") else None
