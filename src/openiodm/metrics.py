"""What the server tells Prometheus: `openiodm_...`, in seconds and bytes, by the naming rules of its documentation.

Counters and histograms are kept as things happen; what stands in rows, or is the length of a queue, is looked at when
Prometheus asks. Nothing here is measured while nobody listens on `metrics_listen`.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200)


@dataclass(frozen=True, slots=True)
class Overview:
    """What the rows say at one moment."""

    jobs_waiting: Mapping[str, int]  # by kind: due, and nobody's
    jobs_leased: Mapping[str, int]
    notices_pending: int
    notices_undelivered: int
    upgrades_unfinished: int


class Metrics:
    """The instruments of one server."""

    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("openiodm_build", "The running version.", registry=registry).info({"version": version})
        self._requests = Counter(
            "openiodm_requests", "Requests answered, by API and status.", ["api", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "openiodm_request_seconds",
            "From the request's headers to the first byte of its answer.",
            ["api"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self._signals = Counter(
            "openiodm_device_signals", "What devices did, said, or let pass; durable.", ["what"], registry=registry
        )
        self._commit_seconds = Histogram(
            "openiodm_commit_seconds",
            "A group commit, from its first statement to the disk.",
            buckets=COMMIT_BUCKETS,
            registry=registry,
        )
        self._commit_items = Histogram(
            "openiodm_commit_items", "Items of a group commit.", buckets=BATCH_BUCKETS, registry=registry
        )
        self._queue = Gauge("openiodm_writer_waiting", "Items that wait for a commit.", ["lane"], registry=registry)
        self._downloads = Gauge("openiodm_downloads", "Package downloads under way.", registry=registry)
        self._jobs = Gauge("openiodm_jobs", "Jobs that are due, by kind.", ["kind", "state"], registry=registry)
        self._notices = Gauge("openiodm_notices", "Notices to be delivered, or given up.", ["state"], registry=registry)
        self._upgrades = Gauge("openiodm_upgrades_unfinished", "Devices in unfinished tasks.", registry=registry)
        self._checked = Counter("openiodm_tasks_recounted", "Tasks whose rows were counted again.", registry=registry)
        self._drift = Counter(
            "openiodm_counter_drift", "Tasks whose counters were not their rows: a fault.", registry=registry
        )

    def answered(self, api: str, status: int, seconds: float) -> None:
        """A request has its answer; `status` is kept as its class, `2xx`."""
        self._requests.labels(api, f"{status // 100}xx").inc()
        self._request_seconds.labels(api).observe(seconds)

    def signalled(self, what: str) -> None:
        """A device's signal is durable."""
        self._signals.labels(what).inc()

    def committed(self, seconds: float, items: int) -> None:
        """The writer has committed."""
        self._commit_seconds.observe(seconds)
        self._commit_items.observe(items)

    def recounted(self, exact: bool) -> None:
        """A task's rows were counted again, and are its counters or not."""
        self._checked.inc()
        if not exact:
            self._drift.inc()

    def look(self, overview: Overview, waiting: Mapping[str, int], downloads: int) -> None:
        """Sets what is told as it stands now; `waiting` is the writer's queue by lane."""
        for lane, count in waiting.items():
            self._queue.labels(lane).set(count)
        self._downloads.set(downloads)
        self._jobs.clear()
        for state, jobs in (("waiting", overview.jobs_waiting), ("leased", overview.jobs_leased)):
            for kind, count in jobs.items():
                self._jobs.labels(kind, state).set(count)
        self._notices.labels("pending").set(overview.notices_pending)
        self._notices.labels("undelivered").set(overview.notices_undelivered)
        self._upgrades.set(overview.upgrades_unfinished)


class Measured:
    """An ASGI application with its answers counted. `api_of` names the API that a path belongs to."""

    def __init__(self, app: ASGIApp, metrics: Metrics, api_of: Callable[[str], str]) -> None:
        self._app = app
        self._metrics = metrics
        self._api_of = api_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands the request on."""
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(self._api_of(scope["path"]), message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, counted)


class Exposition:
    """The ASGI application of `metrics_listen`: `GET /metrics`, in Prometheus's text format."""

    def __init__(self, metrics: Metrics, refresh: Callable[[], Awaitable[None]]) -> None:
        self._metrics = metrics
        self._refresh = refresh

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Looks at the rows and tells everything."""
        status, body = 404, b"the metrics are at /metrics\n"
        if scope["path"] == "/metrics":
            await self._refresh()
            status, body = 200, generate_latest(self._metrics.registry)
        headers = [(b"content-type", CONTENT_TYPE_LATEST.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body if scope["method"] == "GET" else b""})
