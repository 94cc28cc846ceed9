"""Where a command finds the server, the application and the secrets."""

from pathlib import Path

import pytest

from openiodm.cli.client import DEFAULT_URL, Access, find_access
from openiodm.cli.failure import USAGE, Failure
from openiodm.cli.options import device_names
from openiodm.cli.packages import package_type
from openiodm.cli.serve import load_settings, product_of
from openiodm.cli.simulate import find_token


def secret_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "secret"
    path.write_text(text)
    return path


def test_the_environment_alone_is_enough() -> None:
    environ = {"OPENIODM_URL": "https://iodm/", "OPENIODM_APP_ID": "a", "OPENIODM_SECRET": "s"}
    assert find_access(None, None, None, environ) == Access("https://iodm", "a", "s")


def test_options_win_over_the_environment(tmp_path: Path) -> None:
    environ = {"OPENIODM_URL": "https://iodm", "OPENIODM_APP_ID": "a", "OPENIODM_SECRET": "s"}
    access = find_access("http://other", "b", secret_file(tmp_path, "t\n"), environ)
    assert access == Access("http://other", "b", "t")


def test_the_secret_itself_wins_over_the_file_that_the_environment_names(tmp_path: Path) -> None:
    environ = {"OPENIODM_SECRET": "s", "OPENIODM_SECRET_FILE": str(secret_file(tmp_path, "t"))}
    assert find_access(None, "a", None, environ).secret == "s"


def test_the_file_that_the_environment_names_is_read(tmp_path: Path) -> None:
    environ = {"OPENIODM_SECRET_FILE": str(secret_file(tmp_path, " t \n"))}
    assert find_access(None, "a", None, environ).secret == "t"


def test_without_an_address_it_is_the_local_server() -> None:
    assert find_access(None, "a", None, {"OPENIODM_SECRET": "s"}).url == DEFAULT_URL


@pytest.mark.parametrize("environ", [{}, {"OPENIODM_SECRET": "s"}, {"OPENIODM_APP_ID": "a"}])
def test_what_is_missing_is_wrong_usage(environ: dict[str, str]) -> None:
    with pytest.raises(Failure) as failed:
        find_access(None, None, None, environ)
    assert failed.value.code == USAGE


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_a_secret_file_that_is_missing_or_empty_is_wrong_usage(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "none" if text is None else secret_file(tmp_path, text)
    with pytest.raises(Failure) as failed:
        find_access(None, "a", path, {})
    assert failed.value.code == USAGE


def test_a_gateway_token_comes_from_option_file_or_environment(tmp_path: Path) -> None:
    file = secret_file(tmp_path, "from-file\n")
    environ = {"OPENIODM_TOKEN": "from-environment", "OPENIODM_TOKEN_FILE": str(file)}
    assert find_token("given", file, environ) == "given"
    assert find_token(None, file, environ) == "from-file"
    assert find_token(None, None, environ) == "from-environment"
    assert find_token(None, None, {"OPENIODM_TOKEN_FILE": str(file)}) == "from-file"
    with pytest.raises(Failure, match="more than it copied"):
        find_token(None, None, {"OPENIODM_TOKEN": "Id  1\nthe-token"})
    with pytest.raises(Failure):
        find_token(None, None, {})


def test_the_clients_variables_do_not_stop_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("URL", "APP_ID", "SECRET", "SECRET_FILE", "TOKEN", "TOKEN_FILE"):
        monkeypatch.setenv(f"OPENIODM_{name}", "x")
    assert load_settings(None, None, tmp_path).data_dir == str(tmp_path)


def test_the_settings_file_may_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "openiodm.toml"
    file.write_text('listen = "127.0.0.1:1"\npoll_interval_s = 7\n')
    monkeypatch.setenv("OPENIODM_CONFIG", str(file))
    settings = load_settings(None, None, None, listen="127.0.0.1:2")
    assert (settings.listen, settings.poll_interval_s) == ("127.0.0.1:2", 7)


def test_a_setting_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENIODM_POLL_INTERVAL_S", "soon")
    with pytest.raises(Failure, match="poll_interval_s"):
        load_settings(None, None, None)


def test_a_product_is_whole_or_absent() -> None:
    assert product_of(None, None, None) is None
    assert product_of("t", "m", "f") is not None
    with pytest.raises(Failure):
        product_of("t", None, "f")


def test_package_types_have_short_names() -> None:
    assert package_type("firmware") == package_type("firmwarePackage") == "firmwarePackage"
    assert package_type("software") == "softwarePackage"
    with pytest.raises(Failure):
        package_type("hardware")


def test_device_lists_hold_node_ids_or_json(tmp_path: Path) -> None:
    file = tmp_path / "devices"
    file.write_text('n-1\n\n{"nodeId": "n-2", "other": 1}\n{"deviceId": "d-3", "nodeId": "n-3"}\n')
    assert list(device_names(file)) == [("nodeIds", "n-1"), ("nodeIds", "n-2"), ("deviceIds", "d-3")]


@pytest.mark.parametrize("line", ["{", '{"name": "x"}', '{"nodeId": 5}'])
def test_a_line_that_names_no_device_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "devices"
    file.write_text(f"n-1\n{line}\n")
    with pytest.raises(Failure, match="line 2"):
        list(device_names(file))
