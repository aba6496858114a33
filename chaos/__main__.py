"""make chaos SEED=n MINUTES=m ITEMS=k [PLANT=name]: breaks what breaks, then proves. Exit 0: clean; 1: it says what is wrong, and how to see it again."""

import argparse
import sys
import time

from chaos.faults import FAULTS
from chaos.plants import PLANTS, statement
from chaos.proof import prove
from chaos.system import System

MEAN_GAP_SECONDS = 4.0
QUIET_SECONDS = 5.0  # until the first fault


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Break everything on a schedule drawn from a seed, then prove.")
    parser.add_argument("--seed", type=int, default=0, help="0: the time's")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--plant", choices=sorted(PLANTS), help="a bug on purpose: the run must fail")
    parser.add_argument("--keep", action="store_true", help="keep the folder with database and logs")
    given = parser.parse_args()
    system = System(given.seed or int(time.time()) % 100_000, given.items)
    print(f"seed {system.seed}, {given.minutes:g} minutes, about {given.items} items; everything in {system.home}", flush=True)
    try:
        system.up()
        if given.plant:
            with system.connect() as connection:
                connection.execute(statement(given.plant))
            print(f"planted: {given.plant}", flush=True)
        break_things(system, given.minutes * 60)
        system.settle()
        findings = prove(system)
    finally:
        system.down()
    report(system, findings)
    if findings:
        plant = f" --plant {given.plant}" if given.plant else ""
        print(f"again: python -m chaos --seed {system.seed} --minutes {given.minutes:g} --items {given.items}{plant}")
    if not (findings or given.keep):
        system.forget()
    return 1 if findings else 0


def break_things(system: System, seconds: float) -> None:
    begun = time.monotonic()
    next_fault = begun + QUIET_SECONDS
    while time.monotonic() - begun < seconds:
        system.keep_busy()
        if time.monotonic() >= next_fault:
            [fault] = system.random.choices(list(FAULTS), list(FAULTS.values()))
            told = fault(system)
            system.happened.append(told)
            print(f"{time.monotonic() - begun:6.1f} s  {told}", flush=True)
            next_fault = time.monotonic() + system.random.expovariate(1 / MEAN_GAP_SECONDS)
        time.sleep(0.2)


def report(system: System, findings: list[str]) -> None:
    kills = sum(told.startswith(("kill", "SIGTERM")) for told in system.happened)
    print(f"{len(system.happened)} faults, {kills} of them kills; {system.hours} crawls begun")
    for finding in findings:
        print(f"WRONG: {finding}")
    print("clean: nothing lost, repeated or left over" if not findings else f"{len(findings)} findings")


if __name__ == "__main__":
    sys.exit(main())
