"""DTLS 1.2 with pre-shared keys (RFC 6347, RFC 4279) over OpenSSL: datagrams in, plaintexts and datagrams out.

No socket here. A `Context` answers first hellos with a cookie and remembers nothing of them (`listen`); who returns
the cookie gets a `Session`. All sessions of a context share two memory BIOs, which are empty between calls. Nothing
here awaits, and only one thread may use a context and its sessions.
"""

import ctypes
import hashlib
import hmac
from collections.abc import Callable, Iterable
from typing import Any, Final
from weakref import WeakKeyDictionary

import structlog

from openiodm.protocols.coap import openssl
from openiodm.protocols.coap.carrier import Address
from openiodm.protocols.coap.records import plausible

log = structlog.get_logger(__name__)

_SHORTEST: Final = {
    "ECDHE-PSK-CHACHA20-POLY1305": 16,
    "PSK-AES128-GCM-SHA256": 24,
    "PSK-AES128-CCM": 24,
    "ECDHE-PSK-AES128-CBC-SHA256": 64,
    "PSK-AES128-CCM8": 16,
    "PSK-AES128-CBC-SHA256": 64,
}
"""Suites, and what nonce, tag and padding make of an empty plaintext, in bytes.

OpenSSL 3.0 ends a session over a sealed record that is shorter, where a bad one is to be dropped silently (RFC 6347
section 4.1.2.7). Anyone who can forge an address could cut a device off, so they do not get that far.
"""
SUITES: Final = tuple(_SHORTEST)
"""OpenSSL's names, the better first. Devices dictate the last two: tinydtls has CCM8 alone, Huawei's SDK CBC alone."""

MTU_BYTES: Final = 1200
"""Largest datagram of a handshake, in bytes: passes everywhere, as OpenSSL is told not to ask the socket."""
RECORD_BYTES: Final = 16 * 1024 + 256
"""Room for the plaintext of any record."""
FRAGMENT_BYTES: Final = 1280
"""Largest plaintext that is sent in one record; a block of 1,024 bytes with its options fits. Saves 5 KiB a session."""
IDENTITY_BYTES: Final = 128
"""Longest PSK identity (RFC 4279 section 5.3)."""
KEY_BYTES: Final = 64
"""Longest pre-shared key (RFC 4279 section 5.3)."""
COOKIE_BYTES: Final = 16

_SECLEVEL: Final = "@SECLEVEL=0"  # CCM8 needs it from OpenSSL 3.2 on; the suites are named one by one all the same

_COME_AGAIN: Final = (openssl.SSL_ERROR_WANT_READ, openssl.SSL_ERROR_WANT_WRITE)

KeyOf = Callable[[str], bytes | None]
"""The key of an identity, None when there is none. Called within the handshake: it must be quick and raise nothing."""


Seek = Callable[[str], bool]
"""Called before a handshake asks for a key: is it being looked up, so that the peer's flight had better wait?"""
Doubt = Callable[[str], None]
"""Called after a handshake whose key was of no use: there may be another one by now."""


class DtlsError(Exception):
    """OpenSSL refused what it was asked to do: our mistake or its limit, never the peer's doing."""


