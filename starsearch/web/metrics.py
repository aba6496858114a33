"""Figures for Prometheus: what the alerts need, counted where it happens or read from the status when somebody asks."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from starsearch.audit import Status

SEARCH_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)

ASK_BUCKETS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)


class Metrics:
    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "starsearch_http_requests", "Answers by kind of address and status.", ["surface", "status"], registry=registry
        )
        self.search_seconds = Histogram(
            "starsearch_search_seconds", "A search, engine included.", ["mode"], buckets=SEARCH_BUCKETS, registry=registry
        )
        self.ask_seconds = Histogram("starsearch_ask_seconds", "An answer, engines included.", buckets=ASK_BUCKETS, registry=registry)
        self.answers = Counter("starsearch_answers", "Answers by kind.", ["kind"], registry=registry)
        self.allowed = Gauge(
            "starsearch_requests_per_minute",
            "What one key or address may ask of this process; the sum over all processes is what it may ask in all.",
            registry=registry,
        )
        self._items = Gauge("starsearch_items", "Items by how far they got.", ["stage"], registry=registry)
        self._backlog = Gauge("starsearch_backlog_items", "Known items that are neither searchable nor dead.", registry=registry)
        self._freshness = Gauge(
            "starsearch_freshness_seconds", "Since a crawl or an ingest last finished; NaN before the first.", registry=registry
        )
        self._dead = Gauge("starsearch_dead_letters", "Items given up, by stage and reason.", ["stage", "reason"], registry=registry)
        self._gaps = Gauge("starsearch_gap_items", "Items missing somewhere, by stage.", ["stage"], registry=registry)
        self._complete = Gauge("starsearch_complete", "1 where every known item is searchable or a named dead letter.", registry=registry)
        self._digests = Gauge("starsearch_digests_per_hour", "Items digested within the last full hour.", registry=registry)

    def render(self, status: Status) -> bytes:
        """The exposition text; surfaces and reasons are ours, never a stranger's text."""
        for stage in ("known", "stored", "summarized", "embedded"):
            self._items.labels(stage).set(getattr(status, stage))
        self._backlog.set(status.pending)
        self._freshness.set(float("nan") if status.freshness_seconds is None else status.freshness_seconds)
        self._complete.set(status.complete)
        self._digests.set(status.digests_per_hour)
        self._dead.clear()
        self._gaps.clear()
        for gap in status.gaps:
            prefix, _, reason = gap.reason.partition(": ")
            if prefix == "dead letter":
                self._dead.labels(gap.stage, reason).inc(gap.count)
            else:
                self._gaps.labels(gap.stage).inc(gap.count)
        return generate_latest(self._registry)
