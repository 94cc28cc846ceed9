"""Signatures, client certificates and private authorities of callbacks; what the native API shows of delivery."""

import importlib.util
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from openiodm.clock import SECOND
from openiodm.notifications.model import NotifyType
from openiodm.notifications.sender import EVENT_HEADER, SIGNATURE_HEADER
from tests.conftest import ManualClock
from tests.contract.test_notices import LOOPBACK, eventually, subscribe, telling, upgraded, waiting
from tests.support.certificates import Certificates
from tests.support.receiver import receiving
from tests.support.server import World, build_world

RESULT, STATE = NotifyType.FW_RESULT, NotifyType.FW_STATE
CALLBACKS = "/api/v1/application/callbacks"
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "verify_notice.py"


@pytest.fixture
async def world(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[World]:
    async with (
        build_world(database_url, tmp_path, clock, callback_allow=(*LOOPBACK, "localhost")) as built,
        telling(built),
    ):
        yield built


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_notice", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def native(world: World, method: str, path: str, status: int = 200, **kwargs: Any) -> Any:
    answer = await world.http.request(method, path, headers=await world.login(), **kwargs)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


async def test_signed_notices_pass_the_check_that_the_documentation_shows(world: World) -> None:
    made = await native(world, "PUT", f"{CALLBACKS}/signature", json={"signed": True})
    async with receiving() as receiver:
        await subscribe(world, receiver.url(), RESULT)
        await upgraded(world, "n1")
        await receiver.until(1)
        heard = receiver.heard[0]
        now = world.rooms.clock.now() / SECOND
        signature = heard.headers[SIGNATURE_HEADER.lower()]
        is_genuine = example().is_genuine
        assert is_genuine(made["secret"], signature, heard.raw, now)
        assert not is_genuine(made["secret"], signature, heard.raw + b" ", now)
        assert not is_genuine("another", signature, heard.raw, now)
        assert not is_genuine(made["secret"], signature, heard.raw, now + 301)
        assert not is_genuine(made["secret"], "nonsense", heard.raw, now)
        assert await native(world, "PUT", f"{CALLBACKS}/signature", json={"signed": False}) == {
            "signed": False,
            "secret": None,
        }
        await upgraded(world, "n2")
        await receiver.until(2)
        assert SIGNATURE_HEADER.lower() not in receiver.heard[1].headers


async def test_an_event_id_is_the_same_for_every_attempt(world: World) -> None:
    await native(world, "PUT", f"{CALLBACKS}/signature", json={"signed": True})
    async with receiving(lambda body: 500) as receiver:
        await subscribe(world, receiver.url(), RESULT)
        await upgraded(world, "n1")
        await receiver.until_heard(1)
        receiver.answer = lambda body: 200

        async def failed() -> bool:
            return bool(await world.rooms.database.fetchval("SELECT count(*) FROM notice WHERE due_at IS NOT NULL"))

        await eventually(failed)
        world.advance(5)
        world.rooms.deliverer.wake()
        await receiver.until(1)
        await upgraded(world, "n2")
        await receiver.until(2)
    first, again, other = (h.headers[EVENT_HEADER.lower()] for h in receiver.heard)
    assert first == again != other


async def test_receivers_may_demand_a_client_certificate_and_have_an_authority_of_their_own(
    world: World, certificates: Certificates
) -> None:
    demanding = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    server = certificates.server
    demanding.load_cert_chain(server.certificate, server.key)
    demanding.verify_mode = ssl.CERT_REQUIRED
    async with receiving(ssl=demanding) as receiver:
        await subscribe(world, f"https://localhost:{receiver.port}/", RESULT)
        await upgraded(world, "n1")
        await eventually(lambda: _error(world, "certificate verify failed"))
        ca = certificates.ca.read_text()
        assert await native(world, "PUT", f"{CALLBACKS}/tls", json={"caPem": ca}) == {
            "signed": False,
            "ownAuthorities": True,
            "clientCertificate": None,
            "changedAt": (await native(world, "GET", CALLBACKS))["changedAt"],
        }
        await _again(world)
        await waiting(world, 2)  # what it says then is up to the receiver: TLS 1.3 tells it after the handshake
        assert receiver.heard == []
        client = certificates.client
        pair = {"certificatePem": client.certificate.read_text(), "keyPem": client.key.read_text()}
        shown = await native(world, "PUT", f"{CALLBACKS}/tls", json={"caPem": ca, **pair})
        assert len(shown["clientCertificate"]) == 64
        assert "PRIVATE" not in json.dumps(await native(world, "GET", CALLBACKS))
        await _again(world)
        await receiver.until(1)


async def test_a_certificate_that_is_not_the_hosts_is_refused(world: World, certificates: Certificates) -> None:
    wrong = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server = certificates.client  # of the same authority, for no host at all
    wrong.load_cert_chain(server.certificate, server.key)
    await native(world, "PUT", f"{CALLBACKS}/tls", json={"caPem": certificates.ca.read_text()})
    async with receiving(ssl=wrong) as receiver:
        await subscribe(world, f"https://localhost:{receiver.port}/", RESULT)
        await upgraded(world, "n1")
        await eventually(lambda: _error(world, "certificate verify failed"))
        assert receiver.heard == []


async def _error(world: World, text: str) -> bool:
    (health,) = await world.rooms.subscription_queries.health(world.actor)
    return text in (health.last_error or "")


async def _again(world: World) -> None:
    world.advance(120)
    world.rooms.deliverer.wake()


async def test_pem_that_makes_no_sense_is_refused_with_its_field_and_changes_nothing(
    world: World, certificates: Certificates
) -> None:
    one, other = certificates.client, certificates.stranger
    pem, key = one.certificate.read_text(), one.key.read_text()
    wrong = [
        ({"caPem": "nonsense"}, "caPem"),
        ({"caPem": ""}, "caPem"),
        ({"caPem": pem + "µ"}, "caPem"),
        ({"certificatePem": pem}, "keyPem"),
        ({"keyPem": key}, "certificatePem"),
        ({"certificatePem": pem, "keyPem": other.key.read_text()}, "certificatePem"),
        ({"certificatePem": pem, "keyPem": "nonsense"}, "certificatePem"),
        ({"certificatePem": "nonsense", "keyPem": key}, "certificatePem"),
    ]
    for body, field in wrong:
        problem = await native(world, "PUT", f"{CALLBACKS}/tls", 400, json=body)
        assert (problem["reason"], problem["field"]) == ("bad-input", field), body
        assert key not in json.dumps(problem)
    assert (await native(world, "GET", CALLBACKS))["changedAt"] is None


async def test_the_native_api_shows_what_is_not_delivered_in_pages_and_replays_it(world: World) -> None:
    async with receiving(lambda body: 500) as receiver:
        await subscribe(world, receiver.url(), STATE)
        device = await upgraded(world, "n1")
        await receiver.until_heard(1)
        await waiting(world, 1)  # its failure is written down: from then on its life is counted
        world.advance(601)
        world.rooms.deliverer.wake()
        (subscription,) = (await native(world, "GET", "/api/v1/subscriptions"))["items"]
        assert subscription["pending"] + subscription["undelivered"] == 6

        async def all_given_up() -> bool:
            return (await native(world, "GET", "/api/v1/subscriptions"))["items"][0]["undelivered"] == 6

        await eventually(all_given_up)
        path = f"/api/v1/notices?subscriptionId={subscription['subscriptionId']}&limit=4"
        first = await native(world, "GET", path)
        rest = await native(world, "GET", f"{path}&cursor={first['nextCursor']}")
        assert (len(first["items"]), len(rest["items"]), rest["nextCursor"]) == (4, 2, None)
        assert first["items"][0]["body"]["deviceId"] == device
        assert first["items"][0]["lastError"] == "it answered 500"
        assert (await native(world, "GET", "/api/v1/notices?state=pending"))["items"] == []
        receiver.answer = lambda body: 200
        one = first["items"][0]["noticeId"]
        await native(world, "POST", f"/api/v1/notices/{one}/replay", 204)
        assert (await native(world, "POST", f"/api/v1/notices/{one}/replay", 404))["reason"] == "notice-unknown"
        assert (await native(world, "POST", "/api/v1/notices/x/replay", 404))["reason"] == "notice-unknown"
        replay = f"/api/v1/subscriptions/{subscription['subscriptionId']}/replay"
        assert await native(world, "POST", replay) == {"replayed": 5}
        await _again(world)
        told = [b["stepDesc"] for b in await receiver.until(6)]
        assert told == ["otacreated", "RequestDownload", "downloading", "downloaded", "updating", "idle"]