class _Core:
    """One SSL_CTX with the two memory BIOs that its sessions share."""

    def __init__(self, method: str, suites: Iterable[str]) -> None:
        self.lib = lib = openssl.library()
        self.ctx = self.incoming = self.outgoing = self.address = None
        names = tuple(suites)
        if not names or not set(names) <= set(SUITES):
            raise DtlsError(f"cipher suites {names}: only these, and at least one: {', '.join(SUITES)}")
        lib.ERR_clear_error()
        self.ctx = lib.SSL_CTX_new(getattr(lib, method)())
        if not self.ctx:
            raise DtlsError(openssl.last_error())
        lib.SSL_CTX_ctrl(self.ctx, openssl.SSL_CTRL_SET_MIN_PROTO_VERSION, openssl.DTLS1_2_VERSION, None)
        lib.SSL_CTX_ctrl(self.ctx, openssl.SSL_CTRL_SET_MAX_PROTO_VERSION, openssl.DTLS1_2_VERSION, None)
        lib.SSL_CTX_ctrl(self.ctx, openssl.SSL_CTRL_SET_SESS_CACHE_MODE, 0, None)
        lib.SSL_CTX_ctrl(self.ctx, openssl.SSL_CTRL_SET_MAX_SEND_FRAGMENT, FRAGMENT_BYTES, None)
        # With encrypt-then-MAC (RFC 7366), OpenSSL 3.0 ends a session over the first forged or damaged CBC record.
        lib.SSL_CTX_set_options(self.ctx, openssl.SSL_OP_NO_ENCRYPT_THEN_MAC)
        lib.SSL_CTX_set_options(self.ctx, openssl.SSL_OP_COOKIE_EXCHANGE | openssl.SSL_OP_CIPHER_SERVER_PREFERENCE)
        options = openssl.SSL_OP_NO_QUERY_MTU | openssl.SSL_OP_NO_TICKET | openssl.SSL_OP_NO_RENEGOTIATION
        lib.SSL_CTX_set_options(self.ctx, options)
        if not lib.SSL_CTX_set_cipher_list(self.ctx, (":".join(names) + ":" + _SECLEVEL).encode()):
            raise DtlsError(f"cipher suites {names}: {openssl.last_error()}")
        self.incoming, self.outgoing = self._bio(), self._bio()
        self.address = lib.BIO_ADDR_new()  # what DTLSv1_listen fills in; with a memory BIO there is nothing to fill in
        self.buffer = ctypes.create_string_buffer(RECORD_BYTES)
        self.view = memoryview(self.buffer).cast("B")
        self.current: Session | None = None
        """The session that OpenSSL is at work for: its callbacks are told no more than a pointer."""
        self._callbacks: list[Any] = []

    def keep(self, **callbacks: Any) -> None:
        """Sets callbacks by the names of their setters, and keeps them alive as long as the context."""
        for setter, callback in callbacks.items():
            getattr(self.lib, setter)(self.ctx, callback)
            self._callbacks.append(callback)

    def _bio(self) -> Any:
        bio = self.lib.BIO_new(self.lib.BIO_s_mem())
        # Empty means "come again", not end of file.
        self.lib.BIO_ctrl(bio, openssl.BIO_C_SET_BUF_MEM_EOF_RETURN, -1, None)
        return bio

    def new_ssl(self) -> Any:
        lib = self.lib
        ssl = lib.SSL_new(self.ctx)
        if not ssl:
            raise DtlsError(openssl.last_error())
        lib.BIO_up_ref(self.incoming)
        lib.BIO_up_ref(self.outgoing)
        lib.SSL_set_bio(ssl, self.incoming, self.outgoing)
        lib.SSL_ctrl(ssl, openssl.SSL_CTRL_SET_MTU, MTU_BYTES, None)
        return ssl

    def put(self, datagram: bytes) -> None:
        """Makes one datagram readable, and nothing else: what another session left behind is dropped."""
        self.lib.BIO_ctrl(self.incoming, openssl.BIO_CTRL_RESET, 0, None)
        self.lib.BIO_write(self.incoming, datagram, len(datagram))

    def take(self) -> bytes:
        """What was written since, as one datagram: a flight with a pre-shared key is far below the MTU."""
        size = self.lib.BIO_read(self.outgoing, self.buffer, RECORD_BYTES)
        return self.view[:size].tobytes() if size > 0 else b""

    def __del__(self) -> None:
        # OpenSSL counts references: a session that is freed later still has what it needs.
        self.lib.BIO_free(self.incoming)
        self.lib.BIO_free(self.outgoing)
        self.lib.BIO_ADDR_free(self.address)
        self.lib.SSL_CTX_free(self.ctx)


