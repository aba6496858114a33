"""A question to an answer with citations, from what search finds; or that nothing close was found.

Where summaries are extractive there is no model that could answer: then the nearest sentences are quoted, and said to be quotes.
"""

import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
from psycopg.errors import InsufficientPrivilege, ReadOnlySqlTransaction

from starsearch import extractive
from starsearch.brakes import Brakes
from starsearch.errors import StarsearchError
from starsearch.finder import Finder
from starsearch.inference.answer import Say, answer
from starsearch.inference.client import Engine, counting
from starsearch.inference.embed import embed
from starsearch.models import Answer, Counts, Filters, Hit, Piece
from starsearch.serving import sent_dimensions
from starsearch.storage import bounds
from starsearch.store.database import Pool
from starsearch.store.ledger import Call, account_answer, intend, settle
from starsearch.store.nearest import NO_FILTERS
from starsearch.store.runs import finish_run, start_run

SOURCES = 6
QUOTES = 3
# Cosine below which nothing is about the question. MiniLM over 25,090 real items, 2026-11-24: the nearest to 22 questions of other worlds
# (bread, whales, trains) had at most 0.39, to 66 real ones at least 0.36 and 95 % of them above 0.43. Other models: not measured, so
# only the chat model itself says that nothing fits.
CLOSE = {"minilm-l6-v2": 0.40}

log = logging.getLogger(__name__)
_SENTENCE = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+|\n+")


async def ask(
    finder: Finder, llm: Engine, question: str, *, filters: Filters = NO_FILTERS, say: Callable[[Piece], None] = lambda _: None
) -> Answer:
    """Raises what Finder.find does, DigestFailed where the model gives no usable answer, and BudgetSpent where a model would answer and
    the day's budget is spent; a pause stops nobody from reading. Its call is in the ledger.

    `say` gets the answer piece by piece while it is written, each checked; an answer that then turns out to be none (text None), or an
    error, takes back what was said.
    """
    kind = "quotes" if extractive.made(llm.model) else "model"
    if kind == "model":
        await Brakes(finder.pool, bounds(finder.settings)).check_day()
    found = await finder.find(question, filters=filters, limit=SOURCES)
    threshold = CLOSE.get(finder.version.embedding_model, 0.0)
    close = [hit for hit in found.hits if (hit.scores["vector"] or 0) >= threshold]
    reply = None

    def tell(text: str, numbers: list[int]) -> None:
        say(Piece(text, {number: close[number - 1] for number in numbers}))

    if close:
        reply = await (_quote(finder, question, close, tell) if kind == "quotes" else _answer(finder, llm, question, close, tell))
    version = finder.version.fingerprint[:12]
    if reply is None:
        return Answer(question, None, "nothing close", {}, found.hits, version)
    text, cited = reply
    return Answer(question, text, kind, {number: close[number - 1] for number in cited}, found.hits, version)


async def _answer(finder: Finder, llm: Engine, question: str, hits: Sequence[Hit], say: Say) -> tuple[str, list[int]] | None:
    call = Call("answer", llm.model, [])
    async with _accounted(finder.pool, call):
        try:
            with counting() as call.spent:
                reply = await answer(llm, question, hits, say)
            call.outcome = "ok"
        except StarsearchError as error:
            call.outcome = getattr(error, "reason", "no answer")
            raise
    return reply


@asynccontextmanager
async def _accounted(pool: Pool, call: Call) -> AsyncIterator[None]:
    """In the ledger: its intent first; by a role that only reads, as the web process is, when it is over."""
    try:
        run_id = await start_run(pool, "ask")
    except (InsufficientPrivilege, ReadOnlySqlTransaction):
        try:
            yield
        finally:
            await _account_as_reader(pool, call)
        return
    await intend(pool, run_id, 0, [call])
    try:
        yield
    finally:
        async with pool.connection() as connection:
            await settle(connection, [call])
        await finish_run(pool, run_id, Counts(llm_requests=call.spent.requests, seconds=call.spent.seconds))


async def _account_as_reader(pool: Pool, call: Call) -> None:
    try:
        await account_answer(pool, call)
    except (InsufficientPrivilege, ReadOnlySqlTransaction) as error:
        log.warning("what this answer cost is not in the ledger (%s): `starsearch migrate --roles` grants that", type(error).__name__)


async def _quote(finder: Finder, question: str, hits: Sequence[Hit], say: Say) -> tuple[str, list[int]]:
    """The sentences nearest to the question, each with the number of where it stands."""
    sentences = [(number, text) for number, hit in enumerate(hits, 1) for text in _sentences(hit)]
    engine = await finder.engine()
    vectors, _ = await embed(engine, [question, *(text for _, text in sentences)], dimensions=sent_dimensions(finder.version))
    nearest = [sentences[n] for n in np.argsort(-(vectors[1:] @ vectors[0]))[:QUOTES]]
    lines = [f"\u201c{text}\u201d [{number}]" for number, text in nearest]
    for line, (number, _) in zip(lines, nearest, strict=True):
        say(line if line is lines[0] else f"\n{line}", [number])
    return "\n".join(lines), list(dict.fromkeys(number for number, _ in nearest))


def _sentences(hit: Hit) -> list[str]:
    return [hit.title, *(part.strip() for part in _SENTENCE.split(hit.summary) if len(part.strip()) > 20)]
