"""Numbers for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Measures:
    """The metrics of one server; a registry of its own, so that several servers of one process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter("mmc_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "mmc_request_seconds", "Seconds from a request to the end of its answer.", ["route"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.endings = Counter("mmc_runs", "Runs of the program, by how they ended.", ["ending"], registry=registry)
        self.tokens = Counter("mmc_tokens", "Tokens read and written by LMs.", ["kind"], registry=registry)
        self.running = Gauge("mmc_requests_running", "Requests being worked on.", registry=registry)
        self.waiting = Gauge("mmc_requests_waiting", "Requests waiting for their turn.", registry=registry)
        self.ready = Gauge("mmc_ready", "1 when requests are taken.", registry=registry)

    def spent(self, prompt: int, completion: int) -> None:
        """Counts the tokens of one request."""
        self.tokens.labels("prompt").inc(prompt)
        self.tokens.labels("completion").inc(completion)

    def text(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self._registry)
