"""The commands' HTTP client against a stub that says what it is told to."""

import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from openiodm.cli import tasks
from openiodm.cli.client import LOGIN, LOGINS, MAX_IDLE_S, Access, Client, Refused, _parts, segment
from openiodm.cli.failure import USAGE, Failure
from openiodm.northbound.native.tasks import ClocksBody

TOKEN_OVER = (403, {"error_code": "1010005", "error_desc": "App_key or access_token is invalid."})
PROBLEM_TOKEN_OVER = (401, {"reason": "token-invalid", "detail": "token-invalid", "status": 401})
THROTTLED = (403, {"error_code": "1010009", "error_desc": "app throttle exceed."})
Reply = tuple[int, Any] | Callable[["Stub"], None]


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Script:
    """What to answer to calls, in order; logins are answered T1, T2, ... by themselves."""

    replies: list[Reply] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    logins: int = 0
    login_reply: Reply | None = None

    @property
    def calls(self) -> list[Seen]:
        return [s for s in self.seen if s.path != LOGIN]


class Stub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def log_message(self, *_: Any) -> None: ...

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {k.lower(): v for k, v in self.headers.items()}
        self.script.seen.append(Seen(self.command, self.path, headers, body))
        if self.path == LOGIN:
            self.script.logins += 1
            reply = self.script.login_reply or (200, {"accessToken": f"T{self.script.logins}"})
        else:
            reply = self.script.replies.pop(0)
        if callable(reply):
            reply(self)
            return
        self.answer(*reply)

    do_GET = do_POST = do_PUT = do_DELETE = _any  # noqa: N815 - the base class's spelling

    def answer(self, status: int, value: Any) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@dataclass
class World:
    client: Client
    script: Script
    slept: list[float]
    time: list[float]
    url: str


