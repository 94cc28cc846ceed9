"""Signed addresses for a CDN: what DDI devices are told, and what is served at them."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from openiodm.clock import Instant
from openiodm.front import Front
from openiodm.protocols.port import File
from openiodm.protocols.signed import SignedLinks
from tests.conftest import ManualClock
from tests.contract.test_ddi import granted
from tests.support.server import BASE, FIRMWARE, World, build_world

CDN = "https://cdn.example"
KEY = "k" * 32
LIFE_S = 600
SHA256 = hashlib.sha256(FIRMWARE).hexdigest()
FILE = File("f1", "firmwarePackage", "a b.swu", "V2", SHA256, "1", "2", len(FIRMWARE), Instant(0))

# Nothing is asked of the database that other tests do not.
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def links(key: str = KEY) -> SignedLinks:
    return SignedLinks(f"{CDN}/", key, LIFE_S)


def test_all_who_ask_in_the_same_span_are_told_the_same() -> None:
    begin = Instant(LIFE_S * 1000 * 7)
    first, last = links().url(FILE, begin), links().url(FILE, Instant(begin + LIFE_S * 1000 - 1))
    assert first == last
    assert first.startswith(f"{CDN}/cdn/{SHA256}/a%20b.swu?expires={9 * LIFE_S}&signature=")
    assert links().url(FILE, Instant(begin + LIFE_S * 1000)) != first
    assert links("x" * 32).url(FILE, begin) != first


def test_an_address_is_over_at_its_end_and_no_letter_of_it_may_differ() -> None:
    url = httpx.URL(links().url(FILE, Instant(0)))
    path, query = url.raw_path.decode().partition("?")[0], url.query.decode()

    def left(path: str = path, query: str = query, at_s: int = 0) -> int | None:
        return links().left_s(path, query, Instant(at_s * 1000))

    assert left() == 2 * LIFE_S
    assert left(at_s=2 * LIFE_S - 1) == 1
    assert left(at_s=2 * LIFE_S) is None
    assert left(path=path.replace("a%20b", "c")) is None
    assert left(path=path.replace(SHA256, "0" * 64)) is None
    assert left(query=query.replace("expires=1200", "expires=12000")) is None
    assert left(query=query[:-1]) is None
    assert left(query=f"{query}&expires=9") is None
    for odd in ("", "expires=1200", "signature=", "expires=x&signature=y", "expires=-1&signature=\xff", "&&=&"):
        assert left(query=odd) is None
    assert links("x" * 32).left_s(path, query, Instant(0)) is None


@pytest.fixture
async def world(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[World]:
    settings = {"cdn_url": CDN, "cdn_key": KEY, "cdn_life_s": LIFE_S}
    async with build_world(database_url, tmp_path, clock, **settings) as made:
        yield made


async def told(world: World, action: int) -> dict[str, str]:
    answer = await world.http.get(world.ddi("dev1", f"/deploymentBase/{action}"), headers=world.gateway)
    (chunk,) = answer.json()["deployment"]["chunks"]
    return {name: link["href"] for name, link in chunk["artifacts"][0]["_links"].items()}


@sqlite_only
async def test_a_device_is_told_where_the_cdn_has_the_bytes(world: World) -> None:
    _, action = await granted(world)
    found = await told(world, action)
    assert found["download-http"].startswith(f"{CDN}/cdn/{SHA256}/image.swu?")
    assert found["md5sum-http"].startswith(f"{BASE}/")  # small, and ours
    assert (await world.http.get(found["md5sum-http"], headers=world.gateway)).status_code == 200
    path = found["download-http"].removeprefix(CDN)
    answer = await world.http.get(path)  # as the CDN asks: for nobody
    assert (answer.status_code, answer.content) == (200, FIRMWARE)
    assert answer.headers["etag"] == f'"{SHA256}"'
    assert answer.headers["content-disposition"] == "attachment;filename=image.swu"
    seconds = int(answer.headers["cache-control"].removeprefix("public, max-age=").removesuffix(", immutable"))
    assert LIFE_S < seconds <= 2 * LIFE_S
    part = await world.http.get(path, headers={"Range": "bytes=5-9", "If-Range": answer.headers["etag"]})
    assert (part.status_code, part.content) == (206, FIRMWARE[5:10])
    assert part.headers["cache-control"] == answer.headers["cache-control"]
    same = await world.http.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (same.status_code, same.headers["cache-control"]) == (304, answer.headers["cache-control"])
    for condition, status in (({"If-Match": '"x"'}, 412), ({"Range": "bytes=9999999-"}, 416)):
        refused = await world.http.get(path, headers=condition)  # a copy of this would be everybody's
        assert (refused.status_code, refused.headers["cache-control"]) == (status, "no-store")
    assert (await world.http.head(path)).headers["content-length"] == str(len(FIRMWARE))
    assert (await world.http.post(path)).status_code == 405
    for wrong in (path + "0", path.replace("image", "other"), path.partition("?")[0], f"/cdn/{SHA256}", "/cdn/"):
        refused = await world.http.get(wrong)
        assert (refused.status_code, refused.headers["cache-control"]) == (403, "no-store")
    # The way of the device is as it was without a CDN.
    assert await world.feedback("dev1", action, "closed", "success") == 200


@sqlite_only
async def test_a_stop_tells_no_new_address_and_an_old_one_lives_on_until_its_end(world: World) -> None:
    task, action = await granted(world)
    path = (await told(world, action))["download-http"].removeprefix(CDN)
    await world.rooms.campaigns.stop(world.actor, task)
    assert (
        await world.http.get(world.ddi("dev1", f"/deploymentBase/{action}"), headers=world.gateway)
    ).status_code == 404
    assert (await world.http.get(path)).content == FIRMWARE
    world.advance(2 * LIFE_S)
    assert (await world.http.get(path)).status_code == 403


@sqlite_only
async def test_who_has_not_confirmed_is_told_no_address(world: World) -> None:
    (device_id,) = await world.register("dev1")
    await world.create_task([device_id], confirmation=True)
    await world.run_jobs()
    links = (await world.poll("dev1"))["_links"]
    answer = await world.http.get(links["confirmationBase"]["href"], headers=world.gateway)
    assert "image.swu" in answer.text
    assert CDN not in answer.text


@sqlite_only
async def test_a_package_that_is_gone_is_not_found(world: World, tmp_path: Path) -> None:
    _, action = await granted(world)
    path = (await told(world, action))["download-http"].removeprefix(CDN)
    for file in (tmp_path / "packages").glob("??/??/*"):
        file.unlink()
    assert (await world.http.get(path)).status_code == 404


@sqlite_only
async def test_without_a_cdn_there_is_no_such_path(database_url: str, tmp_path: Path, clock: ManualClock) -> None:
    async with build_world(database_url, tmp_path, clock) as world:
        path = links().url(FILE, clock.now()).removeprefix(CDN)
        assert (await world.http.get(path)).status_code == 404


@sqlite_only
async def test_the_applications_own_address_serves_none(world: World) -> None:
    _, action = await granted(world)
    path = (await told(world, action))["download-http"].removeprefix(CDN)
    front = Front(world.rooms, applications=True, devices=False)
    transport = httpx.ASGITransport(front)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
        assert (await http.get(path)).status_code == 404
