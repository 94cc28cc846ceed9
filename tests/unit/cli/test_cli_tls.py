"""`openiodm tls init`: what it writes, how it is protected, what it never overwrites, and who can read it."""

import os
import shutil
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12
from typer.testing import CliRunner

from openiodm.cli import tls
from openiodm.cli.failure import Failure
from openiodm.cli.main import app
from openiodm.tls import ClientCertificates, ServerTls, TlsFiles

KEYTOOL = shutil.which("keytool")


def init(folder: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["tls", "init", "--dir", str(folder), *arguments], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def refusal(folder: Path, *arguments: str) -> str:
    with pytest.raises(Failure) as failure:
        init(folder, *arguments)
    return str(failure.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls") / "new" / "folder"
    old = os.umask(0)  # the keys' modes are ours, not the umask's
    try:
        printed = init(folder, "--name", "ota.example.com", "--name", "10.0.0.7", "--name", "*.example.com")
    finally:
        os.umask(old)
    assert printed.split() == [str(folder / file) for file in tls.FILES]
    return folder


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def alternatives(path: Path) -> x509.SubjectAlternativeName:
    return certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_keys_are_their_owners_alone(made: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in made.iterdir()}
    assert set(modes) == set(tls.FILES)
    assert {name for name, mode in modes.items() if mode == 0o600} == {
        "ca.key",
        "server.key",
        "client.key",
        "client.p12",
    }
    assert {mode for name, mode in modes.items() if name in tls.PUBLIC} == {0o644}


def test_the_server_is_named_as_asked_and_as_this_host_is(made: Path) -> None:
    names = alternatives(made / "server.crt")
    dns = names.get_values_for_type(x509.DNSName)
    assert dns[:2] == ["ota.example.com", "*.example.com"]
    assert {"localhost", socket.gethostname()} <= set(dns)
    assert set(names.get_values_for_type(x509.IPAddress)) == {ip_address(a) for a in ("10.0.0.7", "127.0.0.1", "::1")}


def test_pairs_belong_together_and_are_signed_by_the_ca(made: Path) -> None:
    ca = certificate(made / "ca.crt")
    for name in ("server", "client"):
        leaf = certificate(made / f"{name}.crt")
        leaf.verify_directly_issued_by(ca)
        assert load_pem_private_key((made / f"{name}.key").read_bytes(), None).public_key() == leaf.public_key()
        assert leaf.not_valid_before_utc < datetime.now(UTC) < leaf.not_valid_after_utc - timedelta(days=700)
    assert ca.not_valid_after_utc - datetime.now(UTC) > timedelta(days=3600)
    ServerTls(
        TlsFiles(made / "server.crt", made / "server.key", made / "ca.crt", ClientCertificates.REQUIRE, "")
    )  # serve takes them


@pytest.mark.parametrize(("name", "purpose"), [("server", "sslserver"), ("client", "sslclient")])
def test_openssl_accepts_each_for_its_purpose_alone(made: Path, name: str, purpose: str) -> None:
    def verify(what: str) -> int:
        command = ["openssl", "verify", "-x509_strict", "-CAfile", made / "ca.crt", "-purpose", what]
        return subprocess.run([*command, made / f"{name}.crt"], capture_output=True, check=False).returncode

    assert verify(purpose) == 0
    assert verify("sslserver" if purpose == "sslclient" else "sslclient") != 0


def test_the_pkcs12_files_hold_key_chain_and_authority(made: Path) -> None:
    store = pkcs12.load_pkcs12((made / "client.p12").read_bytes(), b"changeit")
    assert store.cert is not None
    assert store.cert.certificate == certificate(made / "client.crt")
    assert [c.certificate for c in store.additional_certs] == [certificate(made / "ca.crt")]
    trusted = pkcs12.load_pkcs12((made / "truststore.p12").read_bytes(), b"changeit")
    assert (trusted.key, trusted.cert) == (None, None)
    assert [c.certificate for c in trusted.additional_certs] == [certificate(made / "ca.crt")]


@pytest.mark.skipif(
    KEYTOOL is None and not os.environ.get("CI"),
    reason="needs Java's keytool; the PKCS#12 test above holds what it would read",
)
def test_java_reads_both_stores_as_the_published_client_opens_them(made: Path, tmp_path: Path) -> None:
    assert KEYTOOL is not None, "CI has no keytool (default-jre-headless)"

    def keytool(*arguments: object) -> str:
        done = subprocess.run([KEYTOOL, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    trusted = keytool("-list", "-keystore", made / "truststore.p12", "-storetype", "JKS", "-storepass", "changeit")
    assert "trustedCertEntry" in trusted
    imported = keytool(
        *("-importkeystore", "-srckeystore", made / "client.p12", "-srcstorepass", "changeit"),
        *("-destkeystore", tmp_path / "k", "-deststoretype", "JKS", "-deststorepass", "changeit"),
    )
    assert "openiodm" in imported


def test_the_password_may_be_another(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("k\u00e4se-1234\n", "utf-8")
    init(tmp_path / "tls", "--password-file", str(tmp_path / "password"))
    store = (tmp_path / "tls" / "client.p12").read_bytes()
    assert pkcs12.load_pkcs12(store, "k\u00e4se-1234".encode()).key is not None
    with pytest.raises(ValueError, match="password"):
        pkcs12.load_pkcs12(store, b"changeit")


@pytest.mark.parametrize("there", ["ca.key", "server.crt", "truststore.p12"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    assert refusal(tmp_path) == f"{tmp_path / there} is there already; --force makes new ones"
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(there, "mine")]


def test_force_renews_what_the_ca_signed_and_keeps_the_ca(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    shutil.copytree(made, folder)
    init(folder, "--force", "--name", "new.example.com")
    assert (folder / "ca.crt").read_bytes() == (made / "ca.crt").read_bytes()
    assert certificate(folder / "server.crt") != certificate(made / "server.crt")
    certificate(folder / "server.crt").verify_directly_issued_by(certificate(made / "ca.crt"))
    assert "new.example.com" in alternatives(folder / "server.crt").get_values_for_type(x509.DNSName)
    assert (folder / "server.key").stat().st_mode & 0o777 == 0o600
    assert {p.name for p in folder.iterdir()} == set(tls.FILES)


def test_force_does_not_sign_with_a_ca_that_is_none(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    shutil.copytree(made, folder)
    shutil.copy(made / "server.key", folder / "ca.key")
    assert (
        refusal(folder, "--force") == f"{folder / 'ca.crt'} and {folder / 'ca.key'}: the key is not the certificate's"
    )
    (folder / "ca.key").write_text("nonsense")
    assert refusal(folder, "--force").startswith(f"{folder / 'ca.crt'} and {folder / 'ca.key'}: ")
    assert certificate(folder / "server.crt") == certificate(made / "server.crt")


@pytest.mark.parametrize(
    "name",
    ["", " ", "https://ota.example.com", "ota.example.com:8743", "a b", "k\u00e4se.example", "-a.example", "a..b",
     "x" * 64 + ".example", ".".join(["a" * 60] * 5), "*.*.example", "10.0.0.0/8"],
)  # fmt: skip
def test_what_is_no_host_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / "tls", "--name", name).startswith(repr(name))
    assert not (tmp_path / "tls").exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file" / "tls") == f"cannot write {tmp_path / 'file' / 'tls'}: Not a directory"
