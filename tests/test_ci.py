"""What `.ci/run` says of a machine that lacks what tests need: they are skipped there, and must not look as if they had passed."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_what_cannot_be_tried_is_told_at_the_end(tmp_path):
    for program in ("bash", "env", "dirname"):
        found = shutil.which(program)
        assert found
        (tmp_path / program).symlink_to(found)
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "make $*"\n')
    make.chmod(0o755)
    run = [str(ROOT / ".ci" / "run")]
    done = subprocess.run(run, env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "make lint test\n"
    told = [line for line in done.stderr.splitlines() if line.startswith("NOT TESTED HERE: ")]
    assert [line.rpartition(": ")[2] for line in told] == ["no chromium", "no kubectl", "no kubectl here"]
    assert done.stderr.splitlines()[-3:] == told
