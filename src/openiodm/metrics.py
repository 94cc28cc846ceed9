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
    notices_wait_ms: int  # for how long the oldest of those to be delivered has waited
    upgrades_unfinished: int


@dataclass(frozen=True, slots=True)
class ListIndex:
    """The task list's index in memory. `behind`: changes in its log that it has not read yet."""

    tasks: int
    octets: int
    behind: int


@dataclass(frozen=True, slots=True)
class Present:
    """What this process has in hand. `waiting` is the writer's queue by lane; `index` None: not built."""

    waiting: Mapping[str, int]
    downloads: int
    receivers: int
    index: ListIndex | None


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
        self._device_requests = Counter(
            "openiodm_device_requests",
            "DDI requests answered, by kind and status.",
            ["what", "status"],
            registry=registry,
        )
        self._device_seconds = Histogram(
            "openiodm_device_request_seconds",
            "Of DDI, as openiodm_request_seconds.",
            ["what"],
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
        self._downloaded = Counter("openiodm_downloads_ended", "Downloads, by their end.", ["how"], registry=registry)
        self._bytes = Counter("openiodm_download_bytes", "Package bytes that we sent.", registry=registry)
        self._steps = Counter(
            "openiodm_job_steps",
            "Steps of jobs; lost: another server had the lease.",
            ["kind", "end"],
            registry=registry,
        )
        self._step_seconds = Histogram(
            "openiodm_job_step_seconds",
            "A step of a job, with its wait for the writer.",
            ["kind"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self._jobs = Gauge("openiodm_jobs", "Jobs that are due, by kind.", ["kind", "state"], registry=registry)
        self._notices = Gauge("openiodm_notices", "Notices to be delivered, or given up.", ["state"], registry=registry)
        self._oldest = Gauge(
            "openiodm_notice_wait_seconds", "For how long the oldest pending notice has waited.", registry=registry
        )
        self._attempts = Counter(
            "openiodm_notice_attempts", "Attempts to deliver a notice, by their end.", ["end"], registry=registry
        )
        self._attempt_seconds = Histogram(
            "openiodm_notice_attempt_seconds",
            "An attempt to deliver a notice, connecting included.",
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self._receivers = Gauge(
            "openiodm_receivers_leased", "Receivers that this server delivers to.", registry=registry
        )
        self._index_tasks = Gauge("openiodm_list_index_tasks", "Tasks in the list's index.", registry=registry)
        self._index_bytes = Gauge("openiodm_list_index_bytes", "Memory of the list's bitmaps.", registry=registry)
        self._index_behind = Gauge(
            "openiodm_list_index_behind", "Changes that the list's index has not read yet.", registry=registry
        )
        self._index_ready = Gauge(
            "openiodm_list_index_ready", "1: the task list is answered from the index.", registry=registry
        )
        self._upgrades = Gauge("openiodm_upgrades_unfinished", "Devices in unfinished tasks.", registry=registry)
        self._checked = Counter("openiodm_tasks_recounted", "Tasks whose rows were counted again.", registry=registry)
        self._drift = Counter(
            "openiodm_counter_drift", "Tasks whose counters were not their rows: a fault.", registry=registry
        )

    def answered(self, api: str, what: str | None, status: int, seconds: float) -> None:
        """A request has its answer; `status` is kept as its class, `2xx`. `what` a device asked, where it was one."""
        kind = f"{status // 100}xx"
        self._requests.labels(api, kind).inc()
        self._request_seconds.labels(api).observe(seconds)
        if what is not None:
            self._device_requests.labels(what, kind).inc()
            self._device_seconds.labels(what).observe(seconds)

    def sent(self, octets: int) -> None:
        """Bytes of a package went out."""
        self._bytes.inc(octets)

    def downloaded(self, how: str) -> None:
        """A download has ended."""
        self._downloaded.labels(how).inc()

    def stepped(self, kind: str, end: str, seconds: float) -> None:
        """A step of a job has ended."""
        self._steps.labels(kind, end).inc()
        self._step_seconds.labels(kind).observe(seconds)

    def attempted(self, delivered: bool, seconds: float) -> None:
        """An attempt to deliver a notice has ended."""
        self._attempts.labels("delivered" if delivered else "failed").inc()
        self._attempt_seconds.observe(seconds)

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

    def look(self, overview: Overview, present: Present) -> None:
        """Sets what is told as it stands now."""
        for lane, count in present.waiting.items():
            self._queue.labels(lane).set(count)
        self._downloads.set(present.downloads)
        self._receivers.set(present.receivers)
        self._look_at_index(present.index)
        self._jobs.clear()
        for state, jobs in (("waiting", overview.jobs_waiting), ("leased", overview.jobs_leased)):
            for kind, count in jobs.items():
                self._jobs.labels(kind, state).set(count)
        self._notices.labels("pending").set(overview.notices_pending)
        self._notices.labels("undelivered").set(overview.notices_undelivered)
        self._oldest.set(overview.notices_wait_ms / 1000)
        self._upgrades.set(overview.upgrades_unfinished)

    def _look_at_index(self, index: ListIndex | None) -> None:
        self._index_ready.set(index is not None)
        index = index or ListIndex(0, 0, 0)
        self._index_tasks.set(index.tasks)
        self._index_bytes.set(index.octets)
        self._index_behind.set(index.behind)


class Measured:
    """An ASGI application with its answers counted. `kind_of` names the API that a path belongs to, and of the devices'
    also what is asked.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, kind_of: Callable[[str], tuple[str, str | None]]) -> None:
        self._app = app
        self._metrics = metrics
        self._kind_of = kind_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands the request on."""
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                kind = self._kind_of(scope["path"])
                self._metrics.answered(*kind, message["status"], time.perf_counter() - began)
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
