"""/v1: search, items, status and feedback for programs. The OpenAPI document is made from these functions."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from starsearch.explain import explain
from starsearch.models import Answer, Hit, Piece
from starsearch.store.reading import read_item
from starsearch.store.web import store_feedback
from starsearch.web.problems import Problem, Refused, refusal
from starsearch.web.shapes import (
    AnswerShape,
    AskQuery,
    Citation,
    Feedback,
    HitShape,
    ItemShape,
    LikeQuery,
    Repository,
    SearchAnswer,
    SearchQuery,
    StatusShape,
)
from starsearch.web.site import Site


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    sentences = {
        400: "The request cannot be read.",
        401: "A key is needed, or this one is not valid.",
        403: "Sent by another site's page.",
        404: "No such item or repository is stored here.",
        413: "More than 64 KiB were sent.",
        422: "A parameter is wrong; the detail says which.",
        429: "Too many requests; Retry-After says when to come back.",
        503: "The database or the engine does not answer, or too many ask; Retry-After says when to come back.",
    }
    every = {400, 401, 422, 429, 503}
    return {status: {"description": sentences[status], "model": Problem} for status in sorted(every | set(statuses))}


def site_of(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


async def the_site(request: Request) -> Site:
    """As a dependency: FastAPI sends plain functions to a thread, and waits for it."""
    return site_of(request)


EVENTS_TOLD = """`asked` at once. `text` for each piece of the answer while it is written: its text, and the citations in it, each checked
before it is sent. At the end the verdict: `answer` with all of it (question, answer, kind, citations, index_version, hits), where a null
answer takes back the pieces; or `problem` (status, title, detail), which leaves them unfinished."""
EVENT = {
    "type": "object",
    "properties": {"event": {"enum": ["asked", "text", "answer", "problem"]}, "data": {"type": "string", "description": "JSON."}},
    "required": ["event", "data"],
}
TheSite = Annotated[Site, Depends(the_site)]
Name = Annotated[str, Path(max_length=100, pattern=r"^[A-Za-z0-9_.-]+$")]
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
router = APIRouter(prefix="/v1", tags=["v1"])


@router.get("/search", responses=_problems(404))
async def search(asked: Annotated[SearchQuery, Query()], site: TheSite) -> SearchAnswer:
    """Find items by what they mean."""
    found = await site.searching.find(asked)
    hits = [HitShape.model_validate(hit) for hit in found.hits]
    return SearchAnswer(query=asked.q, mode=asked.mode, index_version=found.index_version, hits=hits, next_cursor=found.next_cursor)


EVENTS: dict[int | str, dict[str, Any]] = {200: {"description": EVENTS_TOLD, "content": {"text/event-stream": {"schema": EVENT}}}}


@router.get("/ask", response_class=StreamingResponse, responses=EVENTS | _problems())
async def ask(asked: Annotated[AskQuery, Query()], site: TheSite) -> Response:
    """A question to an answer with citations, as server-sent events."""
    return StreamingResponse(_events(site, asked), media_type="text/event-stream")


async def _events(site: Site, asked: AskQuery) -> AsyncIterator[bytes]:
    yield _event("asked", {"question": asked.q})
    try:
        async with aclosing(site.searching.answering(asked.q, asked)) as answering:
            async for told in answering:
                yield b": still at it\n\n" if told is None else _told(told)
    except Exception as error:
        yield _event("problem", refusal(error).problem.model_dump())


def _told(told: Piece | Answer) -> bytes:
    if isinstance(told, Answer):
        return _event("answer", answer_shape(told).model_dump(mode="json"))
    return _event("text", {"text": told.text, "citations": [each.model_dump() for each in _citations(told.citations)]})


def answer_shape(answer: Answer) -> AnswerShape:
    return AnswerShape(
        question=answer.question,
        answer=answer.text,
        kind=answer.kind,
        citations=_citations(answer.citations),
        index_version=answer.index_version,
        hits=[HitShape.model_validate(hit) for hit in answer.hits],
    )


def _citations(cited: dict[int, Hit]) -> list[Citation]:
    return [Citation(number=n, url=hit.url, repo=hit.repo, title=hit.title) for n, hit in cited.items()]


def _event(name: str, value: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(value) + b"\n\n"


@router.get("/items/{owner}/{name}/{number}/similar", responses=_problems(404))
async def similar(owner: Name, name: Name, number: Number, asked: Annotated[LikeQuery, Query()], site: TheSite) -> SearchAnswer:
    """Items that mean something like this one: duplicates, the same fault elsewhere, a fix."""
    address = f"{owner}/{name}#{number}"
    found = await site.searching.like(address, asked, asked.limit)
    hits = [HitShape.model_validate(hit) for hit in found.hits]
    return SearchAnswer(query=address, mode="vector", index_version=found.index_version, hits=hits)


@router.get("/items/{owner}/{name}/{number}", responses=_problems(404))
async def item(owner: Name, name: Name, number: Number, site: TheSite) -> ItemShape:
    """One item, and where its digest came from."""
    return ItemShape.model_validate(await stored_item(site, f"{owner}/{name}", number))


async def stored_item(site: Site, repo: Repository, number: int) -> dict[str, Any]:
    """An item with its provenance; raises Refused where it is not stored."""
    address = {"host": site.settings.github_host, "repo": repo, "number": number}
    row = await read_item(site.pool, address)
    if row is None:
        raise Refused(404, f"{repo}#{number} is not stored here")
    return row | {"provenance": await explain(site.pool, address) or {}}


@router.get("/status", responses=_problems())
async def status(site: TheSite) -> StatusShape:
    """Completeness, with every gap named; at most five seconds old."""
    return StatusShape.model_validate((await site.status.get()).as_dict())


@router.post("/feedback", status_code=204, responses=_problems(403, 404, 413))
async def feedback(given: Feedback, site: TheSite) -> None:
    """Say whether a hit, or an answer, was what you were looking for."""
    if (given.about == "hit") != (given.url is not None):
        raise Refused(422, "url: belongs to a hit, and every hit has one")
    if not await store_feedback(site.pool, given.model_dump()):
        raise Refused(404, "no item with this address is stored here")
