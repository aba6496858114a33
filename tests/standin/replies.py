"""An HTTP answer of the stand-in, and the few that every part gives."""

from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import orjson

DOCUMENTATION = "https://docs.github.com/rest"
SECONDARY = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><p>This network asks you to sign in.</p></body></html>"


class Dropped(Exception):
    """The connection is closed without an answer."""


@dataclass
class Reply:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def wire_headers(self, *, now: int, request_id: str) -> list[tuple[bytes, bytes]]:
        """now: of the virtual clock, for the Date header."""
        fixed = {
            "date": formatdate(now, usegmt=True),
            "content-type": "application/json; charset=utf-8",
            "content-length": str(len(self.body)),
            "server": "github.com",
            "x-github-request-id": request_id,
        }
        return [(name.encode("ascii"), value.encode("latin-1")) for name, value in (fixed | self.headers).items()]


def as_json(status: int, body: Any, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status, orjson.dumps(body), headers or {})


def message(status: int, text: str, headers: dict[str, str] | None = None) -> Reply:
    """GitHub's form of an error."""
    return as_json(status, {"message": text, "documentation_url": DOCUMENTATION, "status": str(status)}, headers)
