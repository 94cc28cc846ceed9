"""DTLS sessions in memory: every suite, cookies, wrong keys, records that are none."""

import gc
import random
from collections.abc import Callable

import pytest

from openiodm.protocols.coap import dtls
from openiodm.protocols.coap.carrier import Address
from openiodm.protocols.coap.dtls import SUITES, Connector, Context, DtlsError, Session, check_suites

KEY = b"\x01" * 16
DEVICE: Address = ("192.0.2.7", 40000)


def keys(identity: str) -> bytes | None:
    return KEY if identity == "device-1" else None


@pytest.fixture
def context() -> Context:
    return Context(keys, secret=b"s" * 32)


def shake(
    context: Context, client: Session, hello: bytes, address: Address = DEVICE
) -> tuple[Session | None, list[bool]]:
    """Both sides as far as they get: the server's session, and who is alive at the end: client, server."""
    _, out = context.listen(hello, address)
    _, out, client_alive = client.feed(out)
    server, out = context.listen(out, address)
    if server is None:
        return None, [client_alive]
    alive = [client_alive, True]
    for _ in range(4):
        _, out, alive[0] = client.feed(out) if out else ([], b"", alive[0])
        _, out, alive[1] = server.feed(out) if out else ([], b"", alive[1])
    return server, alive


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_carries_messages_both_ways(context: Context, suite: str) -> None:
    client, hello = Connector((suite,)).connect("device-1", KEY)
    server, alive = shake(context, client, hello)
    assert server is not None
    assert (server.identity, server.cipher, server.established, alive) == ("device-1", suite, True, [True, True])
    for size in (1, 100, dtls.FRAGMENT_BYTES):
        assert server.feed(client.seal(b"u" * size)) == ([b"u" * size], b"", True)
        assert client.feed(server.seal(b"d" * size)) == ([b"d" * size], b"", True)


def test_of_all_suites_the_server_takes_the_best_that_both_have(context: Context) -> None:
    for offered in (SUITES[::-1], SUITES[:2:-1], SUITES[4:][::-1]):
        client, hello = Connector(offered).connect("device-1", KEY)
        shake(context, client, hello)
        assert client.cipher == offered[-1]


def test_the_self_test_finds_every_suite_at_work_and_names_what_is_not() -> None:
    assert check_suites() == dict.fromkeys(SUITES, "")
    assert "only these" in check_suites(["PSK-NULL-SHA256"])["PSK-NULL-SHA256"]


def test_a_suite_that_is_switched_off_is_refused() -> None:
    context = Context(keys, ("PSK-AES128-CCM8",), secret=b"s" * 32)
    client, hello = Connector(("PSK-AES128-CBC-SHA256",)).connect("device-1", KEY)
    assert shake(context, client, hello)[0] is None
    assert not client.established


@pytest.mark.parametrize("suites", [(), ("ALL:!aNULL",), ("NO-SUCH-SUITE",)])
def test_a_list_of_suites_that_names_none_is_refused(suites: tuple[str, ...]) -> None:
    with pytest.raises(DtlsError):
        Context(keys, suites, secret=b"s" * 32)


def test_nothing_is_remembered_until_the_cookie_comes_back(context: Context) -> None:
    connector = Connector()
    for port in range(200):
        _, hello = connector.connect("device-1", KEY)
        session, out = context.listen(hello, ("192.0.2.7", port))
        assert session is None
        assert out[13] == 3, "HelloVerifyRequest"


def test_a_cookie_is_good_for_its_address_alone(context: Context) -> None:
    client, hello = Connector().connect("device-1", KEY)
    _, verify = context.listen(hello, DEVICE)
    _, second, _ = client.feed(verify)
    session, out = context.listen(second, ("192.0.2.8", 40000))
    assert session is None
    assert out[13] == 3, "it is asked for again"
    assert context.listen(second, DEVICE)[0] is not None


def test_a_cookie_outlives_one_rotation_and_not_two(context: Context) -> None:
    client, hello = Connector().connect("device-1", KEY)
    _, verify = context.listen(hello, DEVICE)
    _, second, _ = client.feed(verify)
    context.rotate(b"t" * 32)
    assert context.listen(second, DEVICE)[0] is not None
    context.rotate(b"u" * 32)
    assert context.listen(second, DEVICE)[0] is None


def test_a_wrong_key_leaves_the_handshake_half_open(context: Context) -> None:
    client, hello = Connector().connect("device-1", b"\x02" * 16)
    server, alive = shake(context, client, hello)
    assert server is not None
    assert (server.established, server.identity, alive[1]) == (False, "device-1", True)
    assert server.seal(b"secret") == b""


def test_an_unknown_identity_gets_an_alert(context: Context) -> None:
    client, hello = Connector().connect("stranger", KEY)
    server, alive = shake(context, client, hello)
    assert server is not None
    assert (server.established, server.identity, alive) == (False, "stranger", [False, False])


@pytest.mark.parametrize(
    "lookup",
    [lambda _identity: b"", lambda _identity: b"k" * 65, lambda _identity: 1 / 0],
    ids=["an empty key", "a key longer than RFC 4279 allows", "a look-up that fails"],
)
def test_a_key_that_cannot_be_used_refuses_the_handshake(lookup: Callable[[str], bytes | None]) -> None:
    client, hello = Connector().connect("device-1", KEY)
    server, _ = shake(Context(lookup, secret=b"s" * 32), client, hello)
    assert server is not None
    assert not server.established


