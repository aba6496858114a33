"""The pages, rendered here and readable without JavaScript; htmx only saves reloading what stays the same."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Scope

from starsearch.errors import EngineUnavailable
from starsearch.models import Piece
from starsearch.store.web import find_key, store_feedback
from starsearch.web import shown
from starsearch.web.api import TheSite, stored_item
from starsearch.web.guard import COOKIE
from starsearch.web.panels import panels
from starsearch.web.problems import Refused, problem_json, refusal
from starsearch.web.searching import Found
from starsearch.web.shapes import PAGE, AskQuery, Feedback, Narrowed, SearchQuery
from starsearch.web.site import Site

GOES_HERE = "<!-- here -->"  # twice on the page of an answer: where its pieces go, and what follows it
BODY = 20_000  # characters of an item's text; the rest is read on GitHub
FILTERS = {
    "repo": "repository",
    "type": "type",
    "state": "state",
    "author": "author",
    "label": "label",
    "since": "since",
    "until": "until",
    "mode": "match",
}
PROGRAMS = ("/v1/", "/mcp", "/healthz", "/readyz", "/metrics")

router = APIRouter()
environment = Environment(
    loader=PackageLoader("starsearch.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
environment.filters |= {
    "shown": shown.shown,
    "passages": shown.passages,
    "safe_link": shown.safe_link,
    "ago": shown.ago,
    "duration": shown.duration,
    "count": lambda number: f"{number:,}",
    "day": lambda moment: moment.strftime("%-d %B %Y"),
}
environment.globals |= {"item_page": shown.item_page}


def page(template: str, *, code: int = 200, headers: dict[str, str] | None = None, **values: Any) -> HTMLResponse:
    return HTMLResponse(environment.get_template(template).render(**values), code, headers)


def refusal_page(scope: Scope, refused: Refused) -> Response:
    """A sentence on a page for browsers, JSON for programs; a browser without a key is shown where to give one."""
    if scope["path"].startswith(PROGRAMS) or "text/html" not in Headers(scope=scope).get("accept", ""):
        return problem_json(refused)
    if refused.problem.status == 401 and scope["method"] == "GET":
        return RedirectResponse(shown.with_parameters("/sign-in", {"next": _address(scope)}), 303)
    return page("problem.html", code=refused.problem.status, headers=dict(refused.headers), problem=refused.problem)


def _address(scope: Scope) -> str:
    query = scope["query_string"].decode("ascii", "replace")
    return f"{scope['path']}?{query}" if query else str(scope["path"])


@router.get("/")
async def search_page(request: Request, site: TheSite) -> Response:
    given = dict(request.query_params)
    kept = {name: value for name, value in given.items() if value != "" and (name, value) != ("mode", "hybrid")}
    if kept != given:  # an address worth sharing holds what was chosen, and nothing else
        return RedirectResponse(shown.with_parameters("/", kept), 303)
    if not kept.get("q"):
        if set(kept) - set(FILTERS):
            raise Refused(404, "there is no such page")
        return page("search.html", given=kept, filters=FILTERS, found=None, overview=await _overview(site), problem=None, notice=None)
    return await _results(request, site, kept)


async def _overview(site: Site) -> Any:
    """What is there to find; None where the database does not answer, for the box is shown all the same."""
    try:
        return await site.status.get()
    except Exception as error:
        refusal(error)
        return None


async def _results(request: Request, site: Site, given: dict[str, str]) -> Response:
    found, problem, notice = None, None, None
    try:
        asked = SearchQuery.model_validate(given)
        found, notice = await _find(site, asked)
    except Exception as error:
        problem = refusal(error).problem
    hits = shown.shown_hits(found.hits, given["q"]) if found else []
    base = {name: value for name, value in given.items() if name != "cursor"}
    chips = [(FILTERS[name], value, shown.with_parameters("/", base | {name: None})) for name, value in base.items() if name in FILTERS]
    went_on = base | ({"mode": "text"} if notice else {})  # a cursor is of the search that gave it
    more = shown.with_parameters("/", went_on | {"cursor": found.next_cursor}) if found and found.next_cursor else None
    return page(
        "search.html",
        code=problem.status if problem else 200,
        given=base,
        filters=FILTERS,
        found=found,
        hits=hits,
        chips=chips,
        more=more,
        asked=shown.with_parameters("/ask", base | {"mode": None}),
        first=shown.with_parameters("/", base) if "cursor" in given else None,
        problem=problem,
        notice=notice,
        back=_address(request.scope),
    )


async def _find(site: Site, asked: SearchQuery) -> tuple[Found, str | None]:
    """Without an engine, by words only: less is better than nothing, as long as it is said."""
    try:
        return await site.searching.find(asked), None
    except EngineUnavailable:
        if asked.mode != "hybrid":
            raise
        found = await site.searching.find(asked.model_copy(update={"mode": "text"}))
        return found, "The engine that understands questions does not answer right now. These were found by their words only."


@router.get("/ask")
async def ask_page(request: Request, site: TheSite) -> Response:
    """The page is sent at once up to where the answer goes, and the answer while it is written: it streams without a script."""
    given = {name: value for name, value in request.query_params.items() if value}
    if not given:
        return page("ask.html", given=given, asking=False)
    asked = AskQuery.model_validate(given)
    before, between, after = environment.get_template("ask.html").render(given=given, asking=True).split(GOES_HERE)

    async def parts() -> AsyncIterator[str]:
        yield before
        async with aclosing(_answer(site, asked, _address(request.scope), between)) as answer:
            async for part in answer:
                yield part
        yield after

    return StreamingResponse(parts(), media_type="text/html; charset=utf-8")


async def _answer(site: Site, asked: AskQuery, back: str, between: str) -> AsyncGenerator[str, None]:
    """The answer's pieces; then, after what stands between, the verdict and what was found."""
    template = environment.get_template("answer.html")
    try:
        async with aclosing(site.searching.answering(asked.q, asked)) as answering:
            async for told in answering:
                if isinstance(told, Piece):
                    yield shown.cited(told.text, told.citations)
                elif told:
                    hits = shown.shown_hits(told.hits, asked.q)
                    yield between + template.render(problem=None, answer=told, hits=hits, given={"q": asked.q}, back=back)
    except Exception as error:  # the page has begun: what went wrong goes where the answer would
        yield between + template.render(problem=refusal(error).problem)


