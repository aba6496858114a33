"""What a benchmark gives: one figure beside its target."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psycopg

Comparison = Literal["<=", ">=", "=="]


@dataclass(frozen=True)
class Figure:
    name: str
    value: float
    unit: str
    comparison: Comparison
    target: float

    @property
    def holds(self) -> bool:
        return {"<=": self.value <= self.target, ">=": self.value >= self.target, "==": self.value == self.target}[self.comparison]


def ask(dsn: str, query: str) -> int:
    """The one number that a query returns."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


Benchmark = Callable[[], list[Figure]]


def cpu_seconds(process: int) -> float:
    """CPU time of a process by the kernel's own count in nanoseconds: psutil's ticks of 10 ms are too coarse for one statement."""
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9


def yardstick() -> float:
    """Seconds of CPU for ten million rounds of arithmetic: where a machine's speed changes by the hour, CPU time is read beside this."""
    total, began = 0, time.process_time()
    for i in range(10_000_000):
        total += i * i
    return time.process_time() - began
