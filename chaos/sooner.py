"""A flow run for which a minute of waiting is six seconds: python -m chaos.sooner NAME, instead of python -m prefect.engine.

NAME, its deployment's, only shows in the process table what it is.
"""

import runpy
import sys
from datetime import timedelta

from starsearch.store import leases, shards
from tasks import reaping

SPEED = 10
BEGINS_WITHIN = timedelta(seconds=90)  # a process takes as long to start as ever


def main() -> None:
    reaping.PATIENCE = {state: patience / SPEED for state, patience in reaping.PATIENCE.items()}
    reaping.LOOKS_APART_SECONDS /= SPEED
    leases.PING_SECONDS /= SPEED
    shards.PAUSE /= SPEED
    shards.STARTS_WITHIN = BEGINS_WITHIN
    del sys.argv[1:]  # the engine would take NAME for a flow run
    runpy.run_module("prefect.engine", run_name="__main__")


if __name__ == "__main__":
    main()
