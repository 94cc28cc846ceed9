"""Which address a request comes from."""

import asyncio
import socket
import sys
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from openiodm.http.clients import client_address, last_of, peer_of, trusted
from openiodm.http.connections import Crowd
from openiodm.listeners import Address, bound, listener, listening

PROXY, CLIENT = "10.0.0.1", "203.0.113.7"


def scope(peer: str | None, *forwarded: str) -> dict[str, Any]:
    headers = [(b"x-forwarded-for", text.encode("latin-1")) for text in forwarded]
    return {"type": "http", "client": None if peer is None else (peer, 5), "headers": headers}


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ((), PROXY),
        ((CLIENT,), CLIENT),
        ((f"192.0.2.1, {CLIENT}",), CLIENT),  # the client itself said the first
        (("192.0.2.1", f" {CLIENT} "), CLIENT),
        (("2001:DB8::1",), "2001:db8::1"),
        ((f"::FFFF:{CLIENT}",), CLIENT),
        (("unknown",), PROXY),
        ((f"{CLIENT}, ",), PROXY),
        (("x" * 10_000,), PROXY),
        (("\xe4",), PROXY),
    ],
)
def test_a_trusted_proxy_tells_the_client_as_the_last_one(forwarded: tuple[str, ...], expected: str) -> None:
    assert client_address(scope(PROXY, *forwarded), {PROXY}) == expected


def test_nobody_else_is_believed() -> None:
    assert client_address(scope(CLIENT, "192.0.2.1"), {PROXY}) == CLIENT
    assert client_address(scope(None, "192.0.2.1"), {PROXY}) == peer_of(scope(None)) == ""


def test_an_ipv4_peer_has_one_name_at_every_socket() -> None:
    assert peer_of(scope(f"::ffff:{CLIENT}")) == CLIENT
    assert peer_of(scope("::ffff:a:b:c")) == "::ffff:a:b:c"  # not one of theirs
    assert peer_of(scope("2001:db8::1")) == "2001:db8::1"
    for told in (PROXY, f"::ffff:{PROXY}", f"::FFFF:{PROXY}"):
        for peer in (PROXY, f"::ffff:{PROXY}"):
            assert client_address(scope(peer, CLIENT), trusted([told])) == CLIENT


def _speaks_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not _speaks_ipv6(), reason="this machine has no IPv6")
async def test_a_socket_of_both_families_tells_ipv4_peers_apart() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(client_address(scope, trusted(["127.0.0.1"])))(scope, receive, send)

    async def told(host: str, source: str) -> str:
        reader, writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.7\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer.rpartition(b"\r\n")[2].decode()

    address = Address("::", 0, None)
    with bound([address]) as sockets:
        port = sockets[0].getsockname()[1]
        async with asyncio.timeout(60), listening([listener(app, address, 1, Crowd(sys.maxsize))], sockets):
            assert await told("127.0.0.1", "127.0.0.1") == "203.0.113.7"
            assert await told("127.0.0.1", "127.0.0.2") == "127.0.0.2"
            assert await told("::1", "::1") == "::1"


@pytest.mark.parametrize(
    ("lines", "expected"), [((), ""), (("a",), "a"), (("a, b ",), "b"), (("a,b", "c"), "c"), (("a,",), "")]
)
def test_of_a_list_over_several_lines_the_last_entry_is_the_nearest_proxys(
    lines: tuple[str, ...], expected: str
) -> None:
    assert last_of(scope(PROXY, *lines), b"x-forwarded-for") == expected
