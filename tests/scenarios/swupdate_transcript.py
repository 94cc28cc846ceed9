"""Writes `docs/transcripts/swupdate.md`: Debian's SWUpdate upgraded by a task, once well and once badly.

    .venv/bin/python -m tests.scenarios.swupdate_transcript > docs/transcripts/swupdate.md

Every command of the page is run as it stands there, by a shell, in a folder of its own; only the server's port, tokens,
secrets and the folder's path are replaced by names. Needs what `swupdate_device.available` asks for, and `curl`.
`test_swupdate.py` asserts what the page shows.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from tests.scenarios import swupdate_device
from tests.scenarios.swupdate_device import INSTALL_FAILED, INSTALLED, UP, Confirm, SwupdateDevice
from tests.support.process import free_port

LIST = (
    'curl -s -H "app_key: $OPENIODM_APP_ID" -H "Authorization: Bearer $TOKEN" '
    "$OPENIODM_URL/iodm/northbound/v1.5.0/operations"
)
LOGIN = (
    "TOKEN=$(curl -s -d appId=$OPENIODM_APP_ID -d secret=$OPENIODM_SECRET $OPENIODM_URL/iocm/app/sec/v1.1.0/login "
    '| sed \'s/.*"accessToken":"\\([^"]*\\)".*/\\1/\')'
)
PRODUCT = "--device-type board --model m1 --manufacturer acme"
# Of SWUpdate's log: what its agent does with the server and what it makes of an image.
LOG_LINE = re.compile(
    r"\[\w+ *\] ?: ?(?:No )?SWUPDATE \w+ (?:\[\d\] )?:? *(?P<said>(?:\[(?:start_suricatta|server_\w+|channel_get"
    r"|channel_put\w*|channel_log_reply|swupdate_verify_file|check_hw_compatibility|get_common_fields|install_raw_file"
    r"|check_action_changed|channel_get_file)\] : |ERROR |Software Update |Installation |Image ).*)"
)
START_WITHIN_S = 20.0


class Lab:
    """A folder, a shell in it, and the page so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.shown = 0  # lines of SWUpdate's log since its last start
        self.url = f"http://127.0.0.1:{self.port}"
        self.names = {str(folder): "/lab", str(self.port): "8743"}
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "COLUMNS": "160",
            "OPENIODM_DATA_DIR": str(folder / "data"),
            "OPENIODM_LISTEN": f"127.0.0.1:{self.port}",
            "OPENIODM_URL": self.url,
            "OPENIODM_POLL_INTERVAL_S": "1",
        }

    def write(self, text: str) -> None:
        """A paragraph of the page."""
        sys.stdout.write(textwrap.dedent(text).strip() + "\n\n")

    def block(self, text: str) -> None:
        """Output as it came, with names in place of what differs from run to run or is secret."""
        for value, name in self.names.items():
            text = text.replace(value, name)
        lines = [line.rstrip() for line in text.strip("\n").splitlines()]
        sys.stdout.write("```\n" + "\n".join(lines) + "\n```\n\n")

    def call(self, command: str) -> str:
        """Runs a command of the shell that must succeed; its output."""
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def run(self, command: str, shown: str | None = None) -> str:
        """Runs it and shows it with its output; `shown` is how the page spells the command."""
        out = self.call(command)
        self.block(f"$ {shown or command}\n{out}")
        return out

    def run_list(self) -> None:
        """The task list, as an application asks for it, laid out."""
        out = self.call(f"{LOGIN}; {LIST}?pageSize=1 | python3 -m json.tool")
        self.block(f"$ {LOGIN}\n$ {LIST}?pageSize=1 | python3 -m json.tool\n{out}")

    def log(self, device: SwupdateDevice, *, started: bool = False) -> None:
        """What SWUpdate has said since the last time; `started`: since its start."""
        lines = device.log.splitlines()
        since = 0 if started else self.shown
        self.shown = len(lines)
        self.block("\n".join(found["said"] for line in lines[since:] if (found := LOG_LINE.search(line))))

    def command_of(self, device: SwupdateDevice, confirm: Confirm | None = None) -> str:
        """The device's command line as one would type it."""
        *options, agent = device.command(confirm)
        return " ".join(["swupdate", *options[1:], f'"{agent}"'])


def main() -> None:
    """The page, on stdout."""
    folder = Path(tempfile.mkdtemp(prefix="openiodm-lab-"))
    server: subprocess.Popen[bytes] | None = None
    device: SwupdateDevice | None = None
    try:
        lab = Lab(folder)
        _beginning(lab)
        with (folder / "server.log").open("wb") as log:
            server = subprocess.Popen(["openiodm", "serve"], env=lab.environment, cwd=folder, stdout=log, stderr=log)
        _until_it_answers(lab.url)
        device = _device(lab)
        _upgrade(lab, device)
        _failure(lab, device)
    finally:
        if device is not None:
            device.stop()
        if server is not None:
            server.terminate()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _beginning(lab: Lab) -> None:
    lab.write("""
        # Transcript: SWUpdate, upgraded by a task

        Debian's own SWUpdate as the device, a server, and its application, in one folder. Made by

        ```sh
        apt-get install swupdate cpio openssl curl
        .venv/bin/python -m tests.scenarios.swupdate_transcript > docs/transcripts/swupdate.md
        ```

        which runs each of these commands. `tests/scenarios/test_swupdate.py` does the same and asserts what is seen
        here. Of SWUpdate's log the page has what concerns the server and the image.
        """)
    lab.run("dpkg-query --show swupdate")
    lab.write("## A server and its application")
    made = lab.call("openiodm app create lab")
    app_id = re.search(r"appId +(\S+)", made)
    secret = re.search(r"secret +(\S+)", made)
    assert app_id is not None
    assert secret is not None
    lab.environment |= {"OPENIODM_APP_ID": app_id[1], "OPENIODM_SECRET": secret[1]}
    lab.names |= {app_id[1]: "APP_ID", secret[1]: "SECRET"}
    lab.block(f"$ openiodm app create lab\n{made}\n$ export OPENIODM_APP_ID={app_id[1]} OPENIODM_SECRET={secret[1]}")


