"""Certificates for tests of TLS: a CA with a server and clients, and a stranger's CA with a client of its own."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from openiodm.cli import local_ca
from openiodm.cli.local_ca import CLIENT, SERVER, Pair

HOSTS = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Files:
    """A pair as two PEM files."""

    certificate: Path
    key: Path


class Certificates:
    """Made when they are asked for, kept in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._now = datetime.now(UTC)
        self._ca = local_ca.make_ca(self._now, "tests")
        self._other = local_ca.make_ca(self._now, "others")

    @cached_property
    def ca(self) -> Path:
        return self._write("ca", self._ca).certificate

    @cached_property
    def other_ca(self) -> Path:
        return self._write("other_ca", self._other).certificate

    @cached_property
    def server(self) -> Files:
        return self._write("server", self.new_server())

    @cached_property
    def client(self) -> Files:
        return self._write("client", local_ca.issue(self._ca, "client", CLIENT, self._now))

    @cached_property
    def expired(self) -> Files:
        """A client's, whose two years were over yesterday."""
        begun = self._now - local_ca.LIFE - local_ca.BACKDATED * 24
        return self._write("expired", local_ca.issue(self._ca, "expired", CLIENT, begun))

    @cached_property
    def stranger(self) -> Files:
        """A client's, of a CA that nobody knows."""
        return self._write("stranger", local_ca.issue(self._other, "stranger", CLIENT, self._now))

    def new_server(self) -> Pair:
        return local_ca.issue(self._ca, "server", SERVER, self._now, names=HOSTS)

    def context(
        self,
        shown: Files | None = None,
        *,
        least: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
        most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> ssl.SSLContext:
        """A client that trusts the CA, and shows a certificate if it is given one."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.minimum_version, context.maximum_version = least, most
        if shown is not None:
            context.load_cert_chain(shown.certificate, shown.key)
        return context

    def _write(self, name: str, pair: Pair) -> Files:
        files = Files(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        write(files, pair)
        return files


def write(files: Files, pair: Pair) -> None:
    files.certificate.write_bytes(pair.certificate_pem)
    files.key.write_bytes(pair.key_pem)