def test_keys_may_change_while_the_server_runs() -> None:
    known = {"device-1": KEY}
    context = Context(known.get, secret=b"s" * 32)
    client, hello = Connector().connect("device-1", KEY)
    first, _ = shake(context, client, hello)
    known["device-1"] = b"\x07" * 32
    other, hello = Connector().connect("device-1", b"\x07" * 32)
    second, _ = shake(context, other, hello)
    assert first is not None
    assert second is not None
    assert second.established
    assert first.feed(client.seal(b"still there"))[0] == [b"still there"]


def test_sessions_that_share_their_buffers_do_not_read_each_other(context: Context) -> None:
    connector = Connector()
    pairs = []
    for port in range(20):
        client, hello = connector.connect("device-1", KEY)
        server, _ = shake(context, client, hello, ("192.0.2.7", port))
        assert server is not None
        pairs.append((client, server))
    for client, _ in pairs:
        for _, server in pairs:
            plaintexts, _, alive = server.feed(client.seal(b"x"))
            assert alive
            assert plaintexts == ([b"x"] if (client, server) in pairs else [])


def test_a_record_is_taken_once(context: Context) -> None:
    client, hello = Connector().connect("device-1", KEY)
    server, _ = shake(context, client, hello)
    assert server is not None
    record = client.seal(b"once")
    assert server.feed(record)[0] == [b"once"]
    assert server.feed(record)[0] == []


def test_records_together_in_one_datagram_and_out_of_order(context: Context) -> None:
    client, hello = Connector().connect("device-1", KEY)
    server, _ = shake(context, client, hello)
    assert server is not None
    one, two, three = (client.seal(text) for text in (b"1", b"2", b"3"))
    assert server.feed(three + one)[0] == [b"3", b"1"]
    assert server.feed(two)[0] == [b"2"]


def test_what_is_too_long_for_a_record_is_refused_loudly(context: Context) -> None:
    client, hello = Connector().connect("device-1", KEY)
    server, _ = shake(context, client, hello)
    assert server is not None
    with pytest.raises(DtlsError):
        server.seal(b"x" * (dtls.FRAGMENT_BYTES + 1))


def test_closing_tells_the_peer_and_is_final(context: Context) -> None:
    client, hello = Connector().connect("device-1", KEY)
    server, _ = shake(context, client, hello)
    assert server is not None
    goodbye = server.close()
    assert client.feed(goodbye)[2] is False
    assert (server.close(), server.seal(b"x"), server.feed(client.seal(b"y")), server.tick()) == (
        b"",
        b"",
        ([], b"", False),
        b"",
    )
    assert server.identity == "device-1", "still known to whoever asks who it was"


def mangled(chance: random.Random, record: bytes) -> bytes:
    """A record with some of its bytes changed, cut or repeated."""
    data = bytearray(record)
    for _ in range(chance.randint(1, 6)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    if chance.random() < 0.3:
        return bytes(data[: chance.randint(1, len(data))])
    return bytes(data + data[: chance.randint(0, 40)])


@pytest.mark.parametrize("suite", SUITES)
def test_a_sealed_record_too_short_to_be_one_does_not_end_the_session(context: Context, suite: str) -> None:
    """OpenSSL 3.0 by itself gives such a session up: a forged datagram of 14 bytes would cut a device off."""
    client, hello = Connector((suite,)).connect("device-1", KEY)
    server, _ = shake(context, client, hello)
    assert server is not None
    for kind in (20, 21, 22, 23):
        for length in range(100):
            head = bytes((kind, 254, 253, 0, 1, 0, 0, 0, 0, 9, length, 0, length))
            assert server.feed(head + bytes(length)) == ([], b"", True)
            assert server.feed(client.seal(b"x") + head + bytes(length))[0] == [b"x"]
    assert server.feed(client.seal(b"still there")) == ([b"still there"], b"", True)


@pytest.mark.parametrize("suite", SUITES)
def test_garbage_harms_neither_the_listening_context_nor_a_session(context: Context, suite: str) -> None:
    chance = random.Random(4)
    client, hello = Connector((suite,)).connect("device-1", KEY)
    server, _ = shake(context, client, hello)
    assert server is not None
    for _ in range(500):
        context.listen(mangled(chance, hello), DEVICE)
        server.feed(mangled(chance, hello))
        server.feed(mangled(chance, client.seal(b"x" * 30)))
        server.feed(chance.randbytes(chance.randint(1, 200)))
        server.feed(bytes((chance.choice((20, 21, 22, 23)), 254, 253, 0, chance.randint(0, 1))) + chance.randbytes(60))
    assert server.feed(client.seal(b"still there")) == ([b"still there"], b"", True)
    other, hello = Connector().connect("device-1", KEY)
    assert shake(context, other, hello)[0] is not None
    assert other.established


def test_garbage_in_the_middle_of_a_handshake_harms_the_process_in_no_way(context: Context) -> None:
    chance = random.Random(5)
    for _ in range(150):
        client, hello = Connector().connect("device-1", KEY)
        _, verify = context.listen(hello, DEVICE)
        _, second, _ = client.feed(verify)
        server, flight = context.listen(second, DEVICE)
        assert server is not None
        _, finished, _ = client.feed(flight)
        for _ in range(5):
            server.feed(mangled(chance, finished))
        server.tick()
        server.close()


def test_sessions_and_contexts_may_go_in_any_order() -> None:
    context = Context(keys, secret=b"s" * 32)
    client, hello = Connector().connect("device-1", KEY)
    server, _ = shake(context, client, hello)
    assert server is not None
    del context
    gc.collect()
    assert server.feed(client.seal(b"x"))[0] == [b"x"]
    del server, client
    gc.collect()
