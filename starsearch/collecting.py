"""How often Python looks for cycles of objects that hold each other: rarely, where answers come in by the thousand."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

COLLECT_AFTER = 50_000
"""Objects made and not dropped until it looks; its own 700 is reached three times in one answer of GitHub."""

_lock = Lock()
_usual: list[tuple[int, int, int]] = []  # what held before, once for each that is inside


@contextmanager
def rare_collections() -> Iterator[None]:
    """Answers are trees, which hold no cycles: looking for some costs a tenth of the CPU (benchmarks/README.md) and finds next to none.

    The threshold is the process's: of several at the same time, the last one out restores it.
    """
    with _lock:
        _usual.append(_usual[0] if _usual else gc.get_threshold())
        gc.set_threshold(COLLECT_AFTER, *_usual[0][1:])
    try:
        yield
    finally:
        with _lock:
            usual = _usual.pop()
            if not _usual:
                gc.set_threshold(*usual)
