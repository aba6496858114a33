"""The OpenAPI document against the server: requests made up from it must be answered as it says, and never with a 5xx."""

import subprocess
import sys
from pathlib import Path

from tests.starsearch.web.serving import Served

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,negative_data_rejection"
PHASES = "examples,coverage,fuzzing"


def test_made_up_requests_are_answered_as_documented(served: Served, tmp_path: Path):
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.base}/v1/openapi.json", "--checks", CHECKS, "--phases", PHASES]
    command += ["--max-examples", "20", "--seed", "1", "--no-color", "--generation-database", "none"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-1_000:]
