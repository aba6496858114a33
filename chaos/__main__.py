"""make chaos SEED=n MINUTES=m ITEMS=k [PLANT=name] [COMPARE=1] [KUBERNETES=1]: breaks what breaks, then proves. Exit 0: clean; 1: it says what is
wrong, and how to see it again."""

import argparse
import sys
import time

from chaos import cluster_faults
from chaos.faults import FAULTS, GITHUB, MEAN_GAP_SECONDS, name_of, schedule, told
from chaos.kubernetes import OnKubernetes
from chaos.liar import LIE_RATE, SLOW_RATE, SLOWNESS, SUMMARIES, VECTORS
from chaos.orchestration import Orchestration
from chaos.plants import PLANTS
from chaos.proof import complete, prove
from chaos.system import END_SECONDS, System, wait_until
from chaos.zombie import stale_results
from tests.k8s.cluster import missing
from tests.processes import exit_on_sigterm


def main() -> int:
    given = read_arguments()
    system = System(given.seed or int(time.time()) % 100_000, given.items, OnKubernetes if given.kubernetes else Orchestration)
    print(f"seed {system.seed}, {given.minutes:g} minutes, about {given.items} items; everything in {system.home}", flush=True)
    clean = False
    exit_on_sigterm()
    try:
        system.up()
        if system.disk.reason:
            print(f"left out: a full disk, because this process may not mount one ({system.disk.reason})", flush=True)
        if given.plant:
            with system.connect() as connection:
                connection.execute(PLANTS[given.plant].statement)
            print(f"planted: {given.plant}", flush=True)
        system.wait_for_work()
        if given.compare:
            compare(system, given.minutes * 60, given.gap)
        else:
            break_things(system, given.minutes * 60, given.gap)
        findings = (system.settle() or complete(system) or stale_results(system)) + prove(system)
        report(system, findings)
        clean = not findings
    finally:
        system.down(keep=given.keep or not clean)
    if findings:
        others = (f" --plant {given.plant}" if given.plant else "") + (" --compare" if given.compare else "")
        others += " --kubernetes" if given.kubernetes else ""
        print(f"again: python -m chaos --seed {system.seed} --minutes {given.minutes:g} --items {given.items} --gap {given.gap:g}{others}")
    if not (findings or given.keep):
        system.forget()
    return 1 if findings else 0


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description="Break everything on a schedule drawn from a seed, then prove that nothing was lost.",
        epilog=catalogue(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="0: the time's")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--gap", type=float, default=MEAN_GAP_SECONDS, help="seconds from a fault to the next one, in the mean")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="a bug on purpose: the run must fail")
    parser.add_argument("--compare", action="store_true", help="as long without faults first; ITEMS must be more than it digests in both")
    parser.add_argument("--keep", action="store_true", help="keep the folder with database and logs")
    parser.add_argument("--kubernetes", action="store_true", help="flow runs are Jobs of a real Kubernetes API, and that breaks too")
    given = parser.parse_args()
    if given.kubernetes and (reason := missing()):
        parser.error(f"--kubernetes: {reason}")
    return given


def catalogue() -> str:
    """What is injected, and what is planted."""
    parts = {
        "Faults, and how often each is drawn": {f"{name_of(fault)} ({weight})": told(fault) for fault, weight in FAULTS.items()},
        "GitHub, when it is disturbed": GITHUB,
        f"One engine of four, of {LIE_RATE:.0%} of its summaries": dict.fromkeys(SUMMARIES, "a lie"),
        f"and of {LIE_RATE:.0%} of its vectors": dict.fromkeys(VECTORS, "a lie"),
        f"and {SLOW_RATE:.0%} of its answers": dict.fromkeys(SLOWNESS, "and true"),
        "Plants, bugs that the proof must find": {name: plant.what for name, plant in PLANTS.items()},
    }
    return "\n\n".join("\n".join([f"{title}:", *(f"  {name:<36} {what}" for name, what in rows.items())]) for title, rows in parts.items())


def break_things(system: System, seconds: float, gap: float) -> None:
    begun = time.monotonic()
    faults = FAULTS | cluster_faults.FAULTS if isinstance(system.prefect, OnKubernetes) else FAULTS
    for at, fault, chance in schedule(system.seed, seconds, gap, faults):
        work(system, until=begun + at)
        outcome = fault(system, chance)
        system.faults[name_of(fault)] += 1
        print(f"{time.monotonic() - begun:6.1f} s  {outcome}", flush=True)
    work(system, until=begun + seconds)


def work(system: System, *, until: float) -> None:
    while time.monotonic() < until:
        system.keep_busy()
        time.sleep(0.2)


def compare(system: System, seconds: float, gap: float) -> None:
    """How many items a second are digested without faults, and with them; there is more to do than either phase can."""
    wait_until(lambda: system.digested() > 0, END_SECONDS)
    rates = []
    for phase in (lambda: work(system, until=time.monotonic() + seconds), lambda: break_things(system, seconds, gap)):
        begun = time.time()
        phase()
        rates.append(system.digested(begun) / (time.time() - begun))
    calm, disturbed = rates
    print(
        f"items digested a second: {calm:.1f} without faults, {disturbed:.1f} with: {disturbed / calm:.2f} of it; "
        f"{system.number('SELECT count(*) FROM due')} were still due",
        flush=True,
    )


def report(system: System, findings: list[str]) -> None:
    print(", ".join(f"{kind} {number}" for kind, number in sorted(system.faults.items())))
    print(
        f"{system.faults.total()} faults, {system.kills} kills, {system.digested()} items digested, {system.hours} hours; "
        f"PostgreSQL met a full disk {system.said('No space left on device')} times and panicked {system.said('PANIC:')} times"
    )
    for finding in findings:
        print(f"WRONG: {finding}")
    print("clean: nothing lost, repeated or left over" if not findings else f"{len(findings)} findings")


if __name__ == "__main__":
    sys.exit(main())