class Session:
    """One association with one peer, server or client."""

    __slots__ = ("__weakref__", "_core", "_ssl", "cipher", "established", "identity")

    def __init__(self, core: _Core, ssl: Any) -> None:
        self._core = core
        self._ssl = ssl
        self.identity: str | None = None
        """The identity that the peer named; proved by its key once `established`."""
        self.cipher: str | None = None
        """OpenSSL's name of the suite, once `established`."""
        self.established = False

    def feed(self, datagram: bytes) -> tuple[list[bytes], bytes, bool]:
        """Takes a datagram of the peer: plaintexts in their order, a datagram to send or none, and is it alive?

        A bad record is dropped silently, so a wrong key shows only as a handshake that does not come to its end.
        """
        if self._ssl is None:
            return [], b"", False
        if self.cipher is not None:
            datagram = plausible(datagram, _SHORTEST[self.cipher])
        self._core.put(datagram)
        return self.pump()

    def pump(self) -> tuple[list[bytes], bytes, bool]:
        """As `feed`, with what was put in before."""
        core = self._core
        lib = core.lib
        core.current = self
        lib.ERR_clear_error()
        plaintexts = []
        while (size := lib.SSL_read(self._ssl, core.buffer, RECORD_BYTES)) > 0:
            plaintexts.append(core.view[:size].tobytes())
        alive = lib.SSL_get_error(self._ssl, size) in _COME_AGAIN
        if not self.established and alive:
            self._look()
        return plaintexts, core.take(), alive

    def listen(self) -> int:
        """The outcome of DTLSv1_listen: above 0 the cookie was good, 0 it was asked for, below 0 an error."""
        core = self._core
        core.current = self
        core.lib.ERR_clear_error()
        return int(core.lib.DTLSv1_listen(self._ssl, core.address))

    def _look(self) -> None:
        """Has the handshake come to its end?"""
        lib = self._core.lib
        if lib.SSL_is_init_finished(self._ssl):
            self.established = True
            self.cipher = lib.SSL_CIPHER_get_name(lib.SSL_get_current_cipher(self._ssl)).decode("ascii")

    def seal(self, plaintext: bytes) -> bytes:
        """The datagram that carries a plaintext; empty when the session is not established, or closed.

        Raises:
            DtlsError: longer than `FRAGMENT_BYTES`.
        """
        if self._ssl is None or not self.established:
            return b""
        if len(plaintext) > FRAGMENT_BYTES:
            raise DtlsError(f"{len(plaintext)} bytes are too many for one record")
        core = self._core
        core.lib.ERR_clear_error()
        if core.lib.SSL_write(self._ssl, plaintext, len(plaintext)) <= 0:
            return b""
        return core.take()

    def tick(self) -> bytes:
        """What of the handshake is to be sent again now, by OpenSSL's own timer (RFC 6347 section 4.2.4)."""
        if self._ssl is None or self.established:
            return b""
        core = self._core
        core.lib.ERR_clear_error()
        core.lib.SSL_ctrl(self._ssl, openssl.DTLS_CTRL_HANDLE_TIMEOUT, 0, None)
        return core.take()

    def connect(self) -> bytes:
        """The first datagram of a client."""
        core = self._core
        core.current = self
        core.put(b"")
        core.lib.ERR_clear_error()
        core.lib.SSL_set_connect_state(self._ssl)
        core.lib.SSL_do_handshake(self._ssl)
        return core.take()

    def close(self) -> bytes:
        """Frees the session; what is returned tells the peer (close_notify), empty when there is nothing to tell."""
        if self._ssl is None:
            return b""
        core = self._core
        core.lib.ERR_clear_error()
        core.put(b"")
        out = b""
        if self.established:
            core.lib.SSL_shutdown(self._ssl)
            out = core.take()
        core.lib.SSL_free(self._ssl)
        self._ssl = None
        return out

    def __del__(self) -> None:
        if self._ssl is not None:
            self._core.lib.SSL_free(self._ssl)
            self._ssl = None


