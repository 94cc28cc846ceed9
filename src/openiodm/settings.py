"""Every setting, once: name, type, default, unit. Read at start from a TOML file and the environment, then frozen.

The environment wins over the file. A setting `listen` is `OPENIODM_LISTEN` there and `listen = "..."` in the file; for
secrets `OPENIODM_<NAME>_FILE` names a file that holds the value. An unknown name or a value that makes no sense stops
the start with the setting's name.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

PREFIX = "OPENIODM_"
CDN_KEY_CHARS = 32

Seconds = Annotated[int, Meta(ge=1, le=10 * 365 * 86_400)]
Bytes = Annotated[int, Meta(ge=1)]


class SettingsError(Exception):
    """A setting that makes no sense; the message names it."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server's settings. Durations end in their unit."""

    data_dir: str = "data"
    """Folder of the embedded database and the package files."""
    database: str = ""
    """`sqlite:///path` or `postgresql://...`; empty: `openiodm.db` in `data_dir`."""
    listen: str = "127.0.0.1:8743"
    """HOST:PORT of the northbound APIs (and of the devices, unless `device_listen` is set)."""
    device_listen: str = ""
    """HOST:PORT for devices alone: then `listen` serves no device and this address no application."""
    metrics_listen: str = ""
    """HOST:PORT of `GET /metrics` for Prometheus, without a token: not for the public; empty: nothing is measured. Each
    further worker has the next port."""
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Server processes on the same addresses, with a parent that starts them again; more than one needs PostgreSQL."""
    traces: bool = False
    """OpenTelemetry traces, sent as the OTEL_... variables say; needs `pip install 'openiodm[otel]'`."""
    device_url: str = ""
    """Base URL that devices reach us at, for the links they are given; empty: as they addressed us."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses whose X-Forwarded-Proto, X-Forwarded-Host and X-Forwarded-For headers are believed."""

    tls_certificate: str = ""
    """PEM file with the certificate of `listen` and its chain; empty: plain HTTP."""
    tls_key: str = ""
    """PEM file with its private key, without a password; empty: the key is in `tls_certificate`."""
    tls_client_ca: str = ""
    """PEM file with the authorities of client certificates."""
    tls_client_certificates: str = "off"
    """off, request (one that is shown must be of `tls_client_ca`) or require."""
    device_tls_certificate: str = ""
    """As `tls_certificate`, for `device_listen`, which takes nothing from the four above."""
    device_tls_key: str = ""
    """As `tls_key`, for `device_listen`."""
    device_tls_client_ca: str = ""
    """As `tls_client_ca`, for `device_listen`."""
    device_tls_client_certificates: str = "off"
    """As `tls_client_certificates`, for `device_listen`."""

    coap_listen: str = ""
    """HOST:PORT for LwM2M devices over plain CoAP (UDP, customarily 5683); empty: none."""
    coaps_listen: str = ""
    """HOST:PORT for LwM2M devices over DTLS with pre-shared keys (UDP, customarily 5684); empty: none."""
    coap_url: str = ""
    """`coap://HOST[:PORT]` that LwM2M devices download from; empty: the address that our route to the device has."""
    coaps_url: str = ""
    """`coaps://HOST[:PORT]` that LwM2M devices download from; empty: as for `coap_url`."""
    lwm2m_awake_s: Seconds = 60
    """How long a LwM2M device in queue mode is spoken to after it has said something; then it is taken to sleep."""

    token_life_s: Seconds = 3600
    """Life of an access token, told as `expiresIn`."""
    token_skew_s: Annotated[int, Meta(ge=0, le=3600)] = 60
    """An access token is accepted for this much longer: clients log in again exactly at its end."""
    token_grace_s: Annotated[int, Meta(ge=0, le=3600)] = 0
    """How long the access token before the newest one stays valid."""
    refresh_life_s: Seconds = 86_400
    """Life of a refresh token."""
    calls_per_minute: Annotated[int, Meta(ge=0)] = 100
    """Flow control of the compatible API, per application; 0 = off."""
    native_calls_per_minute: Annotated[int, Meta(ge=0)] = 6000
    """Flow control of the native API, per application; 0 = off."""

    address_requests_per_minute: Annotated[int, Meta(ge=0)] = 120_000
    """Requests from one address, whoever sends them; 0 = off."""
    device_requests_per_minute: Annotated[int, Meta(ge=0)] = 600
    """Requests of one device; ten for the bytes of a package count as one; 0 = off."""
    credential_failures_per_minute: Annotated[int, Meta(ge=0)] = 600
    """Wrong credentials of devices from one address before further unknown ones are refused; 0 = off."""
    login_failures_per_minute: Annotated[int, Meta(ge=0)] = 10
    """Wrong secrets a minute, for an application and from an address, before further ones are refused; 0 = off."""
    audit_days: Annotated[int, Meta(ge=0, le=36_500)] = 365
    """How long rows of the audit trail are kept; 0 = for ever."""

    package_store: str = ""
    """`s3://BUCKET[/PREFIX]` for package bytes, with credentials as AWS's tools have them (`AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY`, ...; needs the extra `s3`); empty: they lie in `packages` in `data_dir`."""
    s3_endpoint: str = ""
    """URL of the S3-compatible server; empty: Amazon's of the region."""
    s3_region: str = ""
    """Region of the bucket; empty: `AWS_REGION`, or us-east-1."""
    package_cache_bytes: Bytes = 10 * 1024**3
    """With `package_store`: how much of `packages` in `data_dir` may be copies of what is in the bucket."""
    package_redirect_s: Annotated[int, Meta(ge=0, le=7 * 86_400)] = 0
    """With `package_store`: downloads over HTTP are redirected to the bucket (302), by an address that is valid for so
    many seconds; 0: we send them."""
    cdn_url: str = ""
    """Base URL of a CDN that fetches from `cdn/` at the devices' address: DDI devices are told a signed address there,
    which anybody may use until it ends."""
    cdn_key: str = ""
    """Secret of the signatures, the same on every server: 32 characters or more."""
    cdn_life_s: Annotated[int, Meta(ge=60, le=30 * 86_400)] = 3600
    """How long such an address is valid at least; twice as long at most."""
    accel_prefix: str = ""
    """Path of nginx's internal location over `packages` in `data_dir`: a download that came through one of
    `trusted_proxies` is answered with `X-Accel-Redirect`, and nginx sends the bytes; empty: we send them."""
    max_package_bytes: Bytes = 1024**3
    """Largest package that is taken."""
    min_free_disk_bytes: Annotated[int, Meta(ge=0)] = 64 * 1024**2
    """An upload is refused before it would leave less than this on the disk."""

    poll_interval_s: Annotated[int, Meta(ge=1, le=86_399)] = 60
    """What DDI devices are told to sleep between polls."""
    fw_version_keys: tuple[str, ...] = ("fwVersion", "fw_version", "firmware_version", "firmwareVersion")
    """configData keys that carry the firmware version, first match wins."""
    sw_version_keys: tuple[str, ...] = ("swVersion", "sw_version", "software_version", "softwareVersion")
    """configData keys that carry the software version, first match wins."""
    device_type_keys: tuple[str, ...] = ("deviceType", "device_type")
    """configData keys that override a self-registered device's type."""
    model_keys: tuple[str, ...] = ("model",)
    """configData keys that override a self-registered device's model."""
    manufacturer_keys: tuple[str, ...] = ("manufacturerName", "manufacturer_name", "manufacturer")
    """configData keys that override a self-registered device's manufacturer."""
    last_seen_flush_s: Seconds = 5
    """How often times of last contact are written, in bulk."""

    online_clock_s: Seconds = 24 * 3600
    """Phase clock: a waiting device must make contact within this."""
    download_clock_s: Seconds = 24 * 3600
    """Phase clock: from the offer until the package is downloaded."""
    install_clock_s: Seconds = 2 * 3600
    """Phase clock: from downloaded until the device reports its result."""
    verify_clock_s: Seconds = 3600
    """Phase clock: from the result until the device shows the new version."""
    cancel_clock_s: Seconds = 600
    """Phase clock: from a stop until the device must have answered it."""

    device_abnormal_after_s: Seconds = 25 * 3600
    """A device silent for this long is ABNORMAL."""
    device_offline_after_s: Seconds = 49 * 3600
    """A device silent for this long is OFFLINE."""

    devices_per_application: Annotated[int, Meta(ge=0)] = 0
    """Most devices of one application; 0 = no limit."""
    groups_per_application: Annotated[int, Meta(ge=0)] = 0
    """Most device groups of one application; 0 = no limit."""
    list_index: bool = True
    """Pages of tasks and sub-tasks come from indexes in memory (7 MiB a million tasks); false: by plain SQL."""
    callback_allow: tuple[str, ...] = ()
    """Host names, addresses and networks that callbacks may lead to although they are this machine's own, link-local or
    a cloud's metadata."""
    callback_timeout_s: Seconds = 15
    """How long a receiver of notices may take to answer."""
    callbacks_at_once: Annotated[int, Meta(ge=1, le=4096)] = 256
    """Deliveries of notices under way at the same time, over all receivers."""
    callbacks_per_receiver: Annotated[int, Meta(ge=1, le=256)] = 16
    """Deliveries of notices under way at the same time to one host and port."""
    notice_life_s: Seconds = 600
    """How long the delivery of a notice is tried again; then it is kept as undelivered."""
    notice_keep_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    """How long undelivered notices are kept."""
    notice_newer_words: bool = True
    """State notices also say otacreated and RequestDownload; off for clients that know the four older words alone."""
    notice_every_attempt: bool = False
    """A result notice for every failed attempt, not only for the last."""

    group_errors_as_4xx: bool = False
    """Group errors that the contract shows with HTTP 200 get a 4xx status instead."""
    shutdown_grace_s: Seconds = 10
    """How long a stopping server waits for requests under way."""
    log_level: str = "info"
    """debug, info, warning or error."""
    log_format: str = "console"
    """console (for people) or json."""

    @property
    def database_url(self) -> str:
        """The database to open."""
        return self.database or f"sqlite:///{Path(self.data_dir).absolute() / 'openiodm.db'}"

    @property
    def url(self) -> str:
        """Where applications are answered."""
        return f"{'https' if self.tls_certificate else 'http'}://{self.listen}"

    @property
    def url_for_devices(self) -> str:
        """Where devices are answered; behind a proxy they reach us elsewhere."""
        if not self.device_listen:
            return self.url
        return f"{'https' if self.device_tls_certificate else 'http'}://{self.device_listen}"

    @property
    def package_dir(self) -> Path:
        """Where package bytes lie."""
        return Path(self.data_dir).absolute() / "packages"


