"""make fuzz SECONDS=n [PARSER=part of a test's name]: each test of test_fuzz.py, and each state machine of test_machines.py, elsewhere each
time, until it has used that much CPU time.

Exit 0: nothing found; 1: at least one test failed, with the case that failed in the output. Another test goes on all the same.
"""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

TESTS = {  # and how a test of it that is searched begins: the others of machines drive none that could find something new
    Path(__file__).with_name("test_fuzz.py"): r"^(?:async )?def (test_\w+)",
    Path(__file__).with_name("test_machines.py"): r"^def (test_\w+)\(.*\):\n    drive\(",
}
EXAMPLES = 5_000  # a round; few enough to end soon after its time, enough that starting Python is a small part
PASSED = re.compile(r"(\d+) passing")


def main(seconds: float, part: str = "") -> int:
    names = [
        f"{path}::{name}"
        for path, begins in TESTS.items()
        for name in re.findall(begins, path.read_text("utf-8"), re.MULTILINE)
        if part in name
    ]
    failed = [name for name in names if not survives(name, seconds)]
    print(f"{len(names) - len(failed)} of {len(names)} without a finding")
    return 1 if failed or not names else 0


def survives(test: str, seconds: float) -> bool:
    name = test.rpartition("::")[2]
    begun, examples = cpu_seconds(), 0
    while (used := cpu_seconds() - begun) < seconds:
        command = [sys.executable, "-m", "pytest", "-q", "-rP", "-p", "no:cacheprovider", "--hypothesis-show-statistics", test]
        done = subprocess.run(command, env=os.environ | {"FUZZ_EXAMPLES": str(EXAMPLES)}, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{done.stdout}\n{done.stderr}\n{name}: FAILED after {examples:,} cases", flush=True)
            return False
        examples += sum(map(int, PASSED.findall(done.stdout)))
    print(f"{name}: {examples:,} cases in {used:.0f} s of CPU", flush=True)
    return True


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), *sys.argv[2:3]))
