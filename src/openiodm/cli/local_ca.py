"""A small certificate authority for a laboratory, a factory or a test: its own pair, and pairs that it signs.

Values only; `cli.tls` writes the files. RSA with 2048 bits, since that is what every client of the old platform's time
takes: some Java run-time environments lack elliptic curves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFE = timedelta(days=3650)
LIFE = timedelta(days=730)
BACKDATED = timedelta(hours=1)  # clocks of clients may be behind ours
COMMON_NAME_CHARS = 64  # RFC 5280, upper bound of a common name
HOST_CHARS = 253  # RFC 1035, 2.3.4, as text
ALIAS = b"openiodm"

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate alone."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """PKCS#8, without a password."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class CaError(ValueError):
    """Files that hold no authority of ours."""


def load(certificate: bytes, key: bytes) -> Pair:
    """A pair that was made before.

    Raises:
        CaError: it is no pair of ours.
    """
    try:
        loaded = load_pem_private_key(key, None)
        pair = x509.load_pem_x509_certificate(certificate)
    except (ValueError, TypeError) as error:
        raise CaError(str(error)) from error
    if not isinstance(loaded, rsa.RSAPrivateKey) or pair.public_key() != loaded.public_key():
        raise CaError("the key is not the certificate's")
    return Pair(pair, loaded)


def make_ca(now: datetime, common_name: str) -> Pair:
    """An authority that signs certificates of servers and clients, and no other authority."""
    key = _new_key()
    name = _subject(common_name)
    builder = _builder(name, name, key.public_key(), now, CA_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return Pair(builder.sign(key, hashes.SHA256()), key)


def issue(
    ca: Pair,
    common_name: str,
    usage: x509.ObjectIdentifier,
    now: datetime,
    *,
    names: Sequence[str] = (),
    life: timedelta = LIFE,
) -> Pair:
    """A pair signed by `ca`, for a server (`SERVER`, with `names` that `is_name` takes) or a client (`CLIENT`)."""
    key = _new_key()
    builder = _builder(_subject(common_name), ca.certificate.subject, key.public_key(), now, life)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    builder = builder.add_extension(authority, critical=False)
    if names:
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    return Pair(builder.sign(ca.key, hashes.SHA256()), key)


def key_store(pair: Pair, ca: x509.Certificate, password: bytes) -> bytes:
    """PKCS#12 with key, certificate and authority, as Java's and other clients' key store."""
    return pkcs12.serialize_key_and_certificates(ALIAS, pair.key, pair.certificate, [ca], _encryption(password))


def trust_store(ca: x509.Certificate, password: bytes) -> bytes:
    """PKCS#12 with the authority alone, marked as trusted in the way that Java asks for."""
    entry = pkcs12.PKCS12Certificate(ca, ALIAS + b"-ca")
    return pkcs12.serialize_java_truststore([entry], _encryption(password))


def _encryption(password: bytes) -> KeySerializationEncryption:
    """Java before 8u301 reads nothing newer than this. The file's mode protects the key, not its password."""
    builder = PrivateFormat.PKCS12.encryption_builder().kdf_rounds(50_000)
    builder = builder.key_cert_algorithm(pkcs12.PBES.PBESv1SHA1And3KeyTripleDESCBC)
    return builder.hmac_hash(hashes.SHA1()).build(password)  # noqa: S303


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65_537, key_size=2048)


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:COMMON_NAME_CHARS])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: rsa.RSAPublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - BACKDATED).not_valid_after(now + life)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_encipherment=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def is_name(name: str) -> bool:
    """Can a server's certificate have it? An IP address, or a host; of a host's labels the first may be `*`."""
    return _address(name) is not None or (
        len(name) <= HOST_CHARS and all(_is_label(label) for label in name.removeprefix("*.").split("."))
    )


def _general_name(name: str) -> x509.GeneralName:
    address = _address(name)
    return x509.DNSName(name) if address is None else x509.IPAddress(address)


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None


def _is_label(label: str) -> bool:
    """RFC 1123, 2.1; an underscore too, since hosts in containers have them."""
    inner = label.replace("-", "a").replace("_", "a")
    return 0 < len(label) <= 63 and inner.isascii() and inner.isalnum() and label[0] != "-" and label[-1] != "-"
