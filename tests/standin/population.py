"""Items by the million out of a seed: times and kinds in arrays, texts made when somebody reads them.

What nobody changed is told by (seed, position) alone, so 40,000 repositories of 24 items take a few bytes an item. Activity is
skewed like the real list's: a repository's update times thin out backwards from the start at its own rate.
"""

from array import array
from collections.abc import Sequence

import numpy as np

from tests.standin.things import Comment, Item, Repository, order_key

FIRST_ITEM = 2_000_000_000
SHIFTS = {"Issue": 0, "PullRequest": -1}  # GitHub numbers the kinds apart: a pull request often has the database id of the issue before it
UPDATES_PER_HOUR = 4_167.0  # of the whole world: 100,000 a day
ISSUES = 0.42  # the rest are pull requests
OLDEST_SECONDS = 10 * 365 * 86_400
AUTHORS = ("maren", "tovik", "sable-99", "ojuarez", "lindqvist", "patchwork[bot]", "nkemelu", "hyunwoo-p", None, "brisa", "quill", "zadie")
LABELS = ((), ("bug",), ("bug", "regression"), ("docs",), ("feature",), ("good first issue", "help wanted"), ("ci",), ("performance",))
WHAT = ("Totals", "Timestamps", "Exports", "Retries", "Cached rows", "Nested tables", "Tooltips", "Webhooks", "Long paths", "Empty files")
HOW = ("are wrong", "get lost", "arrive twice", "stay empty", "freeze the window", "ignore the locale", "break on reload", "leak handles")
WHEN = (
    "after midnight",
    "on a slow disk",
    "behind a proxy",
    "with two screens",
    "in the first run",
    "when sorted",
    "under load",
    "offline",
)
SENTENCES = (
    "It worked in the release before and nothing else was changed on this machine.",
    "The log shows one line more than there were calls, and the last of them has no end.",
    "A small file is enough to see it, larger ones only make it slower to appear.",
    "I expected the second pass to find what the first one had left behind.",
    "Setting the limit to one hides the problem but doubles the time.",
    "The same input gives the right answer when the cache is removed by hand.",
    "This change reads the header once, keeps it, and drops the copy that was made for each row.",
    "Tests cover the empty case, the case with one entry and the one that failed before.",
    "With the flag off nothing is different; with it on the order of the output is stable.",
    "Somebody reported it last spring too, but that thread ended without a cause.",
    "The worker waits for a lock that its own parent holds while it waits for the worker.",
    "Documentation says the value may be null, the code says it never is.",
)


