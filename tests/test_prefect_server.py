"""Why the garbage of a Prefect server over SQLite is collected in a thread of its own: on the loop's thread it stops the server."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# One connection holds the lock until this thread, the event loop, gives it back; another waits for it, 4 s at most; a cursor of that other
# one is garbage in a cycle (one that reads no table: else the other would not wait but fail at once).
SCRIPT = """
import gc, sqlite3, sys, threading, time
from deployments.prefect_server import collect_beside

def connect(path):
    return sqlite3.connect(path, timeout=4, check_same_thread=False, isolation_level=None)

def write():
    began.set()
    try:
        waiting.execute("INSERT INTO row VALUES (4)")
        said.append("stored")
    except sqlite3.OperationalError as error:
        said.append(str(error))

said, began = [], threading.Event()
holder, waiting = connect(sys.argv[1]), connect(sys.argv[1])
holder.executescript("PRAGMA journal_mode = WAL; CREATE TABLE row (n); INSERT INTO row VALUES (1), (2), (3)")
cycle = [waiting.execute("SELECT 1 UNION ALL SELECT 2")]
cycle.append(cycle)
beside = sys.argv[2] == "beside"
if beside:
    collect_beside()
holder.execute("BEGIN IMMEDIATE")
writer = threading.Thread(target=write)
writer.start()
began.wait()
time.sleep(0.5)  # no sign tells that SQLite waits for the lock; its 4 s leave room on a slow machine
del cycle
if beside:
    time.sleep(2)  # twice YOUNG_SECONDS: the other thread collects meanwhile, and is stopped where the loop would be
    assert not gc.isenabled()
else:
    gc.collect()
holder.execute("COMMIT")
writer.join()
print(said[0])
"""


@pytest.mark.parametrize(("where", "said"), [("beside", "stored"), ("on the loop's thread", "database is locked")])
def test_a_garbage_cursor_stops_nobody_who_holds_the_lock(where, said, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "prefect.db"), where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.returncode) == (said, 0), done.stderr
