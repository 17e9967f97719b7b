"""Figures for Prometheus. No label holds a name, an address or an id of a job."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one server.

    Args:
        queue: tells how many films wait or are in work.
        jobs: tells how many jobs are held.
    """

    def __init__(self, queue: Callable[[], int], jobs: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.films = Counter("cxr_films", "Films finished, by status.", ["status"], registry=self._registry)
        self.film_seconds = Histogram(
            "cxr_film_seconds", "Seconds to read and judge a film.", buckets=_SECONDS, registry=self._registry
        )
        self.requests = Counter(
            "cxr_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self.request_seconds = Histogram(
            "cxr_request_seconds", "Seconds to answer a request.", ["route"], buckets=_SECONDS, registry=self._registry
        )
        Gauge("cxr_queue_films", "Films that wait or are in work.", registry=self._registry).set_function(queue)
        Gauge("cxr_jobs", "Jobs held.", registry=self._registry).set_function(jobs)
        for status in ("ok", "refused", "failed"):
            self.films.labels(status)

    def add(self, figures: Collector) -> None:
        """Show further figures, taken whenever somebody asks for them."""
        self._registry.register(figures)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)
