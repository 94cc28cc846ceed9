"""TLS of a listener: certificate, versions, ciphers, client certificates; and a renewal without a restart.

TLS 1.2 and 1.3, forward secrecy only. Certificate, key and client CA are looked at again by `ServerTls.renew`; a new
connection meets the newest of them, and those that are open stay as they are.
"""

import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

import structlog

# AEAD first. The CBC suites with SHA-2 at the end are for Java 7, which knows no GCM; TLS 1.3 has suites of its own.
CIPHERS = "@SECLEVEL=2:ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:!SHA1:!AESCCM:!aNULL"

PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 28\r\nConnection: close\r\n\r\n"
    b"This port speaks HTTPS only\n"
)

log = structlog.get_logger(__name__)


class ClientCertificates(StrEnum):
    """What is asked of a client. One that is shown must be of the client CA, whether it is required or not."""

    OFF = "off"
    REQUEST = "request"
    REQUIRE = "require"


_VERIFY = {
    ClientCertificates.OFF: ssl.CERT_NONE,
    ClientCertificates.REQUEST: ssl.CERT_OPTIONAL,
    ClientCertificates.REQUIRE: ssl.CERT_REQUIRED,
}


class TlsError(Exception):
    """Files that make no TLS; the message begins with the setting's name."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one listener, and the setting that names each."""

    certificate: Path  # with the chain below it
    key: Path  # may be the same file
    client_ca: Path | None
    clients: ClientCertificates
    prefix: str  # of the settings' names: "" or "device_"

    @property
    def named(self) -> dict[str, Path]:
        """Setting -> file, for those that are given."""
        given = {"tls_certificate": self.certificate, "tls_key": self.key, "tls_client_ca": self.client_ca}
        return {self.prefix + name: path for name, path in given.items() if path is not None}


class Connection(ssl.SSLObject):
    """One connection, where the event loops' way of ending one needs help."""

    outgoing: ssl.MemoryBIO
    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """Says why it failed: to the client, by the alert that OpenSSL has ready and event loops throw away; and here.

        "Want read" makes the loop send what is ready and ask again when the client says more, or closes.
        """
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            log.info("tls_handshake_failed", reason=_reason(error))
            self._failure = error
            if error.reason == "HTTP_REQUEST":
                self.outgoing.write(PLAIN_HTTP)
            if self.outgoing.pending:
                raise ssl.SSLWantReadError from error
            raise

    def unwrap(self) -> None:
        """Tells the client that this is the end, and waits for no answer (RFC 8446, 6.1): a stop would wait with it."""
        with suppress(ssl.SSLWantReadError):
            super().unwrap()


class RenewableContext(ssl.SSLContext):
    """A context that hands every new connection to the newest one: renewal is one assignment, all or nothing.

    Loading new files into a context in use would leave a certificate without its key when the second of them is bad.
    """

    newest: ssl.SSLContext

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """As the newest context does. The event loop wraps every connection here."""
        connection = self.newest.wrap_bio(incoming, outgoing, *args, **kwargs)
        assert isinstance(connection, Connection)
        connection.outgoing = outgoing
        return connection


class ServerTls:
    """The TLS of one listener.

    Raises:
        TlsError: at the start, a file is missing, or is not what its setting says.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamp = _stamp(files)
        self.context = RenewableContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.newest = _context(files)

    @property
    def certificate(self) -> Path:
        """Its file."""
        return self._files.certificate

    def renew(self) -> bool:
        """Takes up files that have changed; False when none has. Blocks for a few reads.

        Raises:
            TlsError: what is there now does not work; what was there before goes on, and the next call tries again.
        """
        stamp = _stamp(self._files)
        if stamp == self._stamp:
            return False
        self.context.newest = _context(self._files)
        self._stamp = stamp
        return True


def _stamp(files: TlsFiles) -> object:
    """Changes with the files. It is taken before they are read: a change in between is seen by the next look."""
    stamps = []
    for name, path in files.named.items():
        try:
            status = path.stat()
        except OSError as error:
            raise TlsError(f"{name}: {error.strerror}: {path}") from error
        stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return stamps


def _context(files: TlsFiles) -> ssl.SSLContext:
    for name, path in files.named.items():
        _check_readable(name, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = Connection
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load_pair(context, files)
    if files.client_ca is not None:
        _load_authorities(context, f"{files.prefix}tls_client_ca", files.client_ca)
    context.verify_mode = _VERIFY[files.clients]
    return context


def _check_readable(name: str, path: Path) -> None:
    """OpenSSL's own errors name no file."""
    try:
        path.read_bytes()
    except OSError as error:
        raise TlsError(f"{name}: {error.strerror}: {path}") from error


def _load_pair(context: ssl.SSLContext, files: TlsFiles) -> None:
    key = f"{files.prefix}tls_key"
    try:
        context.load_cert_chain(files.certificate, files.key, _refuse_encrypted(key, files.key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"{key}: {files.key} is not the key of the certificate {files.certificate}") from error
        # Whichever of the two it is: the certificate must do as an authority, if it is one at all.
        scratch = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _load_authorities(scratch, f"{files.prefix}tls_certificate", files.certificate)
        raise TlsError(f"{key}: {files.key} holds no private key that can be used: {_reason(error)}") from error


def _refuse_encrypted(name: str, path: Path) -> Callable[[], NoReturn]:
    def password() -> NoReturn:
        # Without this, OpenSSL would ask at the terminal, and a service would wait for ever.
        raise TlsError(f"{name}: {path} is encrypted; give a key without a password")

    return password


def _load_authorities(context: ssl.SSLContext, name: str, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise TlsError(f"{name}: {path} holds no PEM certificate that can be used: {_reason(error)}") from error


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
