"""The files of TLS: every wrong one is refused with its setting's name, and a renewal is all or nothing."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from openiodm.tls import ClientCertificates, ServerTls, TlsError, TlsFiles
from tests.support.certificates import Certificates, Files, write


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def good(certificates: Certificates) -> TlsFiles:
    server = certificates.server
    return TlsFiles(server.certificate, server.key, certificates.ca, ClientCertificates.REQUIRE, "device_")


def refusal(files: TlsFiles) -> str:
    with pytest.raises(TlsError) as error:
        ServerTls(files)
    return str(error.value)


def test_certificate_key_and_client_ca_make_a_context(good: TlsFiles) -> None:
    tls = ServerTls(good)
    assert not tls.renew()
    assert tls.certificate == good.certificate


def test_the_key_may_be_in_the_certificates_file(good: TlsFiles, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(good.certificate.read_bytes() + good.key.read_bytes())
    ServerTls(replace(good, certificate=both, key=both))


@pytest.mark.parametrize("field", ["certificate", "key", "client_ca"])
def test_a_file_that_is_missing_or_unreadable_or_no_pem_is_named(good: TlsFiles, field: str, tmp_path: Path) -> None:
    name = f"device_tls_{field}"
    nowhere, nothing = tmp_path / "nowhere.pem", tmp_path / "nothing.pem"
    nothing.write_bytes(b"no PEM")
    assert refusal(replace(good, **{field: nowhere})) == f"{name}: No such file or directory: {nowhere}"
    assert refusal(replace(good, **{field: tmp_path})) == f"{name}: Is a directory: {tmp_path}"
    assert refusal(replace(good, **{field: nothing})).startswith(f"{name}: {nothing} holds no ")


def test_a_certificate_alone_is_no_key_and_a_key_alone_no_certificate(good: TlsFiles) -> None:
    assert refusal(replace(good, key=good.certificate)).startswith(f"device_tls_key: {good.certificate} holds no ")
    assert refusal(replace(good, certificate=good.key)).startswith(f"device_tls_certificate: {good.key} holds no ")


def test_a_key_of_another_certificate_is_refused(good: TlsFiles, certificates: Certificates) -> None:
    other = certificates.client.key
    assert refusal(replace(good, key=other)) == (
        f"device_tls_key: {other} is not the key of the certificate {good.certificate}"
    )


def test_an_encrypted_key_is_refused_without_asking_at_the_terminal(
    good: TlsFiles, certificates: Certificates, tmp_path: Path
) -> None:
    pair, path = certificates.new_server(), tmp_path / "s.key"
    path.write_bytes(pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")))
    assert refusal(replace(good, key=path)) == f"device_tls_key: {path} is encrypted; give a key without a password"


def test_a_renewal_is_all_or_nothing(good: TlsFiles, certificates: Certificates, tmp_path: Path) -> None:
    files = Files(tmp_path / "s.crt", tmp_path / "s.key")
    write(files, certificates.new_server())
    tls = ServerTls(replace(good, certificate=files.certificate, key=files.key))
    before = tls.context.newest
    second = certificates.new_server()

    files.certificate.write_bytes(second.certificate_pem)
    for _ in range(2):  # it is said as often as it is looked at
        with pytest.raises(TlsError, match="is not the key of the certificate"):
            tls.renew()
    files.certificate.unlink()
    with pytest.raises(TlsError, match="No such file"):
        tls.renew()
    assert tls.context.newest is before

    write(files, second)
    assert tls.renew()
    assert tls.context.newest is not before
    assert not tls.renew()


def test_a_renewed_client_ca_is_taken_up_too(good: TlsFiles, certificates: Certificates, tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_bytes(certificates.ca.read_bytes())
    tls = ServerTls(replace(good, client_ca=ca))
    known = tls.context.newest.get_ca_certs()
    ca.write_bytes(certificates.other_ca.read_bytes())
    os.utime(ca, ns=(1, 1))  # a file of the same size in the same tick of the clock
    assert tls.renew()
    assert tls.context.newest.get_ca_certs() not in ([], known)
