"""Items that are known and whose text nobody is about to fetch: given up and to be tried again, or left when their repository was.

Found where the kept counts say so (tallies.py): where nothing is left that is one look into an index.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from starsearch.store.database import Pool
from starsearch.store.statements import statement
from starsearch.store.tallies import fold

BLOCKS = """
SELECT block FROM tally WHERE version_id = 0 AND state IN ('unfetched', 'stale') UNION SELECT block FROM tally_dirty ORDER BY 1
"""

Unfetched = tuple[str, str, int]  # node id, and the node id and the id of its repository


@dataclass(frozen=True)
class Scope:
    """Whose items a crawl fetches: of these repositories, or (None) of all of the host. run: what failed since it began is left alone."""

    host: str
    repositories: list[int] | None
    run: int


async def blocks_with_unfetched(pool: Pool) -> list[int]:
    """Where there are any, or may be."""
    await fold(pool)
    async with pool.connection() as connection:
        return [block for (block,) in await (await connection.execute(BLOCKS)).fetchall()]


async def find_unfetched(pool: Pool, blocks: Sequence[int], scope: Scope) -> list[Unfetched]:
    """None that somebody at work holds, none that were purged or are gone."""
    async with pool.connection() as connection:
        return await (await connection.execute(statement("unfetched"), vars(scope) | {"blocks": list(blocks)})).fetchall()
