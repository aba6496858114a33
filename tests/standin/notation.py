"""How GitHub writes times and node ids.

Times are whole seconds since 1970 inside the stand-in and "2026-01-10T12:00:00Z" on the wire. A node id holds the database ids of
the repository and the item (msgpack in base64, the form that X-Github-Next-Global-ID asks for), so none has to be kept in a table.
"""

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

DAY_SECONDS = 86_400
Moment = datetime | str | int


@lru_cache(maxsize=8_192)
def _day(number: int) -> str:
    return f"{datetime.fromtimestamp(number * DAY_SECONDS, UTC):%Y-%m-%d}"


@lru_cache(maxsize=DAY_SECONDS)
def _time(second: int) -> str:
    return f"T{second // 3_600:02}:{second // 60 % 60:02}:{second % 60:02}Z"


def iso(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    day, second = divmod(seconds, DAY_SECONDS)
    return _day(day) + _time(second)


def to_seconds(moment: Moment) -> int:
    if isinstance(moment, int):
        return moment
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def to_datetime(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


_REPOSITORY = struct.Struct(">3sI")  # msgpack: an array of two, 0, a 32-bit number
_ITEM = struct.Struct(">3sIcI")  # an array of three
TYPENAMES = {"R": "Repository", "I": "Issue", "PR": "PullRequest"}
PREFIXES = {typename: prefix for prefix, typename in TYPENAMES.items()}


class NodeId(NamedTuple):
    typename: str
    repository: int
    item: int | None


def repository_node_id(repository: int) -> str:
    return "R_" + urlsafe_b64encode(_REPOSITORY.pack(b"\x92\x00\xce", repository)).rstrip(b"=").decode("ascii")


def item_node_id(typename: str, repository: int, item: int) -> str:
    packed = _ITEM.pack(b"\x93\x00\xce", repository, b"\xce", item)
    return f"{PREFIXES[typename]}_{urlsafe_b64encode(packed).decode('ascii')}"


def read_node_id(text: str) -> NodeId | None:
    """None for what is no node id of a repository, issue or pull request."""
    prefix, _, packed = text.partition("_")
    if prefix not in TYPENAMES:
        return None
    try:
        raw = urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
        if prefix == "R":
            found = NodeId("Repository", _REPOSITORY.unpack(raw)[1], None)
            return found if repository_node_id(found.repository) == text else None
        _, repository, _, item = _ITEM.unpack(raw)
    except (Error, ValueError, struct.error):
        return None
    found = NodeId(TYPENAMES[prefix], repository, item)
    return found if item_node_id(found.typename, repository, item) == text else None
