"""Packages through their HTTP routes, native and published, on both engines."""

import asyncio
import errno
import fcntl
import hashlib
import io
import json
import os
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from openiodm.access.model import Actor, ApplicationKey
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import api_router
from openiodm.northbound.compat import packages as compat
from openiodm.northbound.compat.edge import CompatEdge
from openiodm.northbound.native import packages as native
from openiodm.northbound.native.edge import NativeEdge
from openiodm.northbound.native.guard import NativeGuard
from openiodm.packages.commands import PackageCommands
from openiodm.packages.model import Collected
from openiodm.packages.queries import PackageQueries
from openiodm.storage.audit import AuditRows
from openiodm.storage.blobs import INCOMING, Disk, FileStore
from openiodm.storage.engine import Database, Tx
from openiodm.storage.packages import PackageReads, PackageRows
from openiodm.storage.writer import Writer

NATIVE, COMPAT = native.PATH, compat.PATH
LIMIT = 100 * 1024 * 1024
MIB = 1024 * 1024


class Work:
    """The one room that these tests need."""

    def __init__(self, tx: Tx) -> None:
        self.packages = PackageRows(tx)
        self.audit = AuditRows(tx)


class Tokens:
    """The token is the application's row id."""

    async def authenticate(self, app_key: str | None, token: str, address: str) -> Actor:
        if not token.isdigit() or app_key not in {None, f"app{token}"}:
            raise Refusal(Reason.TOKEN_INVALID)
        return Actor(ApplicationKey(int(token)), f"app{token}")

    async def acting_for(self, actor: Actor, app_id: str) -> Actor:
        raise AssertionError("no call about packages names an application")


class Flow:
    async def admit(self, application: ApplicationKey) -> None:
        pass


class FullDisk(Disk):
    """Takes so many bytes, then says ENOSPC; `room` is what it admits to have."""

    def __init__(self, takes: int, room: int = 2**50) -> None:
        self.takes = takes
        self.room = room

    def free(self, folder: Path) -> int:
        return self.room

    def write(self, fd: int, data: memoryview) -> int:
        if self.takes <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.write(fd, data[: self.takes])
        self.takes -= written
        return written


@dataclass
class Server:
    database: Database
    writer: Writer[Work]
    store: FileStore
    commands: PackageCommands
    client: httpx.AsyncClient

    async def upload(self, content: Any, app: int = 1, **query: Any) -> httpx.Response:
        query = {"type": "firmwarePackage", "name": "fw.bin", "version": "V1", **PRODUCT, **query}
        query = {name: value for name, value in query.items() if value is not None}
        return await self.client.post(NATIVE, params=query, content=content, headers=bearer(app))

    async def get(self, path: str, app: int = 1, **query: Any) -> httpx.Response:
        return await self.client.get(path, params=query, headers=bearer(app))

    async def delete(self, path: str, app: int = 1) -> httpx.Response:
        return await self.client.delete(path, headers=bearer(app))

    def files(self) -> list[str]:
        """Every file of the store but its locks."""
        return sorted(p.name for p in self.store.folder.rglob("*") if p.is_file() and p.name != "lock")

    async def rows(self) -> int:
        return int(await self.database.fetchval("SELECT count(*) FROM package"))


BAD_REQUEST = {"error_code": "120015", "error_desc": "Bad request error."}
NOT_FOUND = {"error_code": "123002", "error_desc": "Device or package file not found."}
PRODUCT = {"deviceType": "meter", "model": "m1", "manufacturerName": "acme"}


