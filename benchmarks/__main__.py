"""Run the benchmarks whose figures begin with the given prefix (default: all): python -m benchmarks [prefix].

Prints how fast this machine is now, then a table, and writes build/bench.json. A figure that misses its target is printed as missing
it; exit code 1 then.
"""

import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from benchmarks import (
    embedded,
    gate,
    github,
    hybrid,
    inference,
    inference_overhead,
    leases,
    live,
    pause,
    prefect_cost,
    real_search,
    status,
    store_search,
    store_write,
    swap,
    web,
)
from benchmarks.measure import Benchmark, Figure, yardstick
from tests.processes import exit_on_sigterm

BENCHMARKS: dict[str, Benchmark] = {
    "embedded.embeddings_per_second": embedded.embeddings_per_second,
    "embedded.items_per_second": embedded.items_per_second,
    "github.hour": github.hour,
    "github.burst": github.burst,
    "github.faults": github.faults,
    "github.rank": github.rank,
    "inference.overhead_cpu_ms_per_item": inference_overhead.overhead_cpu_ms_per_item,
    "inference.duplicates.requests": inference_overhead.duplicate_requests,
    "inference.gate": gate.figures,
    "inference.memory_growth_mb": inference_overhead.memory_growth_mb,
    "inference.balance.fresh": inference.restarted,  # and .rolling_restart, .vs_sticky
    "inference.balance.scale_out": inference.scaled_out,
    "inference.balance.slow_pod": inference.slow_pod,
    "store.hybrid.recall_at_10": hybrid.recall_at_10,
    "store.real.recall": real_search.recall,  # by class of filter
    "store.real.hidden": real_search.hidden,
    "store.real.common_words": real_search.common_words,
    "store.search.recall": store_search.search_recall,
    "store.search.cpu_vs_hnswlib": store_search.search_cpu_vs_hnswlib,
    "store.write.plain_vs_copy": store_write.plain_vs_copy,
    "store.write.hnsw_vs_insert": store_write.hnsw_vs_insert,
    "store.write.deadlocks": store_write.writers,  # and .lost, .duplicates
    "store.leases.repositories_per_second": leases.repositories_per_second,
    "store.live_beside_backfill": live.beside_a_backfill,
    "store.status.seconds": status.status_seconds,
    "store.swap": swap.swap_under_load,
    "pause": pause.pause_and_resume,
    "prefect.server_cpu_seconds_per_1000_items": prefect_cost.server_cost,  # and ..._per_shard, rows_per_hour
    "web.search.overhead": web.search_overhead,
}
REPORT = Path(__file__).resolve().parents[1] / "build" / "bench.json"


def main(prefix: str = "") -> int:
    chosen = {name: run for name, run in BENCHMARKS.items() if name.startswith(prefix)}
    if not chosen:
        print(f"no benchmark begins with {prefix!r}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    exit_on_sigterm()
    print(f"yardstick: ten million rounds of s += i * i take {yardstick():.2f} s of CPU now", flush=True)
    table = Table("figure", Column("value", justify="right"), "target", "holds", Column("took", justify="right"), box=None)
    rows = []
    for name, run in chosen.items():
        started = time.monotonic()
        figures = run()
        seconds = time.monotonic() - started
        for figure in figures:
            table.add_row(*cells(figure), f"{seconds:.0f} s")
            rows.append(vars(figure) | {"holds": figure.holds, "seconds": round(seconds, 1), "command": f"make bench BENCH={name}"})
    Console().print(table)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(row["holds"] for row in rows) else 1


def cells(figure: Figure) -> list[str]:
    target = f"{figure.comparison} {figure.target:,}"
    return [f"{figure.name}\n  {figure.unit}", f"{figure.value:,}", target, "yes" if figure.holds else "MISSED"]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
