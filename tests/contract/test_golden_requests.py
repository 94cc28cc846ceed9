"""Requests byte for byte as real northbound clients send them, over a real socket.

Java: Huawei's NA SDK on Apache HttpClient (no Content-Type on GET and DELETE, `application/json; charset=UTF-8` on
POST, keep-alive, query parameters in the order of a hash map). PHP: curl with hand-made header lines
(`Authorization:Bearer T` without a blank after the colon). Both send `app_key` with its underscore.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from openiodm.app import running
from openiodm.settings import load
from tests.support.process import free_port

JAVA_LOGIN = (
    "POST /iocm/app/sec/v1.1.0/login HTTP/1.1\r\n"
    "Content-Length: {length}\r\n"
    "Content-Type: application/x-www-form-urlencoded\r\n"
    "Host: 127.0.0.1:{port}\r\n"
    "Connection: Keep-Alive\r\n"
    "User-Agent: Apache-HttpClient/4.4.1 (Java/1.8.0_131)\r\n"
    "Accept-Encoding: gzip,deflate\r\n"
    "\r\n"
    "{body}"
)
JAVA_GET = (
    "GET {path} HTTP/1.1\r\n"
    "app_key: {app_id}\r\n"
    "Authorization: Bearer {token}\r\n"
    "Host: 127.0.0.1:{port}\r\n"
    "Connection: Keep-Alive\r\n"
    "User-Agent: Apache-HttpClient/4.4.1 (Java/1.8.0_131)\r\n"
    "Accept-Encoding: gzip,deflate\r\n"
    "\r\n"
)
JAVA_POST = (
    "POST {path} HTTP/1.1\r\n"
    "app_key: {app_id}\r\n"
    "Authorization: Bearer {token}\r\n"
    "Content-Length: {length}\r\n"
    "Content-Type: application/json; charset=UTF-8\r\n"
    "Host: 127.0.0.1:{port}\r\n"
    "Connection: Keep-Alive\r\n"
    "User-Agent: Apache-HttpClient/4.4.1 (Java/1.8.0_131)\r\n"
    "Accept-Encoding: gzip,deflate\r\n"
    "\r\n"
    "{body}"
)
PHP_GET = (
    "GET {path} HTTP/1.1\r\n"
    "Host: 127.0.0.1:{port}\r\n"
    "Accept: */*\r\n"
    "app_key:{app_id}\r\n"
    "Authorization:Bearer {token}\r\n"
    "Content-Type:application/json\r\n"
    "\r\n"
)
LIST = "/iodm/northbound/v1.5.0/operations"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class Client:
    """One keep-alive connection, as both clients use it."""

    port: int
    app_id: str
    secret: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    token: str = ""

    async def send(self, template: str, path: str = "", body: str = "") -> Answer:
        values = {"port": self.port, "app_id": self.app_id, "token": self.token, "path": path}
        self.writer.write(template.format(**values, body=body, length=len(body.encode())).encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        raw = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(head[0].split()[1]), headers, json.loads(raw) if raw else None)

    async def login(self) -> Answer:
        answer = await self.send(JAVA_LOGIN, body=f"appId={self.app_id}&secret={self.secret}")
        self.token = answer.body["accessToken"]
        return answer


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    port = free_port()
    settings = load(environ={}, data_dir=str(tmp_path), listen=f"127.0.0.1:{port}")
    async with running(settings) as rooms:
        made = await rooms.access.create_application("golden")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        yield Client(port, made.app_id, made.secret, reader, writer)
        writer.close()


async def test_the_java_clients_login(client: Client) -> None:
    answer = await client.login()
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/json")
    assert set(answer.body) == {"accessToken", "tokenType", "expiresIn", "refreshToken", "scope"}
    assert (answer.body["scope"], answer.body["expiresIn"]) == ("default", 3600)


@pytest.mark.parametrize("template", [JAVA_GET, PHP_GET], ids=["java", "php"])
async def test_the_task_list_for_both_clients(client: Client, template: str) -> None:
    await client.login()
    answer = await client.send(
        template, f"{LIST}?pageSize=10&operationStatus=FAIL&operationType=firmware_upgrade&pageNo=0"
    )
    assert (answer.status, answer.body) == (
        200,
        {"data": [], "pageNo": 0, "pageSize": 10, "totalCount": 0, "totalSize": 0},
    )
    assert answer.headers["content-type"] == "application/json"


async def test_the_java_clients_registration_drops_what_is_null(client: Client) -> None:
    await client.login()
    answer = await client.send(
        JAVA_POST, "/iocm/app/reg/v1.1.0/deviceCredentials", '{"nodeId":"860000000000001","timeout":0}'
    )
    assert answer.status == 200
    assert set(answer.body) == {"deviceId", "verifyCode", "timeout", "psk"}
    one = await client.send(JAVA_GET, f"/iocm/app/reg/v1.1.0/deviceCredentials/{answer.body['deviceId']}")
    assert one.body == {"deviceId": answer.body["deviceId"], "activated": False, "name": None}


async def test_the_java_clients_create_call_with_a_primitive_retry_type(client: Client) -> None:
    await client.login()
    body = '{"fileId":"none","targets":{"devices":["d"]},"policy":{"executeType":"now","retryType":false}}'
    answer = await client.send(JAVA_POST, f"{LIST}/firmwareUpgrade", body)
    assert (answer.status, answer.body["error_code"]) == (404, "123002")
    assert all(isinstance(value, str) for value in answer.body.values())


async def test_an_error_never_lacks_its_content_type_and_string_code(client: Client) -> None:
    answer = await client.send(JAVA_GET, LIST)  # not logged in
    assert (answer.status, answer.body["error_code"]) == (403, "1010005")
    assert answer.headers["content-type"] == "application/json"
    answer = await client.send(JAVA_GET, "/iodm/northbound/v1.5.0/nothing")
    assert (answer.status, answer.body["error_code"]) == (404, "120015")
