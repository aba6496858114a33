"""Prefect's command, its garbage collected beside the event loop: python deployments/prefect_server.py server start …

For a server over SQLite. CPython frees a cursor that stands in a cycle with sqlite3_reset, which waits for whoever uses that cursor's
connection. If that one waits for another connection's lock, and the one who holds the lock waits for the event loop, a collection on the
loop's thread stops the whole server until SQLite gives up: for 60 s (docs/decisions/0025). In a thread of its own it stops nobody.
"""

import gc
import threading
import time

YOUNG_SECONDS, ALL_EVERY = 1.0, 120


def collect_beside() -> None:
    """From now on garbage in cycles is freed in a daemon thread only. What lives at the first full collection is not looked at again."""
    gc.disable()
    threading.Thread(target=_collect, name="garbage", daemon=True).start()


def _collect() -> None:
    while True:
        for _ in range(ALL_EVERY):
            time.sleep(YOUNG_SECONDS)  # the pace; nothing is waited for
            gc.collect(1)
        gc.collect()
        if not gc.get_freeze_count():
            gc.freeze()  # the modules, most of the heap: the next full collections are short


if __name__ == "__main__":
    from prefect.cli import app

    collect_beside()
    app()