def _until_it_answers(url: str) -> None:
    until = time.monotonic() + START_WITHIN_S
    while time.monotonic() < until:
        with suppress(OSError):
            urllib.request.urlopen(f"{url}/readyz").close()
            return
        time.sleep(0.05)
    raise RuntimeError("the server does not answer")


def _device(lab: Lab) -> SwupdateDevice:
    made = lab.call(f"openiodm app gateway-token $OPENIODM_APP_ID --name line {PRODUCT}")
    token = re.search(r"^token +(\S+)", made, re.MULTILINE)
    assert token is not None
    lab.names[token[1]] = "THE_TOKEN"
    lab.block(f"$ openiodm app gateway-token $OPENIODM_APP_ID --name line {PRODUCT}\n{made}\n$ openiodm serve &")
    keys = swupdate_device.make_keys(lab.folder / "keys")
    device = SwupdateDevice(
        folder=lab.folder / "device",
        server=lab.url,
        device_id="board-1",
        certificate=keys.certificate,
        token=token[1],
        gateway=True,
        attributes={"fwVersion": "1.0.0"},
    )
    lab.write("## The device\n\nIts `swupdate.cfg` tells the version it runs; at its first poll it registers itself.")
    device.start()
    device.wait_for_log(UP)
    lab.block(f"$ cat device/swupdate.cfg\n{(device.folder / 'swupdate.cfg').read_text()}")
    lab.block(f"$ {lab.command_of(device)}")
    lab.log(device, started=True)
    lab.run("openiodm device list")
    return device


def _upload(lab: Lab, image: Path, version: str) -> str:
    upload = f"openiodm package upload {image.relative_to(lab.folder)} --type firmware --version {version} {PRODUCT}"
    file_id = re.search(r"file id +(\S+)", lab.run(upload))
    assert file_id is not None
    return file_id[1]


def _create(lab: Lab, file_id: str) -> str:
    return lab.run(f"openiodm task create --package {file_id} --device board-1").strip()


def _upgrade(lab: Lab, device: SwupdateDevice) -> None:
    lab.write("## The task\n\nThe image is signed, and writes one file, `installed.bin`.")
    image = swupdate_device.build_image(
        lab.folder / "images",
        version="2.0.0",
        payload=b"new firmware" * 1000,
        target_path=lab.folder / "installed.bin",
        keys=swupdate_device.make_keys(lab.folder / "keys"),
    )
    file_id = _upload(lab, image, "2.0.0")
    lab.write("The task list before there is a task, and the task:")
    lab.run_list()
    task = _create(lab, file_id)
    device.wait_for_log(INSTALLED)
    lab.write("SWUpdate finds it at its next poll, fetches and installs, and waits for a reboot:")
    lab.log(device)
    lab.run("head -c 24 installed.bin; echo")
    lab.run_list()
    lab.write("## After the reboot\n\nThe new image tells version 2.0.0, and `-c 2` says that it works.")
    device.attributes = {"fwVersion": "2.0.0"}
    device.restart(Confirm.SUCCESS)
    device.wait_for_log(UP)
    lab.block(f"$ {lab.command_of(device, Confirm.SUCCESS)}")
    lab.log(device, started=True)
    lab.run(f"openiodm task wait {task} --timeout 60; echo $?")
    lab.run_list()
    lab.run(f"openiodm task history {task} board-1 | head -6")


def _failure(lab: Lab, device: SwupdateDevice) -> None:
    lab.write("## An image that cannot be installed\n\nIts payload has another SHA-256 than its description says.")
    image = swupdate_device.build_broken_image(
        lab.folder / "images",
        version="3.0.0",
        payload=b"broken firmware" * 100,
        target_path=lab.folder / "installed.bin",
        keys=swupdate_device.make_keys(lab.folder / "keys"),
    )
    file_id = _upload(lab, image, "3.0.0")
    device.stop()
    device.start()
    device.wait_for_log(UP)
    lab.shown = len(device.log.splitlines())
    task = _create(lab, file_id)
    device.wait_for_log(INSTALL_FAILED)
    lab.run(f"openiodm task wait {task} --timeout 60 2>&1; true", f"openiodm task wait {task} --timeout 60")
    lab.log(device)
    lab.run_list()
    lab.run(f"openiodm task devices {task}")


if __name__ == "__main__":
    main()
