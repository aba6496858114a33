"""Commands that find: `search`, `ask`, `explain`, `evaluate`."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starsearch.commands.options import Json, Repo, Since, Until, moment, repository_names
from starsearch.errors import StarsearchError
from starsearch.settings import Settings, read_settings

if TYPE_CHECKING:
    from starsearch.finder import Finder
    from starsearch.models import Filters, Found


class Mode(StrEnum):
    hybrid = "hybrid"
    vector = "vector"
    text = "text"


class Type(StrEnum):
    issue = "issue"
    pull_request = "pull_request"


class State(StrEnum):
    open = "open"
    closed = "closed"
    merged = "merged"


def search(  # noqa: PLR0913, PLR0917 a command's options are its arguments
    query: Annotated[str | None, typer.Argument(help="A question, or words.", show_default=False)] = None,
    like: Annotated[str | None, typer.Option(metavar="URL", help="Instead of a query: find items like this one.")] = None,
    mode: Annotated[Mode, typer.Option(help="By meaning and words, meaning only, or words only.")] = Mode.hybrid,
    repo: Repo = None,
    type: Annotated[Type | None, typer.Option(help="issue or pull_request")] = None,
    state: Annotated[State | None, typer.Option(help="open, closed or merged")] = None,
    author: Annotated[str | None, typer.Option(help="Whose: a login.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Repeatable: all of them. Compared without case.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000)] = 10,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show how it was found: index or exact, which words picked candidates.")
    ] = False,
    json: Json = False,
) -> None:
    """Find items by what they mean."""
    if (query is None) == (like is None):
        raise typer.BadParameter("give a query, or --like URL", param_hint="QUERY")
    if query is not None and not query.strip():
        raise typer.BadParameter("is empty", param_hint="QUERY")
    from starsearch.models import Filters

    filters = Filters(
        repos=tuple(repository_names(repo)),
        type=type.value if type else None,
        state=state.value if state else None,
        author=author,
        labels=tuple(label or ()),
        since=moment(since),
        until=moment(until, end=True),
    )

    async def find(finder: "Finder") -> "Found":
        if like is not None:
            return await finder.like(like, filters=filters, limit=limit)
        return await finder.find(query or "", mode=mode.value, filters=filters, limit=limit)

    shape = {"query": query or like, "mode": mode.value if like is None else "vector"}
    asyncio.run(_search(read_settings(), shape, find, explain, json))


async def _search(
    settings: Settings, shape: dict[str, Any], find: Callable[["Finder"], Awaitable["Found"]], explain: bool, json: bool
) -> None:
    from starsearch.finder import open_finder
    from starsearch.store.search import MAX_QUERY, hit_as_dict
    from starsearch.terminal import err, nothing_found, print_explanation, print_hits, print_json

    async with open_finder(settings) as finder:
        found = await find(finder)
        shape |= {"index_version": finder.version.fingerprint[:12]}
    if len(shape["query"]) > MAX_QUERY:
        err.print(f"only the first {MAX_QUERY:,} of {len(shape['query']):,} characters were searched for")
    if json:
        shape |= {"hits": [hit_as_dict(hit) for hit in found.hits]}
        print_json(shape | ({"explanation": asdict(found.explanation)} if explain else {}))
        return
    if explain:
        print_explanation(found.explanation)
    print_hits(found.hits)
    if not found.hits:
        err.print(nothing_found(found.explanation, shape["mode"]))


def ask(
    question: Annotated[str, typer.Argument(help="A question in your own words.")],
    repo: Repo = None,
    since: Since = None,
    until: Until = None,
    json: Json = False,
) -> None:
    """Answer a question from what is stored, with citations; or say that nothing close was found."""
    from starsearch.models import Filters

    filters = Filters(repos=tuple(repository_names(repo)), since=moment(since), until=moment(until, end=True))
    asyncio.run(_ask(read_settings(), question, filters, json))


async def _ask(settings: Settings, question: str, filters: "Filters", json: bool) -> None:
    from starsearch.asking import ask
    from starsearch.engines import open_llm
    from starsearch.finder import open_finder
    from starsearch.store.search import hit_as_dict
    from starsearch.terminal import print_answer, print_json

    async with open_finder(settings) as finder, open_llm(settings) as llm:
        answer = await ask(finder, llm, question, filters=filters)
    if not json:
        print_answer(answer)
        return
    citations = [{"number": n, "url": hit.url, "repo": hit.repo, "title": hit.title} for n, hit in answer.citations.items()]
    shape = {
        "question": question,
        "answer": answer.text,
        "kind": answer.kind,
        "citations": citations,
        "index_version": answer.index_version,
    }
    print_json(shape | {"hits": [hit_as_dict(hit) for hit in answer.hits]})


def explain(url: Annotated[str, typer.Argument(help="The item's GitHub URL, or owner/name#number.")], json: Json = False) -> None:
    """Where a digest came from: content hash, prompt version, model, run, tokens, times."""
    from starsearch.explain import parse_address

    settings = read_settings()
    address = parse_address(url, host=settings.github_host)
    if address is None:
        raise typer.BadParameter("expected a GitHub issue or pull request URL, or owner/name#number", param_hint="URL")
    asyncio.run(_explain(settings, address, json))


async def _explain(settings: Settings, address: dict[str, Any], json: bool) -> None:
    from starsearch.explain import explain
    from starsearch.storage import open_store
    from starsearch.terminal import print_fields, print_json

    async with open_store(settings) as store:
        found = await explain(store.pool, address)
    if found is None:
        raise StarsearchError(f"{address['repo']}#{address['number']} is not stored: `starsearch crawl --repo {address['repo']}`")
    if json:
        print_json(found)
    else:
        print_fields(found)


def evaluate(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON Lines: question, url, also_ok.")],
    json: Json = False,
) -> None:
    """Measure search: recall@1, recall@10 and MRR of each mode, on questions whose right item is known."""
    asyncio.run(_evaluate(read_settings(), file, json))


async def _evaluate(settings: Settings, file: Path, json: bool) -> None:
    from starsearch.evaluate import evaluate, read_questions
    from starsearch.finder import open_finder
    from starsearch.terminal import print_json, print_measures, progress_bars

    questions = read_questions(file)
    async with open_finder(settings) as finder:
        with progress_bars() as progress:
            result = await evaluate(finder, questions, lambda done: progress("ask", done, len(questions)))
    (print_json if json else print_measures)(result)