@pytest.fixture
def world() -> Iterator[World]:
    script = Script()
    handler = type("Handler", (Stub,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    slept: list[float] = []
    time = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time[0] += seconds

    url = f"http://127.0.0.1:{server.server_port}"
    client = Client(Access(url, "app", "s3cret"), sleep=sleep, now=lambda: time[0])
    try:
        yield World(client, script, slept, time, url)
    finally:
        client.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_it_logs_in_once_and_shows_its_token(world: World) -> None:
    world.script.replies = [(200, {"a": 1}), (200, {"a": 2})]
    assert world.client.get("/x", q="ü", left_out=None) == {"a": 1}
    assert world.client.get("/y") == {"a": 2}
    assert world.script.logins == 1
    login = world.script.seen[0]
    assert (login.headers["content-type"], login.body) == (
        "application/x-www-form-urlencoded",
        b"appId=app&secret=s3cret",
    )
    first = world.script.calls[0]
    assert first.path == "/x?q=%C3%BC"
    assert first.headers["authorization"] == "Bearer T1"
    assert first.headers["app_key"] == "app"


@pytest.mark.parametrize("over", [TOKEN_OVER, PROBLEM_TOKEN_OVER])
def test_it_logs_in_again_when_the_token_is_over(world: World, over: Reply) -> None:
    world.script.replies = [over, (200, {"a": 1})]
    assert world.client.call("POST", "/x", body={"b": 2}) == {"a": 1}
    assert [c.headers["authorization"] for c in world.script.calls] == ["Bearer T1", "Bearer T2"]
    assert [json.loads(c.body) for c in world.script.calls] == [{"b": 2}, {"b": 2}]


def test_it_does_not_log_in_for_ever(world: World) -> None:
    world.script.replies = [TOKEN_OVER] * (LOGINS + 5)
    with pytest.raises(Refused, match="1010005"):
        world.client.get("/x")
    assert world.script.logins == LOGINS


def test_a_wrong_secret_is_said_at_once(world: World) -> None:
    world.script.login_reply = (401, {"error_code": "100208", "error_desc": "AppId or secret is not right."})
    with pytest.raises(Refused) as refused:
        world.client.get("/x")
    assert str(refused.value) == "AppId or secret is not right (100208)"
    assert world.script.logins == 1


def test_it_waits_when_there_are_too_many_calls(world: World) -> None:
    world.script.replies = [THROTTLED, THROTTLED, (200, {"a": 1})]
    assert world.client.get("/x") == {"a": 1}
    assert world.slept == [1.0, 1.0]


def test_its_patience_ends(world: World) -> None:
    world.script.replies = [THROTTLED] * 1000
    with pytest.raises(Refused, match="1010009"):
        world.client.get("/x")
    assert 30 <= sum(world.slept) <= 120


def test_a_native_refusal_names_the_field(world: World) -> None:
    world.script.replies = [(400, {"reason": "bad-input", "detail": "too long.", "field": "nodeId", "status": 400})]
    with pytest.raises(Refused) as refused:
        world.client.get("/x")
    assert str(refused.value) == "too long (bad-input, nodeId)"


def test_an_error_body_with_status_200_is_an_error(world: World) -> None:
    world.script.replies = [(200, {"error_code": "100603", "error_desc": "The device group is not existed."})]
    with pytest.raises(Refused, match="100603"):
        world.client.get("/x")


@pytest.mark.parametrize("body", [b"<html>gateway</html>", b"", b"[1]"])
def test_an_error_that_is_not_the_servers_is_told_with_its_status(world: World, body: bytes) -> None:
    world.script.replies = [(502, body)]
    with pytest.raises(Refused, match="HTTP 502"):
        world.client.get("/x")


def test_an_answer_that_is_no_json_is_a_failure(world: World) -> None:
    world.script.replies = [(200, b"<html>welcome</html>")]
    with pytest.raises(Failure, match="not JSON"):
        world.client.get("/x")


def test_an_empty_answer_is_none(world: World) -> None:
    world.script.replies = [(200, b"")]
    assert world.client.call("DELETE", "/x") is None


def drop(stub: Stub) -> None:
    stub.close_connection = True


def test_a_kept_connection_that_was_closed_costs_nothing_where_a_repeat_is_safe(world: World) -> None:
    world.script.replies = [(200, {}), drop, (200, {"a": 1})]
    world.client.get("/x")
    assert world.client.get("/y") == {"a": 1}


def test_a_post_is_never_sent_again_by_itself(world: World) -> None:
    world.script.replies = [(200, {}), drop, (200, {"a": 1})]
    world.client.get("/x")
    with pytest.raises(Failure, match="cannot reach"):
        world.client.call("POST", "/y", body={})
    assert len(world.script.calls) == 2


def test_a_connection_that_was_idle_for_long_is_not_used(world: World) -> None:
    world.script.replies = [(200, {}), (200, {"a": 1})]
    world.client.get("/x")
    before = world.client._connection
    world.time[0] += MAX_IDLE_S + 1
    assert world.client.call("POST", "/y", body={}) == {"a": 1}
    assert world.client._connection is not before


def test_a_server_that_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(Failure, match=r"cannot reach http://127.0.0.1:1: Connection refused"):
        Client(Access("http://127.0.0.1:1", "a", "s")).get("/x")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8743",
        "ftp://x",
        "http://",
        "http://x:y",
        "http://x:65536",
        "http://[::1",
        "http://" + "a" * 64 + ".com",
        "http://a..b",
        "http://a\u2100b",  # no name once it is normalised
        "http://h/\xe4",
        "http://\udcff",
        "http://h/\udcff",
    ],
)
def test_an_address_that_is_none_is_wrong_usage(url: str) -> None:
    with pytest.raises(Failure, match="not a URL") as failed:
        Client(Access(url, "a", "s"))
    assert (failed.value.code, url in str(failed.value)) == (USAGE, True)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://h", ("http", "h", 80, "")),
        ("https://[::1]:8443/ota/", ("https", "::1", 8443, "/ota")),
        ("https://\xe4.test", ("https", "\xe4.test", 443, "")),
    ],
)
def test_an_address_has_parts(url: str, parts: tuple[str, str, int, str]) -> None:
    assert _parts(url) == parts


