"""TLS towards callbacks: an application's authorities and client certificate as an `ssl` context."""

import ssl
import tempfile
from pathlib import Path

from openiodm.errors import Reason, Refusal


def client_context(ca_pem: str | None, certificate_pem: str | None, key_pem: str | None) -> ssl.SSLContext:
    """For HTTPS callbacks: TLS 1.2 and 1.3, the host's name is checked; without `ca_pem` by the system's authorities.

    Raises:
        ssl.SSLError, ValueError: what is given makes no sense.
    """
    context = ssl.create_default_context(cadata=ca_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate_pem is not None and key_pem is not None:
        _load_pair(context, certificate_pem, key_pem)
    return context


def _load_pair(context: ssl.SSLContext, certificate_pem: str, key_pem: str) -> None:
    # The module reads keys from files alone: one that only this user can open, and that is gone when this returns.
    with tempfile.TemporaryDirectory(prefix="openiodm-") as folder:
        pair = Path(folder) / "pair.pem"
        pair.touch(mode=0o600)
        pair.write_text(f"{certificate_pem}\n{key_pem}\n", "utf-8")
        context.load_cert_chain(pair, password=_no_password)


def _no_password() -> str:
    raise ValueError("the key is encrypted; give it without a password")


def check_security(ca_pem: str | None, certificate_pem: str | None, key_pem: str | None) -> None:
    """Would callbacks work with these?

    Raises:
        Refusal: BAD_INPUT, with `caPem`, `certificatePem` or `keyPem`.
    """
    if (certificate_pem is None) != (key_pem is None):
        missing = "certificatePem" if certificate_pem is None else "keyPem"
        raise Refusal(Reason.BAD_INPUT, "a client certificate and its key come together", field=missing)
    if ca_pem is not None:
        try:
            if not ca_pem.strip():  # `ssl` takes that for "none given"
                raise ValueError("there is nothing in it")
            if not ca_pem.isascii():  # which `ssl` calls a mistake of the program
                raise ValueError("PEM is ASCII")
            client_context(ca_pem, None, None)
        except (ssl.SSLError, ValueError) as error:
            raise Refusal(Reason.BAD_INPUT, f"these are no PEM certificates: {error}", field="caPem") from error
    if certificate_pem is not None and key_pem is not None:
        try:
            client_context(None, certificate_pem, key_pem)
        except (ssl.SSLError, ValueError) as error:
            text = f"these are no PEM certificate and its key: {error}"
            raise Refusal(Reason.BAD_INPUT, text, field="certificatePem") from error
