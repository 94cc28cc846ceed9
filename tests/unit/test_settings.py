"""Settings: every one of them from the file and from the environment, and every nonsense stopped with its name."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from openiodm.settings import PREFIX, SECRETS, Settings, SettingsError, host_port, load

# name: (as TOML, as an environment variable, as it is then). None of them is the default.
SAMPLES: dict[str, tuple[str, str, Any]] = {
    "data_dir": ('"/srv/ota"', "/srv/ota", "/srv/ota"),
    "database": ('"postgresql://u:p@h/d"', "postgresql://u:p@h/d", "postgresql://u:p@h/d"),
    "listen": ('"[::1]:9000"', "[::1]:9000", "[::1]:9000"),
    "device_listen": ('"0.0.0.0:9001"', "0.0.0.0:9001", "0.0.0.0:9001"),
    "metrics_listen": ('"[::1]:9464"', "[::1]:9464", "[::1]:9464"),
    "workers": ("3", "3", 3),
    "device_url": ('"https://ota.example"', "https://ota.example", "https://ota.example"),
    "trusted_proxies": ('["10.0.0.1", "::1"]', "10.0.0.1, ::1", ("10.0.0.1", "::1")),
    "tls_certificate": ('"c.pem"', "c.pem", "c.pem"),
    "tls_key": ('"k.pem"', "k.pem", "k.pem"),
    "tls_client_ca": ('"ca.pem"', "ca.pem", "ca.pem"),
    "tls_client_certificates": ('"require"', "require", "require"),
    "device_tls_certificate": ('"c.pem"', "c.pem", "c.pem"),
    "device_tls_key": ('"k.pem"', "k.pem", "k.pem"),
    "device_tls_client_ca": ('"ca.pem"', "ca.pem", "ca.pem"),
    "device_tls_client_certificates": ('"request"', "request", "request"),
    "token_life_s": ("60", "60", 60),
    "token_skew_s": ("0", "0", 0),
    "token_grace_s": ("5", "5", 5),
    "refresh_life_s": ("61", "61", 61),
    "calls_per_minute": ("0", "0", 0),
    "native_calls_per_minute": ("7", "7", 7),
    "address_requests_per_minute": ("7", "7", 7),
    "device_requests_per_minute": ("7", "7", 7),
    "credential_failures_per_minute": ("7", "7", 7),
    "login_failures_per_minute": ("7", "7", 7),
    "audit_days": ("7", "7", 7),
    "package_store": ('"s3://ota/x"', "s3://ota/x", "s3://ota/x"),
    "s3_endpoint": ('"https://s3.example"', "https://s3.example", "https://s3.example"),
    "s3_region": ('"eu-west-1"', "eu-west-1", "eu-west-1"),
    "package_cache_bytes": ("7", "7", 7),
    "package_redirect_s": ("7", "7", 7),
    "cdn_url": ('"https://cdn.example"', "https://cdn.example", "https://cdn.example"),
    "cdn_key": (f'"{"k" * 32}"', "k" * 32, "k" * 32),
    "cdn_life_s": ("61", "61", 61),
    "accel_prefix": ('"/packages/"', "/packages/", "/packages/"),
    "max_package_bytes": ("1", "1", 1),
    "min_free_disk_bytes": ("0", "0", 0),
    "poll_interval_s": ("86399", "86399", 86_399),
    "fw_version_keys": ('["fw"]', "fw", ("fw",)),
    "sw_version_keys": ('["sw", "app"]', "sw,app", ("sw", "app")),
    "device_type_keys": ("[]", "", ()),
    "model_keys": ('["board"]', "board", ("board",)),
    "manufacturer_keys": ('["maker"]', " maker ,", ("maker",)),
    "last_seen_flush_s": ("9", "9", 9),
    "online_clock_s": ("11", "11", 11),
    "download_clock_s": ("12", "12", 12),
    "install_clock_s": ("13", "13", 13),
    "verify_clock_s": ("14", "14", 14),
    "cancel_clock_s": ("15", "15", 15),
    "device_abnormal_after_s": ("16", "16", 16),
    "device_offline_after_s": ("315360000", "315360000", 315_360_000),
    "devices_per_application": ("18", "18", 18),
    "groups_per_application": ("19", "19", 19),
    "traces": ("true", "true", True),
    "list_index": ("false", "false", False),
    "callback_allow": ('["127.0.0.1", "push.lan"]', "127.0.0.1, push.lan", ("127.0.0.1", "push.lan")),
    "callback_timeout_s": ("2", "2", 2),
    "callbacks_at_once": ("4096", "4096", 4096),
    "callbacks_per_receiver": ("256", "256", 256),
    "notice_life_s": ("36000", "36000", 36_000),
    "notice_keep_days": ("3650", "3650", 3650),
    "notice_newer_words": ("false", "false", False),
    "notice_every_attempt": ("true", "true", True),
    "group_errors_as_4xx": ("true", "true", True),
    "coap_listen": ('"0.0.0.0:5683"', "0.0.0.0:5683", "0.0.0.0:5683"),
    "coaps_listen": ('"[::]:5684"', "[::]:5684", "[::]:5684"),
    "coap_url": ('"coap://ota.example"', "coap://ota.example", "coap://ota.example"),
    "coaps_url": ('"coaps://ota.example:5684"', "coaps://ota.example:5684", "coaps://ota.example:5684"),
    "lwm2m_awake_s": ("17", "17", 17),
    "shutdown_grace_s": ("17", "17", 17),
    "log_level": ('"warning"', "warning", "warning"),
    "log_format": ('"json"', "json", "json"),
}

# What a setting needs beside it to make sense.
TLS_BESIDE = {
    "tls_key": {"tls_certificate": "c"},
    "tls_client_ca": {"tls_certificate": "c", "tls_client_certificates": "request"},
    "tls_client_certificates": {"tls_certificate": "c", "tls_client_ca": "a"},
}
BESIDE: dict[str, dict[str, Any]] = {
    **TLS_BESIDE,
    "workers": {"database": "postgresql://h/d"},
    **{name: {"package_store": "s3://ota"} for name in ("s3_endpoint", "s3_region", "package_redirect_s")},
    "cdn_url": {"cdn_key": "k" * 32},
    "cdn_key": {"cdn_url": "https://cdn.example"},
    "accel_prefix": {"trusted_proxies": ("127.0.0.1",)},
    "device_tls_certificate": {"device_listen": "h:1"},
    **{
        f"device_{name}": {"device_listen": "h:1", **{f"device_{n}": v for n, v in beside.items()}}
        for name, beside in TLS_BESIDE.items()
    },
}

# name: texts that make no sense for it, in the environment and, quoted, in the file.
NONSENSE: dict[str, list[str]] = {
    "database": ["mysql://u:hunter2@h/d", "openiodm.db"],
    "listen": ["", "localhost", ":8743", "localhost:http", "localhost:65536", "localhost:-1", "8743"],
    "metrics_listen": ["localhost", ":1", "h:99999"],
    "device_listen": ["localhost", ":1", "h:99999", "127.0.0.1:8743"],  # the last is what `listen` is
    "workers": ["0", "65", "2"],  # the last is for PostgreSQL
    "device_url": ["ota.example", "ftp://ota.example"],
    "trusted_proxies": ["proxy.example", "10.0.0.0/8", "10.0.0.1 10.0.0.2"],
    "coap_listen": ["localhost", ":5683", "h:coap"],
    "coaps_listen": ["localhost", ":5684", "h:99999"],
    "coap_url": ["ota.example", "coaps://ota.example"],
    "coaps_url": ["ota.example", "coap://ota.example"],
    "traces": ["perhaps", "2"],
    "list_index": ["perhaps", "2"],
    "callback_allow": ["10.0.0.0/33", "http://push.lan", "*.lan"],
    "callbacks_at_once": ["0", "4097"],
    "callbacks_per_receiver": ["0", "257"],
    "notice_keep_days": ["0", "3651"],
    "notice_newer_words": ["perhaps", "2"],
    "notice_every_attempt": ["perhaps", "2"],
    "group_errors_as_4xx": ["perhaps", "2"],
    # Without the settings that they need beside them, all that are about TLS but the certificate make no sense.
    "tls_key": ["k.pem"],
    "tls_client_ca": ["ca.pem"],
    "tls_client_certificates": ["", "on", "Require", "request", "require"],
    "device_tls_certificate": ["c.pem"],
    "device_tls_key": ["k.pem"],
    "device_tls_client_ca": ["ca.pem"],
    "device_tls_client_certificates": ["", "on", "request", "require"],
    "log_level": ["", "loud", "INFO"],
    "log_format": ["", "xml"],
    "poll_interval_s": ["0", "86400"],
    "token_skew_s": ["-1", "3601"],
    "token_grace_s": ["-1", "3601"],
    "calls_per_minute": ["-1"],
    "native_calls_per_minute": ["-1"],
    "devices_per_application": ["-1"],
    "groups_per_application": ["-1"],
    "address_requests_per_minute": ["-1"],
    "device_requests_per_minute": ["-1"],
    "credential_failures_per_minute": ["-1"],
    "login_failures_per_minute": ["-1"],
    "audit_days": ["-1", "36501"],
    "package_store": ["ota", "s3://", "s3:///ota", "https://ota", "s3://OTA", "s3://ota/a b", "s3://ota/../x"],
    "s3_endpoint": ["https://s3.example"],  # without package_store, as the next ones
    "s3_region": ["eu-west-1"],
    "package_redirect_s": ["60", "-1", "604801"],
    "package_cache_bytes": ["0"],
    "cdn_url": ["https://cdn.example"],  # without cdn_key, and the other way round
    "cdn_key": ["k" * 32],
    "cdn_life_s": ["59", "2592001"],
    "accel_prefix": ["/packages/"],  # without trusted_proxies; what is no path follows below
    "max_package_bytes": ["0", "1GiB"],
    "min_free_disk_bytes": ["-1"],
    **{name: ["0", "-1", "315360001"] for name in (
        "token_life_s", "refresh_life_s", "last_seen_flush_s", "online_clock_s", "download_clock_s",
        "install_clock_s", "verify_clock_s", "cancel_clock_s", "device_abnormal_after_s", "device_offline_after_s",
        "shutdown_grace_s", "callback_timeout_s", "notice_life_s", "lwm2m_awake_s",
    )},
}  # fmt: skip
NO_NUMBER = ["", "soon", "1.5", "0x10", "true", "10s"]

FIELDS = {f.name: f for f in msgspec.structs.fields(Settings)}
INTEGERS = [name for name, sample in SAMPLES.items() if type(sample[2]) is int]
WRONG = [(name, text) for name, texts in NONSENSE.items() for text in texts]
WRONG += [(name, text) for name in INTEGERS for text in NO_NUMBER]


def variable(name: str) -> str:
    return PREFIX + name.upper()


def written(folder: Path, text: str) -> Path:
    path = folder / "openiodm.toml"
    path.write_text(text)
    return path


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(SettingsError) as error:
        load(*args, **kwargs)
    return str(error.value)


def test_every_setting_is_tested_here() -> None:
    assert set(SAMPLES) == set(FIELDS)
    assert [n for n, (_, _, value) in SAMPLES.items() if value == FIELDS[n].default] == []
    # What any text will do for needs no nonsense.
    assert set(FIELDS) - set(NONSENSE) == {
        "data_dir", "tls_certificate", "fw_version_keys", "sw_version_keys", "device_type_keys", "model_keys",
        "manufacturer_keys",
    }  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_a_setting_comes_from_the_file(name: str, tmp_path: Path) -> None:
    in_file, _, value = SAMPLES[name]
    beside = BESIDE.get(name, {})
    settings = load(written(tmp_path, f"{name} = {in_file}"), environ={}, **beside)
    assert getattr(settings, name) == value
    assert settings == msgspec.structs.replace(Settings(), **{name: value}, **beside)  # and nothing else is touched


@pytest.mark.parametrize("name", SAMPLES)
def test_a_setting_comes_from_the_environment(name: str) -> None:
    _, text, value = SAMPLES[name]
    beside = BESIDE.get(name, {})
    settings = load(environ={variable(name): text}, **beside)
    assert settings == msgspec.structs.replace(Settings(), **{name: value}, **beside)


def test_without_any_the_defaults_hold() -> None:
    assert load(environ={}) == Settings()
    assert load(environ={"PATH": "/bin", "OPENIODMX": "1"}) == Settings()


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    file = written(tmp_path, "poll_interval_s = 1\nonline_clock_s = 1\ncancel_clock_s = 1")
    environ = {"OPENIODM_ONLINE_CLOCK_S": "2", "OPENIODM_CANCEL_CLOCK_S": "2"}
    settings = load(file, environ, cancel_clock_s=3)
    assert (settings.poll_interval_s, settings.online_clock_s, settings.cancel_clock_s) == (1, 2, 3)


def test_an_option_that_was_not_given_overrides_nothing() -> None:
    assert load(environ={"OPENIODM_LISTEN": "h:1"}, listen=None).listen == "h:1"


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_a_value_that_makes_no_sense_is_refused_by_name(name: str, text: str, tmp_path: Path) -> None:
    assert name in refusal(environ={variable(name): text})
    quoted = msgspec.json.encode([text] if isinstance(FIELDS[name].default, tuple) else text).decode()
    assert name in refusal(written(tmp_path, f"{name} = {quoted}"), {})


@pytest.mark.parametrize("value", ["[1]", "{ a = 1 }", "1979-05-27", "1.5"])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_value_of_another_kind_is_refused_by_name(name: str, value: str, tmp_path: Path) -> None:
    assert name in refusal(written(tmp_path, f"{name} = {value}"), {})


def test_a_device_is_abnormal_before_it_is_offline() -> None:
    said = refusal(environ={"OPENIODM_DEVICE_ABNORMAL_AFTER_S": "60", "OPENIODM_DEVICE_OFFLINE_AFTER_S": "60"})
    assert "device_offline_after_s" in said
    assert "device_abnormal_after_s" in said


@pytest.mark.parametrize(
    "given", [{"listen": "h:0"}, {"device_listen": "h:0"}, {"metrics_listen": "h:0"}, {"metrics_listen": "h:65534"}]
)
def test_workers_need_ports_that_they_can_share_and_one_each_for_metrics(given: dict[str, str]) -> None:
    database = "postgresql://h/d"
    assert next(iter(given)) in refusal(environ={}, database=database, workers=3, **given)
    assert load(environ={}, database=database, **given).workers == 1
    assert load(environ={}, database=database, workers=3, metrics_listen="h:65533").workers == 3


def test_a_bucket_needs_its_client_and_an_endpoint_is_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "s3_endpoint" in refusal(environ={}, package_store="s3://ota", s3_endpoint="s3.example")
    monkeypatch.setattr("openiodm.settings.find_spec", lambda name: None)
    assert "openiodm[s3]" in refusal(environ={}, package_store="s3://ota")


def test_a_cdn_is_an_address_with_a_key_that_nobody_guesses() -> None:
    assert "cdn_url" in refusal(environ={}, cdn_url="cdn.example", cdn_key="k" * 32)
    assert "cdn_key" in refusal(environ={}, cdn_url="https://cdn.example", cdn_key="k" * 31)
    both = {"cdn_url": "https://cdn.example", "cdn_key": "k" * 32, "package_store": "s3://ota"}
    assert "package_redirect_s" in refusal(environ={}, **both, package_redirect_s=60)


@pytest.mark.parametrize("text", ["packages", "/", "//", "/a/../b", "/a b", "http://h/a"])
def test_where_nginx_finds_packages_is_a_path(text: str) -> None:
    assert refusal(environ={}, accel_prefix=text, trusted_proxies=["127.0.0.1"]).startswith("accel_prefix: ")


@pytest.mark.parametrize("prefix", ["", "device_"])
def test_client_certificates_need_an_authority_and_an_authority_needs_to_be_asked_for(prefix: str) -> None:
    given = {"device_listen": "h:1", f"{prefix}tls_certificate": "c"}
    assert refusal(environ={}, **given, **{f"{prefix}tls_client_certificates": "require"}) == (
        f"{prefix}tls_client_certificates: 'require' needs {prefix}tls_client_ca"
    )
    assert refusal(environ={}, **given, **{f"{prefix}tls_client_ca": "a"}) == (
        f"{prefix}tls_client_ca: {prefix}tls_client_certificates is off: request or require?"
    )


def test_addresses_are_shown_with_their_scheme() -> None:
    def shown(**given: str) -> tuple[str, str]:
        settings = load(environ={}, listen="a:1", **given)
        return settings.url, settings.url_for_devices

    assert shown() == ("http://a:1", "http://a:1")
    assert shown(tls_certificate="c") == ("https://a:1", "https://a:1")
    assert shown(tls_certificate="c", device_listen="d:2") == ("https://a:1", "http://d:2")
    assert shown(device_tls_certificate="c", device_listen="d:2") == ("http://a:1", "https://d:2")


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    assert "OPENIODM_LISTNE" in refusal(environ={"OPENIODM_LISTNE": "h:1"})
    assert "OPENIODM_LISTEN_FILE" in refusal(environ={"OPENIODM_LISTEN_FILE": "/x"})  # no secret
    assert "listne" in refusal(written(tmp_path, 'listne = "h:1"'), {})
    assert "server" in refusal(written(tmp_path, '[server]\nlisten = "h:1"'), {})


def test_variables_of_the_client_commands_are_left_alone() -> None:
    assert load(environ={"OPENIODM_URL": "http://h", "OPENIODM_SECRET": "s", "OPENIODM_CONFIG": "f"}) == Settings()


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_may_lie_in_a_file_of_its_own(name: str, tmp_path: Path) -> None:
    _, text, value = SAMPLES[name]
    secret = tmp_path / "secret"
    secret.write_text(f"{text}\n")
    given = load(environ={variable(name) + "_FILE": str(secret)}, **BESIDE.get(name, {}))
    assert getattr(given, name) == value


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secrets_file_that_cannot_be_read_is_refused_by_name(name: str, tmp_path: Path) -> None:
    wrong = variable(name) + "_FILE"
    assert wrong in refusal(environ={wrong: str(tmp_path / "none")})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert wrong in refusal(environ={wrong: str(tmp_path / "binary")})


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_given_twice_is_refused(name: str, tmp_path: Path) -> None:
    _, text, _ = SAMPLES[name]
    (tmp_path / "secret").write_text(text)
    both = {variable(name): text, variable(name) + "_FILE": str(tmp_path / "secret")}
    for environ in (both, dict(reversed(both.items()))):  # whichever comes first
        assert variable(name) + "_FILE" in refusal(environ=environ)


def test_a_refused_secret_is_not_repeated(tmp_path: Path) -> None:
    for said in (
        refusal(environ={"OPENIODM_DATABASE": "mysql://u:hunter2@h/d"}),
        refusal(written(tmp_path, 'database = "mysql://u:hunter2@h/d"'), {}),
    ):
        assert "hunter2" not in said


def test_a_file_that_is_not_there_or_no_toml_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none.toml") in refusal(tmp_path / "none.toml", {})
    assert "openiodm.toml" in refusal(written(tmp_path, "listen = "), {})
    (tmp_path / "openiodm.toml").write_bytes(b"\xff\xfe")
    assert "openiodm.toml" in refusal(tmp_path / "openiodm.toml", {})
    assert str(tmp_path) in refusal(tmp_path, {})  # a folder


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(AttributeError):
        settings.listen = "h:1"  # type: ignore[misc]
    assert all(isinstance(getattr(settings, n), str | int | tuple) for n in FIELDS)  # nothing inside can change either


def test_the_database_is_a_file_of_the_data_folder_unless_it_is_named(tmp_path: Path) -> None:
    assert load(environ={}, data_dir=str(tmp_path)).database_url == f"sqlite:///{tmp_path}/openiodm.db"
    assert Path(load(environ={}).database_url.removeprefix("sqlite:///")).is_absolute()
    assert load(environ={}, database="sqlite:///x.db").database_url == "sqlite:///x.db"


@pytest.mark.parametrize(
    ("text", "parts"), [("127.0.0.1:8743", ("127.0.0.1", 8743)), ("[::1]:80", ("::1", 80)), ("h:65535", ("h", 65_535))]
)
def test_an_address_is_a_host_and_a_port(text: str, parts: tuple[str, int]) -> None:
    assert host_port(text, "listen") == parts
