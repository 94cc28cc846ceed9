"""OpenIODM as the comparison runs it: from this tree, on SQLite unless told otherwise, through its public APIs only."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
import urllib.parse
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, ClassVar

from list_data import Size, fill
from server import BenchError, Server

PAGE = 250  # devices, the contract's largest
PROBE = "bench-000000"
OPERATIONS = "/iodm/northbound/v1.5.0/operations"


class OursServer(Server):
    """OpenIODM on SQLite, from this tree; `prepare` works through the two public APIs only."""

    name = "openiodm"
    # The attributes carry no firmware version: then `closed/success` ends a firmware update, as with goosebit.
    product: ClassVar = {"deviceType": "bench", "model": "bench", "manufacturerName": "bench"}

    def __init__(self, port: int, commands: list[str]) -> None:
        super().__init__(port, commands)
        self.program = str(Path(sys.executable).with_name("openiodm"))
        self.application: dict[str, str] = {}
        self.token: dict[str, str] = {}
        self.file_id = ""

    def version(self) -> str:
        return version_of("openiodm")

    def setup(self) -> None:
        if not Path(self.program).exists():
            raise BenchError("openiodm is not installed beside this Python: pip install -e .")

    def reset(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir(parents=True)
        # Before the server starts: an embedded database has one process at a time.
        self.application = self._openiodm("app", "create", "bench")
        product = ("--device-type", "bench", "--model", "bench", "--manufacturer", "bench")
        made = self._openiodm("app", "gateway-token", self.application["appId"], "--name", "bench", *product)
        self.secrets.append(made["token"])
        self.headers = [f"Authorization: GatewayToken {made['token']}"]

    def command(self) -> list[str]:
        return [self.program, "serve"]

    def environment(self) -> dict[str, str]:
        return {
            "OPENIODM_DATA_DIR": str(self.run / "data"),
            "OPENIODM_LISTEN": f"127.0.0.1:{self.port}",
            "OPENIODM_LOG_LEVEL": "warning",
            "OPENIODM_NATIVE_CALLS_PER_MINUTE": "0",
            "OPENIODM_CALLS_PER_MINUTE": "0",
            # All load comes from one address; the limits are asked, and never met.
            "OPENIODM_ADDRESS_REQUESTS_PER_MINUTE": "100000000",
            "OPENIODM_DEVICE_REQUESTS_PER_MINUTE": "100000000",
        }

    def prepare(self, n_devices: int, artifact: Path) -> None:
        self.log_in()
        self.register(0, n_devices)
        self.publish(artifact)
        group_id = self.make_group()
        for page in range((n_devices + PAGE - 1) // PAGE):
            where = f"/iocm/app/dm/v1.4.0/devices?pageNo={page}&pageSize={PAGE}"
            devices = [device["deviceId"] for device in self.ask("GET", where, headers=self.token)["devices"]]
            members = {"devGroupId": group_id, "deviceIds": devices}
            self.ask("POST", "/iocm/app/dm/v1.1.0/devices/addDevGroupTagToDevices", members, self.token)

    def log_in(self) -> None:
        """The application's token, for the northbound APIs."""
        form = urllib.parse.urlencode({"appId": self.application["appId"], "secret": self.application["secret"]})
        login = "/iocm/app/sec/v1.1.0/login"
        answer = self.accepted("POST", login, *self.call("POST", login, form.encode()))
        self.token = {"app_key": self.application["appId"], "Authorization": f"Bearer {answer['accessToken']}"}
        self.secrets.append(answer["accessToken"])

    def make_group(self) -> str:
        """The id of an empty group `bench`."""
        group = {"name": "bench", "appId": self.application["appId"]}
        return str(self.ask("POST", "/iocm/app/devgroup/v1.3.0/devGroups", group, self.token)["id"])

    def publish(self, artifact: Path) -> None:
        query = {"type": "firmwarePackage", "name": "bench", "version": artifact.stem, **self.product}
        upload = f"/api/v1/packages?{urllib.parse.urlencode(query)}"
        file = {**self.token, "Content-Type": "application/octet-stream"}
        self.file_id = self.upload("POST", upload, artifact, file)["fileId"]

    def offer_to_all(self) -> None:
        targets = {"deviceGroups": ["bench"], **self.product}
        task = {"fileId": self.file_id, "targets": targets}
        operation = self.ask("POST", f"{OPERATIONS}/firmwareUpgrade", task, self.token)["operationId"]
        end = time.monotonic() + 60
        # A large group is expanded by a job; until it is complete nobody is offered anything.
        while time.monotonic() < end:
            self.call("GET", self.path.replace("{id}", PROBE), headers=dict([self.headers[0].split(": ", 1)]))
            status, answer = self.call("GET", f"{OPERATIONS}/{operation}", headers=self.token)
            if self.accepted("GET", OPERATIONS, status, answer)["status"] == "processing":
                return
            time.sleep(0.1)
        raise BenchError("openiodm: the task offers nothing after a minute")

    def fill_list(self, rows: int) -> None:
        asyncio.run(fill(f"sqlite:///{self.run / 'data' / 'openiodm.db'}", Size(rows, 1, max(rows // 10, 1))))

    def list_load(self) -> tuple[str, list[str]]:
        headers = [f"{name}: {value}" for name, value in self.token.items()]
        return f"{OPERATIONS}?pageNo={{n}}&pageSize=100", headers

    def _openiodm(self, *words: str) -> Any:
        done = subprocess.run(
            [self.program, *words, "--json"],
            cwd=self.run,
            env=self.full_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"openiodm {' '.join(words[:2])}: {done.stdout[-500:]}{done.stderr[-1000:]}")
        return json.loads(done.stdout)
