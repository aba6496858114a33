"""What several commands share: options, and how they read names and days, speak on stderr, and run."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from starsearch.logs import writes_json
from starsearch.settings import Settings
from starsearch.untrusted import safe

if TYPE_CHECKING:
    from starsearch.pipeline import Run
    from starsearch.storage import Store

log = logging.getLogger(__name__)
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Repo = Annotated[list[str] | None, typer.Option(help="owner/name; repeatable: any of them.")]
Since = Annotated[str | None, typer.Option(help="Created on this day (UTC) or later: 2026-03-01, or days back: 7d.")]
Until = Annotated[str | None, typer.Option(help="Created up to this day (its end).")]
NoDigest = Annotated[bool, typer.Option("--no-digest", help="Store items only; digest them later.")]


def repository_names(names: list[str] | None) -> list[str]:
    from starsearch.models import is_repository_name

    for name in names or ():
        if not is_repository_name(name):
            raise typer.BadParameter(f"{name!r} is not owner/name", param_hint="--repo")
    return list(dict.fromkeys(names or ()))


def moment(text: str | None, *, end: bool = False) -> datetime | None:
    from starsearch.backfill import parse_moment

    try:
        return parse_moment(text, now=datetime.now(UTC), end=end) if text else None
    except ValueError:
        raise typer.BadParameter(
            f"{text}: write a day (2026-03-01) or days back (7d)", param_hint="--until" if end else "--since"
        ) from None


def say(line: str) -> None:
    """On stderr, above the progress bars where there are some."""
    from starsearch.terminal import err

    if writes_json():
        log.info("%s", line)
    else:
        err.print(safe(line), markup=False)


@asynccontextmanager
async def recorded(settings: Settings, kind: str) -> AsyncIterator[tuple["Store", "Run"]]:
    """The store, and a run whose counts are written down however it ends, with progress bars while it lasts."""
    from starsearch.pipeline import recorded_run
    from starsearch.storage import open_store
    from starsearch.terminal import progress_bars

    async with open_store(settings) as store:
        with progress_bars() as progress:
            async with recorded_run(store, kind, progress) as run:
                yield store, run
