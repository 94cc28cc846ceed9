"""libcoap's clients register as LwM2M devices at a whole server, by DTLS and plain; hostile input at its ports."""

import asyncio
import os
import random
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from openiodm.protocols.coap.codec import Code, Message, Type, decode, encode, path_options
from openiodm.protocols.coap.dtls import Connector, Session
from tests.support.process import Northbound, Server, free_port, free_udp_port

DTLS_CLIENTS = ("coap-client-openssl", "coap-client-gnutls")
PLAIN_CLIENT = "coap-client-notls"
KEY = b"secretPSK0123456"
OTHER_KEY = b"secretPSK0123457"
PRODUCT = {"deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
LINKS = "</1/0>,</3/0>,</5/0>"
HOST = "127.0.0.1"

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.skipif(
        not all(shutil.which(client) for client in (*DTLS_CLIENTS, PLAIN_CLIENT)) and not os.environ.get("CI"),
        reason="needs Debian's package libcoap3-bin; with CI set its lack fails",
    ),
]


class Refused(Exception):
    """The server ended a handshake."""


@dataclass
class Lab:
    """A server with both ports, and an application that has registered two devices."""

    api: Northbound
    server: Server
    folder: Path
    coap: int
    coaps: int

    async def register(self, client: str, endpoint: str, *options: str) -> str:
        """What the client saw: all messages, and its complaints."""
        links = self.folder / "links"
        links.write_text(LINKS)
        at = f"coap://{HOST}:{self.coap}" if client == PLAIN_CLIENT else f"coaps://{HOST}:{self.coaps}"
        arguments = ("-v", "6", "-B", "4", "-m", "post", "-t", "40", "-f", str(links), *options)
        process = await asyncio.create_subprocess_exec(
            client,
            *arguments,
            f"{at}/rd?ep={endpoint}&lt=300&lwm2m=1.1&b=U",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        return out.decode("utf-8", "replace")

    def shake(self, identity: str, key: bytes) -> tuple[socket.socket, Session]:
        """A session of a client of ours; blocks.

        Raises:
            Refused: the server does not want it.
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((HOST, self.coaps))
        sock.settimeout(0.3)
        session, out = Connector().connect(identity, key)
        for _ in range(40):
            if out:
                sock.send(out)
            try:
                _, out, alive = session.feed(sock.recv(4_000))
            except TimeoutError:
                out, alive = session.tick(), True
            if session.established:
                sock.settimeout(60)
                return sock, session
            if not alive:
                break
        sock.close()
        raise Refused

    async def device(self, node_id: str) -> Any:
        found = await self.api.call("GET", "/iocm/app/dm/v1.4.0/devices", params={"pageNo": 0, "pageSize": 100})
        return next(each["deviceInfo"] for each in found["devices"] if each["deviceInfo"]["nodeId"] == node_id)

    async def comes_online(self, node_id: str) -> Any:
        for _ in range(600):
            if (info := await self.device(node_id))["status"] == "ONLINE":
                return info
            await asyncio.sleep(0.1)
        raise AssertionError(f"{node_id} is {info['status']}")


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    coap, coaps = free_udp_port(), free_udp_port()
    server = Server(
        tmp_path,
        f"sqlite:///{tmp_path / 'openiodm.db'}",
        free_port(),
        coap_listen=f"{HOST}:{coap}",
        coaps_listen=f"{HOST}:{coaps}",
    )
    application = await server.cli("app", "create", "lab", "--json")
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            api = Northbound(http, application["appId"], application["secret"])
            for node_id, key in (("urn:dev:1", KEY), ("urn:dev:2", OTHER_KEY)):
                device = {"nodeId": node_id, "psk": key.hex(), "protocolType": "LWM2M", **PRODUCT}
                await api.call("POST", "/api/v1/devices", json=device)
            made = Lab(api, server, tmp_path, coap, coaps)
            yield made
    finally:
        await server.end(signal.SIGTERM)


def credentials(identity: str, key: bytes) -> tuple[str, ...]:
    return ("-u", identity, "-k", key.decode())


async def test_devices_register_and_come_online(lab: Lab) -> None:
    for client in DTLS_CLIENTS:
        seen = await lab.register(client, "urn:dev:1", *credentials("urn:dev:1", KEY))
        assert "c:2.01" in seen
        assert "Location-Path:rd" in seen
    assert "c:2.01" in await lab.register(PLAIN_CLIENT, "urn:dev:2")
    for node_id in ("urn:dev:1", "urn:dev:2"):
        assert (await lab.comes_online(node_id))["protocolType"] == "LWM2M"


async def test_who_is_not_who_he_says_registers_nothing(lab: Lab) -> None:
    for client in DTLS_CLIENTS:
        assert "c:4.03" in await lab.register(client, "urn:dev:2", *credentials("urn:dev:1", KEY))
    assert "c:2" not in await lab.register("coap-client-openssl", "urn:dev:1", *credentials("urn:dev:1", OTHER_KEY))
    assert "c:2" not in await lab.register("coap-client-openssl", "urn:dev:9", *credentials("urn:dev:9", KEY))
    assert "c:4.03" in await lab.register(PLAIN_CLIENT, "urn:dev:9")
    assert [(await lab.device(node_id))["status"] for node_id in ("urn:dev:1", "urn:dev:2")] == ["INACTIVE"] * 2


# Hostile input.

PATHS = (b"rd", b"dp", b"5", b"0", b"fw-" + b"0" * 14 + b"-1", b"\xff", b"." * 200)
QUERIES = (
    b"ep=urn:dev:1",
    b"ep=urn:dev:2",
    b"ep=",
    b"lt=0",
    b"lt=-1",
    b"lt=" + b"9" * 30,
    b"lwm2m=9",
    b"b=\0",
    b"ep=\xff",
)
PAYLOADS = (
    b"",
    LINKS.encode(),
    b"</" * 500,
    b"<" + b"a" * 900,
    b"\xff\xfe\x01\x15" + b"1" * 20,
    b"\xc8\x00\x14abc",
    b"x" * 1024,
)


def hostile(chance: random.Random) -> bytes:
    """A message of the right shape and of any content, or none at all."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.randint(0, 400))
    options = []
    for _ in range(chance.randint(0, 5)):
        number = chance.choice((11, 11, 15, 15, 23, 27, 6, 12, 17, 60, chance.randint(0, 300)))
        value = {11: chance.choice(PATHS), 15: chance.choice(QUERIES)}.get(
            number, chance.randbytes(chance.randint(0, 3))
        )
        options.append((number, value))
    code = chance.choice((1, 2, 2, 3, 4, 5, 7, 68, 69, 95, 132, 160))
    token = chance.randbytes(chance.choice((0, 1, 4, 8)))
    kind = chance.choice(list(Type))
    return encode(Message(code, tuple(options), chance.choice(PAYLOADS), kind, chance.randint(0, 0xFFFF), token))


def attack(lab: Lab, chance: random.Random) -> None:
    sock, session = lab.shake("urn:dev:1", KEY)
    with sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        for _ in range(3_000):
            message = hostile(chance)
            plain.sendto(message, (HOST, lab.coap))
            sock.send(session.seal(message[:1_200]) if chance.random() < 0.8 else message)
            plain.sendto(chance.randbytes(chance.randint(1, 300)), (HOST, lab.coaps))
        # The sockets are closed with answers under way, so the server's own are told that nobody listens any more.


def ask_plain(lab: Lab, datagram: bytes) -> Message:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        sock.sendto(datagram, (HOST, lab.coap))
        return decode(sock.recv(2_000))


async def test_hostile_input_harms_nobody(lab: Lab) -> None:
    await asyncio.to_thread(attack, lab, random.Random(7))
    guessed = encode(Message(Code.GET, path_options(f"/fw-{'0' * 14}-1"), mid=1))
    assert (await asyncio.to_thread(ask_plain, lab, guessed)).code == Code.NOT_FOUND
    assert "c:2.01" in await lab.register("coap-client-openssl", "urn:dev:1", *credentials("urn:dev:1", KEY))
    assert "c:2.01" in await lab.register(PLAIN_CLIENT, "urn:dev:2")
    await lab.comes_online("urn:dev:2")
    log = (lab.folder / "server.log").read_text()
    assert "[error" not in log
    assert "Traceback" not in log


async def test_a_restarted_server_takes_new_handshakes_and_knows_its_registrations(lab: Lab) -> None:
    assert "c:2.01" in await lab.register(PLAIN_CLIENT, "urn:dev:2")
    await lab.comes_online("urn:dev:2")
    await lab.server.end(signal.SIGKILL)
    await lab.server.start()
    assert "c:2.01" in await lab.register("coap-client-openssl", "urn:dev:1", *credentials("urn:dev:1", KEY))
    assert (await lab.device("urn:dev:2"))["status"] == "ONLINE"