class Context:
    """The server side of one port.

    `psk_lookup` is asked within each handshake, so keys may change at will while sessions live; `seek` and `doubt` let
    its owner look keys up in time. `secret` makes the cookies; `rotate` gives a new one, and the one before stays good
    until the next rotation.

    Raises:
        DtlsUnavailable: there is no OpenSSL.
        DtlsError: it has none of the suites.
    """

    def __init__(
        self,
        psk_lookup: KeyOf,
        suites: Iterable[str] = SUITES,
        *,
        secret: bytes,
        seek: Seek = lambda _: False,
        doubt: Doubt = lambda _: None,
    ) -> None:
        self._lookup = psk_lookup
        self.seek = seek
        self.doubt = doubt
        self._secrets = (secret, secret)
        self._address = b""
        self._core = core = _Core("DTLS_server_method", suites)
        self._listening: Session | None = None
        core.keep(
            SSL_CTX_set_psk_server_callback=openssl.PskServer(self._key),
            SSL_CTX_set_cookie_generate_cb=openssl.CookieGenerate(self._give_cookie),
            SSL_CTX_set_cookie_verify_cb=openssl.CookieVerify(self._check_cookie),
        )

    def rotate(self, secret: bytes) -> None:
        """Makes cookies with a new secret from now on."""
        self._secrets = (secret, self._secrets[0])

    def listen(self, datagram: bytes, address: Address) -> tuple[Session | None, bytes]:
        """Takes a ClientHello; a session and its first flight when it carries the cookie of that address.

        Without the cookie the answer is a HelloVerifyRequest, and nothing is remembered (RFC 6347 section 4.2.1).
        """
        core = self._core
        session = self._listening or Session(core, core.new_ssl())
        self._listening = None
        self._address = repr(address).encode()
        core.put(datagram)
        outcome = session.listen()
        if outcome > 0:
            # The cookie is looked at once more in the handshake: both steps in one call, for the same address.
            _, out, alive = session.pump()
            return (session, out) if alive else (None, out)
        if outcome == 0:
            self._listening = session
        else:
            session.close()  # after an error the object is of no more use
        return None, core.take()

    def _key(self, _ssl: int, identity: bytes | None, buffer: int, size: int) -> int:
        session = self._core.current
        try:
            if session is None or identity is None or len(identity) > IDENTITY_BYTES:
                return 0
            session.identity = identity.decode("utf-8")
            key = self._lookup(session.identity)
        except UnicodeDecodeError:
            return 0
        except Exception:  # nothing may be raised through OpenSSL's frames
            log.exception("dtls.key_lookup_failed")
            return 0
        return _put_key(key, buffer, size)

    def _give_cookie(self, _ssl: int, cookie: int, length: int) -> int:
        ctypes.memmove(cookie, self._cookie(self._secrets[0]), COOKIE_BYTES)
        ctypes.c_uint.from_address(length).value = COOKIE_BYTES
        return 1

    def _check_cookie(self, _ssl: int, cookie: int, length: int) -> int:
        given = ctypes.string_at(cookie, length)
        return int(any(hmac.compare_digest(given, self._cookie(secret)) for secret in self._secrets))

    def _cookie(self, secret: bytes) -> bytes:
        return hmac.digest(secret, self._address, hashlib.sha256)[:COOKIE_BYTES]


class Connector:
    """The client side, for simulated devices, tests and `check_suites`."""

    def __init__(self, suites: Iterable[str] = SUITES) -> None:
        self._core = core = _Core("DTLS_client_method", suites)
        self._keys: WeakKeyDictionary[Session, bytes] = WeakKeyDictionary()
        core.keep(SSL_CTX_set_psk_client_callback=openssl.PskClient(self._credentials))

    def connect(self, identity: str, key: bytes) -> tuple[Session, bytes]:
        """A session, and its first datagram."""
        session = Session(self._core, self._core.new_ssl())
        session.identity = identity
        self._keys[session] = key
        return session, session.connect()

    def _credentials(self, _ssl: int, _hint: bytes, identity: int, identity_size: int, key: int, key_size: int) -> int:
        session = self._core.current
        if session is None or session.identity is None:
            return 0
        name = session.identity.encode() + b"\0"
        if len(name) > identity_size:
            return 0
        ctypes.memmove(identity, name, len(name))
        return _put_key(self._keys[session], key, key_size)


def _put_key(key: bytes | None, buffer: int, size: int) -> int:
    if not key or len(key) > min(size, KEY_BYTES):
        return 0
    ctypes.memmove(buffer, key, len(key))
    return len(key)


def check_suites(suites: Iterable[str] = SUITES) -> dict[str, str]:
    """A handshake in memory with each suite, and a message both ways: why it does not work, empty where it does.

    Raises:
        DtlsUnavailable: there is no OpenSSL.
    """
    return {suite: _check(suite) for suite in suites}


def _check(suite: str) -> str:
    key = b"0123456789abcdef"
    try:
        context = Context(lambda identity: key if identity == "self-test" else None, (suite,), secret=key)
        client, hello = Connector((suite,)).connect("self-test", key)
        _, cookie_request = context.listen(hello, ("self-test", 0))
        _, second_hello, _ = client.feed(cookie_request)
        server, flight = context.listen(second_hello, ("self-test", 0))
        if server is None:
            return "the hello was refused"
        _, finished, _ = client.feed(flight)
        _, last, _ = server.feed(finished)
        client.feed(last)
        if not (server.established and client.established and server.cipher == client.cipher == suite):
            return "the handshake did not come to its end"
        if server.feed(client.seal(b"ping"))[0] != [b"ping"] or client.feed(server.seal(b"pong"))[0] != [b"pong"]:
            return "a message did not come through"
    except DtlsError as error:
        return str(error)
    return ""