def test_what_is_no_text_is_wrong_usage_and_named(world: World) -> None:
    """Any bytes may come with a command line; Python keeps what is not UTF-8 as lone surrogates."""
    no_text = os.fsdecode(b"dev-\xff")
    with pytest.raises(Failure, match="the name is not UTF-8: dev-") as in_path:
        world.client.get(f"/devices/{segment(no_text)}")
    with pytest.raises(Failure, match="model is not UTF-8: dev-") as in_query:
        world.client.get("/devices", deviceType="sensor", model=no_text)
    with pytest.raises(Failure, match="name is not UTF-8: dev-") as of_a_file:
        world.client.upload("/packages", {"name": no_text}, io.BytesIO(b"x"), 1, lambda _: None)
    assert {failed.value.code for failed in (in_path, in_query, of_a_file)} == {USAGE}
    assert world.script.calls == []


@pytest.mark.parametrize(("app_id", "secret"), [("a", "s3cret-\udcff"), ("a-\udcff", "s3cret")])
def test_credentials_that_are_no_text_are_wrong_usage_and_not_shown(app_id: str, secret: str) -> None:
    with pytest.raises(Failure, match="not UTF-8") as failed:
        Client(Access("http://127.0.0.1:1", app_id, secret)).get("/x")
    assert failed.value.code == USAGE
    assert "s3cret" not in str(failed.value)


def test_an_upload_is_sent_whole_again_after_a_login(world: World) -> None:
    content = bytes(range(256)) * 4096
    world.script.replies = [TOKEN_OVER, (201, {"fileId": "f"})]
    sent: list[int] = []
    done = world.client.upload("/p", {"type": "t"}, io.BytesIO(content), len(content), sent.append)
    assert done == {"fileId": "f"}
    assert [c.body for c in world.script.calls] == [content, content]
    assert sum(sent) == 2 * len(content)


def test_lines_are_sent_and_read_as_they_are(world: World) -> None:
    world.script.replies = [(200, b'{"line":1}\n{"line":2}\n')]
    assert world.client.send_lines("/bulk", [b"{}", b"not json"]) == [{"line": 1}, {"line": 2}]
    assert world.script.calls[0].body == b"{}\nnot json\n"


def test_a_large_answer_comes_in_pieces(world: World) -> None:
    body = b"x" * 300_000
    world.script.replies = [TOKEN_OVER, (200, body)]
    pieces = list(world.client.stream("/export", format="csv"))
    assert b"".join(pieces) == body
    assert len(pieces) > 1


def test_an_answer_that_breaks_off_is_a_failure(world: World) -> None:
    def half(stub: Stub) -> None:
        stub.send_response(200)
        stub.send_header("Content-Length", "1000")
        stub.end_headers()
        stub.wfile.write(b"x" * 10)
        stub.close_connection = True

    world.script.replies = [half, half]
    with pytest.raises(Failure, match="broke off"):
        list(world.client.stream("/export"))
    with pytest.raises(Failure, match="broke off"):
        world.client.get("/x")


def test_every_clock_of_a_task_has_an_option(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"fileId": "f", "type": "firmwarePackage", "deviceType": "t", "model": "m", "manufacturerName": "a"}
    world.script.replies = [(200, package), (201, {"operationId": "o1"})]
    for name, value in {"URL": world.url, "APP_ID": "app", "SECRET": "s3cret"}.items():
        monkeypatch.setenv(f"OPENIODM_{name}", value)
    clocks = {field.encode_name: 60 + n for n, field in enumerate(msgspec.structs.fields(ClocksBody))}
    options = [f"--{name.removesuffix('Seconds')}-seconds={value}" for name, value in clocks.items()]
    done = CliRunner().invoke(tasks.app, ["create", "--package", "f", "--group", "g", *options])
    assert (done.exit_code, done.stdout) == (0, "o1\n"), done.output
    assert json.loads(world.script.calls[-1].body)["clocks"] == clocks
