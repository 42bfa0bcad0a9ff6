"""What Prometheus reads: the requests of this process, and the cluster as Redis holds it.

The labels take few values, all known in advance: no run, worker or owner is one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.control_loop import Scheduler
from service.errors import StoreUnavailable
from service.runs import Worker, WorkerState
from service.store import Store

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
FRESH_SECONDS = 1.0
"""However often /metrics is asked for, Redis is not asked more often."""


class Metrics:
    """Of one application."""

    def __init__(self) -> None:
        # When each series began: half as many again, and nobody plots it.
        disable_created_metrics()  # type: ignore[no-untyped-call] # the library leaves it so
        self._requests = CollectorRegistry()
        ProcessCollector(registry=self._requests)
        self.total = Counter("millionway_http_requests", "Requests answered", ("route", "method", "code"), registry=self._requests)
        self.seconds = Histogram(
            "millionway_http_request_seconds",
            "From the request to the head of its answer",
            ("route", "method"),
            buckets=SECONDS,
            registry=self._requests,
        )
        self._lock = asyncio.Lock()
        self._cluster = b""
        self._seen_at = float("-inf")

    async def text(self, store: Store, scheduler: Scheduler) -> bytes:
        """In Prometheus' text format."""
        async with self._lock:
            if time.monotonic() - self._seen_at > FRESH_SECONDS:
                self._cluster = generate_latest(_Fixed(await _cluster(store, scheduler)))
                self._seen_at = time.monotonic()
        return generate_latest(self._requests) + self._cluster


class _Fixed(CollectorRegistry):
    """A registry of metrics that are counted elsewhere."""

    def __init__(self, metrics: list[Metric]) -> None:
        super().__init__()
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


async def _cluster(store: Store, scheduler: Scheduler) -> list[Metric]:
    try:
        counts, workers = await store.counts(), await store.workers()
    except StoreUnavailable:
        return [_gauge("store_up", "Whether Redis answers", 0)]
    oldest = counts.get("oldest_queued_at")
    return [
        _gauge("store_up", "Whether Redis answers", 1),
        _by("runs", "Runs by status", "status", counts["counts"]),
        _gauge("queue_oldest_seconds", "How long the oldest queued run has waited", counts["now"] - oldest if oldest else 0),
        _gauge("images_per_second", "Images trained on per second, all running runs together", counts["images_per_second"]),
        _by("workers", "Workers heard of within a day, by state", "state", _worker_states(workers)),
        _by("slots", "Slots of the workers, by state", "state", _slot_states(workers)),
        _ended(counts["outcomes"]),
        _gauge(
            "scheduler_pass_seconds", "Duration of this process's last scheduling pass; 0: another one schedules", scheduler.pass_seconds
        ),
    ]


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"millionway_{name}", text, value=value)


def _by(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(f"millionway_{name}", text, labels=(label,))
    for value, number in values.items():
        family.add_metric((value,), number)
    return family


def _ended(outcomes: dict[str, str]) -> Metric:
    family = CounterMetricFamily("millionway_attempts", "Attempts that ended, by outcome", labels=("outcome",))
    for outcome, number in outcomes.items():
        family.add_metric((outcome,), int(number))
    return family


def _worker_states(workers: list[Worker]) -> dict[str, int]:
    return {str(state): sum(worker.state == state for worker in workers) for state in WorkerState}


def _slot_states(workers: list[Worker]) -> dict[str, int]:
    """`used` by an attempt; `free` to be placed on; `away`: of a worker that is silent or takes no work."""
    states = {"used": 0, "free": 0, "away": 0}
    for worker in workers:
        used = sum(len(held.slots) for held in worker.holds)
        states["used"] += used
        states["free" if worker.state == WorkerState.READY else "away"] += worker.slots - used
    return states


class MeasureRequests:
    """Counts and times every request, by the route's template."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, code = time.perf_counter(), 0

        async def measured(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                self._note(scope, code, time.perf_counter() - begun)
            await send(message)

        try:
            await self._app(scope, receive, measured)
        except Exception:
            if not code:
                self._note(scope, 500, time.perf_counter() - begun)
            raise

    def _note(self, scope: Scope, code: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", OTHER)
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self._metrics.total.labels(route, method, str(code)).inc()
        self._metrics.seconds.labels(route, method).observe(seconds)
