"""LwM2M over real sockets, plain and DTLS, on both engines: simulated devices against the whole server."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import httpx
import msgspec
import pytest

from openiodm.app import expire_due, lwm2m_service
from openiodm.campaigns import texts
from openiodm.campaigns.model import CampaignKind, Clocks, NewCampaign, Policy, Target, Upgrade
from openiodm.campaigns.reports import Outcome
from openiodm.campaigns.rollout import What
from openiodm.campaigns.states import UpgradeState as S
from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey, NewDevice, NewGroup
from openiodm.errors import Reason, Refusal
from openiodm.front import Front
from openiodm.packages.model import FileType
from openiodm.protocols.coap.codec import Code, Message, Option, Options, decode_block, encode_block, encode_uint
from openiodm.protocols.lwm2m import upgrades
from openiodm.protocols.lwm2m.clients import OUTBOX_FRAMES
from openiodm.protocols.lwm2m.codec import tlv
from openiodm.protocols.lwm2m.codec.tlv import Kind, Tlv
from openiodm.protocols.lwm2m.codec.values import ContentFormat
from openiodm.protocols.lwm2m.session import firmware
from openiodm.protocols.pcp.codec import AskFragment, Fragment, Status, decode_platform
from openiodm.protocols.pcp.codec import encode as pcp_encode
from openiodm.simulator.coap import Association, Credentials, Network, NoAnswerError, fetch
from openiodm.simulator.lwm2m import Lwm2mDevice
from openiodm.simulator.pcp import Stage
from openiodm.storage.backup.aftermath import settle
from tests.support.lwm2m import PSK, QUICK, SOFTWARE, Field, build_field, digest, eventually, ports, serving
from tests.support.server import FIRMWARE, PRODUCT

# What asks nothing of the database that the other tests do not.
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

ALL_THE_WAY = ["offered", "downloading", "downloaded", "installing", "success"]


@pytest.fixture
async def field(database_url: str, tmp_path: Path) -> AsyncIterator[Field]:
    """Over plain CoAP: what depends on no security."""
    async with build_field(database_url, tmp_path) as made:
        yield made
        await made.check_laws()


@pytest.fixture(params=["plain", "dtls"])
async def either(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> AsyncIterator[Field]:
    """Once over plain CoAP and once over DTLS."""
    async with build_field(database_url, tmp_path, secure=request.param == "dtls") as made:
        yield made
        await made.check_laws()


async def test_firmware_by_pull(either: Field) -> None:
    (device_id,) = await either.register("n1")
    device = either.device("n1")
    async with either.alive(device):
        task = await either.task(device_id)
        (upgrade,) = await either.until(task, S.SUCCESS)
    assert await either.history(task, "n1") == ALL_THE_WAY
    assert device.record.digests == [digest()]
    assert upgrade.current_version == "V2"


@sqlite_only
async def test_firmware_by_push(either: Field) -> None:
    (device_id,) = await either.register("n1")
    device = either.device("n1", behaviour={"push": True})
    async with either.alive(device):
        task = await either.task(device_id)
        await either.until(task, S.SUCCESS)
    assert await either.history(task, "n1") == ALL_THE_WAY
    assert device.record.digests == [digest()]


@sqlite_only
async def test_firmware_by_http(database_url: str, tmp_path: Path) -> None:
    async with build_field(database_url, tmp_path, device_url="https://ota.example") as field:
        (device_id,) = await field.register("n1")
        device = field.device("n1", behaviour={"protocols": (3,)})
        rooms, urls = field.world.rooms, []
        beside = lwm2m_service(rooms)  # as another worker has it: without the ports and what comes by them
        assert beside is not None
        fronts = [Front(rooms, applications=False, devices=True, lwm2m=s) for s in (field.service, beside)]
        clients = [httpx.AsyncClient(transport=httpx.ASGITransport(front)) for front in fronts]  # type: ignore[arg-type]
        async with clients[0] as http, clients[1] as other:

            async def get(url: str) -> bytes:
                urls.append(url)
                first = await other.get(url, headers={"Range": "bytes=0-999"})
                rest = await http.get(url, headers={"Range": "bytes=1000-"})
                assert (first.status_code, rest.status_code) == (206, 206)
                return first.content + rest.content

            device.http_get = get
            async with field.alive(device):
                task = await field.task(device_id)
                await field.until(task, S.SUCCESS)
            assert await field.history(task, "n1") == ALL_THE_WAY
            assert device.record.digests == [digest()]
            assert urls[0].startswith("https://ota.example/lwm2m/fw-")
            for each in clients:
                assert (await each.get(urls[0])).status_code == 404  # law 7: the attempt has ended
                assert (await each.get(urls[0].rpartition("-")[0] + "-99")).status_code == 404
                assert (await each.get(f"https://ota.example/lwm2m/fw-{'0' * 14}-1")).status_code == 404
                assert (await each.post(urls[0])).status_code == 405


@sqlite_only
async def test_a_look_at_the_package_over_http_begins_no_download(field: Field) -> None:
    (device_id,) = await field.register("n1")
    front = Front(field.world.rooms, applications=False, devices=True, lwm2m=field.service)
    transport = httpx.ASGITransport(front)  # type: ignore[arg-type]
    async with ports(field, 1) as (port,), httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        await port.register("n1")
        task = await field.task(device_id)
        await eventually(lambda: port.written)
        path = f"/lwm2m/{port.written[0]}"
        looked = await http.head(path)
        assert (looked.status_code, looked.headers["content-length"]) == (200, str(len(FIRMWARE)))
        for condition, status in (
            ({"If-None-Match": looked.headers["etag"]}, 304),
            ({"If-Match": '"another"'}, 412),
            ({"Range": f"bytes={len(FIRMWARE)}-"}, 416),
        ):
            assert (await http.get(path, headers=condition)).status_code == status
        assert await field.history(task, "n1") == ["offered"]
        assert (await http.get(path, headers={"Range": "bytes=0-0"})).content == FIRMWARE[:1]
        assert await field.history(task, "n1") == ["offered", "downloading"]


async def test_software_by_pcp(either: Field) -> None:
    file_id = await either.upload(SOFTWARE, FileType.SOFTWARE)
    (device_id,) = await either.register("n1")
    device = either.device("n1", pcp=True)
    async with either.alive(device):
        task = await either.task(device_id, file_id=file_id, software=True)
        (upgrade,) = await either.until(task, S.SUCCESS)
        await eventually(lambda: device.pcp.flash.stage is Stage.IDLE)
    assert await either.history(task, "n1") == ALL_THE_WAY
    assert device.record.digests == [digest(SOFTWARE)]
    assert device.pcp.flash.version == upgrade.current_version == "V2"
    assert device.pcp.asked_for == [0, 1, 2, 3, 4]


@sqlite_only
async def test_a_device_that_registers_after_the_task_gets_its_turn(field: Field) -> None:
    (device_id,) = await field.register("n1")
    task = await field.task(device_id)
    async with field.alive(field.device("n1")):
        await field.until(task, S.SUCCESS)


@pytest.mark.parametrize("result", [2, 5, 8])
@sqlite_only
async def test_a_result_code_ends_in_its_text(field: Field, result: int) -> None:
    (device_id,) = await field.register("n1")
    device = field.device("n1")
    device.flash.fails_with = result
    async with field.alive(device):
        task = await field.task(device_id)
        (upgrade,) = await field.until(task, S.FAIL)
    assert (upgrade.detail, upgrade.error_code) == (firmware.TEXTS[result], str(result))


async def test_a_retry_round_succeeds_where_the_first_failed(field: Field) -> None:
    (device_id,) = await field.register("n1")
    device = field.device("n1")
    device.flash.fails_with = 5
    async with field.alive(device):
        task = await field.task(device_id, policy=Policy(retry_times=1))
        await field.until(task, S.FAIL)
        await field.world.run_jobs()
        await field.until(task, S.SUCCESS)
    assert device.record.results == [5, 1]


@sqlite_only
async def test_power_loss_in_the_download(either: Field) -> None:
    (device_id,) = await either.register("n1")
    device = either.device("n1", behaviour={"power_loss_rate": 1.0})
    async with either.alive(device):
        task = await either.task(device_id)
        await either.until(task, S.SUCCESS)
    assert device.record.power_losses == 1
    assert device.record.digests == [digest()]
    assert await either.history(task, "n1") == ALL_THE_WAY


@sqlite_only
async def test_a_device_that_boots_the_old_version_fails(field: Field) -> None:
    (device_id,) = await field.register("n1")
    async with field.alive(field.device("n1", behaviour={"rollback_rate": 1.0})):
        task = await field.task(device_id)
        (upgrade,) = await field.until(task, S.FAIL)
    assert "the device reports version V1" in (upgrade.detail or "")


@sqlite_only
async def test_a_stuck_device_is_ended_by_its_clock(field: Field) -> None:
    (device_id,) = await field.register("n1")
    async with field.alive(field.device("n1", behaviour={"stuck_rate": 1.0})):
        clocks = Clocks(online=60_000, download=700, install=60_000, verify=60_000, cancel=60_000)
        task = await field.task(device_id, clocks=clocks)
        await field.until(task, S.DOWNLOADING, S.OFFERED)
        await asyncio.sleep(0.8)
        await expire_due(field.world.rooms)
        (upgrade,) = await field.until(task, S.TIMEOUT)
    assert upgrade.detail == texts.DOWNLOAD_TIMEOUT


# -- stops


async def stop(field: Field, task: str) -> None:
    await field.world.rooms.campaigns.stop(field.world.actor, task)
    await field.world.run_jobs()


@sqlite_only
async def test_a_stop_in_the_download_refuses_the_bytes_within_a_second(either: Field) -> None:
    file_id = await either.upload(FIRMWARE * 40, FileType.FIRMWARE)
    (device_id,) = await either.register("n1")
    device = either.device("n1", behaviour={"szx": 2})
    async with either.alive(device):
        task = await either.task(device_id, file_id=file_id)
        await either.until(task, S.DOWNLOADING)
        await stop(either, task)
        blocks, began = -1, asyncio.get_running_loop().time()
        await either.until(task, S.STOP)
        assert device.record.digests == []
        sent = either.service.plain if not either.secure else either.service.secure
        assert sent is not None
        await eventually(lambda: device.flash.state == 0)
        assert asyncio.get_running_loop().time() - began < 10  # the whole file takes longer
        blocks = device.record.blocks
        await asyncio.sleep(0.3)
        assert device.record.blocks == blocks


@sqlite_only
async def test_a_stop_before_the_grant_asks_nothing_of_the_device(field: Field) -> None:
    (device_id,) = await field.register("n1")
    task = await field.task(device_id)
    await stop(field, task)
    device = field.device("n1")
    async with field.alive(device):
        await field.until(task, S.STOP)
        await asyncio.sleep(0.7)
    assert device.flash.observed == {}


@sqlite_only
async def test_a_stop_in_the_installation_ends_as_the_device_reports(field: Field) -> None:
    (device_id,) = await field.register("n1")
    async with field.alive(field.device("n1", behaviour={"install_seconds": 1.0})):
        task = await field.task(device_id)
        await field.until(task, S.INSTALLING)
        await stop(field, task)
        await field.until(task, S.CANCELLING)
        await field.until(task, S.SUCCESS)


@sqlite_only
async def test_a_stop_of_pcp_refuses_the_next_fragment(field: Field) -> None:
    file_id = await field.upload(SOFTWARE * 2000, FileType.SOFTWARE)
    (device_id,) = await field.register("n1")
    device = field.device("n1", pcp=True)
    async with field.alive(device):
        task = await field.task(device_id, file_id=file_id, software=True)
        await field.until(task, S.DOWNLOADING)
        await stop(field, task)
        await field.until(task, S.STOP)
        await eventually(lambda: device.pcp.flash.stage is Stage.IDLE)


# -- PCP as real devices speak it


async def pcp_upgrade(field: Field, device: Lwm2mDevice, device_id: str, *states: S) -> Upgrade:
    file_id = await field.upload(SOFTWARE, FileType.SOFTWARE)
    async with field.alive(device):
        task = await field.task(device_id, file_id=file_id, software=True)
        (upgrade,) = await field.until(task, *states)
    return upgrade


@sqlite_only
async def test_pcp_goes_on_after_a_power_loss_where_it_was(either: Field) -> None:
    (device_id,) = await either.register("n1")
    device = either.device("n1", pcp=True)
    device.pcp.faults.reboots_at = 2
    await pcp_upgrade(either, device, device_id, S.SUCCESS)
    assert device.pcp.asked_for.count(0) == 1
    assert device.record.digests == [digest(SOFTWARE)]


@sqlite_only
async def test_pcp_survives_a_lost_answer_to_the_execution(field: Field) -> None:
    (device_id,) = await field.register("n1")
    device = field.device("n1", pcp=True)
    device.pcp.faults.loses_execute_answer = True
    await pcp_upgrade(field, device, device_id, S.SUCCESS)


@sqlite_only
async def test_pcp_with_a_device_that_never_answers_the_offer(field: Field) -> None:
    (device_id,) = await field.register("n1")
    device = field.device("n1", pcp=True, behaviour={"answers_new_version": False})
    await pcp_upgrade(field, device, device_id, S.SUCCESS)


@sqlite_only
async def test_pcp_with_a_fresh_device_that_tells_no_version(field: Field) -> None:
    (device_id,) = await field.register("n1")
    device = field.device("n1", pcp=True, software="")
    upgrade = await pcp_upgrade(field, device, device_id, S.SUCCESS)
    assert upgrade.detail == texts.UPGRADED


@sqlite_only
async def test_pcp_refusals_and_failures(field: Field) -> None:
    ids = await field.register("n1", "n2", "n3")
    refuses, corrupt, fails = (field.device(f"n{n}", pcp=True) for n in (1, 2, 3))
    refuses.pcp.faults.refuses = Status.LOW_BATTERY
    corrupt.pcp.faults.download_state = Status.CHECK_FAILED
    fails.pcp.faults.install_result = Status.INSTALL_FAILED
    file_id = await field.upload(SOFTWARE, FileType.SOFTWARE)
    async with field.alive(refuses, corrupt, fails):
        task = await field.task(*ids, file_id=file_id, software=True)
        upgrades = await field.until(task, S.FAIL)
    assert {u.node_id: u.error_code for u in upgrades} == {"n1": "4", "n2": "7", "n3": "10"}


class Deaf(Association):
    """Hears no write to object 19, and asks all the same."""

    def _answer(self, request: Message) -> None:
        if request.path[:2] != ("19", "1"):
            super()._answer(request)


@sqlite_only
async def test_what_a_device_does_not_take_is_not_kept_without_bound(field: Field) -> None:
    file_id = await field.upload(SOFTWARE, FileType.SOFTWARE)
    (device_id,) = await field.register("n1")
    tokens: list[bytes] = []

    def answer(request: Message) -> Message:
        tokens.extend([request.token] if request.path == ("19", "0", "0") else [])
        return Message(Code.CONTENT, ((Option.OBSERVE, b""),))

    link = Deaf(field.address, answer, QUICK, Random(1))
    await link.open()
    options = ((Option.URI_PATH, b"rd"), (Option.URI_QUERY, b"ep=n1"))
    assert (await link.request(Code.POST, options, b"</19/0>,</19/1>")).code == Code.CREATED
    await eventually(lambda: tokens)
    task = await field.task(device_id, file_id=file_id, software=True)
    await field.until(task, S.OFFERED)
    for number in range(1, 101):
        form = (Option.CONTENT_FORMAT, encode_uint(ContentFormat.OPAQUE))
        frame = pcp_encode(AskFragment("V2", number))
        await link.notify(tokens[0], ((Option.OBSERVE, encode_uint(number)), form), frame)
    (client,) = field.service.clients
    asked_last = [decode_platform(frame) for frame in client.outbox]
    numbers = [frame.number for frame in asked_last if isinstance(frame, Fragment)]
    assert numbers == list(range(101 - OUTBOX_FRAMES, 101))
    link.close()


async def test_a_package_that_pcp_cannot_carry_is_refused_where_a_target_speaks_it(field: Field) -> None:
    ids = await field.register("pcp1", "plain1")
    rooms, actor = field.world.rooms, field.world.actor
    too_long = await field.upload(SOFTWARE, FileType.SOFTWARE, version="V" * 17)
    too_large = await field.upload(bytes(500 * 65_535 + 1), FileType.SOFTWARE)
    largest = await field.upload(bytes(500 * 65_535), FileType.SOFTWARE)
    await rooms.groups.create(actor, NewGroup("all", device_ids=tuple(ids)))
    group = Target(groups=("all",), device_type="sensor", model="m1", manufacturer_name="acme")
    async with field.alive(field.device("pcp1", pcp=True), field.device("plain1")):
        for file_id, why in ((too_long, "room for 16 ASCII characters"), (too_large, "65536 fragments of 500 bytes")):
            with pytest.raises(Refusal, match=why) as refused:
                await field.task(ids[0], file_id=file_id, software=True)
            assert refused.value.reason is Reason.TARGET_MISMATCH
            with pytest.raises(Refusal, match=why):
                await rooms.campaigns.create(actor, NewCampaign(CampaignKind.SOFTWARE, file_id, group))
            await field.task(ids[1], file_id=file_id, software=True)
            await rooms.campaigns.stop(actor, (await rooms.campaign_queries.page(actor, 0, 1))[1][0].operation_id)
            await field.world.run_jobs()
        await field.task(ids[0], file_id=largest, software=True)


# -- object 9


class SoftwareDevice:
    """Instance 9/0 of object 9, in a few words: installs what it gets, and tells version `V2` from then on."""

    def __init__(
        self, field: Field, *, takes_uri: bool, fails: bool = False, stateless: bool = False, name: str = "n1"
    ) -> None:
        credentials = Credentials(field.connector, name, bytes.fromhex(PSK)) if field.secure else None
        self._name = name
        self.link = Association(field.address, self.answer, QUICK, Random(1), credentials)
        self.values = {7: tlv.integer(4), 9: tlv.integer(0), 12: tlv.integer(0), 1: b"V1"}
        self.token, self.sequence = b"", 1
        self.body = bytearray()
        self.asked: list[str] = []
        self._takes_uri = takes_uri
        self._fails = fails
        self._stateless = stateless
        self._tasks: set[asyncio.Task[None]] = set()

    async def register(self) -> None:
        await self.link.open()
        query = (f"ep={self._name}", "lwm2m=1.0")
        options = ((Option.URI_PATH, b"rd"), *((Option.URI_QUERY, part.encode()) for part in query))
        assert (await self.link.request(Code.POST, options, b"</9/0>")).code == Code.CREATED

    def answer(self, request: Message) -> Message:
        resource = int(request.path[2]) if request.path[:2] == ("9", "0") else -1
        self.asked.append(f"{Code(request.code).name} {resource}")
        if request.code == Code.GET and resource in self.values:
            options: Options = ((Option.CONTENT_FORMAT, encode_uint(ContentFormat.TLV)),)
            if request.uint(Option.OBSERVE) == 0:
                self.token, options = request.token, ((Option.OBSERVE, b"\1"), *options)
            return Message(Code.CONTENT, options, self.tlv(resource))
        if request.code == Code.PUT and resource == 3 and self._takes_uri:
            self.soon(self.pull(request.payload.decode().rpartition("/")[2]))
            return Message(Code.CHANGED)
        if request.code == Code.PUT and resource == 2:
            return self.block(request)
        if request.code == Code.POST and resource == 6:
            self.values[7] = tlv.integer(0)
            return Message(Code.CHANGED)
        if request.code == Code.POST and resource == 4:
            self.soon(self.install())
            return Message(Code.CHANGED)
        if request.code == Code.POST and resource == 10:
            self.values[12] = tlv.integer(1)
            return Message(Code.CHANGED)
        return Message(Code.METHOD_NOT_ALLOWED)

    def tlv(self, resource: int) -> bytes:
        return tlv.encode([Tlv(Kind.RESOURCE, resource, self.values[resource])])

    def soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def enter(self, state: int) -> None:
        self.values[7] = tlv.integer(state)
        self.sequence += 1
        form = (Option.CONTENT_FORMAT, encode_uint(ContentFormat.TLV))
        await self.link.notify(self.token, ((Option.OBSERVE, encode_uint(self.sequence)), form), self.tlv(7))

    async def pull(self, name: str) -> None:
        body, _ = await fetch(self.link, ((Option.URI_PATH, name.encode()),), 6)
        self.body = bytearray(body)
        await self.enter(3)

    def block(self, request: Message) -> Message:
        told = decode_block(request.option(Option.BLOCK1) or b"")
        self.body += request.payload
        if not told.more:
            self.soon(self.enter(3))
        if self._stateless:  # RFC 7959 section 3.2, figure 8
            return Message(Code.CHANGED, ((Option.BLOCK1, encode_block(told._replace(more=False))),))
        return Message(Code.CONTINUE if told.more else Code.CHANGED, ((Option.BLOCK1, encode_block(told)),))

    async def install(self) -> None:
        if self._fails:
            self.values[9] = tlv.integer(58)  # and no change of state, as Anjay does it
            return
        self.values[9], self.values[1] = tlv.integer(2), b"V2"
        await self.enter(4)


@pytest.mark.parametrize(("takes_uri", "stateless"), [(True, False), (False, False), (False, True)])
@sqlite_only
async def test_software_by_object_9(either: Field, takes_uri: bool, stateless: bool) -> None:
    file_id = await either.upload(SOFTWARE, FileType.SOFTWARE)
    (device_id,) = await either.register("n1")
    device = SoftwareDevice(either, takes_uri=takes_uri, stateless=stateless)
    await device.register()
    task = await either.task(device_id, file_id=file_id, software=True)
    await either.until(task, S.SUCCESS)
    assert await either.history(task, "n1") == ALL_THE_WAY
    assert bytes(device.body) == SOFTWARE
    assert [a for a in device.asked if a.startswith("POST")] == ["POST 6", "POST 4", "POST 10"]
    device.link.close()


@sqlite_only
async def test_an_installer_that_fails_ends_the_upgrade(field: Field) -> None:
    file_id = await field.upload(SOFTWARE, FileType.SOFTWARE)
    (device_id,) = await field.register("n1")
    device = SoftwareDevice(field, takes_uri=True, fails=True)
    await device.register()
    task = await field.task(device_id, file_id=file_id, software=True)
    (upgrade,) = await field.until(task, S.FAIL)
    assert upgrade.error_code == "58"
    device.link.close()


# -- registrations


async def test_devices_appear_in_the_device_calls(field: Field) -> None:
    (device_id,) = await field.register("n1")
    async with field.alive(field.device("n1")):
        queries, actor = field.world.rooms.device_queries, field.world.actor
        await field.world.rooms.last_seen.flush()

        async def described() -> bool:
            return (await queries.device(actor, device_id)).device.fw_version == "V1"

        await eventually(described)
        seen = await queries.device(actor, device_id)
    assert seen.device.protocol_type == "LWM2M"
    assert seen.status.value == "ONLINE"
    assert seen.device.address == "127.0.0.1"


async def test_the_product_is_filled_in_where_the_registration_left_it_out(field: Field) -> None:
    new = NewDevice("n1", psk=PSK)
    device_id = (await field.world.rooms.devices.register(field.world.actor, new)).device_id
    await field.service.keys.load()
    async with field.alive(field.device("n1")):

        async def described() -> bool:
            found = await field.world.rooms.device_queries.device(field.world.actor, device_id)
            return (found.device.product.manufacturer_name, found.device.product.model) == ("openiodm", "simulated")

        await eventually(described)


class Stranger:
    """One association, by hand."""

    def __init__(self, field: Field, identity: str = "n1", psk: str = PSK) -> None:
        credentials = Credentials(field.connector, identity, bytes.fromhex(psk)) if field.secure else None
        self.link = Association(field.address, lambda _: Message(Code.NOT_FOUND), QUICK, Random(1), credentials)

    async def ask(self, code: Code, path: str, *query: str, payload: bytes = b"</3/0>") -> Message:
        segments = tuple((Option.URI_PATH, part.encode()) for part in path.split("/"))
        arguments = tuple((Option.URI_QUERY, part.encode()) for part in query)
        return await self.link.request(code, (*segments, *arguments), payload)

    async def register(self, *query: str) -> Message:
        return await self.ask(Code.POST, "rd", *query)


@sqlite_only
async def test_only_registered_devices_are_accepted(either: Field) -> None:
    await either.register("n1")
    stranger = Stranger(either)
    await stranger.link.open()
    assert (await stranger.register("ep=nobody")).code == Code.FORBIDDEN
    assert (await stranger.register("ep=n1")).code == Code.CREATED
    stranger.link.close()


@sqlite_only
async def test_what_is_no_registration_is_refused(field: Field) -> None:
    await field.register("n1")
    stranger = Stranger(field)
    await stranger.link.open()
    assert (await stranger.register("ep=n1", "lt=soon")).code == Code.BAD_REQUEST
    assert (await stranger.register("ep=n1", "lwm2m=2.0")).code == Code.PRECONDITION_FAILED
    assert (await stranger.ask(Code.POST, "rd/nothing")).code == Code.NOT_FOUND
    assert (await stranger.ask(Code.GET, "rd")).code == Code.NOT_FOUND
    assert (await stranger.ask(Code.PUT, "rd")).code == Code.METHOD_NOT_ALLOWED
    assert (await stranger.ask(Code.GET, "fw-00000000000000-1")).code == Code.NOT_FOUND
    stranger.link.close()


async def test_update_and_deregistration(either: Field) -> None:
    await either.register("n1")
    stranger = Stranger(either)
    await stranger.link.open()
    created = await stranger.register("ep=n1", "lt=60")
    location = "/".join(part.decode() for part in created.values(Option.LOCATION_PATH))
    assert (await stranger.ask(Code.POST, location, "lt=120", payload=b"")).code == Code.CHANGED
    (client,) = either.service.clients
    assert client.kept.lifetime_s == 120
    assert (await stranger.ask(Code.DELETE, location, payload=b"")).code == Code.DELETED
    assert len(either.service.clients) == 0
    assert (await stranger.ask(Code.POST, location, payload=b"")).code == Code.NOT_FOUND
    stranger.link.close()


async def test_a_name_that_two_applications_have_must_be_told_apart(either: Field) -> None:
    await either.register("n1")
    rooms = either.world.rooms
    other = await rooms.access.create_application("other")
    login = await rooms.access.login(other.app_id, other.secret)
    actor = await rooms.access_queries.authenticate(other.app_id, login.access_token)
    await rooms.devices.register(actor, NewDevice("n1", psk="ff" * 16, product=PRODUCT))
    await either.service.keys.load()
    name = f"{other.app_id}/n1"
    if either.secure:
        await eventually(lambda: either.service.keys.of("n1") is None)
        stranger = Stranger(either, "n1")
        with pytest.raises(NoAnswerError):
            await stranger.link.open()
        stranger.link.close()
        await open_eventually(lambda: Stranger(either, name, "ff" * 16))
    else:
        stranger = Stranger(either)
        await stranger.link.open()
        assert (await stranger.register("ep=n1")).code == Code.FORBIDDEN
        assert (await stranger.register(f"ep={name}")).code == Code.CREATED
        stranger.link.close()


async def open_eventually(make: Callable[[], Stranger]) -> None:
    """An identity that is not known yet is looked up for the next try."""
    for _ in range(5):
        stranger = make()
        try:
            await stranger.link.open()
        except NoAnswerError:
            await asyncio.sleep(0.2)
            continue
        assert (await stranger.register()).code == Code.CREATED  # the endpoint name is the identity
        stranger.link.close()
        return
    raise AssertionError("never known")


async def test_a_device_that_was_deleted_is_refused(either: Field) -> None:
    (device_id,) = await either.register("n1")
    stranger = Stranger(either)
    await stranger.link.open()
    created = await stranger.register("ep=n1")
    location = "/".join(part.decode() for part in created.values(Option.LOCATION_PATH))
    await either.world.rooms.devices.delete(either.world.actor, device_id)
    assert (await stranger.ask(Code.POST, location, payload=b"")).code == Code.NOT_FOUND
    assert len(either.service.clients) == 0
    assert (await stranger.register("ep=n1")).code == Code.FORBIDDEN
    stranger.link.close()


async def test_a_restarted_server_knows_its_devices_and_goes_on(either: Field) -> None:
    (device_id,) = await either.register("n1")
    impatient = Network(ack_timeout=0.05)
    device = either.device("n1", network=impatient, behaviour={"install_seconds": 0.8, "update_seconds": 0.5})
    async with either.alive(device):
        task = await either.task(device_id)
        await either.until(task, S.INSTALLING)
        at = either.address
        await either.service.close()
        listen = {"coaps_listen" if either.secure else "coap_listen": f"{at[0]}:{at[1]}"}
        either.world.rooms = replace(
            either.world.rooms, settings=msgspec.structs.replace(either.world.rooms.settings, **listen)
        )
        async with serving(either.world) as again:
            assert len(again.clients) == 1
            await either.until(task, S.SUCCESS)


class FailsOnce:
    """The core, one of whose commits fails."""

    def __init__(self, campaigns: upgrades.Campaigns, number: int) -> None:
        self._campaigns = campaigns
        self._number = number
        self.signals: list[What] = []

    async def signal(self, device: DeviceKey, what: What) -> Outcome:
        self.signals.append(what)
        if len(self.signals) == self._number:
            raise RuntimeError("no commit")
        return await self._campaigns.signal(device, what)


@sqlite_only
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
async def test_what_could_not_be_committed_is_not_lost(field: Field, number: int) -> None:
    """The grant, each of the three notifications, and the result that is read."""
    campaigns = FailsOnce(field.world.rooms.campaigns, number)
    field.service.upgrades._campaigns = campaigns
    (device_id,) = await field.register("n1")
    device = field.device("n1")
    async with field.alive(device):
        task = await field.task(device_id)
        await field.until(task, S.SUCCESS)
    assert await field.history(task, "n1") == ALL_THE_WAY
    assert len(campaigns.signals) > number


@sqlite_only
async def test_a_sleeping_device_is_spoken_to_only_while_it_is_awake(database_url: str, tmp_path: Path) -> None:
    async with build_field(database_url, tmp_path, lwm2m_awake_s=1) as field:
        (device_id,) = await field.register("n1")
        device = field.device("n1", behaviour={"queue_mode": True})
        async with field.alive(device):
            await asyncio.sleep(1.3)
            task = await field.task(device_id)
            await asyncio.sleep(0.8)
            assert (5, 0, 3) not in device.flash.observed
            await field.until(task, S.WAIT)
            await device.update()
            await field.until(task, S.SUCCESS)


@sqlite_only
async def test_a_registration_that_ran_out_is_gone(database_url: str, tmp_path: Path) -> None:
    async with build_field(database_url, tmp_path) as field:
        await field.register("n1")
        stranger = Stranger(field)
        await stranger.link.open()
        await stranger.register("ep=n1", "lt=1")
        await eventually(lambda: len(field.service.clients) == 0, within=60)
        stranger.link.close()


# -- DTLS


@sqlite_only
async def test_a_device_that_was_registered_this_moment_shakes_hands_at_its_first_try(
    database_url: str, tmp_path: Path
) -> None:
    async with build_field(database_url, tmp_path, secure=True) as field:
        await field.world.rooms.devices.register(field.world.actor, NewDevice("n1", psk=PSK, product=PRODUCT))
        stranger = Stranger(field)
        await stranger.link.open()
        assert (await stranger.register("ep=n1", "lwm2m=1.2")).code == Code.CREATED
        stranger.link.close()


@sqlite_only
async def test_a_node_id_with_another_key_is_good_when_the_old_key_did_not_fit(
    database_url: str, tmp_path: Path
) -> None:
    async with build_field(database_url, tmp_path, secure=True) as field:
        (device_id,) = await field.register("n1")
        await field.world.rooms.devices.delete(field.world.actor, device_id)
        new = NewDevice("n1", psk="ff" * 16, product=PRODUCT)
        await field.world.rooms.devices.register(field.world.actor, new)
        assert field.service.keys.of("n1") == bytes.fromhex(PSK)
        field.service.keys.doubt("n1")  # as a handshake does that came to nothing
        await eventually(lambda: field.service.keys.of("n1") == b"\xff" * 16)


@sqlite_only
async def test_the_identity_must_be_the_endpoints(database_url: str, tmp_path: Path) -> None:
    async with build_field(database_url, tmp_path, secure=True) as field:
        await field.register("n1", "n2")
        stranger = Stranger(field, "n2")
        await stranger.link.open()
        assert (await stranger.register("ep=n1")).code == Code.FORBIDDEN
        assert (await stranger.register("ep=n2")).code == Code.CREATED
        stranger.link.close()


@sqlite_only
async def test_another_device_may_not_touch_a_registration(database_url: str, tmp_path: Path) -> None:
    async with build_field(database_url, tmp_path, secure=True) as field:
        await field.register("n1", "n2")
        first, second = Stranger(field, "n1"), Stranger(field, "n2")
        await first.link.open()
        await second.link.open()
        created = await first.register("ep=n1")
        location = "/".join(part.decode() for part in created.values(Option.LOCATION_PATH))
        assert (await second.ask(Code.POST, location, payload=b"")).code == Code.FORBIDDEN
        assert (await second.ask(Code.DELETE, location, payload=b"")).code == Code.FORBIDDEN
        for each in (first, second):
            each.link.close()


@sqlite_only
async def test_a_device_that_must_be_secure_may_not_register_in_plain(database_url: str, tmp_path: Path) -> None:
    async with build_field(database_url, tmp_path) as field:
        await field.register("n1", info={"isSecure": True})
        stranger = Stranger(field)
        await stranger.link.open()
        assert (await stranger.register("ep=n1")).code == Code.FORBIDDEN
        stranger.link.close()


async def test_a_device_that_has_registered_over_dtls_may_not_in_plain(database_url: str, tmp_path: Path) -> None:
    async with build_field(database_url, tmp_path, secure=True) as field:
        await field.register("n1")
        secure = Stranger(field)
        await secure.link.open()
        assert (await secure.register("ep=n1")).code == Code.CREATED
        field.secure = False
        plain = Stranger(field)
        await plain.link.open()
        assert (await plain.register("ep=n1")).code == Code.FORBIDDEN
        for each in (secure, plain):
            each.link.close()


@sqlite_only
async def test_the_devices_of_a_frozen_application_are_refused(field: Field) -> None:
    await field.register("n1")
    stranger = Stranger(field)
    await stranger.link.open()
    created = await stranger.register("ep=n1")
    location = "/".join(part.decode() for part in created.values(Option.LOCATION_PATH))
    async with field.world.rooms.database.transaction() as tx:
        await tx.execute("UPDATE application SET frozen_at = 1")
    assert (await stranger.ask(Code.POST, location, payload=b"")).code == Code.NOT_FOUND
    assert (await stranger.register("ep=n1")).code == Code.FORBIDDEN
    stranger.link.close()


@sqlite_only
async def test_plain_coap_may_be_off(database_url: str, tmp_path: Path) -> None:
    async with build_field(database_url, tmp_path, secure=True, coap_listen="") as field:
        assert field.service.plain_address is None
        (device_id,) = await field.register("n1")
        async with field.alive(field.device("n1")):
            task = await field.task(device_id)
            await field.until(task, S.SUCCESS)


# -- all protocols together


async def test_one_task_over_a_group_of_ddi_lwm2m_and_pcp_devices(either: Field) -> None:
    """The campaign knows them apart by nothing but their protocol's port."""
    file_id = await either.upload(SOFTWARE, FileType.SOFTWARE)
    ids = await either.register("pcp1", "lw1", "lw2")
    ids += await either.world.register("ddi1", "ddi2")
    rooms, actor = either.world.rooms, either.world.actor
    await rooms.groups.create(actor, NewGroup("all", device_ids=tuple(ids)))
    target = Target(groups=("all",), device_type="sensor", model="m1", manufacturer_name="acme")
    pcp = either.device("pcp1", pcp=True)
    good = SoftwareDevice(either, takes_uri=True, name="lw1")
    fails = SoftwareDevice(either, takes_uri=False, fails=True, name="lw2")
    async with either.alive(pcp):
        for device in (good, fails):
            await device.register()
        task = await rooms.campaigns.create(actor, NewCampaign(CampaignKind.SOFTWARE, file_id, target))
        await either.world.run_jobs()
        for node_id, finished in (("ddi1", "success"), ("ddi2", "failure")):
            link = (await either.world.poll(node_id))["_links"]["deploymentBase"]["href"]
            action = int(re.search(r"deploymentBase/(\d+)", link)[1])  # type: ignore[index]
            assert await either.world.feedback(node_id, action, "closed", finished) == 200
        upgrades = await either.until(task, S.SUCCESS, S.FAIL)
    for device in (good, fails):
        device.link.close()
    assert {u.node_id: u.state for u in upgrades} == {
        "ddi1": S.SUCCESS, "lw1": S.SUCCESS, "pcp1": S.SUCCESS, "ddi2": S.FAIL, "lw2": S.FAIL
    }  # fmt: skip
    assert await either.world.status(task) == "failed"
    assert await either.world.counters(task) == {"success": 3, "fail": 2}
    assert (bytes(good.body), pcp.record.digests) == (SOFTWARE, [digest(SOFTWARE)])


