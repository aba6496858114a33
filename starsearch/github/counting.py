"""How many items a range holds, by GitHub's search: twenty repositories a request, one point."""

from collections.abc import Sequence
from datetime import datetime

from starsearch.errors import StarsearchError
from starsearch.github.client import GitHub
from starsearch.github.values import whole
from starsearch.models import ItemType

SEARCHES = 20  # of one query; each costs GitHub's processors as much as one alone
ONLY: dict[ItemType, str] = {"issue": "is:issue", "pull_request": "is:pr"}


async def count_items(github: GitHub, names: Sequence[str], *, since: datetime, until: datetime, kinds: Sequence[ItemType]) -> list[int]:
    """Items of each owner/name updated at `since` or later and created up to `until`, in the order given; both kinds in one number."""
    only = f" {ONLY[kinds[0]]}" if len(kinds) == 1 else ""
    span = f"updated:>={since:%Y-%m-%dT%H:%M:%SZ} created:<={until:%Y-%m-%dT%H:%M:%SZ}"
    counts: list[int] = []
    for start in range(0, len(names), SEARCHES):
        searches = [f"repo:{name} {span}{only}" for name in names[start : start + SEARCHES]]
        counts += await _count(github, searches)
    return counts


async def _count(github: GitHub, searches: Sequence[str]) -> list[int]:
    parameters = ", ".join(f"$q{n}: String!" for n in range(len(searches)))
    lines = "".join(f"  c{n}: search(type: ISSUE, query: $q{n}, first: 1) {{ issueCount }}\n" for n in range(len(searches)))
    text = f"query Count({parameters}) {{\n  rateLimit {{ cost }}\n{lines}}}\n"
    answer = await github.ask("count", {f"q{n}": search for n, search in enumerate(searches)}, text=text)
    try:
        return [whole(answer.data[f"c{n}"]["issueCount"]) for n in range(len(searches))]
    except (KeyError, TypeError, ValueError) as error:
        told = answer.errors[0].message if answer.errors else f"{type(error).__name__} {error}"
        raise StarsearchError(f"GitHub would not count: {told}") from error
