"""TLS on real sockets, on the event loop that serves: who is answered, and what the others are told."""

import asyncio
import json
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import uvloop

from openiodm import app
from openiodm.access.model import Product
from openiodm.app import StartError, running
from openiodm.rooms import Rooms
from openiodm.settings import load
from tests.support.certificates import Certificates, Files, write
from tests.support.process import free_port
from tests.support.served import until

PRODUCT = {"deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def folder(tmp_path: Path, sqlite_template: Path) -> Path:
    shutil.copy(sqlite_template, tmp_path / "openiodm.db")
    return tmp_path


class Server:
    """A server in this process, and clients that speak to it from threads."""

    def __init__(self, rooms: Rooms, port: int, device_port: int) -> None:
        self.rooms = rooms
        self.port = port
        self.device_port = device_port

    async def get(self, context: ssl.SSLContext, path: str = "/healthz", **kwargs: Any) -> httpx.Response:
        """One request on a connection of its own."""
        async with httpx.AsyncClient(verify=context, base_url=f"https://localhost:{self.port}") as http:
            return await http.get(path, **kwargs)

    async def refusal(self, context: ssl.SSLContext) -> str:
        """What a client is told that is not answered: the alert's name."""

        def ask() -> str:
            with socket.create_connection(("127.0.0.1", self.port), 10) as raw:
                try:
                    with context.wrap_socket(raw, server_hostname="localhost") as connection:
                        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                        return connection.recv(100).decode()
                except ssl.SSLError as error:
                    return str(error.reason)

        return await asyncio.to_thread(ask)


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[Server]:
    port, device_port = free_port(), free_port()
    given = {"device_listen": f"127.0.0.1:{device_port}"} if settings.pop("split", False) else {}
    given |= {name: str(value) for name, value in settings.items()}
    async with running(load(environ={}, data_dir=str(folder), listen=f"127.0.0.1:{port}", **given)) as rooms:
        yield Server(rooms, port, device_port)


def tls(files: Files, prefix: str = "") -> dict[str, Path]:
    return {f"{prefix}tls_certificate": files.certificate, f"{prefix}tls_key": files.key}


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_versions_1_2_and_1_3_are_answered(folder: Path, certificates: Certificates, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        async with serving(folder, **tls(certificates.server)) as server:
            answer = await server.get(certificates.context(least=version, most=version))
            assert answer.json() == {"status": "ok"}

    uvloop.run(main())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_version_1_1_is_told_why_it_is_refused(folder: Path, certificates: Certificates) -> None:
    async def main() -> None:
        async with serving(folder, **tls(certificates.server)) as server:
            old = certificates.context()
            old.set_ciphers("ALL:@SECLEVEL=0")
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            assert await server.refusal(old) == "TLSV1_ALERT_PROTOCOL_VERSION"

    uvloop.run(main())


SUITES = {
    "ECDHE-RSA-AES128-GCM-SHA256": True,  # Java 8, curl, SWUpdate's libcurl
    "ECDHE-RSA-AES256-GCM-SHA384": True,
    "ECDHE-RSA-CHACHA20-POLY1305": True,
    "ECDHE-RSA-AES128-SHA256": True,  # Java 7
    "ECDHE-RSA-AES256-SHA384": True,
    "ECDHE-RSA-AES128-SHA": False,  # SHA-1
    "AES128-GCM-SHA256": False,  # no forward secrecy
    "AES128-SHA": False,
    "DHE-RSA-AES128-GCM-SHA256": False,
}


def test_suites_of_tls_1_2(folder: Path, certificates: Certificates) -> None:
    async def main() -> None:
        async with serving(folder, **tls(certificates.server)) as server:
            for suite, taken in SUITES.items():
                context = certificates.context(most=TLS12)
                context.set_ciphers(suite + ":@SECLEVEL=0")
                if taken:
                    assert (await server.get(context)).status_code == 200, suite
                else:
                    assert await server.refusal(context) == "SSLV3_ALERT_HANDSHAKE_FAILURE", suite

    uvloop.run(main())


def test_plain_http_is_told_that_this_is_https(folder: Path, certificates: Certificates) -> None:
    async def main() -> None:
        async with serving(folder, **tls(certificates.server)) as server, httpx.AsyncClient() as http:
            answer = await http.get(f"http://localhost:{server.port}/healthz")
            assert (answer.status_code, answer.text) == (400, "This port speaks HTTPS only\n")

    uvloop.run(main())


def test_a_client_that_says_nothing_or_nonsense_is_in_nobodys_way(folder: Path, certificates: Certificates) -> None:
    async def main() -> None:
        async with serving(folder, **tls(certificates.server)) as server:
            silent = await asyncio.open_connection("127.0.0.1", server.port)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"\x00" * 4000)
            assert (await server.get(certificates.context())).status_code == 200
            assert await asyncio.wait_for(reader.read(-1), 60) == b""
            for stream in (silent[1], writer):
                stream.close()
                await stream.wait_closed()

    uvloop.run(main())


# what is asked -> who shows what -> the alert; "" for an answer
REQUEST_AND_REQUIRE = {
    "client": "",
    "stranger": "TLSV1_ALERT_UNKNOWN_CA",
    "expired": "SSLV3_ALERT_CERTIFICATE_EXPIRED",
}
ASKED = {
    "off": {"none": "", "client": "", "stranger": "", "expired": ""},
    "request": {"none": "", **REQUEST_AND_REQUIRE},
    "require": {"none": "certificate required", **REQUEST_AND_REQUIRE},
}


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("asked", ASKED)
def test_client_certificates(folder: Path, certificates: Certificates, asked: str, version: ssl.TLSVersion) -> None:
    required = "TLSV13_ALERT_CERTIFICATE_REQUIRED" if version is TLS13 else "SSLV3_ALERT_HANDSHAKE_FAILURE"
    clients = {} if asked == "off" else {"tls_client_ca": certificates.ca, "tls_client_certificates": asked}

    async def main() -> None:
        async with serving(folder, **tls(certificates.server), **clients) as server:
            for who, alert in ASKED[asked].items():
                context = certificates.context(getattr(certificates, who, None), least=version, most=version)
                if alert:
                    told = await server.refusal(context)
                    assert told == (required if alert == "certificate required" else alert), who
                else:
                    assert (await server.get(context)).status_code == 200, who

    uvloop.run(main())


def test_a_server_without_a_certificate_of_the_clients_authorities_is_not_trusted(
    folder: Path, certificates: Certificates
) -> None:
    async def main() -> None:
        async with serving(folder, **tls(certificates.server)) as server:
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                await server.get(ssl.create_default_context())
            assert (await server.get(certificates.context())).status_code == 200

    uvloop.run(main())


def test_a_renewed_certificate_is_taken_up_while_an_open_connection_goes_on(
    folder: Path, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "RENEWAL_LOOK_S", 0.02)
    files = Files(tmp_path / "s.crt", tmp_path / "s.key")
    first, second = certificates.new_server(), certificates.new_server()
    write(files, first)

    async def main() -> None:
        with structlog.testing.capture_logs() as logs:
            async with (
                serving(folder, **tls(files)) as server,
                httpx.AsyncClient(verify=certificates.context()) as http,
            ):
                health = f"https://localhost:{server.port}/healthz"
                assert (await http.get(health)).status_code == 200
                assert await _serial(server.port, certificates) == first.certificate.serial_number

                files.certificate.write_bytes(second.certificate_pem)  # its key is not there yet
                await until(partial(_has, logs, "tls_not_renewed"), 10)
                assert await _serial(server.port, certificates) == first.certificate.serial_number

                files.key.write_bytes(second.key_pem)
                await until(partial(_has, logs, "tls_renewed"), 10)
                assert await _serial(server.port, certificates) == second.certificate.serial_number
                assert (await http.get(health)).status_code == 200
        (said,) = {e["error"] for e in logs if e["event"] == "tls_not_renewed"}
        assert said == f"tls_key: {files.key} is not the key of the certificate {files.certificate}"

    uvloop.run(main())


async def _has(logs: Any, event: str) -> bool:
    return any(entry["event"] == event for entry in logs)


async def _serial(port: int, certificates: Certificates) -> int:
    """Of the certificate that a new connection is shown."""
    context = certificates.context()
    _, writer = await asyncio.open_connection("localhost", port, ssl=context)
    shown: dict[str, Any] = writer.get_extra_info("peercert")
    writer.close()
    await writer.wait_closed()
    return int(shown["serialNumber"], 16)


def test_devices_get_https_links_and_download_over_them(folder: Path, certificates: Certificates) -> None:
    async def main() -> None:
        async with serving(folder, **tls(certificates.server)) as server:
            base = f"https://localhost:{server.port}"
            poll, deployment, content = await _upgrade(server.rooms, base, certificates)
            assert poll["_links"]["deploymentBase"]["href"].startswith(f"{base}/DEFAULT/controller/v1/n1/")
            links = deployment["deployment"]["chunks"][0]["artifacts"][0]["_links"]
            assert {link["href"].split("/softwaremodules")[0] for link in links.values()} == {
                f"{base}/DEFAULT/controller/v1/n1"
            }
            assert content == b"firmware"

    uvloop.run(main())


@pytest.mark.parametrize("secure", ["", "device_"], ids=["applications", "devices"])
def test_of_two_addresses_each_has_its_own_tls_or_none(folder: Path, certificates: Certificates, secure: str) -> None:
    async def main() -> None:
        async with serving(folder, split=True, **tls(certificates.server, secure)) as server:
            schemes = ("https", "http") if not secure else ("http", "https")
            async with httpx.AsyncClient(verify=certificates.context()) as http:
                for scheme, port in zip(schemes, (server.port, server.device_port), strict=True):
                    assert (await http.get(f"{scheme}://localhost:{port}/healthz")).status_code == 200
                    other = "http" if scheme == "https" else "https"
                    with pytest.raises((httpx.TransportError, AssertionError)):
                        assert (await http.get(f"{other}://localhost:{port}/healthz")).status_code == 200
            base = f"{schemes[1]}://localhost:{server.device_port}"
            poll, _, _ = await _upgrade(server.rooms, base, certificates)
            assert poll["_links"]["deploymentBase"]["href"].startswith(base)

    uvloop.run(main())


async def _upgrade(rooms: Rooms, base: str, certificates: Certificates) -> tuple[Any, Any, bytes]:
    """A device that is offered a package: its poll, its deployment, and what it downloads, all by the links given."""
    made = await rooms.access.create_application("lab")
    actor = (await rooms.access_queries.application(made.app_id)).actor
    product = Product(*PRODUCT.values())
    _, token = await rooms.access.create_gateway_token(actor, "t", product)
    headers = {"Authorization": f"GatewayToken {token}"}
    front = app.Front(rooms, applications=True, devices=True)
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://inside") as api,  # type: ignore[arg-type]
        httpx.AsyncClient(verify=certificates.context(), headers=headers) as device,
    ):
        login = await api.post("/iocm/app/sec/v1.1.0/login", data={"appId": made.app_id, "secret": made.secret})
        bearer = {"Authorization": f"Bearer {login.json()['accessToken']}"}
        at = f"{base}/DEFAULT/controller/v1/n1"
        assert (await device.get(at)).status_code == 200
        query = {"type": "firmwarePackage", "name": "a.bin", "version": "2", **PRODUCT}
        package = await api.post("/api/v1/packages", params=query, content=b"firmware", headers=bearer)
        found = await api.get("/api/v1/devices/n1", headers=bearer)
        body = {
            "kind": "firmware_upgrade",
            "fileId": package.json()["fileId"],
            "targets": {"devices": [found.json()["deviceId"]]},
        }
        assert (await api.post("/api/v1/tasks", json=body, headers=bearer)).status_code == 201
        poll = json.loads((await device.get(at)).content)
        deployment = (await device.get(poll["_links"]["deploymentBase"]["href"])).json()
        links = deployment["deployment"]["chunks"][0]["artifacts"][0]["_links"]
        return poll, deployment, (await device.get(next(iter(links.values()))["href"])).content


@pytest.mark.parametrize("prefix", ["", "device_"])
def test_a_wrong_file_stops_the_start_with_its_setting(folder: Path, certificates: Certificates, prefix: str) -> None:
    given = {**tls(certificates.server, prefix), f"{prefix}tls_key": certificates.client.key}

    async def main() -> None:
        with pytest.raises(StartError, match=f"^{prefix}tls_key: .*client.key is not the key of the certificate"):
            async with serving(folder, split=True, **given):
                pass

    uvloop.run(main())
