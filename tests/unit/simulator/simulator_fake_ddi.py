"""A small DDI server for the simulator's own tests: real sockets, memory only, faults on demand."""

import asyncio
import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

REASONS = {200: "OK", 206: "Partial Content", 304: "Not Modified", 404: "Not Found", 410: "Gone"}


@dataclass
class FakeAction:
    action_id: str
    state: str = "running"  # running, waiting, canceling, finished, error, canceled
    update: str = "forced"
    reports: list[str] = field(default_factory=list)  # "execution/finished", as they came
    cancel_reports: list[str] = field(default_factory=list)

    @property
    def active(self) -> bool:
        return self.state in {"running", "waiting", "canceling"}


@dataclass
class FakeDevice:
    actions: dict[str, FakeAction] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    wants_attributes: bool = True


class FakeDdi:
    """`async with FakeDdi() as server`; knobs are plain attributes."""

    def __init__(self) -> None:
        self.payload = bytes(range(256)) * 1200
        self.version = "2.0.0"
        self.sleep = "00:00:30"
        self.promised_sha256: str | None = None
        self.offer_to_new_devices = True
        self.first_state = "running"
        self.update_mode = "forced"
        self.token: str | None = None
        self.devices: dict[str, FakeDevice] = defaultdict(FakeDevice)
        self.requests: list[tuple[str, str]] = []  # method and last part of the path
        self.ranges: list[str | None] = []
        self.statuses: Counter[int] = Counter()
        self.most_connections = 0
        self.lose_answers_to: Counter[str] = Counter()  # execution -> answers to lose after taking the report
        self.break_downloads_at: list[int] = []  # break off after so many bytes, once each
        self.serve_after_final = False
        self.serve_only: int | None = None  # bytes of a whole download; None: all
        self.offer_for_ever = False
        self.answer_once: dict[str, tuple[int, str]] = {}  # last part of a path -> (status, extra header)
        self._next_id = 1
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.come_back()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.vanish()

    async def come_back(self, port: int | None = None) -> None:
        wanted = self.port if port is None else port
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", wanted)
        self.port = self._server.sockets[0].getsockname()[1]

    async def vanish(self) -> None:
        """As kill -9 does it: no listener, every connection reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        while self._writers:
            for writer in list(self._writers):
                writer.transport.abort()
            await asyncio.sleep(0.001)

    def offer(self, device: str, state: str = "running", update: str | None = None) -> FakeAction:
        action = FakeAction(str(self._next_id), state, update or self.update_mode)
        self._next_id += 1
        self.devices[device].actions[action.action_id] = action
        return action

    def action(self, device: str) -> FakeAction:
        return next(reversed(self.devices[device].actions.values()))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # accepted before the server vanished, begun after
            writer.transport.abort()
            return
        self._writers.add(writer)
        self.most_connections = max(self.most_connections, len(self._writers))
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.split("\r\n")
                method, target, _ = lines[0].split(" ")
                headers = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in lines[1:] if x)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self._answer(method, target, headers, body, writer):
                    break
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        parts = urlsplit(target).path.strip("/").split("/")
        self.requests.append((method, parts[-1]))
        once = self.answer_once.pop(parts[-1], None)
        if once is not None:
            return self._send(writer, once[0], b"", once[1])
        if self.token is not None and headers.get("authorization") != self.token:
            return self._send(writer, 401)
        name, rest = parts[3], parts[4:]
        if rest and rest[0] == "file":
            return self._download(name, headers, writer)
        if not rest:
            known = name in self.devices
            device = self.devices[name]
            if not known and self.offer_to_new_devices:
                self.offer(name, self.first_state)
            return self._poll(name, device, headers, writer)
        device = self.devices[name]
        if rest == ["configData"]:
            device.attributes |= json.loads(body)["data"]
            device.wants_attributes = False
            return self._send(writer, 200)
        action = device.actions.get(rest[1])
        if action is None:
            return self._send(writer, 404)
        if rest[-1] == "feedback":
            return self._feedback(rest[0], device, action, json.loads(body), writer)
        return self._resource(rest[0], name, action, writer)

    def _poll(self, name: str, device: FakeDevice, headers: dict[str, str], writer: asyncio.StreamWriter) -> bool:
        root = f"{self.url}/DEFAULT/controller/v1/{name}"
        links = {}
        for action in device.actions.values():
            kinds = {"running": "deploymentBase", "waiting": "confirmationBase", "canceling": "cancelAction"}
            kind = "deploymentBase" if self.offer_for_ever else kinds.get(action.state)
            if kind:
                links[kind] = {"href": f"{root}/{kind}/{action.action_id}?c=1"}
        if device.wants_attributes:
            links["configData"] = {"href": f"{root}/configData"}
        document = {"config": {"polling": {"sleep": self.sleep}}}
        if links:
            document["_links"] = links  # type: ignore[assignment]
        body = json.dumps(document).encode()
        etag = f'"{hashlib.sha1(body).hexdigest()}"'
        if headers.get("if-none-match") == etag:
            return self._send(writer, 304, b"", f"ETag: {etag}\r\n")
        return self._send(writer, 200, body, f"ETag: {etag}\r\n")

    def _resource(self, kind: str, name: str, action: FakeAction, writer: asyncio.StreamWriter) -> bool:
        if kind == "cancelAction" and action.state == "canceling":
            document = {"id": action.action_id, "cancelAction": {"stopId": action.action_id}}
            return self._send(writer, 200, json.dumps(document).encode())
        wanted = {"deploymentBase": "running", "confirmationBase": "waiting"}.get(kind)
        if action.state != wanted and not self.offer_for_ever:
            return self._send(writer, 404)
        sha256 = self.promised_sha256 or hashlib.sha256(self.payload).hexdigest()
        artifact = {
            "filename": "x.bin",
            "size": len(self.payload),
            "hashes": {"sha1": hashlib.sha1(self.payload).hexdigest(), "sha256": sha256},
            "_links": {"download-http": {"href": f"{self.url}/DEFAULT/controller/v1/{name}/file"}},
        }
        part = {
            "download": "forced",
            "update": action.update,
            "chunks": [{"part": "os", "name": "fw", "version": self.version, "artifacts": [artifact]}],
        }
        key = "deployment" if kind == "deploymentBase" else "confirmation"
        return self._send(writer, 200, json.dumps({"id": action.action_id, key: part}).encode())

    def _feedback(
        self, kind: str, device: FakeDevice, action: FakeAction, document: dict, writer: asyncio.StreamWriter
    ) -> bool:
        if kind == "confirmationBase":
            if document["confirmation"] == "confirmed":
                action.state = "running"
            return self._send(writer, 200)
        execution, finished = document["status"]["execution"], document["status"]["result"]["finished"]
        said = f"{execution}/{finished}"
        (action.cancel_reports if kind == "cancelAction" else action.reports).append(said)
        status = 200
        if not action.active:
            same = {"finished": "closed/success", "error": "closed/failure"}.get(action.state) == said
            status = 200 if same else 410
        elif kind == "cancelAction" and execution == "closed":
            action.state = "canceled" if finished != "failure" else "running"
        elif execution == "closed":
            action.state = "error" if finished == "failure" else "finished"
            device.wants_attributes = finished != "failure"
        elif execution == "downloaded" and action.update == "skip":
            action.state = "finished"
        if self.lose_answers_to[execution] > 0:
            self.lose_answers_to[execution] -= 1
            return False
        return self._send(writer, status)

    def _download(self, name: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> bool:
        active = any(action.active for action in self.devices[name].actions.values())
        if not active and not self.serve_after_final:
            return self._send(writer, 404)
        asked = headers.get("range")
        self.ranges.append(asked)
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last or len(self.payload) - 1)
            extra = f"Content-Range: bytes {start}-{end}/{len(self.payload)}\r\n"
            status, body = 206, self.payload[start : end + 1]
        else:
            status, body, extra = 200, self.payload[: self.serve_only], ""
        if self.break_downloads_at:
            cut = self.break_downloads_at.pop(0)
            self._send(writer, status, body[:cut], extra, length=len(body))
            return False
        return self._send(writer, status, body, extra)

    def _send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        body: bytes = b"",
        extra: str = "",
        length: int | None = None,
    ) -> bool:
        self.statuses[status] += 1
        size = len(body) if length is None else length
        framing = "" if status == 304 else f"Content-Length: {size}\r\n"
        reason = REASONS.get(status, "Status")
        writer.write(f"HTTP/1.1 {status} {reason}\r\n{extra}{framing}\r\n".encode() + body)
        return True
