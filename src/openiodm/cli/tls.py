"""`openiodm tls`: certificates for whoever has none: a local CA, and what it signs for the server and one client."""

import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openiodm.cli.client import read_secret_file
from openiodm.cli.failure import REFUSED, USAGE, Failure

if TYPE_CHECKING:
    from openiodm.cli.local_ca import Pair

app = typer.Typer(no_args_is_help=True, help="Certificates for TLS: init.")

CA, CA_KEY = "ca.crt", "ca.key"
SERVER, SERVER_KEY = "server.crt", "server.key"
CLIENT, CLIENT_KEY = "client.crt", "client.key"
KEY_STORE, TRUST_STORE = "client.p12", "truststore.p12"
FILES = (CA, CA_KEY, SERVER, SERVER_KEY, CLIENT, CLIENT_KEY, KEY_STORE, TRUST_STORE)
PUBLIC = frozenset({CA, SERVER, CLIENT, TRUST_STORE})
PASSWORD = "changeit"  # what Java's own stores have

HERE = ("localhost", "127.0.0.1", "::1")


@app.callback()
def _tls() -> None:
    """Certificates for TLS: init."""


@app.command()
def init(
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where the files go.")] = Path("tls"),
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            metavar="HOST",
            help="A name or IP address of the server; may be repeated. This host's own are in.",
        ),
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option("--password-file", metavar="FILE", help=f"Password of the two PKCS#12 files; else {PASSWORD!r}."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is there; a CA that is there stays, and signs anew.")
    ] = False,
) -> None:
    """Make a CA of your own, and with it certificates for the server and for a client.

    ca.crt is what clients trust; server.crt and server.key are for `serve --tls`; client.crt and client.key (PEM),
    client.p12 and truststore.p12 (PKCS#12, for Java) are for a client. Keys are readable by their owner alone. Whoever
    has ca.key can make certificates that all your clients trust: keep it elsewhere.
    """
    there = [file for file in FILES if (folder / file).exists()]
    if there and not force:
        raise Failure(f"{folder / there[0]} is there already; --force makes new ones", REFUSED)
    password = read_secret_file(password_file) if password_file is not None else PASSWORD
    contents = _make(folder, _names(name or []), password.encode())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            _write(folder / file, content, 0o644 if file in PUBLIC else 0o600)
    except OSError as error:
        raise Failure(f"cannot write {error.filename}: {error.strerror}", REFUSED) from error
    for file in contents:
        print(folder / file)


def _names(given: list[str]) -> list[str]:
    """The server's: those given, first, and those of this host; each once."""
    from openiodm.cli.local_ca import is_name

    for name in given:
        if not is_name(name):
            raise Failure(f"{name!r} is neither a host name (in ASCII, no scheme, no port) nor an IP address", USAGE)
    # A host may be called what no certificate can name; then that is left out, as nobody asked for it.
    own = filter(is_name, (socket.gethostname(), socket.getfqdn()))
    return list(dict.fromkeys([*given, *own, *HERE]))


def _make(folder: Path, names: list[str], password: bytes) -> dict[str, bytes]:
    """File -> content. Nothing is written before all of it is made."""
    from openiodm.cli import local_ca

    now = datetime.now(UTC)
    ca = _authority(folder, now)
    server = local_ca.issue(ca, names[0], local_ca.SERVER, now, names=names)
    client = local_ca.issue(ca, "OpenIODM client", local_ca.CLIENT, now)
    return {
        CA: ca.certificate_pem,
        CA_KEY: ca.key_pem,
        SERVER: server.certificate_pem,
        SERVER_KEY: server.key_pem,
        CLIENT: client.certificate_pem,
        CLIENT_KEY: client.key_pem,
        KEY_STORE: local_ca.key_store(client, ca.certificate, password),
        TRUST_STORE: local_ca.trust_store(ca.certificate, password),
    }


def _authority(folder: Path, now: datetime) -> "Pair":
    from openiodm.cli import local_ca

    certificate, key = folder / CA, folder / CA_KEY
    if not (certificate.exists() and key.exists()):
        return local_ca.make_ca(now, f"OpenIODM CA of {socket.gethostname()}")
    try:
        return local_ca.load(certificate.read_bytes(), key.read_bytes())
    except local_ca.CaError as error:
        raise Failure(f"{certificate} and {key}: {error}", REFUSED) from error
    except OSError as error:
        raise Failure(f"cannot read {error.filename}: {error.strerror}", REFUSED) from error


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replaced whole, so that a running server never reads half of a file."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    fresh.replace(path)
