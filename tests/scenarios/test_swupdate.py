"""The real SWUpdate from Debian's package, upgraded over DDI by a task of the northbound API: once well, once badly."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.scenarios import swupdate_device
from tests.scenarios.swupdate_device import INSTALL_FAILED, INSTALLED, UP, Confirm, Keys, SwupdateDevice
from tests.support.process import Northbound, Server, free_port, gateway_token

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.skipif(
        not swupdate_device.available() and not os.environ.get("CI"),
        reason="needs Debian's packages swupdate, cpio and openssl; with CI set their lack fails",
    ),
]


@dataclass
class Lab:
    """A server process, an application that is logged in, and a SWUpdate that knows the gateway token."""

    api: Northbound
    device: SwupdateDevice
    keys: Keys
    folder: Path

    async def device_id(self) -> str:
        (device_id,) = await self.api.device_ids(1)
        return device_id

    async def subtask(self, operation: str) -> dict[str, str]:
        found = await self.api.call("GET", f"/iodm/northbound/v1.5.0/operations/{operation}/subOperations")
        (subtask,) = found["data"]
        return dict(subtask)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    server = Server(tmp_path, f"sqlite:///{tmp_path / 'openiodm.db'}", free_port(), poll_interval_s="1")
    application = await server.cli("app", "create", "lab", "--json")
    token = await gateway_token(server, application["appId"])
    await server.start()
    keys = await asyncio.to_thread(swupdate_device.make_keys, tmp_path / "keys")
    device = SwupdateDevice(
        folder=tmp_path / "device",
        server=server.url,
        device_id="board-1",
        certificate=keys.certificate,
        token=token,
        gateway=True,
        attributes={"fwVersion": "1.0.0", "serial": "4711"},
    )
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            yield Lab(Northbound(http, application["appId"], application["secret"]), device, keys, tmp_path)
    finally:
        await asyncio.to_thread(device.stop)
        await server.end(signal.SIGTERM)


async def test_swupdate_installs_restarts_and_the_task_list_says_success(lab: Lab) -> None:
    target = lab.folder / "installed.bin"
    image = await asyncio.to_thread(
        swupdate_device.build_image,
        lab.folder / "images",
        version="2.0.0",
        payload=b"new firmware" * 1000,
        target_path=target,
        keys=lab.keys,
    )
    lab.device.start()
    await asyncio.to_thread(lab.device.wait_for_log, UP)
    file_id = await lab.api.upload(image.name, image.read_bytes())
    operation = await lab.api.create_task(file_id, devices=[await lab.device_id()])
    await asyncio.to_thread(lab.device.wait_for_log, INSTALLED)
    assert target.read_bytes() == b"new firmware" * 1000
    assert (await lab.api.task(operation))["status"] == "processing"
    lab.device.attributes = {"fwVersion": "2.0.0", "serial": "4711"}
    await asyncio.to_thread(lab.device.restart, Confirm.SUCCESS)
    task = await lab.api.wait_until_final(operation, within=60)
    assert task["status"] == "success"
    assert task["staResult"]["success"] == task["staResult"]["total"] == 1
    subtask = await lab.subtask(operation)
    assert subtask["extendInfo"] == {"sourceVersion": "1.0.0", "targetVersion": "2.0.0", "curVersion": "2.0.0"}


async def test_an_image_that_swupdate_cannot_install_fails_the_task_with_its_own_words(lab: Lab) -> None:
    image = await asyncio.to_thread(
        swupdate_device.build_broken_image,
        lab.folder / "images",
        version="2.0.0",
        payload=b"broken firmware" * 100,
        target_path=lab.folder / "installed.bin",
        keys=lab.keys,
    )
    lab.device.start()
    await asyncio.to_thread(lab.device.wait_for_log, UP)
    file_id = await lab.api.upload(image.name, image.read_bytes())
    operation = await lab.api.create_task(file_id, devices=[await lab.device_id()])
    await asyncio.to_thread(lab.device.wait_for_log, INSTALL_FAILED)
    task = await lab.api.wait_until_final(operation, within=60)
    assert task["status"] == "failed"
    assert task["staResult"]["fail"] == 1
    assert (await lab.subtask(operation))["detailInfo"].startswith("Firmware update failed")
