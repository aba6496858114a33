"""What a benchmark gives: one figure beside its target."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

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


Benchmark = Callable[[], list[Figure]]
