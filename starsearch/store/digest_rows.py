"""Digests as COPY reads them: PostgreSQL's binary form, row by row, the vectors of a batch turned into half precision at once.

psycopg would dump each field, and pgvector-python each vector, by a call of its own: two and a half times the CPU of what is done here.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from starsearch.models import DueItem

COLUMNS = "version_id, run_id, item_id, partition_at, content_hash, summary_key, embedding"
BEGIN, END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
# Each field is its length in bytes and its value; a row begins with the number of its fields, a halfvec with the number of its own.
NUMBERS = Struct("!h ih iq iq iq i")  # ... and the length of the content hash
LENGTH = Struct("!i")
VECTOR = Struct("!i hh")
EPOCH, MICROSECOND = datetime(2000, 1, 1, tzinfo=UTC), timedelta(microseconds=1)  # of PostgreSQL's timestamps


def digest_rows(
    version_id: int, run_id: int, items: Sequence[DueItem], keys: Sequence[bytes], vectors: Sequence[NDArray[np.float32]]
) -> bytes:
    """COLUMNS of each item, for COPY … FROM STDIN (FORMAT BINARY). vectors: at least one, each (dimensions,)."""
    halves = np.array(vectors).astype(">f2")
    numbers = memoryview(halves.tobytes())
    bytes_each = halves.shape[1] * 2
    vector = VECTOR.pack(4 + bytes_each, halves.shape[1], 0)
    parts: list[bytes | memoryview] = [BEGIN]
    for place, (item, key) in enumerate(zip(items, keys, strict=True)):
        moment = (item.partition_at - EPOCH) // MICROSECOND
        parts += (
            NUMBERS.pack(7, 2, version_id, 8, run_id, 8, item.id, 8, moment, len(item.content_hash)),
            item.content_hash,
            LENGTH.pack(len(key)),
            key,
            vector,
            numbers[place * bytes_each : (place + 1) * bytes_each],
        )
    return b"".join((*parts, END))
