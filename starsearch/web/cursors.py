"""Stable pages: a cursor carries the rest of a ranked list, so that what is stored meanwhile moves nothing.

The list is cut once, when the first page is made: a second search would rank again, and repeat or skip. Signed, because the numbers
in it go into a query; bound to the question, because a cursor of another one would answer what was not asked.
"""

import base64
import binascii
import hashlib
import hmac
import struct

from starsearch.models import Place

HIT = struct.Struct("<qhhh")  # item id; score, cosine, words in ten-thousandths; NONE for a mode without one
NONE = -32_768
SIGNATURE_BYTES = 16
VERSION_BYTES = 6  # of an index version's fingerprint


class BadCursor(ValueError):
    """A cursor that this server did not make for this question."""


def pack(key: bytes, question: str, version: str, rest: list[Place]) -> str:
    """version: the first 12 hexadecimal characters of the index version's fingerprint."""
    body = bytes.fromhex(version) + b"".join(HIT.pack(r.item_id, _small(r.score), _small(r.vector), _small(r.text)) for r in rest)
    return base64.urlsafe_b64encode(_sign(key, question, body) + body).decode().rstrip("=")


def unpack(key: bytes, question: str, cursor: str) -> tuple[str, list[Place]]:
    """The index version and the places left. Raises BadCursor for anything that `pack` did not return for this question."""
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise BadCursor("unreadable") from error
    signature, body = raw[:SIGNATURE_BYTES], raw[SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _sign(key, question, body)):
        raise BadCursor("not ours")
    places = [Place(item_id, _large(score) or 0.0, _large(v), _large(t)) for item_id, score, v, t in HIT.iter_unpack(body[VERSION_BYTES:])]
    return body[:VERSION_BYTES].hex(), places


def _sign(key: bytes, question: str, body: bytes) -> bytes:
    return hmac.digest(key, hashlib.sha256(question.encode()).digest() + body, "sha256")[:SIGNATURE_BYTES]


def _small(value: float | None) -> int:
    return NONE if value is None else max(-32_767, min(32_767, round(value * 10_000)))


def _large(value: int) -> float | None:
    return None if value == NONE else value / 10_000
