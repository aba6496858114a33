"""Logs that an on-call person can follow: each line says which run, shard, repository and item it is about.

Where work begins, `about` names it; whatever is logged inside, by whichever module or library, carries the names: behind the message, or
as fields of a JSON object (STARSEARCH_LOG=json). An event is one line, whatever strangers wrote into it.
"""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from datetime import UTC, datetime
from types import MappingProxyType

from starsearch.untrusted import safe

NAMES = {"run": "run", "shard": "shard", "repository": "repo", "item": "item"}  # as a field, and in text
LONGEST_REASON = 200  # characters of what GitHub or an engine said
OURS = ("starsearch", "tasks")
_PREFECTS = (*OURS, "prefect.extra", "prefect.flow_runs", "prefect.task_runs")  # loggers that it gives its handlers to
_LINE_ENDS = {ord("\n"): "\\n", ord("\u2028"): "\\u2028", ord("\u2029"): "\\u2029"}  # `safe` has replaced the others

_subject: ContextVar[Mapping[str, int | str]] = ContextVar("subject", default=MappingProxyType({}))


@contextmanager
def about(*, run: int | None = None, shard: int | None = None, repository: str | None = None, item: int | None = None) -> Iterator[None]:
    """What is logged inside is about these, and about what surrounds them.

    run, shard: their ids in the database; repository: its full name; item: its number there. Tasks that begin inside take them along.
    """
    before = _subject.get()
    names = {"run": run, "shard": shard, "repository": repository, "item": item}
    _subject.set({**before, **{name: value for name, value in names.items() if value is not None}})
    try:
        yield
    finally:
        _subject.set(before)


def log_failure(log: logging.Logger, stage: str, reason: str, *, repository: str, item: int, attempt: int, dead: bool) -> None:
    """One item's failure, as it was written down: a dead letter is a warning."""
    with about(repository=repository, item=item):
        level, what = (logging.WARNING, "dead letter") if dead else (logging.INFO, "failed, and is tried again")
        log.log(level, "%s: %s, attempt %d: %s", what, stage, attempt, reason[:LONGEST_REASON])


def write_logs(form: str, level: str | None) -> None:
    """Let every line of this process have this form (text, json), and our own loggers speak from this level on (None: INFO).

    Lines go to stderr; under Prefect to its API as well, and those are text in any case, for the people who read them in the UI.
    """
    root = logging.getLogger()
    prefects = {handler for name in ("", *_PREFECTS) for handler in logging.getLogger(name).handlers if _is_prefects(handler)}
    for handler in prefects:
        if not isinstance(handler.formatter, Text):
            handler.setFormatter((Text if isinstance(handler, logging.StreamHandler) else Entry)(handler.formatter))
    if form == "json" or not root.handlers:
        for handler in root.handlers[:]:
            if isinstance(handler, Stderr) or handler in prefects:
                root.removeHandler(handler)
        root.addHandler(Stderr(Json() if form == "json" else Text()))
    for name in OURS:
        logging.getLogger(name).setLevel(level or "INFO")


def writes_json() -> bool:
    return any(isinstance(handler.formatter, Json) for handler in logging.getLogger().handlers)


class Text(logging.Formatter):
    """What another formatter says, its trace included, as one line, and whom it is about."""

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        subject = _subject.get()
        names = [f"{short}={subject[name]}" for name, short in NAMES.items() if name in subject]
        return " ".join([_one_line(self._inner.format(record)), *map(_one_line, names)])


class Entry(Text):
    """The same for Prefect's UI, where an event is an entry: its trace keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        if not record.exc_info:
            return super().format(record)
        bare = copy(record)
        bare.exc_info = bare.exc_text = None
        return f"{super().format(bare)}\n{safe(self.formatException(record.exc_info))}"


class Json(logging.Formatter):
    """One JSON object, in ASCII. Fields that say nothing are null."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": safe(record.getMessage()),
            **dict.fromkeys(NAMES),
            **_subject.get(),
            "exception": safe(self.formatException(record.exc_info)) if record.exc_info else None,
        }
        return json.dumps(event)


class Stderr(logging.Handler):
    """To stderr as it is now: progress bars put themselves in its place while they are shown."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # as the standard library's handlers do: a line that cannot be written ends no work
            self.handleError(record)


def _is_prefects(handler: logging.Handler) -> bool:
    return type(handler).__module__.startswith("prefect.")


def _one_line(text: str) -> str:
    return safe(text).translate(_LINE_ENDS).encode("utf-8", "backslashreplace").decode()
