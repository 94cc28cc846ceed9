"""The two published client libraries as they are on the wire, and what they make of answers.

Both were run once against a server with TLS, every call of theirs, and what they sent was recorded; what stands here is
those bytes with the ids as placeholders. Java: the NA SDK V1.5.1 on Apache HttpClient 4.5.5. PHP: the package
iotyun/iot-huawei-php on curl. Nothing of either is in this repository.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FORM, JSON = "application/x-www-form-urlencoded", "application/json"


@dataclass(frozen=True)
class Sent:
    """One call as a library sends it. `reads` is the class it reads the answer into; `keeps` are ids for later calls.

    Shapes: a type, where str may be null; a list of one shape; a mapping of members; `{}` for any object.
    """

    what: str
    method: str
    path: str
    body: str = ""
    reads: Any = None
    keeps: Mapping[str, str] = field(default_factory=dict)
    refused: tuple[int, str] | None = None
    media: str = JSON
    anonymous: bool = False  # log in and its like carry neither header


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    raw: bytes


class Library:
    """A client over a real socket. `ids` fills the placeholders; `token` is added by the caller."""

    keeps_alive: bool

    def __init__(self, port: int, ids: dict[str, str]) -> None:
        self.port = port
        self.ids = ids
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def encoded(self, sent: Sent) -> bytes:
        raise NotImplementedError

    def filled(self, text: str) -> str:
        for name, value in self.ids.items():
            text = text.replace(f"<{name}>", value)
        return text

    async def send(self, sent: Sent) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        writer.write(self.encoded(sent))
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        if not self.keeps_alive:
            await self.close()
        return Answer(int(head[0].split()[1]), headers, raw)

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            await self._streams[1].wait_closed()
            self._streams = None


class Java(Library):
    """Headers in the order of a hash map, then HttpClient's own; one connection kept alive."""

    keeps_alive = True

    def encoded(self, sent: Sent) -> bytes:
        body = self.filled(sent.body)
        lines = [f"{sent.method} {self.filled(sent.path)} HTTP/1.1"]
        if not sent.anonymous:
            lines += [f"Authorization: Bearer {self.ids['token']}", f"app_key: {self.ids['app']}"]
        if body:
            media = sent.media if sent.media == FORM else f"{sent.media}; charset=UTF-8"
            lines += [f"Content-Length: {len(body.encode())}", f"Content-Type: {media}"]
        lines += [f"Host: localhost:{self.port}", "Connection: Keep-Alive"]
        lines += ["User-Agent: Apache-HttpClient/4.5.5 (Java/17.0.15)", "Accept-Encoding: gzip,deflate"]
        return "\r\n".join([*lines, "", body]).encode()


class Php(Library):
    """curl with header lines made by hand, without a blank after the colon; a connection for each call."""

    keeps_alive = False

    def encoded(self, sent: Sent) -> bytes:
        body = self.filled(sent.body)
        lines = [f"{sent.method} {self.filled(sent.path)} HTTP/1.1", f"Host: localhost:{self.port}", "Accept: */*"]
        if body:
            lines.append(f"Content-Type:{sent.media}" if sent.media == FORM else f"Content-Type: {sent.media}")
        if not sent.anonymous:
            lines += [f"app_key:{self.ids['app']}", f"Authorization:Bearer {self.ids['token']}"]
        if body:
            lines.append(f"Content-Length: {len(body.encode())}")
        return "\r\n".join([*lines, "", body]).encode()


def check(sent: Sent, answer: Answer) -> Any:
    """The answer's body, after all that both libraries demand of it (section 1.3).

    Without a Content-Type the Java one ends in a null pointer, on every answer but 204; an `error_code` anywhere in the
    text makes it look for a refusal; a member of another type loses it the whole answer, without a word.
    """
    if answer.status == 204:
        assert answer.raw == b"", sent.what
        assert (sent.reads, sent.refused) == (None, None), sent.what
        return None
    assert "json" in answer.headers["content-type"], sent.what
    body = json.loads(answer.raw) if answer.raw else None
    if sent.refused is not None:
        assert (answer.status, body["error_code"]) == sent.refused, (sent.what, answer)
        assert {name: type(value) for name, value in body.items()} == {"error_code": str, "error_desc": str}
        return None
    assert answer.status < 300, (sent.what, answer)
    assert b"error_code" not in answer.raw, sent.what
    if sent.reads is None:
        return None
    _fits(body, sent.reads, sent.what)
    return body


def _fits(value: Any, shape: Any, at: str) -> None:
    match shape:
        case {}:
            assert isinstance(value, dict), (at, value)
            for name, inner in shape.items():
                assert name in value, f"{at}: {name} is missing"
                _fits(value[name], inner, f"{at}.{name}")
        case [inner]:
            assert isinstance(value, list), (at, value)
            for item in value:
                _fits(item, inner, f"{at}[]")
        case type():
            assert type(value) is shape or (shape is str and value is None), (at, value)
        case _:
            raise AssertionError(shape)
