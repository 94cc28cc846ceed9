"""A server with TLS as its operator has it: `tls init`, `serve --tls`, and every kind of client over https."""

import asyncio
import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.scenarios import swupdate_device
from tests.scenarios.swupdate_device import INSTALLED, UP, Confirm, SwupdateDevice
from tests.support.process import Northbound
from tests.support.served import LATE_S, Process, serving, shown

CA, CERTIFICATE = "tls/ca.crt", "tls/client.crt,tls/client.key"
PRODUCT = ("--device-type", "sensor", "--model", "m1", "--manufacturer", "acme")


@dataclass
class Lab:
    """A server that requires client certificates, started with a gateway token for the product."""

    process: Process
    folder: Path  # where the commands are run

    @property
    def environment(self) -> dict[str, str]:
        credentials = shown(self.process)
        outside = {k: v for k, v in os.environ.items() if not k.startswith("OPENIODM_")}
        named = {"APP_ID": "app id", "SECRET": "secret", "TOKEN": "token"}
        return {**outside, **{f"OPENIODM_{name}": credentials[key] for name, key in named.items()}}

    async def run(self, *arguments: str, code: int = 0, **variables: str) -> tuple[str, str]:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "openiodm.cli.main", *arguments],
            env={**self.environment, **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `tls init` has been."""
    folder = tmp_path_factory.mktemp("home")
    subprocess.run([sys.executable, "-m", "openiodm.cli.main", "tls", "init"], cwd=folder, check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def client(home: Path) -> ssl.SSLContext:
    """A client that trusts the CA and shows its client certificate."""
    context = ssl.create_default_context(cafile=str(home / CA))
    context.load_cert_chain(*shown_pair(home))
    return context


def shown_pair(home: Path) -> tuple[Path, Path]:
    """The client's certificate and key."""
    return home / "tls" / "client.crt", home / "tls" / "client.key"


def served(home: Path) -> str:
    """What `serve --tls` takes."""
    return f"{home / 'tls' / 'server.crt'},{home / 'tls' / 'server.key'}"


def requiring(home: Path, client: ssl.SSLContext, data: Path) -> AbstractAsyncContextManager[Process]:
    """A server that requires client certificates, started with a gateway token."""
    clients = {"tls_client_ca": home / CA, "tls_client_certificates": "require"}
    return serving(data, "--tls", served(home), *PRODUCT, client=client, poll_interval_s=1, **clients)


@pytest.fixture
async def lab(home: Path, client: ssl.SSLContext, tmp_path: Path) -> AsyncIterator[Lab]:
    async with requiring(home, client, tmp_path) as process:
        yield Lab(process, home)


async def test_the_command_line_and_simulated_devices_speak_https_with_a_client_certificate(lab: Lab) -> None:
    url = lab.process.url
    assert shown(lab.process)["address"] == url
    at = ("--url", url, "--ca", CA, "--client-cert", CERTIFICATE)
    (lab.folder / "image.swu").write_bytes(b"firmware" * 1000)

    simulated = asyncio.create_task(
        lab.run("simulate", *at, "--count", "3", "--until-done", "--install-seconds", "0.1")
    )
    devices: list[dict[str, Any]] = []
    async with asyncio.timeout(30):
        while len(devices) < 3:
            devices = json.loads((await lab.run("device", "list", *at, "--json"))[0])["items"]
    described = ("--type", "firmware", "--version", "2.0.0", *PRODUCT)
    package = json.loads((await lab.run("package", "upload", "image.swu", *at, *described, "--json"))[0])
    named = [part for device in devices for part in ("--device", device["nodeId"])]
    await lab.run("task", "create", *at, "--package", package["fileId"], *named)
    assert "violations" not in (await simulated)[0]

    variables = {"OPENIODM_URL": url, "OPENIODM_CA": CA, "OPENIODM_CLIENT_CERT": CERTIFICATE}
    listed = json.loads((await lab.run("task", "list", "--json", **variables))[0])
    assert [(task["status"], task["counters"]["success"]) for task in listed["items"]] == [("success", 3)]


async def test_what_is_wrong_with_a_clients_tls_is_one_clear_line(lab: Lab) -> None:
    async def said(*options: str, code: int) -> str:
        return (await lab.run("task", "list", "--url", lab.process.url, *options, code=code))[1]

    assert "certificate verify failed" in await said("--client-cert", CERTIFICATE, code=1)
    assert "certificate required" in await said("--ca", CA, code=1)
    assert await said("--ca", "nowhere.crt", code=2) == "openiodm: cannot use nowhere.crt: No such file or directory\n"
    mixed = await said("--ca", CA, "--client-cert", "tls/client.crt,tls/ca.key", code=2)
    assert re.fullmatch(r"openiodm: cannot use tls/ca.crt, tls/client.crt, tls/ca.key: .*mismatch.*\n", mixed)
    plain = lab.process.url.replace("https", "http")
    assert "HTTP 400" in (await lab.run("task", "list", "--url", plain, code=1))[1]


async def test_idle_and_silent_clients_hold_up_no_end(home: Path, client: ssl.SSLContext, tmp_path: Path) -> None:
    async with serving(tmp_path / "data", "--tls", served(home), client=client, shutdown_grace_s=60) as process:
        idle = await asyncio.open_connection("127.0.0.1", process.port, ssl=client)
        silent = await asyncio.open_connection("127.0.0.1", process.port)
        idle[1].write(b"GET /healthz HTTP/1.1\r\nHost: server\r\n\r\n")
        assert (await idle[0].readuntil(b"\r\n")).split()[1] == b"200"
        # Neither reads any more: no answer comes to the server's "this is the end".
        for reader, _ in (idle, silent):
            reader._transport.pause_reading()  # type: ignore[attr-defined]
        process.signal(signal.SIGTERM)
        assert await process.ended(LATE_S) == 0
        for _, writer in (idle, silent):
            writer.transport.abort()
    assert '"level": "error"' not in process.stderr


@pytest.mark.scenario
@pytest.mark.skipif(
    not swupdate_device.available() and not os.environ.get("CI"),
    reason="needs Debian's packages swupdate, cpio and openssl; with CI set their lack fails",
)
async def test_the_real_swupdate_is_upgraded_over_https_with_a_client_certificate(
    home: Path, client: ssl.SSLContext, tmp_path: Path
) -> None:
    target = tmp_path / "installed.bin"
    keys = await asyncio.to_thread(swupdate_device.make_keys, tmp_path / "keys")
    image = await asyncio.to_thread(
        swupdate_device.build_image,
        tmp_path / "images",
        version="2.0.0",
        payload=b"new firmware" * 1000,
        target_path=target,
        keys=keys,
    )
    data = tmp_path / "data"
    async with (
        requiring(home, client, data) as process,
        httpx.AsyncClient(base_url=process.url, verify=client, timeout=30) as http,
    ):
        credentials = shown(process)
        api = Northbound(http, credentials["app id"], credentials["secret"])
        device = SwupdateDevice(
            folder=tmp_path / "device",
            server=process.url,
            device_id="board-1",
            certificate=keys.certificate,
            token=credentials["token"],
            gateway=True,
            attributes={"fwVersion": "1.0.0"},
            tls={"cafile": home / CA, **dict(zip(("sslcert", "sslkey"), shown_pair(home), strict=True))},
        )
        try:
            device.start()
            await asyncio.to_thread(device.wait_for_log, UP)
            file_id = await api.upload(image.name, image.read_bytes())
            operation = await api.create_task(file_id, devices=await api.device_ids(1))
            await asyncio.to_thread(device.wait_for_log, INSTALLED)
            assert target.read_bytes() == b"new firmware" * 1000
            device.attributes = {"fwVersion": "2.0.0"}
            await asyncio.to_thread(device.restart, Confirm.SUCCESS)
            assert (await api.wait_until_final(operation, within=60))["status"] == "success"
        finally:
            await asyncio.to_thread(device.stop)