@sqlite_only
async def test_one_firmware_task_over_ddi_and_lwm2m_devices(field: Field) -> None:
    ids = [*await field.register("lw1", "lw2"), *await field.world.register("ddi1")]
    puller, pusher = field.device("lw1"), field.device("lw2", behaviour={"push": True})
    async with field.alive(puller, pusher):
        task = await field.task(*ids)
        link = (await field.world.poll("ddi1"))["_links"]["deploymentBase"]["href"]
        action = int(re.search(r"deploymentBase/(\d+)", link)[1])  # type: ignore[index]
        assert await field.world.feedback("ddi1", action, "closed", "success") == 200
        await field.until(task, S.SUCCESS)
    assert await field.world.counters(task) == {"success": 3}


@sqlite_only
async def test_a_device_without_a_way_to_be_upgraded_fails_with_the_reason(field: Field) -> None:
    file_id = await field.upload(SOFTWARE, FileType.SOFTWARE)
    (device_id,) = await field.register("n1")
    async with field.alive(field.device("n1")):
        task = await field.task(device_id, file_id=file_id, software=True)
        (upgrade,) = await field.until(task, S.FAIL)
    assert "neither an instance of object 9 nor object 19" in (upgrade.detail or "")


# -- after a restore (D26)


@pytest.mark.parametrize("pcp", [False, True])
async def test_nobody_who_was_upgraded_after_the_backup_is_upgraded_again(
    database_url: str, tmp_path: Path, pcp: bool
) -> None:
    """`settle` is run on a database that stands for the backup's. What the devices tell decides, not what it knows."""
    async with build_field(database_url, tmp_path) as field:
        rooms = field.world.rooms
        ids = await field.register("done", "old")
        task = await field.task(*ids)
        async with rooms.database.transaction() as tx:
            now = rooms.clock.now()
            await settle(tx, now, Instant(now + 1), "operator:test")
        done, old = field.device("done", version="V2", pcp=pcp), field.device("old", pcp=pcp)
        async with field.alive(done, old):
            await eventually(lambda: _states(field, task, {"done": S.SUCCESS, "old": S.WAIT}))
            assert done.record.digests == old.record.digests == []
            await rooms.campaigns.resume(field.world.actor, task, unproven=False)
            await field.world.run_jobs()
            await field.until(task, S.SUCCESS)
        assert (done.record.digests, old.record.digests) == ([], [digest()])
        await field.check_laws()


async def _states(field: Field, task: str, wanted: dict[str, S]) -> bool:
    return {u.node_id: u.state for u in await field.upgrades(task)} == wanted
