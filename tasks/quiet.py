"""Prefect's own settings for this project, as defaults: what the environment says wins.

No telemetry leaves the machine; a server that a flow starts for itself may take its time on a busy one; and the lines that
starsearch logs appear in the run (the extra logger copies the handler, not the level, hence both).
"""

import os

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "starsearch,tasks",
    "PREFECT_LOGGING_ROOT_LEVEL": "INFO",
}

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
