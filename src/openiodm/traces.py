"""OpenTelemetry: spans of requests, of the writer's commits and of callbacks, sent by OTLP over HTTP.

Imported only where `traces` is set. Where they go, how many are kept and what the server calls itself there is said by
the standard variables `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME` and so on, which the
SDK reads. No span holds a token, a body or a query.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_propagator = TraceContextTextMapPropagator()
_PROPAGATED = frozenset({b"traceparent", b"tracestate"})


class Traces:
    """The spans of one process. Made after a fork, since a thread sends them."""

    def __init__(self, version: str) -> None:
        ours = Resource.create({"service.name": "openiodm", "service.version": version})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("openiodm", version)

    def requests(self, app: ASGIApp, kind_of: Callable[[str], tuple[str, str | None]]) -> ASGIApp:
        """An ASGI application with a span for every request; the caller's trace, if it names one, goes on in it."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            api, what = kind_of(scope["path"])
            carrier = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"] if k in _PROPAGATED}
            with self._tracer.start_as_current_span(
                f"{scope['method']} {api} {what}" if what else f"{scope['method']} {api}",
                context=_propagator.extract(carrier),
                kind=SpanKind.SERVER,
                attributes={"http.request.method": scope["method"], "url.path": scope["path"], "openiodm.api": api},
            ) as span:

                async def told(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        span.set_attribute("http.response.status_code", message["status"])
                        if message["status"] >= 500:
                            span.set_status(Status(StatusCode.ERROR))
                    await send(message)

                await app(scope, receive, told)

        return traced

    def origin(self) -> SpanContext | None:
        """What is going on where something is handed to the writer."""
        context = get_current_span().get_span_context()
        return context if context.is_valid else None

    @contextmanager
    def commit(self, origins: Sequence[SpanContext | None]) -> Iterator[None]:
        """A group commit; it is nobody's child, and is linked to all that it makes durable."""
        links = [Link(c) for c in {(c.trace_id, c.span_id): c for c in origins if c is not None}.values()]
        with self._tracer.start_as_current_span("commit", links=links, attributes={"openiodm.items": len(origins)}):
            yield

    @contextmanager
    def callback(self, url: str, headers: dict[str, str]) -> Iterator[Callable[[str | None], None]]:
        """An attempt to deliver a notice: `headers` get its `traceparent`. What is yielded takes what went wrong."""
        target = urlsplit(url)
        with self._tracer.start_as_current_span(
            "POST callback",
            kind=SpanKind.CLIENT,
            attributes={"http.request.method": "POST", "server.address": target.hostname or ""},
        ) as span:
            _propagator.inject(headers)

            def ended(error: str | None) -> None:
                if error is not None:
                    span.set_status(Status(StatusCode.ERROR, error))

            yield ended

    async def close(self) -> None:
        """Sends what is left. A receiver that is not there costs up to `OTEL_EXPORTER_OTLP_TIMEOUT`, 10 s."""
        await asyncio.to_thread(self._provider.shutdown)