def bearer(app: int) -> dict[str, str]:
    return {"Authorization": f"Bearer {app}"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@asynccontextmanager
async def serve(
    database: Database, clock: Any, folder: Path, *, disk: Disk | None = None, floor: int = 0, limit: int = LIMIT
) -> AsyncIterator[Server]:
    store = FileStore(folder, min_free_bytes=floor, disk=disk)
    await store.open()
    writer: Writer[Work] = Writer(database, Work)
    writer.start()
    reads = PackageReads(database)
    commands = PackageCommands(writer, clock, store, reads, max_package_bytes=limit)
    queries = PackageQueries(reads)
    guard = NativeGuard(Tokens(), Flow())
    modern = api_router(native.routes(commands, queries), NativeEdge(), guard)
    published = api_router(compat.routes(commands, queries), CompatEdge(), guard)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (modern if scope["path"].startswith("/api/") else published)(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        yield Server(database, writer, store, commands, client)
    await commands.close()
    await writer.close()
    await store.close()


@pytest.fixture
async def applications(database: Database) -> None:
    async with database.transaction() as tx:
        for i in (1, 2):
            await tx.execute(
                "INSERT INTO application (app_id, name, secret_hash, target_tokens, gateway_tokens, created_at) "
                "VALUES ($1, 'n', 'h', $2, $2, 0)",
                f"app{i}",
                True,
            )


@pytest.fixture
async def server(database: Database, applications: None, clock: Any, tmp_path: Path) -> AsyncIterator[Server]:
    async with serve(database, clock, tmp_path / "packages") as running:
        yield running


async def streamed(size: int, piece: int = 64 * 1024) -> AsyncIterator[bytes]:
    block = bytes(range(256)) * (piece // 256)
    for _ in range(size // piece):
        yield block


async def campaign(server: Server, file_id: str, status: str, window_end: int | None = None) -> int:
    """A task that refers to the package, as far as this room looks at it; its key."""
    async with server.database.transaction() as tx:
        row = await tx.fetchrow("SELECT id, product_id FROM package WHERE file_id = $1", file_id)
        return int(
            await tx.fetchval(
                "INSERT INTO campaign (operation_id, application_id, kind, package_id, product_id, device_type, model, "
                "manufacturer_name, target_version, policy_given, execute_type, retry_times, round, confirmation, "
                "clocks, status, work, stopped_by_operator, created_at, window_end) VALUES (random_id(), 1, "
                "'firmware_upgrade', $1, $2, 't', 'm', 'f', 'V1', $3, 'now', 0, 0, $3, '{}', $4, 'idle', $3, 0, $5) "
                "RETURNING id",
                row[0],
                row[1],
                False,
                status,
                window_end,
            )
        )


async def failed_device(server: Server, campaign_key: int, state: str, deleted_at: int | None = None) -> None:
    """A device of the task that ended so."""
    async with server.database.transaction() as tx:
        device = await tx.fetchval(
            "INSERT INTO device (device_id, application_id, node_id, product_id, reports_fw, reports_sw, "
            "self_registered, attributes, attributes_wanted, info, activation_timeout, registered_at, modified_at, "
            "attempt_seq, deleted_at) SELECT random_id(), 1, random_id(), product_id, $2, $2, $2, '{}', $2, '{}', 0, "
            "0, 0, 0, $3 FROM campaign WHERE id = $1 RETURNING id",
            campaign_key,
            False,
            deleted_at,
        )
        await tx.execute(
            "INSERT INTO upgrade (public_id, campaign_id, ordinal, device_id, state, round, created_at, finished_at) "
            "VALUES (random_id(), $1, 1, $2, $3, 0, 0, 0)",
            campaign_key,
            device,
            state,
        )


# --- upload


async def test_an_upload_is_described_listed_and_stored_whole(server: Server) -> None:
    content = os.urandom(3 * MIB + 17)
    answer = await server.upload(
        content,
        sourceVersions="V0.8, V0.9",
        description="größer & besser",
        protocolType="MQTT",
        buildDate="2024-1-",
        sha256=sha256(content).upper(),
    )
    assert answer.status_code == 201
    package = answer.json()
    assert answer.headers["location"] == f"{NATIVE}/{package['fileId']}"
    assert package == {
        "fileId": package["fileId"],
        "type": "firmwarePackage",
        "name": "fw.bin",
        "version": "V1",
        **PRODUCT,
        "sourceVersions": ["V0.8", "V0.9"],
        "description": "größer & besser",
        "protocolType": "MQTT",
        "buildDate": "2024-1-",
        "extra": {},
        "size": len(content),
        "sha256": sha256(content),
        "sha1": hashlib.sha1(content).hexdigest(),
        "md5": hashlib.md5(content).hexdigest(),
        "uploadedAt": "2023-11-14T22:13:20Z",
    }
    assert server.store.path(package["sha256"]).read_bytes() == content
    assert server.files() == [package["sha256"]]
    assert (await server.get(f"{NATIVE}/{package['fileId']}")).json() == package
    assert (await server.get(NATIVE)).json() == {"items": [package], "total": 1, "pageNo": 0, "pageSize": 10}


async def test_a_large_upload_is_never_whole_in_memory(server: Server) -> None:
    size = 64 * MIB
    await server.upload(b"warm-up")
    tracemalloc.start()
    try:
        answer = await server.upload(streamed(size))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.json()["size"] == size
    assert peak < 8 * MIB


async def test_the_same_package_twice_is_two_packages_and_one_file(server: Server) -> None:
    first, second = (await server.upload(b"same")).json(), (await server.upload(b"same", app=2)).json()
    assert first["fileId"] != second["fileId"]
    assert server.files() == [first["sha256"]] == [second["sha256"]]
    assert await server.database.fetchval("SELECT count(*) FROM blob") == 1


async def test_uploads_of_the_same_bytes_at_once_all_succeed(server: Server) -> None:
    answers = await asyncio.gather(*(server.upload(streamed(2 * MIB), version=f"V{i}") for i in range(8)))
    assert [a.status_code for a in answers] == [201] * 8
    assert len(server.files()) == 1


async def refused(server: Server, answer: httpx.Response, status: int, reason: str, field: str | None) -> None:
    """A problem document, no row, no byte."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert problem["type"] == f"urn:openiodm:refusal:{reason}"
    assert (problem["status"], problem["reason"], problem["field"]) == (status, reason, field)
    assert server.files() == []
    assert await server.rows() == 0


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"type": None}, "type"),
        ({"type": "firmware"}, "type"),
        ({"type": "null"}, "type"),
        ({"name": None}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "a\\b"}, "name"),
        ({"name": ".."}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 257}, "name"),
        ({"version": None}, "version"),
        ({"version": "  "}, "version"),
        ({"version": "x" * 257}, "version"),
        ({"deviceType": None}, "deviceType"),
        ({"model": None}, "model"),
        ({"manufacturerName": None}, "manufacturerName"),
        ({"manufacturerName": ""}, "manufacturerName"),
        ({"description": "a\x7fb"}, "description"),
        ({"sourceVersions": "v" * 257}, "sourceVersions"),
        ({"sourceVersions": ",".join(f"v{i}" for i in range(1001))}, "sourceVersions"),
        ({"sha256": "abc"}, "sha256"),
        ({"type": "softwarePackage", "version": None}, "version"),
    ],
)
async def test_a_bad_description_is_refused_by_its_field(server: Server, query: dict[str, Any], field: str) -> None:
    await refused(server, await server.upload(b"bytes", **query), 400, "bad-input", field)


async def test_other_bytes_than_announced_are_not_kept(server: Server) -> None:
    answer = await server.upload(b"bytes", sha256=sha256(b"other bytes"))
    await refused(server, answer, 400, "package-digest-mismatch", "sha256")


async def test_an_empty_file_is_refused(server: Server) -> None:
    await refused(server, await server.upload(b""), 400, "bad-input", "file")


async def test_a_form_is_refused(server: Server) -> None:
    answer = await server.client.post(
        NATIVE, params={"type": "firmwarePackage"}, files={"file": b"x"}, headers=bearer(1)
    )
    await refused(server, answer, 400, "bad-input", "Content-Type")


async def test_too_large_is_refused_by_its_announced_size_before_a_byte_is_taken(
    database: Database, applications: None, clock: Any, tmp_path: Path
) -> None:
    taken = 0

    async def content() -> AsyncIterator[bytes]:
        nonlocal taken
        taken += 1
        yield b"x" * 1001

    async with serve(database, clock, tmp_path / "p", limit=1000) as server:
        headers = bearer(1) | {"Content-Length": "1001"}
        query = {"type": "firmwarePackage", "name": "n", "version": "v", **PRODUCT}
        answer = await server.client.post(NATIVE, params=query, content=content(), headers=headers)
        await refused(server, answer, 413, "package-too-large", "file")
        assert taken == 0
        assert (await server.upload(b"x" * 1000)).status_code == 201


async def test_too_large_is_refused_as_soon_as_it_is_without_an_announced_size(
    database: Database, applications: None, clock: Any, tmp_path: Path
) -> None:
    async with serve(database, clock, tmp_path / "p", limit=5 * MIB) as server:
        await refused(server, await server.upload(streamed(500 * MIB)), 413, "package-too-large", "file")


async def test_a_full_disk_is_refused_and_nothing_is_left(
    database: Database, applications: None, clock: Any, tmp_path: Path
) -> None:
    async with serve(database, clock, tmp_path / "p", disk=FullDisk(takes=3 * MIB - 5)) as server:
        answer = await server.upload(streamed(8 * MIB))
        assert answer.headers["retry-after"]
        await refused(server, answer, 503, "store-full", None)


async def test_an_upload_that_would_leave_too_little_room_is_refused(
    database: Database, applications: None, clock: Any, tmp_path: Path
) -> None:
    disk = FullDisk(takes=2**50, room=10 * MIB)
    async with serve(database, clock, tmp_path / "p", disk=disk, floor=8 * MIB) as server:
        await refused(server, await server.upload(b"x" * 3 * MIB), 503, "store-full", None)
        assert (await server.upload(b"x" * MIB)).status_code == 201


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a file system")
async def test_a_really_full_file_system_is_refused_too(
    database: Database, applications: None, clock: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = await asyncio.to_thread(
        subprocess.run, ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("no right to mount")
    try:
        async with serve(database, clock, folder) as server:
            await refused(server, await server.upload(streamed(4 * MIB)), 503, "store-full", None)
            assert (await server.upload(b"x" * MIB)).status_code == 201
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", folder], check=True)


async def test_a_body_that_ends_early_is_not_kept(server: Server) -> None:
    query = {"type": "firmwarePackage", "name": "n", "version": "v", **PRODUCT}
    headers = bearer(1) | {"Content-Length": "2000000"}
    answer = await server.client.post(NATIVE, params=query, content=streamed(MIB), headers=headers)
    await refused(server, answer, 400, "bad-input", "file")


async def test_a_client_that_goes_away_leaves_nothing(server: Server) -> None:
    started = asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        yield b"x" * 2 * MIB
        started.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(server.upload(content()))
    await started.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert server.files() == []
    assert await server.rows() == 0


# --- SOTA


def sota(**changes: Any) -> bytes:
    description = {
        "specVersion": "1.0",
        "fileName": "app.bin",
        "packageType": "softwarePackage",
        "version": "V2",
        **PRODUCT,
        "protocolType": "CoAP",
        "description": "from inside",
        "versionCheckCode": "0101",
        "deviceShard": "256",
        "supportSourceVersionList": ["V1"],
        "date": "2015-2-",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("DM/linux/UpgradeDesc.json", json.dumps(description | changes))
        archive.writestr("DM/linux/app.bin", b"payload")
    return buffer.getvalue()


NOTHING_SAID = {"type": "softwarePackage", "name": None, "version": None, **dict.fromkeys(PRODUCT)}


async def test_a_sota_zip_describes_itself(server: Server) -> None:
    package = (await server.upload(sota(), **NOTHING_SAID)).json()
    expected = PRODUCT | {
        "name": "app.bin",
        "version": "V2",
        "sourceVersions": ["V1"],
        "protocolType": "CoAP",
        "description": "from inside",
        "buildDate": "2015-2-",
        "extra": {"versionCheckCode": "0101", "deviceShard": 256},
    }
    assert {name: package[name] for name in expected} == expected


@pytest.mark.parametrize("name", ["version", "deviceType", "model", "manufacturerName", "sourceVersions"])
async def test_what_contradicts_the_sota_description_is_refused(server: Server, name: str) -> None:
    said = NOTHING_SAID | {name: "other"}
    await refused(server, await server.upload(sota(), **said), 400, "bad-input", name)


async def test_what_agrees_with_the_sota_description_is_taken(server: Server) -> None:
    said = NOTHING_SAID | PRODUCT | {"version": "V2", "name": "release.zip", "description": "mine"}
    package = (await server.upload(sota(), **said)).json()
    assert (package["name"], package["description"]) == ("release.zip", "mine")


async def test_a_bad_sota_description_is_refused_by_its_member(server: Server) -> None:
    await refused(server, await server.upload(sota(deviceShard=1), **NOTHING_SAID), 400, "bad-input", "deviceShard")


async def test_a_firmware_package_is_never_looked_into(server: Server) -> None:
    assert (await server.upload(sota(deviceShard=1))).status_code == 201


# --- lists


async def fill(server: Server) -> list[str]:
    """Five packages of application 1, one of application 2; the ids of the five, newest first."""
    ids = []
    for i in range(5):
        answer = await server.upload(
            b"%d" % i,
            version=f"V{i}",
            deviceType="valve" if i == 4 else "meter",
            type="softwarePackage" if i % 2 else "firmwarePackage",
        )
        ids.append(answer.json()["fileId"])
    await server.upload(b"theirs", app=2)
    return ids[::-1]


async def test_the_published_list_filters_pages_and_counts(server: Server) -> None:
    ids = await fill(server)

    async def listed(**query: Any) -> tuple[list[str], int]:
        answer = await server.get(COMPAT, **query)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        return [info["fileId"] for info in body["data"]], body["totalCount"]

    assert await listed() == (ids, 5)
    assert await listed(pageNo=1, pageSize=2) == (ids[2:4], 5)
    assert await listed(pageNo=9) == ([], 5)
    assert await listed(pageNo=10**18 - 1, pageSize=100) == ([], 5)
    assert await listed(pageNo="", pageSize="", deviceType="", fileType="") == (ids, 5)
    assert await listed(fileType="softwarePackage") == ([ids[1], ids[3]], 2)
    assert await listed(deviceType="valve") == ([ids[0]], 1)
    assert await listed(deviceType="meter", model="m1", manufacturerName="acme", version="V0") == ([ids[4]], 1)
    assert await listed(manufactureName="acme") == (ids, 5)
    assert await listed(manufactureName="nobody") == ([], 0)
    assert await listed(model="M1") == ([], 0)


async def test_a_published_package_has_every_member(server: Server) -> None:
    file_id = (await server.upload(b"x")).json()["fileId"]
    expected = PRODUCT | {
        "fileId": file_id,
        "name": "fw.bin",
        "version": "V1",
        "fileType": "firmwarePackage",
        "protocolType": None,
        "description": None,
        "date": None,
        "uploadTime": "20231114T221320Z",
    }
    assert (await server.get(f"{COMPAT}/{file_id}")).json() == expected
    assert (await server.get(COMPAT)).json() == {
        "data": [expected],
        "pageNo": 0,
        "pageSize": 10,
        "totalCount": 1,
    }


@pytest.mark.parametrize(
    "query",
    [
        {"pageNo": "-1"},
        {"pageNo": "x"},
        {"pageNo": "1.0"},
        {"pageNo": "9" * 19},
        {"pageSize": "0"},
        {"pageSize": "101"},
        {"fileType": "firmware"},
        {"model": "x" * 257},
        {"version": "a\x00b"},
        [("model", "a"), ("model", "a")],
    ],
)
async def test_a_bad_condition_of_the_published_list_is_a_bad_request(server: Server, query: Any) -> None:
    answer = await server.client.get(COMPAT, params=query, headers=bearer(1))
    assert (answer.status_code, answer.json()) == (400, BAD_REQUEST)


async def test_the_native_list_filters_and_pages(server: Server) -> None:
    ids = await fill(server)
    page = (await server.get(NATIVE, type="firmwarePackage", pageSize=2)).json()
    assert ([p["fileId"] for p in page["items"]], page["total"]) == ([ids[0], ids[2]], 3)
    assert (await server.get(NATIVE, pageSize=0)).json()["reason"] == "bad-paging"
    for query in ({"version": "a\x00b"}, {"type": "null"}, {"type": ""}):
        assert (await server.get(NATIVE, **query)).json()["reason"] == "bad-filter"
    assert (await server.get(NATIVE, model="null")).json()["total"] == 0


async def test_packages_of_other_applications_do_not_exist(server: Server) -> None:
    file_id = (await server.upload(b"mine")).json()["fileId"]
    for path in (f"{NATIVE}/{file_id}", f"{COMPAT}/{file_id}"):
        assert (await server.get(path, app=2)).status_code == 404
        assert (await server.delete(path, app=2)).status_code == 404
    assert (await server.get(COMPAT, app=2)).json()["totalCount"] == 0
    assert (await server.get(f"{NATIVE}/{file_id}")).status_code == 200


@pytest.mark.parametrize("file_id", ["a.b", "a%00b", "x" * 257, "%C3%A4", "a%20b"])
async def test_a_malformed_file_id_is_a_bad_request(server: Server, file_id: str) -> None:
    for path in (f"{COMPAT}/{file_id}", f"{NATIVE}/{file_id}"):
        for answer in (await server.get(path), await server.delete(path)):
            assert answer.status_code == 400
            assert answer.json() == BAD_REQUEST or answer.json()["reason"] == "bad-input"


async def test_nobody_gets_in_without_a_token(server: Server) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic 1"},
        {"Authorization": "Bearer x"},
        {"Authorization": "Bearer 1", "app_key": "app2"},
    ):
        answer = await server.client.get(NATIVE, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["reason"] == "token-invalid"
    for headers in ({"Authorization": "bearer 1"}, {"Authorization": "Bearer 1", "app_key": "app1"}):
        assert (await server.client.get(NATIVE, headers=headers)).status_code == 200


async def test_unknown_paths_and_methods_are_problems_too(server: Server) -> None:
    answer = await server.client.put(NATIVE, headers=bearer(1))
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await server.get("/api/v1/nothing")).json()["reason"] == "path-unknown"


# --- deletion and collection


async def test_the_published_delete_is_200_and_empty_with_a_content_type(server: Server) -> None:
    path = f"{COMPAT}/{(await server.upload(b'x')).json()['fileId']}"
    answer = await server.delete(path)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"", "application/json")
    assert (await server.get(path)).json() == NOT_FOUND
    assert (await server.delete(path)).status_code == 404
    assert (await server.get(COMPAT)).json()["totalCount"] == 0


async def test_a_deleted_package_is_gone_natively_too(server: Server) -> None:
    path = f"{NATIVE}/{(await server.upload(b'x')).json()['fileId']}"
    assert (await server.delete(path)).status_code == 204
    assert (await server.delete(path)).json()["reason"] == "package-unknown"


@pytest.mark.parametrize("status", ["wait", "processing"])
async def test_a_package_that_an_unfinished_task_needs_stays(server: Server, status: str) -> None:
    file_id = (await server.upload(b"x")).json()["fileId"]
    await campaign(server, file_id, status)
    answer = await server.delete(f"{COMPAT}/{file_id}")
    assert (answer.status_code, answer.json()) == (400, BAD_REQUEST)
    assert (await server.delete(f"{NATIVE}/{file_id}")).status_code == 409
    assert (await server.get(f"{COMPAT}/{file_id}")).status_code == 200


@pytest.mark.parametrize("status", ["success", "failed", "stop"])
async def test_a_package_of_finished_tasks_can_go(server: Server, status: str) -> None:
    file_id = (await server.upload(b"x")).json()["fileId"]
    await campaign(server, file_id, status)
    assert (await server.delete(f"{COMPAT}/{file_id}")).status_code == 200


@pytest.mark.parametrize("state", ["fail", "timeout"])
async def test_a_package_that_a_retry_would_need_stays_until_the_retry_is_given_up(server: Server, state: str) -> None:
    file_id = (await server.upload(b"x")).json()["fileId"]
    await failed_device(server, await campaign(server, file_id, "failed"), state)
    answer = await server.delete(f"{COMPAT}/{file_id}")
    assert (answer.status_code, answer.json()) == (400, BAD_REQUEST)
    answer = await server.delete(f"{NATIVE}/{file_id}")
    assert (answer.status_code, answer.json()["reason"]) == (409, "package-in-use")
    assert (await server.delete(f"{NATIVE}/{file_id}?giveUpRetries=perhaps")).json()["field"] == "giveUpRetries"
    assert (await server.delete(f"{NATIVE}/{file_id}?giveUpRetries=true")).status_code == 204


async def test_giving_up_retries_does_not_give_up_unfinished_tasks(server: Server) -> None:
    file_id = (await server.upload(b"x")).json()["fileId"]
    await campaign(server, file_id, "processing")
    assert (await server.delete(f"{NATIVE}/{file_id}?giveUpRetries=true")).status_code == 409


async def test_a_failed_task_that_nobody_can_retry_keeps_no_package(server: Server) -> None:
    file_id = (await server.upload(b"x")).json()["fileId"]
    await failed_device(server, await campaign(server, file_id, "failed", window_end=1), "fail")
    await failed_device(server, await campaign(server, file_id, "failed"), "fail", deleted_at=1)
    await failed_device(server, await campaign(server, file_id, "stop"), "fail")
    assert (await server.delete(f"{COMPAT}/{file_id}")).status_code == 200


async def test_a_collection_takes_exactly_what_nobody_refers_to(server: Server) -> None:
    shared = [(await server.upload(b"shared", app=app)).json() for app in (1, 2)]
    alone = (await server.upload(b"alone")).json()
    await server.delete(f"{NATIVE}/{shared[0]['fileId']}")
    assert await server.commands.collect() == Collected(0, 0)
    await server.delete(f"{NATIVE}/{alone['fileId']}")
    assert await server.commands.collect() == Collected(1, len(b"alone"))
    assert server.files() == [shared[1]["sha256"]]
    assert (await server.upload(b"alone")).status_code == 201
    assert server.store.path(alone["sha256"]).read_bytes() == b"alone"
    assert await server.commands.collect() == Collected(0, 0)


async def test_a_collection_leaves_a_deleted_package_that_a_task_still_needs(server: Server) -> None:
    """Deletion refuses this; should it happen all the same, the devices get their bytes."""
    package = (await server.upload(b"x")).json()
    await server.delete(f"{NATIVE}/{package['fileId']}")
    await campaign(server, package["fileId"], "processing")
    assert await server.commands.collect() == Collected(0, 0)


class Gate:
    """A writer that lets a command pass when it is told to."""

    def __init__(self, writer: Writer[Work]) -> None:
        self._writer = writer
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def run(self, command: Callable[[Any], Awaitable[Any]]) -> Any:
        self.reached.set()
        await self.open.wait()
        return await self._writer.run(command)


def gated(server: Server, clock: Any) -> tuple[Gate, PackageCommands]:
    gate = Gate(server.writer)
    reads = PackageReads(server.database)
    return gate, PackageCommands(gate, clock, server.store, reads, max_package_bytes=LIMIT)


FIRMWARE = native._new_package(native.UploadQuery(native.FileType.FIRMWARE, "n", "v", "t", "m", "f"))
ACTOR = Actor(ApplicationKey(1), "app1")


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def test_a_collection_during_an_upload_of_the_same_bytes_leaves_them(server: Server, clock: Any) -> None:
    old = (await server.upload(b"same")).json()
    await server.delete(f"{NATIVE}/{old['fileId']}")
    gate, commands = gated(server, clock)
    upload = asyncio.create_task(commands.upload(ACTOR, FIRMWARE, chunks(b"same")))
    await gate.reached.wait()
    assert await server.commands.collect() == Collected(0, 0)
    gate.open.set()
    await upload
    assert await server.commands.collect() == Collected(0, 0)
    assert server.files() == [old["sha256"]]


async def test_an_upload_that_ends_before_the_collection_has_its_lock_keeps_its_bytes(
    server: Server, clock: Any
) -> None:
    old = (await server.upload(b"same")).json()
    await server.delete(f"{NATIVE}/{old['fileId']}")

    class Late(PackageReads):
        uploaded = False

        async def referenced(self, sha256s: Collection[str]) -> set[str]:
            found = await super().referenced(sha256s)
            if not self.uploaded:
                self.uploaded = True
                await server.upload(b"same")
            return found

    late = Late(server.database)
    commands = PackageCommands(server.writer, clock, server.store, late, max_package_bytes=LIMIT)
    assert await commands.collect() == Collected(0, 0)
    assert server.files() == [old["sha256"]]


async def test_an_upload_that_is_cancelled_while_it_is_committed_never_leaves_a_row_without_bytes(
    server: Server, clock: Any
) -> None:
    gate, commands = gated(server, clock)
    upload = asyncio.create_task(commands.upload(ACTOR, FIRMWARE, chunks(b"same")))
    await gate.reached.wait()
    upload.cancel()
    await asyncio.sleep(0.02)
    assert await server.commands.collect() == Collected(0, 0)
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await upload
    await commands.close()
    assert await server.rows() == 1
    assert server.files() == [sha256(b"same")]


async def test_uploads_deletions_and_collections_at_once_never_lose_bytes(server: Server) -> None:
    async def churn(app: int) -> None:
        for _ in range(12):
            answer = await server.upload(b"the same bytes", app=app)
            assert answer.status_code == 201
            assert server.store.path(answer.json()["sha256"]).is_file()
            await server.delete(f"{NATIVE}/{answer.json()['fileId']}", app=app)

    async def collect() -> None:
        while True:
            await server.commands.collect()

    collector = asyncio.create_task(collect())
    await asyncio.gather(churn(1), churn(1), churn(2))
    collector.cancel()
    with pytest.raises(asyncio.CancelledError):
        await collector
    await server.commands.collect()
    assert server.files() == []


# --- crashes


CRASH = """
    import asyncio, os, sys
    from pathlib import Path
    from openiodm.access.model import Actor
    from openiodm.clock import SystemClock
    from openiodm.packages.commands import PackageCommands
    from openiodm.packages.model import FileType, NewPackage
    from openiodm.storage.blobs import Disk, FileStore

    url, folder, where = sys.argv[1:]

    class Killed:
        async def run(self, command):
            os._exit(9)

    class KilledDisk(Disk):
        def write(self, fd, data):
            super().write(fd, data)
            return os._exit(9) if where == "write" else len(data)

    async def chunks():
        yield b"half a package"

    async def main():
        store = FileStore(Path(folder), disk=KilledDisk())
        await store.open()
        commands = PackageCommands(Killed(), SystemClock(), store, None, max_package_bytes=1000)
        about = NewPackage(FileType.FIRMWARE, "n", "v", "t", "m", "f")
        await commands.upload(Actor(1, "app1"), about, chunks())

    asyncio.run(main())
"""


async def crash(server: Server, where: str) -> None:
    arguments = [sys.executable, "-c", textwrap.dedent(CRASH), "", str(server.store.folder), where]
    done = await asyncio.to_thread(subprocess.run, arguments, capture_output=True, check=False)
    assert done.returncode == 9, done.stderr


async def test_a_server_killed_between_rename_and_commit_leaves_no_broken_row_and_its_file_is_collected(
    server: Server,
) -> None:
    await crash(server, "commit")
    assert server.files() == [sha256(b"half a package")]
    assert await server.rows() == 0
    assert await server.commands.collect() == Collected(1, len(b"half a package"))
    assert server.files() == []


async def test_a_server_killed_in_mid_upload_leaves_a_file_that_the_next_start_removes(server: Server) -> None:
    await crash(server, "write")
    assert len(server.files()) == 1
    assert await server.store.open() == 1
    assert server.files() == []


async def test_a_start_leaves_the_uploads_of_another_server_alone(server: Server) -> None:
    going = asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        yield b"x" * MIB
        going.set()
        await finish.wait()

    finish = asyncio.Event()
    upload = asyncio.create_task(server.upload(content()))
    await going.wait()
    assert await server.store.open() == 0
    finish.set()
    assert (await upload).status_code == 201


async def test_a_failed_commit_leaves_nothing_that_a_collection_does_not_take(server: Server, clock: Any) -> None:
    class Failing:
        async def run(self, command: Callable[[Any], Awaitable[Any]]) -> Any:
            raise RuntimeError("the database went away")

    reads = PackageReads(server.database)
    commands = PackageCommands(Failing(), clock, server.store, reads, max_package_bytes=LIMIT)
    with pytest.raises(RuntimeError):
        await commands.upload(ACTOR, FIRMWARE, chunks(b"x"))
    assert (await server.commands.collect()).files == 1
    assert os.listdir(server.store.folder / INCOMING) == []


async def test_a_collection_passes_over_what_another_server_is_publishing(server: Server) -> None:
    package = (await server.upload(b"x")).json()
    await server.delete(f"{NATIVE}/{package['fileId']}")
    fd = os.open(server.store.folder / package["sha256"][:2] / "lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert await server.commands.collect() == Collected(0, 0)
    os.close(fd)
    assert (await server.commands.collect()).files == 1
