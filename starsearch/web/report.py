"""The status page as one file: styles inside, nothing to fetch, readable in ten years."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources

from markupsafe import Markup

from starsearch.evaluate import Question, evaluate
from starsearch.web.pages import environment
from starsearch.web.panels import panels, recall_by_mode
from starsearch.web.site import Site


async def render_report(site: Site, questions: Sequence[Question] = ()) -> str:
    """questions: with known answers, to measure what search finds now; without any the report says that it was not measured."""
    status, history = await asyncio.gather(site.status.get(), site.history.get())
    measured = await evaluate(await site.searching.finder(), questions) if questions else None
    style = (resources.files("starsearch.web") / "static" / "style.css").read_text("utf-8")
    ours = Markup(style)  # noqa: S704  a file of this package, nobody's text
    return environment.get_template("report.html").render(
        status=status,
        panels=[*panels(status, history.hours, history.comparison), recall_by_mode(measured)],
        style=ours,
        made_at=datetime.now(UTC),
    )
