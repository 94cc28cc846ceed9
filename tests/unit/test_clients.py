"""Which address a request comes from."""

from typing import Any

import pytest

from openiodm.http.clients import client_address, peer_of

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