SECRETS = frozenset({"database", "cdn_key"})  # may hold a password: from `_FILE` too, never logged


def host_port(value: str, setting: str) -> tuple[str, int]:
    """`127.0.0.1:8743` or `[::1]:8743` to its parts.

    Raises:
        SettingsError: it is neither.
    """
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise SettingsError(f"{setting}: expected HOST:PORT, got {value!r}")
    return host.strip("[]"), int(port)


def load(file: Path | None = None, environ: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """File, then environment, then `overrides` (the command line's), each winning over the one before.

    Raises:
        SettingsError: naming the setting.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values.update(tomllib.loads(file.read_text("utf-8")))
        except OSError as error:
            raise SettingsError(f"{file}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file}: {error}") from error
    values.update(_from_environment(environ))
    values.update({k: v for k, v in overrides.items() if v is not None})
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(str(error).replace("`$.", "`").replace("Object contains", "settings contain")) from error
    _check(settings)
    return settings


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    lists = {f.name for f in msgspec.structs.fields(Settings) if f.type == tuple[str, ...]}
    known = {f.name for f in msgspec.structs.fields(Settings)}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in CLIENT_VARIABLES:
            continue
        if name.endswith("_file") and name.removesuffix("_file") in SECRETS:
            name = name.removesuffix("_file")
            if PREFIX + name.upper() in environ:
                raise SettingsError(f"{variable}: {PREFIX}{name.upper()} is given too")
            try:
                text = Path(text).read_text("utf-8").strip()
            except OSError as error:
                raise SettingsError(f"{variable}: {error.strerror}: {text}") from error
            except UnicodeDecodeError as error:
                raise SettingsError(f"{variable}: {text} is not UTF-8") from error
        if name not in known:
            raise SettingsError(f"{variable}: there is no such setting")
        values[name] = [part.strip() for part in text.split(",") if part.strip()] if name in lists else text
    return values


# Read by the command line's client commands, not by the server.
CLIENT_VARIABLES = frozenset(
    {"url", "app_id", "secret", "secret_file", "token", "token_file", "ca", "client_cert", "config"}
)


def _is_host_or_network(entry: str) -> bool:
    try:
        ip_network(entry)
    except ValueError:
        return re.fullmatch(r"[^\s/:@?#*]+", entry) is not None
    return True


def _check(settings: Settings) -> None:
    host_port(settings.listen, "listen")
    if settings.metrics_listen:
        host_port(settings.metrics_listen, "metrics_listen")
    if settings.device_listen:
        address = host_port(settings.device_listen, "device_listen")
        if address == host_port(settings.listen, "listen"):
            raise SettingsError("device_listen: it is `listen`; leave it out, and both are served there")
    if settings.workers > 1:
        _check_workers(settings)
    _check_tls(settings, "")
    _check_tls(settings, "device_")
    for name, scheme in (("coap", "coap://"), ("coaps", "coaps://")):
        if address := getattr(settings, f"{name}_listen"):
            host_port(address, f"{name}_listen")
        url = getattr(settings, f"{name}_url")
        if url and not url.startswith(scheme):
            raise SettingsError(f"{name}_url: expected {scheme}...")
    if settings.database and not settings.database.startswith(("sqlite:///", "postgresql://", "postgres://")):
        raise SettingsError("database: expected sqlite:///PATH or postgresql://...")
    if settings.log_level not in {"debug", "info", "warning", "error"}:
        raise SettingsError(f"log_level: expected debug, info, warning or error, got {settings.log_level!r}")
    if settings.log_format not in {"console", "json"}:
        raise SettingsError(f"log_format: expected console or json, got {settings.log_format!r}")
    if settings.device_offline_after_s <= settings.device_abnormal_after_s:
        raise SettingsError("device_offline_after_s: must be more than device_abnormal_after_s")
    for entry in settings.callback_allow:
        if not _is_host_or_network(entry):
            raise SettingsError(f"callback_allow: expected host names, addresses and networks, got {entry!r}")
    for proxy in settings.trusted_proxies:
        try:
            ip_address(proxy)
        except ValueError as error:
            raise SettingsError(f"trusted_proxies: expected IP addresses, got {proxy!r}") from error
    _check_package_store(settings)
    _check_cdn(settings)
    if settings.accel_prefix:
        if not re.fullmatch(r"(/[A-Za-z0-9_-]+)+/?", settings.accel_prefix):
            raise SettingsError(f"accel_prefix: expected a path such as /packages/, got {settings.accel_prefix!r}")
        if not settings.trusted_proxies:
            raise SettingsError("accel_prefix: needs trusted_proxies: the header is for nginx alone")
    if settings.device_url and not settings.device_url.startswith(("http://", "https://")):
        raise SettingsError("device_url: expected http://... or https://...")


def _check_workers(settings: Settings) -> None:
    if settings.database_url.startswith("sqlite:"):
        raise SettingsError(
            f"workers: {settings.workers} need PostgreSQL (`database`): a SQLite file takes one writer at a time"
        )
    for name in ("listen", "device_listen", "metrics_listen"):
        address = getattr(settings, name)
        if not address:
            continue
        port = host_port(address, name)[1]
        if port == 0:
            raise SettingsError(f"{name}: workers need a port that they can share, not 0")
        if name == "metrics_listen" and port + settings.workers - 1 > 65_535:
            raise SettingsError(f"{name}: there are not {settings.workers} ports from {port} on, one for each worker")


def _check_cdn(settings: Settings) -> None:
    if bool(settings.cdn_url) != bool(settings.cdn_key):
        raise SettingsError("cdn_url: needs cdn_key" if settings.cdn_url else "cdn_key: needs cdn_url")
    if settings.cdn_url and not settings.cdn_url.startswith(("http://", "https://")):
        raise SettingsError("cdn_url: expected http://... or https://...")
    if settings.cdn_key and len(settings.cdn_key) < CDN_KEY_CHARS:
        raise SettingsError(f"cdn_key: expected {CDN_KEY_CHARS} characters or more")
    if settings.cdn_url and settings.package_redirect_s:
        raise SettingsError("package_redirect_s: devices are sent to cdn_url already")


def _check_package_store(settings: Settings) -> None:
    if not settings.package_store:
        for name, given in (
            ("s3_endpoint", settings.s3_endpoint),
            ("s3_region", settings.s3_region),
            ("package_redirect_s", settings.package_redirect_s),
        ):
            if given:
                raise SettingsError(f"{name}: needs package_store")
        return
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9_-]+)*/?", settings.package_store):
        raise SettingsError(f"package_store: expected s3://BUCKET[/PREFIX], got {settings.package_store!r}")
    if settings.s3_endpoint and not settings.s3_endpoint.startswith(("http://", "https://")):
        raise SettingsError("s3_endpoint: expected http://... or https://...")
    if find_spec("obstore") is None:
        raise SettingsError("package_store: needs the extra s3: pip install 'openiodm[s3]'")


def _check_tls(settings: Settings, prefix: str) -> None:
    certificate, key, client_ca, clients = (
        getattr(settings, f"{prefix}tls_{name}") for name in ("certificate", "key", "client_ca", "client_certificates")
    )
    if clients not in {"off", "request", "require"}:
        raise SettingsError(f"{prefix}tls_client_certificates: expected off, request or require, got {clients!r}")
    if prefix and certificate and not settings.device_listen:
        raise SettingsError("device_tls_certificate: there is no device_listen that it could be for")
    if not certificate:
        for name, given in (("key", key), ("client_ca", client_ca), ("client_certificates", clients != "off")):
            if given:
                raise SettingsError(f"{prefix}tls_{name}: needs {prefix}tls_certificate")
    if clients == "off" and client_ca:
        raise SettingsError(f"{prefix}tls_client_ca: {prefix}tls_client_certificates is off: request or require?")
    if clients != "off" and not client_ca:
        raise SettingsError(f"{prefix}tls_client_certificates: {clients!r} needs {prefix}tls_client_ca")