@router.get("/items/{owner}/{name}/{number}")
async def item_page(owner: str, name: str, number: int, site: TheSite) -> Response:
    item = await stored_item(site, f"{owner}/{name}", number)
    body = shown.shown(item["body"])
    return page("item.html", item=item, body=body[:BODY].strip(), cut=len(body) > BODY or item["excerpt"])


@router.get("/items/{owner}/{name}/{number}/similar")
async def similar_page(owner: str, name: str, number: int, site: TheSite) -> Response:
    item = await stored_item(site, f"{owner}/{name}", number)
    found = await site.searching.like(f"{item['repo']}#{number}", Narrowed(), PAGE)
    return page("similar.html", item=item, found=found, hits=shown.shown_hits(found.hits, ""), given={"q": f"{item['repo']}#{number}"})


@router.get("/status")
async def status_page(site: TheSite) -> Response:
    status, history = await asyncio.gather(site.status.get(), site.history.get())
    return page("status.html", status=status, panels=panels(status, history.hours, history.comparison))


@router.post("/feedback")
async def feedback(
    query: Annotated[str, Form()],
    useful: Annotated[bool, Form()],
    index_version: Annotated[str, Form()],
    site: TheSite,
    request: Request,
    url: Annotated[str | None, Form()] = None,
    mode: Annotated[str, Form()] = "hybrid",
    back: Annotated[str, Form()] = "/",
) -> Response:
    given = Feedback.model_validate(
        {
            "query": query,
            "useful": useful,
            "url": url,
            "mode": mode,
            "index_version": index_version,
            "about": "hit" if url else "answer",
        }
    )
    if not await store_feedback(site.pool, given.model_dump()):
        raise Refused(404, "this item is not stored any more")
    if "hx-request" in request.headers:
        return page("thanks.html", useful=useful)
    return RedirectResponse(_ours(back), 303)


def _ours(address: str) -> str:
    """An address of this site, whatever was sent."""
    parts = urlsplit(address)
    return address if address.startswith("/") and not address.startswith(("//", "/\\")) and not parts.netloc else "/"


@router.get("/sign-in")
async def sign_in_page(next: str = "/") -> Response:
    return page("sign_in.html", next=_ours(next), wrong=False)


@router.post("/sign-in")
async def sign_in(request: Request, key: Annotated[str, Form()], site: TheSite, next: Annotated[str, Form()] = "/") -> Response:
    if len(key) > 200 or await find_key(site.pool, key.strip()) is None:
        return page("sign_in.html", code=401, next=_ours(next), wrong=True)
    response = RedirectResponse(_ours(next), 303)
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, key.strip(), max_age=90 * 86_400, httponly=True, samesite="strict", secure=secure)
    return response
