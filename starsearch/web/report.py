"""The status page as one file: styles inside, nothing to fetch, readable in ten years."""

import asyncio
from datetime import UTC, datetime
from importlib import resources

from markupsafe import Markup

from starsearch.web.pages import environment
from starsearch.web.panels import panels
from starsearch.web.site import Site


async def render_report(site: Site) -> str:
    status, history = await asyncio.gather(site.status.get(), site.history.get())
    style = (resources.files("starsearch.web") / "static" / "style.css").read_text("utf-8")
    ours = Markup(style)  # noqa: S704  a file of this package, nobody's text
    return environment.get_template("report.html").render(
        status=status, panels=panels(status, history.hours, history.comparison), style=ours, made_at=datetime.now(UTC)
    )
