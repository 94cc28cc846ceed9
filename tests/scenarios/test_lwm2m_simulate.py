"""`openiodm serve` and `openiodm simulate --protocol lwm2m|pcp` as processes: the five minutes of docs/lwm2m.md."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.process import free_udp_port
from tests.support.served import serving, shown

pytestmark = pytest.mark.scenario

PRODUCT = ["--device-type", "meter", "--model", "m1", "--manufacturer", "acme"]


async def openiodm(environment: dict[str, str], *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "openiodm.cli.main", *arguments,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, (arguments, out.decode(), errors.decode())
    return out.decode()


@pytest.mark.parametrize(("protocol", "kind"), [("lwm2m", "firmwarePackage"), ("pcp", "softwarePackage")])
async def test_a_fleet_over_dtls_with_a_bad_network_is_upgraded(protocol: str, kind: str, tmp_path: Path) -> None:
    port = free_udp_port()
    async with serving(tmp_path / "data", coaps_listen=f"127.0.0.1:{port}") as server:
        made = shown(server)
        outside = {k: v for k, v in os.environ.items() if not k.startswith("OPENIODM_")}
        environment = {
            **outside,
            "OPENIODM_URL": server.url,
            "OPENIODM_APP_ID": made["app id"],
            "OPENIODM_SECRET": made["secret"],
        }
        devices = tmp_path / "devices.ndjson"
        lines = [
            {"nodeId": f"dev-{n}", "deviceType": "meter", "model": "m1", "manufacturerName": "acme", "psk": f"{n:032x}"}
            for n in range(1, 5)
        ]
        devices.write_text("\n".join(map(json.dumps, lines)))
        (tmp_path / "image.bin").write_bytes(bytes(range(256)) * 20)
        await openiodm(environment, "device", "import", str(devices))
        uploaded = await openiodm(
            environment, "package", "upload", str(tmp_path / "image.bin"), "--type", kind, "--version", "2.0.0",
            *PRODUCT, "--json",
        )  # fmt: skip
        targets = [part for line in lines for part in ("--device", line["nodeId"])]
        create = ["task", "create", "--package", json.loads(uploaded)["fileId"], *targets, "--retry", "2", "--json"]
        created = await openiodm(environment, *create)
        faults = ["--reorder-rate", "0.1", "--power-loss-rate", "0.3", "--install-seconds", "0.05"]
        who = ["--dtls", "--coap", f"127.0.0.1:{port}", "--devices", str(devices), "--new-version", "2.0.0"]
        until = ["--until-done", "--duration", "50", "--json"]
        outcome = json.loads(await openiodm(environment, "simulate", "--protocol", protocol, *who, *faults, *until))
        assert outcome["ended"] == "done"
        assert outcome["succeeded"] == len(lines)
        operation = json.loads(created)["operationId"]
        await openiodm(environment, "task", "wait", operation)  # exit code 0: success
        await openiodm(environment, "task", "check", operation)
