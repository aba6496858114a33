"""rank: which repositories are followed, from GitHub's search or from a file.

A search may lose a repository between two pages while stars move. So before a followed one goes, GitHub is asked for it by name, a
hundred a request: one that has kept its stars stays.
"""

import asyncio
from pathlib import Path

from starsearch.errors import StarsearchError
from starsearch.github.client import GitHub
from starsearch.github.ranking import by_stars, read_top
from starsearch.github.resolve import NAMES, resolve
from starsearch.lists import read_list
from starsearch.models import Chunk, RepositoryFacts
from starsearch.pipeline import Run
from starsearch.storage import Store
from starsearch.store.items import store_chunk
from starsearch.store.rankings import Refreshed, last_rank, missing_names, refresh_ranking

LOOKED_FOR = 5 * NAMES  # followed repositories that the search did not show; a day moves a few dozen over the edge


async def rank_by_search(store: Store, github: GitHub, run: Run, *, host: str, top: int) -> Refreshed:
    """Follow the repositories with the most stars. Raises and changes nothing where GitHub does not tell all of them."""
    run.github = github.usage
    github.before_asking = store.brakes.check
    await github.ping()
    facts = await read_top(github, last_rank(top), run.progress)
    facts = await _with_overlooked(store, github, facts, host=host)
    return await refresh_ranking(store.pool, host, facts, top=top, source="search")


async def rank_from_file(store: Store, path: Path, run: Run, *, host: str, top: int) -> Refreshed:
    """Follow the first of a file, which is believed whatever its length. GitHub is not asked; the next crawl asks who they are."""
    found = await asyncio.to_thread(read_list, path)
    run.counts.add(await store_chunk(store.pool, Chunk(rejections=tuple(found.rejections), name=path.name), run_id=run.id))
    if not found.repositories:
        raise StarsearchError(f"{path.name} has no row with an owner/name and a number of stars: the old list stays in force")
    run.progress("rank", len(found.repositories), len(found.repositories))
    return await refresh_ranking(store.pool, host, found.repositories, top=top, source=path.name, shortest=0)


def rank_counts(refreshed: Refreshed, run: Run) -> dict[str, int | float]:
    """What a finished run did and cost."""
    return vars(refreshed) | {
        "rejected": run.counts.rejected,
        "requests": run.github.requests if run.github else 0,
        "points": run.github.points if run.github else 0,
        "seconds": round(run.counts.seconds, 3),
    }


async def _with_overlooked(store: Store, github: GitHub, facts: list[RepositoryFacts], *, host: str) -> list[RepositoryFacts]:
    """With the followed repositories that belong there all the same."""
    known = {fact.node_id for fact in facts}
    lowest = (facts[-1].stars or 0) if facts else 0
    names = await missing_names(store.pool, host, facts, limit=LOOKED_FOR)
    answers = (await resolve(github, names)).values()
    overlooked = {answer.node_id: answer for answer in answers if isinstance(answer, RepositoryFacts) and (answer.stars or 0) > lowest}
    return by_stars(facts + [fact for node_id, fact in overlooked.items() if node_id not in known])
