"""Prefect's own settings for this project, as defaults: what the environment says wins.

No telemetry leaves the machine; a server that a flow starts for itself may take its time on a busy one; and the lines that we
log appear in the run. PREFECT_LOGGING_EXTRA_LOGGERS copies Prefect's handler and not its level, so the level is set here, on our
loggers alone: INFO at the root would log one line per HTTP request.
"""

import logging
import os

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "starsearch,tasks",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # our loggers also speak where no flow runs
}

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
for _name in ("starsearch", "tasks"):
    logging.getLogger(_name).setLevel(logging.INFO)
