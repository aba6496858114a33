"""What goes wrong, as a status and a sentence: JSON for programs, a page for people.

Translated here, once. The database's and the engine's own words stay in the log: they may name hosts and users.
"""

import logging
from collections.abc import Mapping

import psycopg
from fastapi.exceptions import RequestValidationError
from psycopg_pool import PoolTimeout, TooManyRequests
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from starsearch.errors import DigestFailed, EngineUnavailable, NotStored, PreconditionMissing, QueryUnusable, StarsearchError

log = logging.getLogger(__name__)

RETRY_SECONDS = 5
TITLES = {
    400: "Bad request",
    401: "Key needed",
    403: "Refused",
    404: "Not found",
    405: "Method not allowed",
    413: "Too large",
    421: "Wrong host",
    422: "Not understood",
    429: "Too many requests",
    500: "Something broke",
    503: "Not available",
}
WORDS = {"extra_forbidden": "there is no such parameter", "missing": "is missing", "string_too_short": "is empty"}
LATER: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((psycopg.errors.QueryCanceled,), "this took too long and was stopped: ask with fewer or rarer words, or name a repository"),
    ((psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, TooManyRequests), "the database does not answer right now"),
    ((EngineUnavailable,), "the engine does not answer right now; search by words only (mode=text) works"),
    ((DigestFailed,), "the engine could not answer this question; try again, or search by words only (mode=text)"),
    ((PreconditionMissing,), ""),  # its own sentence says what to do
)


class Problem(BaseModel):
    """Why there is no answer."""

    status: int
    title: str
    detail: str


class Refused(StarsearchError):
    """A request that gets a sentence instead of an answer."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.problem = Problem(status=status, title=TITLES.get(status, "Refused"), detail=detail)
        self.headers = headers or {}


def refusal(error: Exception) -> Refused:
    """Any error as a refusal; those that nobody foresaw are logged with their trace."""
    match error:
        case Refused():
            return error
        case RequestValidationError() | ValidationError():
            return Refused(422, _in_words(error))
        case QueryUnusable() | NotStored():
            return Refused(422 if isinstance(error, QueryUnusable) else 404, str(error))
        case HTTPException():
            return Refused(error.status_code, str(error.detail), error.headers)
    for kinds, sentence in LATER:
        if isinstance(error, kinds):
            log.warning("%s: %s", type(error).__name__, error)
            return _later(sentence or str(error))
    log.error("unforeseen", exc_info=error)
    return Refused(500, "something broke on our side; it is in the log")


def _later(detail: str) -> Refused:
    return Refused(503, detail, {"Retry-After": str(RETRY_SECONDS)})


def _in_words(error: RequestValidationError | ValidationError) -> str:
    parts = []
    for each in list(error.errors())[:5]:
        where = ".".join(str(part) for part in each["loc"] if part not in {"query", "body", "path"})
        message = WORDS.get(each["type"], str(each["msg"]).removeprefix("Value error, "))
        parts.append(f"{where[:100]}: {message}" if where else message)
    return "; ".join(parts)


def problem_json(refused: Refused) -> Response:
    return JSONResponse(refused.problem.model_dump(), refused.problem.status, headers=dict(refused.headers))
