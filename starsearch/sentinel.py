"""What GitHub does not signal: items that were deleted, and comments that were. Looks at stored open items, in rotation.

Neither moves updatedAt, so no sweep sees it. A hundred items cost one point.
"""

from dataclasses import dataclass
from datetime import datetime

from starsearch.crawling import CrawlOptions
from starsearch.fetching import Fetcher
from starsearch.github.batches import LARGEST, Batches, Failed, Found, Missing
from starsearch.github.client import GitHub
from starsearch.pipeline import Run
from starsearch.storage import Store
from starsearch.store.rotation import Checked, next_items, turn

ROTATION = "open items"


@dataclass
class Checks:
    """tombstones: items that were not there any more. fetched: items whose text or comments had changed unseen."""

    checked: int = 0
    tombstones: int = 0
    fetched: int = 0
    failed: int = 0


async def check_items(store: Store, github: GitHub, run: Run, options: CrawlOptions, *, items: int) -> Checks:
    """Check the next `items` open items. Each batch ends in one transaction; after a kill the next run goes on behind it.

    Raises RateLimited or SourceUnavailable.
    """
    run.github = github.usage
    github.before_asking = store.brakes.check
    checks = Checks()
    batches = Batches(github, "check", size=LARGEST)
    fetcher = Fetcher(store, github, run, host=options.host, comments=options.comments, batch=options.batch)
    while checks.checked < items:
        stored = await next_items(store.pool, ROTATION, host=options.host, limit=min(batches.size, items - checks.checked))
        if not stored:
            break
        found = await batches.ask([item.node_id for item in stored])
        changed = [item for item in stored if _changed(item, found[item.node_id], comments=options.comments > 0)]
        for start in range(0, len(changed), fetcher.size):
            await fetcher.fetch({item.node_id: (item.repository_node, item.repository) for item in changed[start : start + fetcher.size]})
        await turn(store.pool, ROTATION, stored[-1].id)
        checks.checked += len(stored)
        checks.failed += sum(isinstance(node, Failed) for node in found.values())
        run.progress("check", checks.checked, items)
    checks.tombstones, checks.fetched = fetcher.tombstones, fetcher.fetched
    return checks


def _changed(item: Checked, node: Found, *, comments: bool) -> bool:
    """Whether its text must be asked for: then it is stored again, or turns out to be gone."""
    if isinstance(node, Failed):
        return False
    if isinstance(node, Missing):
        return True
    moved = node["repository"]["id"] != item.repository_node
    newer = item.updated_at is None or datetime.fromisoformat(node["updatedAt"]) > item.updated_at
    return moved or newer or (comments and node["comments"]["totalCount"] != item.comments_count)
