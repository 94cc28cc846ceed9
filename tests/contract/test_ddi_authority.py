"""DDI behind a proxy that has seen the device's certificate: X-Controller-Id and X-Authority, on both engines."""

from pathlib import Path

import pytest

from openiodm.access.model import Product
from openiodm.errors import Reason, Refusal
from tests.conftest import ManualClock
from tests.support.server import World, build_world

ISSUER = "5F3A00C9"
PRODUCT = Product("sensor", "m1", "acme")


async def status(world: World, node_id: str = "dev1", tenant: str = "DEFAULT", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return (await world.http.get(world.ddi(node_id, tenant=tenant), headers=named)).status_code


async def test_a_trusted_proxy_speaks_for_devices_of_an_authority(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    async with build_world(database_url, tmp_path, clock, trusted_proxies=("127.0.0.1",)) as world:
        made = await world.rooms.access.create_authority(world.actor, "plant", PRODUCT, ISSUER)
        assert await status(world, X_Controller_Id="dev1", X_Authority=ISSUER) == 200
        found = await world.rooms.device_queries.device_by_node(world.actor, "dev1")
        assert found.device.product == PRODUCT
        assert await status(world, X_Controller_Id="dev1", X_Authority="other; " + ISSUER.lower()) == 200
        assert await status(world, X_Controller_Id="dev1", X_Authority_0="other", X_Authority_1=ISSUER) == 200
        assert await status(world, tenant=world.actor.app_id, X_Controller_Id="dev1", X_Authority=ISSUER) == 200
        assert await status(world, X_Controller_Id="dev2", X_Authority=ISSUER) == 401  # not the path's
        assert await status(world, X_Controller_Id="dev1", X_Authority="other") == 401
        assert await status(world, X_Controller_Id="dev1") == 401
        assert await status(world, tenant="another", X_Controller_Id="dev1", X_Authority=ISSUER) == 401
        wrong = {"Authorization": "GatewayToken wrong", "X_Controller_Id": "dev1", "X_Authority": ISSUER}
        assert await status(world, **wrong) == 401  # the token goes first
        many = ",".join(f"a{n}" for n in range(10)) + "," + ISSUER
        assert await status(world, X_Controller_Id="dev1", X_Authority=many) == 401  # ten are looked at

        await world.rooms.access.revoke_gateway_token(world.actor, made.key)
        assert await status(world, X_Controller_Id="dev1", X_Authority=ISSUER) == 401
        await world.rooms.access.create_authority(world.actor, "plant again", PRODUCT, ISSUER)
        assert await status(world, X_Controller_Id="dev1", X_Authority=ISSUER) == 200
        await world.rooms.access.set_device_tokens(world.actor, target=True, gateway=False)
        assert await status(world, X_Controller_Id="dev1", X_Authority=ISSUER) == 401


async def test_without_a_trusted_proxy_the_headers_are_nothing(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    async with build_world(database_url, tmp_path, clock) as world:
        await world.rooms.access.create_authority(world.actor, "plant", PRODUCT, ISSUER)
        assert await status(world, X_Controller_Id="dev1", X_Authority=ISSUER) == 401
        token = f"GatewayToken authority {ISSUER.lower()}"  # nor is an authority a token
        assert await status(world, Authorization=token) == 401


async def test_an_authority_is_one_applications_and_one_text(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    async with build_world(database_url, tmp_path, clock) as world:
        await world.rooms.access.create_authority(world.actor, "plant", PRODUCT, ISSUER)
        for authority in (ISSUER.lower(), " ", "a,b", "a;b"):
            with pytest.raises(Refusal) as refused:
                await world.rooms.access.create_authority(world.actor, "again", PRODUCT, authority)
            assert (refused.value.reason, refused.value.field) == (Reason.BAD_INPUT, "authority")
