"""Plain CoAP behind a NAT: an address and port that was one device's becomes another's, over real sockets."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from openiodm.campaigns.states import UpgradeState as S
from openiodm.packages.model import FileType
from openiodm.protocols.coap.codec import Code
from openiodm.protocols.lwm2m.clients import Client
from openiodm.protocols.lwm2m.codec.values import ContentFormat
from openiodm.protocols.lwm2m.service import Lwm2mService
from openiodm.protocols.pcp.codec import AskFragment, encode
from openiodm.simulator.coap import NoAnswerError
from tests.support.lwm2m import SOFTWARE, Field, build_field, eventually, ports, serving

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
async def field(database_url: str, tmp_path: Path) -> AsyncIterator[Field]:
    async with build_field(database_url, tmp_path) as made:
        yield made
        await made.check_laws()


def client_of(service: Lwm2mService, endpoint: str) -> Client:
    (found,) = (client for client in service.clients if client.kept.endpoint == endpoint)
    return found


async def state_of(field: Field, task: str) -> S:
    (upgrade,) = await field.upgrades(task)
    return upgrade.state


@sqlite_only
async def test_an_upgrade_never_goes_to_the_device_that_has_the_port_now(field: Field) -> None:
    first, second = await field.register("first", "second")
    async with ports(field, 2) as (shared, other):
        location = await shared.register("first")
        await shared.register("second")
        of_first = await field.task(first)
        of_second = await field.task(second)
        await eventually(lambda: shared.written)
        # A look-out reads the tasks of both at once: the first one's would have been on its way before this.
        for _ in range(2):
            await field.service.upgrades.look_out()
        names = {name: client_of(field.service, name).seed.hex() for name in ("first", "second")}
        assert [name.split("-")[1] for name in shared.written] == [names["second"]]
        assert (await state_of(field, of_first), await state_of(field, of_second)) == (S.WAIT, S.OFFERED)

        assert (await other.ask(Code.POST, location)).code == Code.CHANGED
        await eventually(lambda: other.written)
        assert [name.split("-")[1] for name in other.written] == [names["first"]]
        # The second one is reached as before, and heard.
        assert client_of(field.service, "second").peer is not None
        assert (await shared.ask(Code.POST, "dp")).code == Code.CHANGED


@sqlite_only
async def test_what_the_neighbour_was_told_in_the_others_name_counts_no_more(field: Field) -> None:
    """The server speaks to the first one until the second one, which has its port by now, says who it is."""
    first, _ = await field.register("first", "second")
    async with ports(field, 3) as (shared, stranger, other):
        await shared.register("first")
        task = await field.task(first)
        await eventually(lambda: shared.written)
        name, token = shared.written[0], shared.tokens["5/0/3"]
        await shared.register("second")
        with pytest.raises(NoAnswerError, match="reset"):
            await shared.notify(token, b"1", ContentFormat.TEXT)
        assert (await shared.ask(Code.GET, name)).code == Code.NOT_FOUND
        assert await state_of(field, task) is S.OFFERED
        assert client_of(field.service, "first").peer is None

        await other.register("first")
        await eventually(lambda: other.written)
        assert other.tokens["5/0/3"] == token
        assert await state_of(field, task) is S.OFFERED
        await other.notify(token, b"1", ContentFormat.TEXT)
        assert await state_of(field, task) is S.DOWNLOADING
        # A device may fetch from a socket that nobody has registered on.
        assert (await stranger.ask(Code.GET, name)).code == Code.CONTENT


@sqlite_only
async def test_pcp_frames_of_the_neighbour_are_not_the_others(field: Field) -> None:
    first, _ = await field.register("first", "second")
    file_id = await field.upload(SOFTWARE, FileType.SOFTWARE)
    async with ports(field, 1) as (shared,):
        links = b"</19/0>,</19/1>"
        await shared.register("first", links)
        task = await field.task(first, file_id=file_id, software=True)
        await eventually(lambda: "19/1/0" in shared.asked)
        token = shared.tokens["19/0/0"]
        await shared.register("second", links)
        with pytest.raises(NoAnswerError, match="reset"):
            await shared.notify(token, encode(AskFragment("V2", 0)), ContentFormat.OPAQUE)
        assert await state_of(field, task) is S.OFFERED
        assert not client_of(field.service, "first").outbox


async def restarted(field: Field) -> Field:
    """What a server at the same address is to be made from."""
    at = field.address
    await field.service.close()
    settings = msgspec.structs.replace(field.world.rooms.settings, coap_listen=f"{at[0]}:{at[1]}")
    field.world.rooms = replace(field.world.rooms, settings=settings)
    return field


async def test_after_a_restart_the_port_is_the_last_ones(field: Field) -> None:
    await field.register("first", "second")
    async with ports(field, 1) as (shared,):
        await shared.register("first")
        await shared.register("second")
        async with serving((await restarted(field)).world) as again:
            assert client_of(again, "first").peer is None
            assert client_of(again, "second").peer is not None


@pytest.mark.parametrize("last", ["first", "second"])
async def test_rows_with_one_address_are_the_one_that_was_heard_of_last(field: Field, last: str) -> None:
    """As they are where the server forgot an address before another device came from there."""
    await field.register("first", "second")
    async with ports(field, 2) as (one, two):
        await one.register("first")
        await two.register("second")
        address = client_of(field.service, "first").kept.address
        await field.world.rooms.last_seen.flush()
        async with field.world.rooms.database.transaction() as tx:
            await tx.execute("UPDATE lwm2m_registration SET address = $1", address)
            await tx.execute("UPDATE device SET last_seen_at = last_seen_at + 60000 WHERE node_id = $1", last)
        async with serving((await restarted(field)).world) as again:
            reached = {c.kept.endpoint for c in again.clients if c.peer is not None}
            assert reached == {last}


async def test_a_device_that_has_moved_is_reached_where_it_notified_from_last(field: Field) -> None:
    (device_id,) = await field.register("first")
    async with ports(field, 2) as (old, new):
        await old.register("first")
        await field.task(device_id)
        await eventually(lambda: old.written)
        await new.notify(old.tokens["5/0/3"], b"0", ContentFormat.TEXT)
        peer = client_of(field.service, "first").peer
        assert peer is not None
        async with serving((await restarted(field)).world) as again:
            found = client_of(again, "first").peer
            assert found is not None
            assert found.address == peer.address