class Population:
    """The untouched items of many repositories, by row."""

    def __init__(self, counts: Sequence[int], activity: Sequence[float], *, seed: int, now: int) -> None:
        """counts: items of each repository; activity: their weights; now: no item is newer."""
        rng = np.random.default_rng(seed)
        self._seed = seed
        offsets = np.concatenate(([0], np.cumsum(np.asarray(counts, np.int64))))
        self._starts: list[int] = offsets.tolist()
        total = self._starts[-1]
        rates = np.asarray(activity, float) / max(sum(activity), 1e-9) * UPDATES_PER_HOUR / 3_600
        ages = _ages(rng, np.asarray(counts), offsets, np.maximum(rates, 1e-9))
        updated = (now - 1 - (ages * (1 - rng.random(total) ** 4))).astype(np.int32)
        is_issue = rng.random(total) < ISSUES
        # plain arrays: one number out of them costs half of what numpy takes
        self._created = array("i", (now - 1 - ages).astype(np.int32).tobytes())
        self._updated = array("i", updated.tobytes())
        self._is_issue = is_issue.tobytes()
        self._is_open = (rng.random(total) < 0.4).tobytes()
        rows = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        numbers = np.arange(total) - offsets[rows] + 1
        keys = order_key(updated.astype(np.int64), 0) | numbers
        sorting = np.lexsort((keys, ~is_issue, rows))  # a repository's issues, then its pull requests, oldest update first
        self._sorted_keys = keys[sorting]
        self._issues = np.bincount(rows[is_issue], minlength=len(counts)).tolist()

    def count(self, row: int) -> int:
        return self._starts[row + 1] - self._starts[row]

    def keys(self, row: int) -> dict[str, "array[int]"]:
        start, end = self._starts[row], self._starts[row + 1]
        middle = start + self._issues[row]
        parts = self._sorted_keys[start:middle], self._sorted_keys[middle:end]
        return {name: array("q", part.tobytes()) for name, part in zip(("Issue", "PullRequest"), parts, strict=True)}

    def number_of(self, repository: Repository, typename: str, database_id: int) -> int:
        """0 or less, or past the repository's count, where the id is not one of its untouched items."""
        return _position(typename, database_id) - self._starts[repository.row] + 1

    def item(self, repository: Repository, number: int) -> Item | None:
        row = repository.row
        at = self._starts[row] + number - 1
        if not self._starts[row] <= at < self._starts[row + 1]:
            return None
        mixed = self._mix(FIRST_ITEM + at)
        is_issue, is_open = self._is_issue[at], self._is_open[at]
        updated = self._updated[at]
        merged = updated if not is_issue and not is_open and mixed & 3 else None
        typename = "Issue" if is_issue else "PullRequest"
        return Item(
            repository,
            number,
            FIRST_ITEM + at + SHIFTS[typename],
            typename,
            updated=updated,
            created=self._created[at],
            closed=None if is_open else updated,
            merged=merged,
            state="open" if is_open else "merged" if merged else "closed",
            author=AUTHORS[mixed // 7 % len(AUTHORS)],
            labels=LABELS[mixed // 11 % len(LABELS)],
        )

    def title(self, item: Item) -> str:
        mixed = self._mix(_seed(item))
        parts = WHAT[mixed % len(WHAT)], HOW[mixed // 10 % len(HOW)], WHEN[mixed // 80 % len(WHEN)]
        return f"{' '.join(parts)} ({item.number})"

    def body(self, item: Item) -> str:
        mixed = self._mix(_seed(item) + 1)
        if mixed % 20 == 0:
            return ""
        chosen = [SENTENCES[mixed // 13 ** (n % 6) % len(SENTENCES)] for n in range(2 + mixed % 11)]
        return f"Seen in part {mixed % 9973} of build {item.repository.database_id}. {' '.join(chosen)}"

    def comments(self, item: Item) -> list[Comment]:
        mixed = self._mix(_seed(item) + 2)
        return [
            Comment(
                database_id=_seed(item) * 4 % 2**31 + n,
                body=SENTENCES[(mixed + n) % len(SENTENCES)],
                created=item.created + (item.updated - item.created) * n // 4,
                author=AUTHORS[(mixed + n) % len(AUTHORS)],
            )
            for n in range(mixed % 4)
        ]

    def _mix(self, number: int) -> int:
        """Digits that look random, the same for ever."""
        mixed = (number ^ self._seed * 0x9E3779B1) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        return mixed >> 24


def _position(typename: str, database_id: int) -> int:
    """Among all items of the population."""
    return database_id - FIRST_ITEM - SHIFTS[typename]


def _seed(item: Item) -> int:
    return FIRST_ITEM + _position(item.typename, item.database_id)


def _ages(rng: np.random.Generator, counts: "np.ndarray", offsets: "np.ndarray", rates: "np.ndarray") -> "np.ndarray":
    """Seconds since each item was created; the higher its number, the younger it is."""
    gaps = rng.exponential(size=int(offsets[-1])) / np.repeat(rates, counts)
    gaps = np.minimum(gaps, OLDEST_SECONDS / np.maximum(np.repeat(counts, counts), 1))
    sums = np.concatenate(([0], np.cumsum(gaps)))
    return np.repeat(sums[offsets[1:]], counts) - sums[:-1]
