"""`openiodm simulate` refuses what it cannot simulate in one line that names the host, or the line and the member."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openiodm.cli.device_lines import device_lines
from openiodm.cli.failure import USAGE, Failure
from openiodm.cli.main import app

HEX = "00112233445566778899aabbccddeeff"


def refused(*arguments: str) -> str:
    """What the command says, which ends as wrong usage before it runs a device."""
    outcome = CliRunner().invoke(app, ["simulate", *arguments, "--duration", "0"])
    assert isinstance(outcome.exception, Failure), outcome.exception
    assert outcome.exception.code == USAGE
    return str(outcome.exception)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "devices.ndjson"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("line", "member"),
    [
        ('{"nodeId": 5, "targetToken": "abc"}', "nodeId"),
        ('{"targetToken": "abc"}', "nodeId"),
        ('{"nodeId": "", "targetToken": "abc"}', "nodeId"),
        ('{"nodeId": "\\ud800", "targetToken": "abc"}', "nodeId"),
        ('{"nodeId": "n1"}', "targetToken"),
        ('{"nodeId": "n1", "targetToken": 5}', "targetToken"),
        ('{"nodeId": "n1", "targetToken": "a\\nb"}', "targetToken"),
        ('{"nodeId": "n1", "targetToken": "ä"}', "targetToken"),
    ],
)
def test_a_ddi_device_must_be_named_and_have_its_token(tmp_path: Path, line: str, member: str) -> None:
    file = written(tmp_path, '{"nodeId": "n0", "targetToken": "abc"}\n\n' + line)
    assert refused("--devices", file).startswith(f"{file}, line 3: {member} must be ")


@pytest.mark.parametrize(
    ("line", "member"),
    [
        (f'{{"nodeId": 5, "psk": "{HEX}"}}', "nodeId"),
        ('{"nodeId": "n1"}', "psk"),
        ('{"nodeId": "n1", "psk": 5}', "psk"),
        ('{"nodeId": "n1", "psk": "abc"}', "psk"),
    ],
)
def test_a_secure_lwm2m_device_must_be_named_and_have_its_key(tmp_path: Path, line: str, member: str) -> None:
    file = written(tmp_path, line)
    said = refused("--protocol", "lwm2m", "--dtls", "--devices", file)
    assert said.startswith(f"{file}, line 1: {member} must be ")


@pytest.mark.parametrize("protocol", ["lwm2m", "pcp"])
def test_a_lwm2m_device_must_be_named(tmp_path: Path, protocol: str) -> None:
    file = written(tmp_path, '{"nodeId": 5}')
    assert refused("--protocol", protocol, "--devices", file) == f"{file}, line 1: nodeId must be a text"


@pytest.mark.parametrize("protocol", ["ddi", "lwm2m"])
def test_a_device_may_be_named_once(tmp_path: Path, protocol: str) -> None:
    file = written(tmp_path, '{"nodeId": "n1", "targetToken": "abc"}\n' * 2)
    assert "two profiles" in refused("--protocol", protocol, "--devices", file)


@pytest.mark.parametrize(
    ("text", "why"),
    [("\n", "names no device"), ("[]", "line 1: no JSON object"), ("{", "line 1: no JSON"), ("[" * 100_000, "no JSON")],
)
def test_a_file_of_devices_is_json_lines(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(Failure, match=why) as failed:
        list(device_lines(Path(written(tmp_path, text))))
    assert failed.value.code == USAGE


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (f"{'x' * 64}.example:5683", "is no name of a host"),
        ("[fe80::1]:5683", "--coap: cannot reach fe80::1: "),
        ("nosuch.invalid", "--coap: expected HOST:PORT"),
    ],
)
def test_an_address_that_leads_nowhere_is_wrong_usage(address: str, why: str) -> None:
    assert why in refused("--protocol", "lwm2m", "--coap", address)


def test_a_host_that_nobody_knows_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    said = refused("--protocol", "lwm2m", "--coap", "nosuch.invalid:5683")
    assert said == "--coap: cannot reach nosuch.invalid: Name or service not known"
