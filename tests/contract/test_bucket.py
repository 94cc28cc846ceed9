"""Packages in a bucket: the store by itself, and a whole server with it. The bucket is `tests/support/s3.py`'s."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from openiodm.clock import SystemClock
from openiodm.errors import Reason, Refusal
from openiodm.packages.model import Blob
from openiodm.protocols.port import PackageAway
from openiodm.storage.blobs import FileStore
from openiodm.storage.bucket import IN_USE_S, PART_BYTES, SETTLED_S, BucketStore, connect
from tests.conftest import ManualClock
from tests.contract.test_ddi import artifact_href, granted
from tests.support.lwm2m import build_field
from tests.support.process import free_port
from tests.support.s3 import Bucket, new_bucket, s3_server
from tests.support.server import FIRMWARE, World, build_world

MIB = 1024 * 1024
LARGE = os.urandom(2 * PART_BYTES + 1000)  # three parts
# What is asked of the database is what every other test of packages asks.
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with new_bucket(endpoint, monkeypatch) as made:
        yield made


@asynccontextmanager
async def opened(
    bucket: Bucket, folder: Path, *, clock: Any = None, cache_bytes: int = 1 << 30, endpoint: str = ""
) -> AsyncIterator[BucketStore]:
    settings = bucket.settings
    made = connect(settings["package_store"], endpoint or settings["s3_endpoint"], settings["s3_region"])
    clock = clock or SystemClock()
    store = BucketStore(made, FileStore(folder), clock, cache_bytes=cache_bytes, list_every_s=0)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def chunks(content: bytes, piece: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), piece):
        yield content[start : start + piece]


async def put(store: BucketStore, content: bytes) -> Blob:
    async with store.receive(chunks(content), limit=1 << 30) as staged, staged.published():
        return staged.blob


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def copies(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("??/??/*"))


def age(folder: Path, content: bytes, seconds: int = IN_USE_S + 10) -> None:
    """As if that copy had last been used so long ago."""
    sha256 = digest(content)
    then = time.time() - seconds
    os.utime(folder / sha256[:2] / sha256[2:4] / sha256, (then, then))


# ------------------------------------------------------------------------- in


async def test_an_upload_becomes_one_object_under_its_digest_and_a_copy(bucket: Bucket, tmp_path: Path) -> None:
    async with opened(bucket, tmp_path) as store:
        blob = await put(store, LARGE)
        (key,) = bucket.keys()
        assert key.startswith(f"{blob.sha256[:2]}/{blob.sha256}/")
        assert blob.sha256 == digest(LARGE)
        assert blob.sha1 == hashlib.sha1(LARGE).hexdigest()
        assert bucket.read(key) == LARGE
        assert bucket.unfinished() == []
        assert (await store.local(blob.sha256)).read_bytes() == LARGE
        tag = bucket.client.head_object(Bucket=bucket.name, Key=f"ota/{key}")["ETag"]
        assert tag.endswith('-3"')  # it came in three parts


async def test_what_is_broken_off_has_left_nothing_anywhere(bucket: Bucket, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield LARGE
        raise ConnectionError

    async with opened(bucket, tmp_path) as store:
        with pytest.raises(ConnectionError):
            async with store.receive(broken(), limit=1 << 30):
                pass
        with pytest.raises(Refusal) as refused:
            async with store.receive(chunks(LARGE), limit=1000):
                pass
        assert refused.value.reason is Reason.PACKAGE_TOO_LARGE
        async with store.receive(chunks(LARGE), limit=1 << 30):
            pass  # as an upload whose digest was announced otherwise
        assert bucket.keys() == bucket.unfinished() == copies(tmp_path) == []
        assert list((tmp_path / "incoming").iterdir()) == []


async def test_a_bucket_that_does_not_answer_refuses_an_upload(bucket: Bucket, tmp_path: Path) -> None:
    async with opened(bucket, tmp_path, endpoint=f"http://127.0.0.1:{free_port()}") as store:
        with pytest.raises(Refusal) as refused:
            await put(store, b"x")
        assert refused.value.reason is Reason.STORE_AWAY
        with pytest.raises(PackageAway):
            await store.local(digest(b"x"))
        with pytest.raises(PackageAway):
            await store.url(digest(b"x"), 60)
        assert [prefix async for prefix in store.prefixes()] == []
        assert copies(tmp_path) == []
        assert list((tmp_path / "incoming").iterdir()) == []


# ------------------------------------------------------------------------- out


async def test_another_server_fetches_once_for_all_who_wait(bucket: Bucket, tmp_path: Path) -> None:
    async with opened(bucket, tmp_path / "a") as one, opened(bucket, tmp_path / "b") as other:
        blob = await put(one, LARGE)
        first, *rest = (asyncio.create_task(other.local(blob.sha256)) for _ in range(5))
        await asyncio.sleep(0)
        first.cancel()  # a device that leaves
        paths = {path.read_bytes() == LARGE for path in await asyncio.gather(*rest)}
        assert paths == {True}
        (key,) = bucket.keys()
        bucket.delete(key)
        assert (await other.local(blob.sha256)).read_bytes() == LARGE  # from its disk


async def test_what_is_not_in_the_bucket_is_not_found(bucket: Bucket, tmp_path: Path) -> None:
    async with opened(bucket, tmp_path) as store:
        with pytest.raises(FileNotFoundError):
            await store.local(digest(b"nobody"))
        with pytest.raises(FileNotFoundError):
            await store.url(digest(b"nobody"), 60)


async def test_an_object_with_other_bytes_is_not_handed_out(bucket: Bucket, tmp_path: Path) -> None:
    async with opened(bucket, tmp_path) as store:
        bucket.write(f"{digest(b'good')[:2]}/{digest(b'good')}/x", b"evil")
        with pytest.raises(PackageAway):
            await store.local(digest(b"good"))
        assert copies(tmp_path) == []


async def test_copies_are_bounded_and_the_least_used_goes(bucket: Bucket, tmp_path: Path) -> None:
    async with opened(bucket, tmp_path, cache_bytes=250) as store:
        await collect(store, [])  # from when on copies may go
        first, second, third = (bytes([i]) * 100 for i in range(3))
        await put(store, first)
        await put(store, second)
        age(tmp_path, first)
        age(tmp_path, second, IN_USE_S + 100)
        await put(store, third)
        assert copies(tmp_path) == sorted([digest(first), digest(third)])
        # What is in use stays although it is too much; it goes when it has rested.
        await store.local(digest(first))
        assert (await store.local(digest(second))).read_bytes() == second
        assert len(copies(tmp_path)) == 3


async def test_an_address_of_the_bucket_is_good_for_anybody(bucket: Bucket, tmp_path: Path) -> None:
    async with opened(bucket, tmp_path) as store, httpx.AsyncClient() as anybody:
        blob = await put(store, b"0123456789")
        answer = await anybody.get(await store.url(blob.sha256, 60), headers={"Range": "bytes=2-4"})
        assert (answer.status_code, answer.content) == (206, b"234")


# ------------------------------------------------------------------------- collection


async def collect(store: BucketStore, needed: Sequence[str]) -> tuple[int, int]:
    """What `PackageCommands.collect` does with the store."""
    files = size = 0
    async for group in store.prefixes():
        async with store.exclusive(group[0][:2]) as alone:
            assert alone
            removed = await store.remove([sha256 for sha256 in group if sha256 not in needed])
        files, size = files + removed[0], size + removed[1]
    return files, size


async def test_objects_that_nobody_needs_go_once_they_are_old(bucket: Bucket, tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().now())
    async with opened(bucket, tmp_path, clock=clock) as store:
        kept, unneeded = await put(store, b"kept"), await put(store, b"unneeded")
        assert await collect(store, [kept.sha256]) == (0, 0)  # their rows may be on their way
        clock.advance((SETTLED_S + 10) * 1000)
        assert await collect(store, [kept.sha256]) == (1, len(b"unneeded"))
        (key,) = bucket.keys()
        assert kept.sha256 in key
        with pytest.raises(FileNotFoundError):
            await store.url(unneeded.sha256, 60)


async def test_a_collection_that_looked_before_a_new_upload_takes_nothing_of_it(bucket: Bucket, tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().now() + (SETTLED_S + 10) * 1000)
    async with opened(bucket, tmp_path / "a", clock=clock) as store, opened(bucket, tmp_path / "b") as other:
        blob = await put(store, b"again")
        async for group in store.prefixes():
            assert group == [blob.sha256]
            await put(other, b"again")  # another server, after the look and before the deletion
            assert len(bucket.keys()) == 2
            assert await store.remove(group) == (1, 5)
        (key,) = bucket.keys()
        assert bucket.read(key) == b"again"


async def test_a_listing_is_paid_for_and_not_repeated_at_every_turn(bucket: Bucket, tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().now() + (SETTLED_S + 10) * 1000)
    made = connect(*bucket.settings.values())
    store = BucketStore(made, FileStore(tmp_path), clock, cache_bytes=1000)
    await store.open()
    await put(store, b"x")
    assert [group async for group in store.prefixes()] == [[digest(b"x")]]
    assert [group async for group in store.prefixes()] == []
    await store.close()


async def test_what_was_on_the_disk_before_there_was_a_bucket_goes_into_it(bucket: Bucket, tmp_path: Path) -> None:
    before = FileStore(tmp_path)
    await before.open()
    async with before.receive(chunks(b"from before"), limit=1000) as staged, staged.published():
        pass
    await before.close()
    sha256 = digest(b"from before")
    age(tmp_path, b"from before")
    async with opened(bucket, tmp_path, cache_bytes=1, endpoint=f"http://127.0.0.1:{free_port()}") as store:
        await collect(store, [])
        assert copies(tmp_path) == [sha256]  # it is nowhere else
    async with opened(bucket, tmp_path, cache_bytes=1) as store:
        assert bucket.keys() == []
        await store.trim()
        assert copies(tmp_path) == [sha256]
        await collect(store, [])
        (key,) = bucket.keys()
        assert bucket.read(key) == b"from before"
        assert copies(tmp_path) == []
        assert (await store.local(sha256)).read_bytes() == b"from before"
        await collect(store, [])
        assert bucket.keys() == [key]


# ------------------------------------------------------------------------- a whole server


@pytest.fixture
async def world(database_url: str, tmp_path: Path, clock: ManualClock, bucket: Bucket) -> AsyncIterator[World]:
    async with build_world(database_url, tmp_path, clock, **bucket.settings) as made:
        yield made


def forget_copies(folder: Path) -> None:
    for path in (folder / "packages").glob("??/??/*"):
        path.unlink()


@sqlite_only
async def test_a_device_downloads_what_is_in_the_bucket(world: World, bucket: Bucket, tmp_path: Path) -> None:
    forget_copies(tmp_path)
    _, action = await granted(world)
    href = await artifact_href(world, action)
    answer = await world.http.get(href, headers=world.gateway)
    assert (answer.status_code, answer.content) == (200, FIRMWARE)
    part = await world.http.get(href, headers={**world.gateway, "Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, FIRMWARE[5:10])
    forget_copies(tmp_path)
    (key,) = bucket.keys()
    bucket.delete(key)
    assert (await world.http.get(href, headers=world.gateway)).status_code == 404
    bucket.write(key, b"rotten")
    assert (await world.http.get(href, headers=world.gateway)).status_code == 503
    bucket.write(key, FIRMWARE)
    assert (await world.http.get(href, headers=world.gateway)).content == FIRMWARE


@sqlite_only
async def test_a_download_may_be_redirected_to_the_bucket(
    database_url: str, tmp_path: Path, clock: ManualClock, bucket: Bucket
) -> None:
    async with build_world(database_url, tmp_path, clock, **bucket.settings, package_redirect_s=60) as world:
        task, action = await granted(world)
        href = await artifact_href(world, action)
        answer = await world.http.get(href, headers={**world.gateway, "Range": "bytes=0-9"})
        assert (answer.status_code, answer.content) == (302, b"")
        assert answer.headers["cache-control"] == "no-store"
        _, (upgrade,) = await world.rooms.campaign_queries.upgrades(world.actor, task, 0, 10)
        assert upgrade.state == "downloading"
        async with httpx.AsyncClient() as device:
            moved = await device.get(answer.headers["location"], headers={"Range": "bytes=0-9"})
            assert (moved.status_code, moved.content) == (206, FIRMWARE[:10])
        # What the bucket would answer otherwise is ours.
        own = await world.http.get(href, headers={**world.gateway, "If-Range": '"old"', "Range": "bytes=0-9"})
        assert (own.status_code, own.content) == (200, FIRMWARE)
        head = await world.http.head(href, headers=world.gateway)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(FIRMWARE)))
        await world.rooms.campaigns.stop(world.actor, task)
        assert (await world.http.get(href, headers=world.gateway)).status_code == 404


@sqlite_only
async def test_an_upload_that_the_bucket_does_not_take_keeps_no_row(
    database_url: str, tmp_path: Path, clock: ManualClock, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = {"type": "firmwarePackage", "name": "a.bin", "version": "V3"}
    query |= {"deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
    async with build_world(database_url, tmp_path, clock, **bucket.settings) as world:
        headers = await world.login()
        listed = (await world.http.get("/api/v1/packages", headers=headers)).json()
        away = connect(bucket.settings["package_store"], f"http://127.0.0.1:{free_port()}", "us-east-1")
        monkeypatch.setattr(world.rooms.files, "_bucket", away)
        answer = await world.http.post("/api/v1/packages", params=query, content=b"x" * 100, headers=headers)
        assert answer.status_code == 503
        assert "store-away" in answer.text
        assert (await world.http.get("/api/v1/packages", headers=headers)).json() == listed
        assert list((tmp_path / "packages" / "incoming").iterdir()) == []


@sqlite_only
async def test_coap_blocks_come_from_the_bucket(database_url: str, tmp_path: Path, bucket: Bucket) -> None:
    async with build_field(database_url, tmp_path, **bucket.settings) as field:
        forget_copies(tmp_path)
        (device_id,) = await field.register("n1")
        device = field.device("n1")
        async with field.alive(device):
            task = await field.task(device_id)
            await field.until(task, "success")
        assert device.record.digests == [digest(FIRMWARE)]
        await field.check_laws()
