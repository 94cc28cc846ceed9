"""libcoap's clients from Debian's package against our endpoint: plain, and DTLS with two TLS libraries."""

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from openiodm.protocols.coap.blocks import serve
from openiodm.protocols.coap.carrier import Peer
from openiodm.protocols.coap.codec import Code, Message
from openiodm.protocols.coap.endpoint import Endpoint
from openiodm.protocols.coap.limits import Limits
from tests.support.coap_udp import endpoint_on_loopback

CLIENTS = ("coap-client-notls", "coap-client-openssl", "coap-client-gnutls")
FIRMWARE = hashlib.shake_256(b"firmware").digest(40_000)
KEYS = {"urn:dev:1": b"secretPSK-1", "urn:dev:2": b"another-key"}

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.skipif(
        not all(shutil.which(client) for client in CLIENTS) and not os.environ.get("CI"),
        reason="needs Debian's package libcoap3-bin; with CI set its lack fails",
    ),
]


@dataclass
class Lab:
    """What devices asked, and what they may."""

    port: int = 0
    endpoint: Endpoint | None = None
    peers: list[Peer] = field(default_factory=list)
    uploads: list[bytes] = field(default_factory=list)
    keys: dict[str, bytes] = field(default_factory=lambda: dict(KEYS))

    def handle(self, peer: Peer, request: Message) -> Message:
        self.peers.append(peer)
        if request.path == ("fw",):
            return serve(request, FIRMWARE, b"v1")
        if request.path == ("up",):
            self.uploads.append(request.payload)
            return Message(Code.CHANGED)
        return Message(Code.NOT_FOUND, payload=b"nothing here")

    async def run(self, client: str, path: str, *options: str, give_up_s: int = 15) -> tuple[str, str]:
        """What the client printed, and complained about."""
        scheme = "coap" if client == "coap-client-notls" else "coaps"
        process = await asyncio.create_subprocess_exec(
            client,
            "-B",
            str(give_up_s),
            *options,
            f"{scheme}://127.0.0.1:{self.port}/{path}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, errors = await asyncio.wait_for(process.communicate(), give_up_s + 10)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        return out.decode("utf-8", "replace"), errors.decode("utf-8", "replace")


def credentials(identity: str = "urn:dev:1", key: bytes | None = None) -> tuple[str, ...]:
    return ("-u", identity, "-k", (key or KEYS[identity]).decode())


def of(client: str) -> tuple[str, ...]:
    return () if client == "coap-client-notls" else credentials()


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    made = Lab()
    plain = "client" in request.fixturenames and request.getfixturevalue("client") == "coap-client-notls"
    limits = Limits(upload_bytes=100_000)
    async with endpoint_on_loopback(made.handle, psk=None if plain else made.keys.get, limits=limits) as (end, port):
        made.endpoint, made.port = end, port
        yield made


async def test_it_gets_a_firmware_in_blocks(lab: Lab, client: str, tmp_path: Path) -> None:
    target = tmp_path / "got.bin"
    for size in ("512", "1024"):
        _, errors = await lab.run(client, "fw", *of(client), "-b", size, "-o", str(target))
        assert target.read_bytes() == FIRMWARE, errors
    identities = {peer.identity for peer in lab.peers}
    assert identities == ({None} if client == "coap-client-notls" else {"urn:dev:1"})


async def test_it_puts_a_body_in_blocks(lab: Lab, client: str, tmp_path: Path) -> None:
    source = tmp_path / "body.bin"
    source.write_bytes(FIRMWARE)
    for size in ("256", "1024"):
        _, errors = await lab.run(client, "up", *of(client), "-m", "put", "-b", size, "-f", str(source))
        assert lab.uploads.pop() == FIRMWARE, errors
    assert lab.uploads == []


async def test_it_asks_without_wanting_an_acknowledgement(lab: Lab, client: str) -> None:
    _, errors = await lab.run(client, "nothing", *of(client), "-N")
    assert "4.04" in errors


DTLS_CLIENTS = CLIENTS[1:]


@pytest.mark.parametrize("dtls", DTLS_CLIENTS)
async def test_a_wrong_key_reaches_nobody_and_a_right_one_does_after_it(lab: Lab, dtls: str) -> None:
    await lab.run(dtls, "nothing", *credentials("urn:dev:1", b"wrong"), give_up_s=2)
    assert lab.peers == []
    _, errors = await lab.run(dtls, "nothing", *credentials("urn:dev:1"))
    assert "4.04" in errors


@pytest.mark.parametrize("dtls", DTLS_CLIENTS)
async def test_an_unknown_identity_reaches_nobody_until_its_key_is_known(lab: Lab, dtls: str) -> None:
    await lab.run(dtls, "nothing", *credentials("urn:dev:9", b"new-key"), give_up_s=3)
    assert lab.peers == []
    assert lab.endpoint is not None
    assert lab.endpoint.counts.handshakes_failed >= 1
    lab.keys["urn:dev:9"] = b"new-key"
    _, errors = await lab.run(dtls, "nothing", *credentials("urn:dev:9", b"new-key"))
    assert "4.04" in errors
    assert [peer.identity for peer in lab.peers] == ["urn:dev:9"]


@pytest.mark.parametrize("dtls", DTLS_CLIENTS)
async def test_a_device_that_starts_anew_on_the_same_port_gets_a_new_association(lab: Lab, dtls: str) -> None:
    for identity in ("urn:dev:1", "urn:dev:2"):
        _, errors = await lab.run(dtls, "nothing", *credentials(identity), "-p", "0")
        assert "4.04" in errors
    port = str(lab.peers[0].address[1])
    lab.peers.clear()
    for identity in ("urn:dev:1", "urn:dev:2"):
        _, errors = await lab.run(dtls, "nothing", *credentials(identity), "-p", port)
        assert "4.04" in errors
    assert [peer.identity for peer in lab.peers] == ["urn:dev:1", "urn:dev:2"]
    assert lab.peers[0].address == lab.peers[1].address
    assert lab.peers[0] is not lab.peers[1]


async def test_twenty_devices_at_once(lab: Lab, tmp_path: Path) -> None:
    targets = [tmp_path / str(n) for n in range(20)]
    runs = (lab.run("coap-client-openssl", "fw", *credentials(), "-b", "1024", "-o", str(to)) for to in targets)
    await asyncio.gather(*runs)
    assert all(target.read_bytes() == FIRMWARE for target in targets)
