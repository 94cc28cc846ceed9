"""OpenTelemetry: what a real server sends to a receiver of OTLP, and that it costs nothing where nobody wants it."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from openiodm.cli import serve
from openiodm.cli.failure import Failure
from tests.support.process import Northbound, Server, free_port, fresh_database, gateway_token

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROTOBUF = {"Content-Type": "application/x-protobuf"}


class Receiver:
    """Takes OTLP over HTTP, and callbacks."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.callbacks: list[str | None] = []
        self.was_called = asyncio.Event()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        export = ExportTraceServiceRequest.FromString(await request.read())
        for resource in export.resource_spans:
            named = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.services.add(named["service.name"])
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response(body=ExportTraceServiceResponse().SerializeToString(), headers=PROTOBUF)

    async def called(self, request: web.Request) -> web.Response:
        self.callbacks.append(request.headers.get("traceparent"))
        self.was_called.set()
        return web.Response()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    here = Receiver()
    app = web.Application()
    app.router.add_post("/v1/traces", here.take)
    app.router.add_post("/callback", here.called)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", free_port())
    await site.start()
    here.url = site.name
    try:
        yield here
    finally:
        await runner.cleanup()


def attributes(span: Span) -> dict[str, object]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
async def test_requests_commits_and_callbacks_are_spans_and_belong_together(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving() as receiver, fresh_database(engine, tmp_path) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "ota")
        server = Server(tmp_path, url, free_port(), traces="true", callback_allow="127.0.0.1")
        application = await server.cli("app", "create", "traces", "--json")
        token = await gateway_token(server, application["appId"])
        await server.start()
        try:
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
                api = Northbound(http, application["appId"], application["secret"])
                subscription = {"notifyType": "deviceAdded", "callbackUrl": f"{receiver.url}/callback"}
                await api.call("POST", "/iocm/app/sub/v1.2.0/subscriptions", json=subscription)
                device = {"Authorization": f"GatewayToken {token}", "traceparent": f"00-{TRACE}-{PARENT}-01"}
                assert (await http.get("/DEFAULT/controller/v1/dev?secret=x", headers=device)).status_code == 200
                await api.call("GET", "/api/v1/devices")
                assert (await http.get("/api/v1/devices")).status_code in (401, 403)
                async with asyncio.timeout(20):
                    await receiver.was_called.wait()
        finally:
            assert await server.end(signal.SIGTERM) == 0  # what is left is sent at the end
    assert receiver.services == {"ota"}
    (poll,) = receiver.named("GET ddi poll")
    assert (poll.trace_id.hex(), poll.parent_span_id.hex()) == (TRACE, PARENT)
    assert poll.kind == Span.SPAN_KIND_SERVER
    assert attributes(poll) == {
        "http.request.method": "GET",
        "url.path": "/DEFAULT/controller/v1/dev",
        "openiodm.api": "ddi",
        "http.response.status_code": 200,
    }
    linked = [c for c in receiver.named("commit") if poll.span_id in {link.span_id for link in c.links}]
    assert linked, "the first contact is committed"
    assert {link.trace_id.hex() for c in linked for link in c.links if link.span_id == poll.span_id} == {TRACE}
    assert all(attributes(c)["openiodm.items"] for c in linked)
    native = receiver.named("GET native")
    assert 200 in {attributes(s)["http.response.status_code"] for s in native}
    assert receiver.named("POST compat")
    callbacks = receiver.named("POST callback")
    assert {span.kind for span in callbacks} == {Span.SPAN_KIND_CLIENT}
    told = {str(header).rpartition("-")[0] for header in receiver.callbacks}  # the flags are the SDK's
    assert {f"00-{s.trace_id.hex()}-{s.span_id.hex()}" for s in callbacks} == told
    everything = "".join(map(str, receiver.spans))
    for secret in (token, application["secret"], "secret=x"):
        assert secret not in everything


async def test_a_receiver_that_is_not_there_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    server = Server(tmp_path, f"sqlite:///{tmp_path / 'openiodm.db'}", free_port(), traces="true")
    await server.start()
    async with httpx.AsyncClient(base_url=server.url) as http:
        assert (await http.get("/readyz")).status_code == 200
    assert await server.end(signal.SIGTERM) == 0


def test_nothing_of_it_is_imported_where_nobody_wants_it() -> None:
    code = "import sys, openiodm.app, openiodm.cli.main; print([m for m in sys.modules if 'opentelemetry' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_its_package_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.delitem(sys.modules, "openiodm.traces", raising=False)
    with pytest.raises(Failure, match=r"pip install 'openiodm\[otel\]'"):
        serve._traces()
