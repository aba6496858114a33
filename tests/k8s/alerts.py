"""What is wrong with an alert's expression: vectors whose labels differ never meet, so it would never fire; and no server says so."""

import re
from collections.abc import Iterator

OPERATOR = re.compile(r"\s(?:and|or|unless|[-+*/<>]|[=!<>]=)\s")
SCALAR = re.compile(r"[\d.]+")
WITHOUT_LABELS = re.compile(r"\(*(?:vector|absent)\(")
AGGREGATED = re.compile(r"\(*(?:sum|min|max|avg|count)\s*(?:by\s*\(([^)]*)\)\s*)?\(")
COUNTED = re.compile(r"\b(?:rate|irate|increase)\(\s*([\w:]+)")
COUNTERS = ("_total", "_count", "_sum", "_bucket")


def faults(expression: str) -> Iterator[str]:
    operands = [operand.strip() for operand in OPERATOR.split(expression)]
    labels = [_labels(operand) for operand in operands if not SCALAR.fullmatch(operand)]
    if len(labels) > 1 and (None in labels or len(set(labels)) > 1):
        yield f"its sides are not aggregated to the same labels: {expression}"
    yield from (f"{metric} is no counter" for metric in COUNTED.findall(expression) if not metric.endswith(COUNTERS))


def _labels(operand: str) -> frozenset[str] | None:
    """Those that its series have; None: whatever they were scraped with."""
    if WITHOUT_LABELS.match(operand):
        return frozenset()
    aggregated = AGGREGATED.match(operand)
    return frozenset(re.findall(r"\w+", aggregated[1] or "")) if aggregated else None
