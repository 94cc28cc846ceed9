"""What is in docs/examples against a real server process, as a reader runs it."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from openiodm.simulator import Behaviour, DeviceProfile, Fleet, Pace, TokenKind, make_profiles
from tests.support.certificates import Certificates
from tests.support.process import Northbound, Server, free_port, gateway_token
from tests.support.served import serving, shown

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
OPERATIONS = "/iodm/northbound/v1.5.0/operations"
OTHER = {"deviceType": "camera", "model": "c9", "manufacturerName": "other"}


@pytest.fixture
async def environment(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """A server with two tasks: an older one for another product, stopped, and one that two devices have ended."""
    server = Server(tmp_path, f"sqlite:///{tmp_path / 'openiodm.db'}", free_port(), poll_interval_s="1")
    application = await server.cli("app", "create", "docs", "--json")
    token = await gateway_token(server, application["appId"])
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            api = Northbound(http, application["appId"], application["secret"])
            await _stopped_task(api)
            await _finished_task(api, server.url, token)
        yield {
            "PATH": os.environ["PATH"],
            "OPENIODM_URL": server.url,
            "OPENIODM_APP_ID": application["appId"],
            "OPENIODM_SECRET": application["secret"],
        }
    finally:
        await server.end(signal.SIGTERM)


async def _stopped_task(api: Northbound) -> None:
    device = await api.call("POST", "/api/v1/devices", json={"nodeId": "camera-1", **OTHER})
    query = {"type": "softwarePackage", "name": "agent.tar", "version": "7", **OTHER}
    package = await api.call("POST", "/api/v1/packages", params=query, content=b"agent")
    body = {"fileId": package["fileId"], "targets": {"devices": [device["deviceId"]]}}
    task = await api.call("POST", f"{OPERATIONS}/softwareUpgrade", json=body)
    await api.call("POST", f"/api/v1/tasks/{task['operationId']}/stop")
    await api.wait_until_final(task["operationId"], within=20)


async def _finished_task(api: Northbound, url: str, token: str) -> None:
    template = DeviceProfile("template", versions={"fwVersion": "1.0.0"}, behaviour=Behaviour(install_seconds=(0, 0.1)))
    profiles = make_profiles(2, prefix="meter", template=template, token_kind=TokenKind.GATEWAY, token=token)
    fleet = Fleet(url, profiles, pace=Pace(poll_seconds=0.2))
    async with fleet.running():
        await fleet.wait_for(lambda f: f.stats.attributes_sent >= 2, within=20)
        file_id = await api.upload("meter.swu", b"firmware" * 1000)
        devices = [d for d in await api.device_ids(3) if d]
        found = await asyncio.gather(*(api.call("GET", f"/api/v1/devices/{d}") for d in devices))
        meters = [d["deviceId"] for d in found if d["nodeId"].startswith("meter")]
        operation = await api.create_task(file_id, devices=meters)
        task = await api.wait_until_final(operation, within=30)
    assert task["status"] == "success"
    assert fleet.violations() == []


async def _run(script: str, environment: dict[str, str]) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "bash",
        str(EXAMPLES / script),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def _calls(printed: str) -> list[tuple[str, int, Any]]:
    """(parameters, status, body) of every call of list.sh."""
    calls = []
    for paragraph in printed.strip().split("\n\n"):
        request, status, body = paragraph.split("\n")
        calls.append((request.removeprefix(f"$ GET {OPERATIONS} "), int(status), json.loads(body)))
    return calls


async def test_the_task_list_answers_each_of_its_eight_parameters(environment: dict[str, str]) -> None:
    code, printed = await _run("list.sh", environment)
    assert code == 0, printed
    calls = _calls(printed)
    assert [(asked.split("=")[0], status, body["totalCount"], len(body["data"])) for asked, status, body in calls] == [
        ("operationType", 200, 1, 1),
        ("operationStatus", 200, 1, 1),
        ("deviceType", 200, 1, 1),
        ("model", 200, 1, 1),
        ("manufacturerName", 200, 1, 1),
        ("deviceId", 200, 1, 1),
        ("pageNo", 200, 2, 2),
        ("pageSize", 200, 2, 1),
        ("operationType", 200, 1, 1),  # all eight at once
    ]
    for _, _, body in calls:
        newest = body["data"][0]
        assert (newest["status"], newest["staResult"]["success"], newest["staResult"]["total"]) == ("success", 2, 2)


async def test_the_script_fails_where_a_call_is_refused(environment: dict[str, str]) -> None:
    code, _ = await _run("list.sh", {**environment, "OPENIODM_SECRET": "wrong"})
    assert code != 0


async def test_the_calls_of_an_upgrades_life_over_https_and_again(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    files = f"{certificates.server.certificate},{certificates.server.key}"
    async with serving(tmp_path / "data", "--tls", files, client=certificates.context()) as process:
        credentials = shown(process)
        environment = {
            "PATH": os.environ["PATH"],
            "OPENIODM_URL": process.url,
            "OPENIODM_APP_ID": credentials["app id"],
            "OPENIODM_SECRET": credentials["secret"],
            "CURL_CA_BUNDLE": str(certificates.ca),
        }
        for _ in range(2):  # it cleans up what would be in its own way
            code, printed = await _run("calls.sh", environment)
            assert code == 0, printed
            assert printed.count("$ ") == 14
        code, printed = await _run("calls.sh", {**environment, "OPENIODM_SECRET": "wrong"})
        assert (code, printed.splitlines()[1]) == (1, "401")


COLLECTION = json.loads((EXAMPLES / "openiodm.postman_collection.json").read_text("utf-8"))
STATUS = re.compile(r'pm\.test\("(\d+)", \(\) => pm\.response\.to\.have\.status\(\1\)\);')
SET = re.compile(r'pm\.collectionVariables\.set\("(\w+)", pm\.response\.json\(\)\.(\w+)\);')


async def test_every_request_of_the_postman_collection_and_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as process, httpx.AsyncClient() as http:
        credentials = shown(process)
        variables = {v["key"]: v["value"] for v in COLLECTION["variable"]}
        assert [name for name, value in variables.items() if value] == ["baseUrl"]
        variables |= {"baseUrl": process.url, "appId": credentials["app id"], "secret": credentials["secret"]}
        for _ in range(2):
            for item in COLLECTION["item"]:
                await _play(item, variables, http)


async def _play(item: dict[str, Any], variables: dict[str, str], http: httpx.AsyncClient) -> None:
    """One request as Postman makes it, and its script, of which only two kinds of lines are known here."""
    (event,) = item["event"]
    first, *others = event["script"]["exec"]
    expected = STATUS.fullmatch(first)
    assert expected is not None, first
    request = _filled(item["request"], variables)
    body = request.get("body", {"mode": "none"})
    content = {"raw": body.get("raw"), "none": None}.get(body["mode"])
    form = {field["key"]: field["value"] for field in body.get("urlencoded", ())}
    headers = {h["key"]: h["value"] for h in request.get("header", ())}
    url = request["url"]
    assert url["raw"].partition("?")[0] == "/".join([*url["host"], *url["path"]])
    assert url["raw"].partition("?")[2] == "&".join(f"{q['key']}={q['value']}" for q in url.get("query", ()))
    answer = await http.request(request["method"], url["raw"], headers=headers, content=content, data=form or None)
    assert str(answer.status_code) == expected.group(1), (item["name"], answer.text)
    for line in others:
        kept = SET.fullmatch(line)
        assert kept is not None, line
        assert kept.group(1) in variables
        variables[kept.group(1)] = answer.json()[kept.group(2)]


def _filled(value: Any, variables: dict[str, str]) -> Any:
    """Every {{name}} replaced; one that is unknown or still empty is an error in the collection."""
    if isinstance(value, dict):
        return {k: _filled(v, variables) for k, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, variables) for v in value]
    if not isinstance(value, str):
        return value

    def text(match: re.Match[str]) -> str:
        assert variables[match.group(1)], match.group(0)
        return variables[match.group(1)]

    return re.sub(r"{{(\w+)}}", text, value)
