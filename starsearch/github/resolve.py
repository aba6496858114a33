"""Names to node ids: a hundred repositories a request, old names of renamed ones included."""

from collections.abc import Mapping, Sequence

from starsearch.errors import AnswerUnusable, QueryRefused, QueryTooHeavy
from starsearch.github.batches import Failed, Missing
from starsearch.github.client import Answer, GitHub
from starsearch.github.nodes import read_facts
from starsearch.models import RepositoryFacts

NAMES = 100  # of one query; no connection is opened, so it costs one point

NULL = "null without a reason"
CUT_SHORT = {"RESOURCE_LIMITS_EXCEEDED", NULL}  # of an answer whose other names may be fine

Resolved = RepositoryFacts | Missing | Failed


async def resolve(github: GitHub, names: Sequence[str]) -> dict[str, Resolved]:
    """What GitHub says of each owner/name; private repositories count as missing. Raises RateLimited or SourceUnavailable."""
    found: dict[str, Resolved] = {}
    for start in range(0, len(names), NAMES):
        found |= await _resolve(github, names[start : start + NAMES])
    return found


async def _resolve(github: GitHub, names: Sequence[str]) -> dict[str, Resolved]:
    variables = {f"{part}{n}": value for n, name in enumerate(names) for part, value in zip("on", name.split("/"), strict=True)}
    try:
        answer = await github.ask("resolve", variables, text=_query(len(names)))
    except QueryTooHeavy as error:
        return await _in_halves(github, dict.fromkeys(names, Failed(type(error).__name__, str(error))))
    except (AnswerUnusable, QueryRefused) as error:
        return dict.fromkeys(names, Failed(type(error).__name__, str(error)))
    found = {name: _read(answer, f"r{n}") for n, name in enumerate(names)}
    cut_short = {name: read for name, read in found.items() if isinstance(read, Failed) and read.reason in CUT_SHORT}
    if len(cut_short) == len(names):
        return await _in_halves(github, cut_short)
    return found | (await _resolve(github, list(cut_short)) if cut_short else {})


async def _in_halves(github: GitHub, failed: Mapping[str, Resolved]) -> dict[str, Resolved]:
    """Asked again in smaller company; what is alone already has failed."""
    names = list(failed)
    if len(names) < 2:
        return dict(failed)
    github.usage.splits += 1
    middle = len(names) // 2
    return await _resolve(github, names[:middle]) | await _resolve(github, names[middle:])


def _query(number: int) -> str:
    """Names are variables, never part of the text."""
    parameters = ", ".join(f"$o{n}: String!, $n{n}: String!" for n in range(number))
    fields = "id databaseId nameWithOwner isArchived isPrivate stargazerCount"
    lines = "".join(f"  r{n}: repository(owner: $o{n}, name: $n{n}, followRenames: true) {{ {fields} }}\n" for n in range(number))
    return f"query Resolve({parameters}) {{\n  rateLimit {{ cost }}\n{lines}}}\n"


def _read(answer: Answer, alias: str) -> Resolved:
    node = answer.data.get(alias)
    error = next((error for error in answer.errors if error.path[:1] == (alias,)), None)
    if error and error.type != "NOT_FOUND":
        return Failed(error.type or "error", error.message)
    if error or (isinstance(node, dict) and node.get("isPrivate")):
        return Missing()
    try:
        return read_facts(node or {})
    except (KeyError, TypeError) as unreadable:
        return Failed(NULL, str(unreadable))
