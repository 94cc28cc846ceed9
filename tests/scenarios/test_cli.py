"""The command line as an operator uses it: a server in a process of its own, every command in another."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.process import free_port

PRODUCT = ("--device-type", "sensor", "--model", "m1", "--manufacturer", "acme")
PRODUCT_JSON = {"deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
START_WITHIN_S = 30.0
SERVER = {
    "OPENIODM_POLL_INTERVAL_S": "1",
    "OPENIODM_CALLBACK_ALLOW": "127.0.0.1",
    "OPENIODM_NOTICE_LIFE_S": "1",  # the first attempt is the last
}
FAST = ("--poll-seconds", "0.2", "--install-seconds", "0.2")


@dataclass
class Shell:
    """A terminal with the application's variables set."""

    url: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, code: int = 0, given: str | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "openiodm.cli.main", *arguments],
            env=self._environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
        )
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "openiodm.cli.main", *arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )

    @property
    def _environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("OPENIODM_")}
        return {**clean, **self.environment}

    def upload(self, version: str) -> str:
        file = self.folder / f"image-{version}.swu"
        file.write_bytes(os.urandom(300_000))
        made = self.json("package", "upload", str(file), "--type", "firmware", "--version", version, *PRODUCT)
        assert (made["size"], made["name"]) == (300_000, file.name)
        return str(made["fileId"])

    def devices_file(self, prefix: str, count: int) -> Path:
        file = self.folder / f"{prefix}.ndjson"
        lines = [
            json.dumps(
                {
                    "nodeId": f"{prefix}-{n}",
                    **PRODUCT_JSON,
                    "fwVersion": "V1",
                    "targetToken": f"token-of-{prefix}-{n:06d}",
                }
            )
            for n in range(count)
        ]
        file.write_text("\n".join(lines) + "\n")
        return file


def wait_until_ready(process: subprocess.Popen[str], url: str) -> None:
    until = time.monotonic() + START_WITHIN_S
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=2).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the server does not answer")


def end(process: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
    process.send_signal(how)
    try:
        return process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("cli")
    port = free_port()
    shell = Shell(f"http://127.0.0.1:{port}", folder, dict(SERVER))
    made = shell.json("app", "create", "shop", "--data-dir", "data")
    server = shell.start("serve", "--data-dir", "data", "--listen", f"127.0.0.1:{port}")
    try:
        wait_until_ready(server, shell.url)
        shell.environment = {
            "OPENIODM_URL": shell.url,
            "OPENIODM_APP_ID": made["appId"],
            "OPENIODM_SECRET": made["secret"],
            "OPENIODM_DATA_DIR": "data",
        }
        yield shell
    finally:
        out, err = end(server)
    assert (server.returncode, out) == (0, "")
    assert made["secret"] not in err
    assert "first start" not in err  # there was an application


def test_applications_are_managed_beside_the_running_server(shell: Shell) -> None:
    made = shell.json("app", "create", "second")
    assert set(made) == {"appId", "name", "secret"}
    assert [a["name"] for a in shell.json("app", "list")] == ["shop", "second"]
    secret = shell.folder / "secret"
    secret.write_text(made["secret"])
    as_second = ("--app-id", made["appId"], "--secret-file", str(secret))
    assert shell.json("device", "list", *as_second)["total"] == 0
    rotated = shell.json("app", "rotate", made["appId"])
    assert "100208" in shell.run("device", "list", *as_second, code=1).stderr
    secret.write_text(rotated["secret"] + "\n")
    assert shell.json("device", "list", *as_second)["total"] == 0
    assert "application-unknown" in shell.run("app", "rotate", "nobody", code=1).stderr


def test_an_application_is_frozen_and_thawed_beside_the_running_server(shell: Shell) -> None:
    made = shell.json("app", "create", "frosty")
    secret = shell.folder / "frosty"
    secret.write_text(made["secret"])
    as_frosty = ("--app-id", made["appId"], "--secret-file", str(secret))
    assert shell.json("app", "freeze", made["appId"]) == {"appId": made["appId"], "frozen": True}
    assert "100247" in shell.run("device", "list", *as_frosty, code=1).stderr
    assert [a["frozen"] for a in shell.json("app", "list") if a["name"] == "frosty"] == [True]
    shell.run("app", "thaw", made["appId"])
    assert shell.json("device", "list", *as_frosty)["total"] == 0


def test_one_application_is_authorized_to_act_for_another(shell: Shell) -> None:
    owner, other = shell.json("app", "create", "owner"), shell.json("app", "create", "other")
    shell.run("app", "authorize", owner["appId"], other["appId"])
    of_owner, of_other = ({"appId": a["appId"], "name": a["name"]} for a in (owner, other))
    assert shell.json("app", "authorizations", owner["appId"]) == [{"mayActForIt": True, **of_other}]
    assert shell.json("app", "authorizations", other["appId"]) == [{"mayActForIt": False, **of_owner}]
    shell.run("app", "unauthorize", owner["appId"], other["appId"])
    assert shell.json("app", "authorizations", owner["appId"]) == []
    rows = shell.json("audit", "list", "--app", owner["appId"])
    assert [row["operation"] for row in rows] == [
        "application.unauthorize",
        "application.authorize",
        "application.create",
    ]
    assert rows[0]["objectId"] == other["appId"]
    assert {row["caller"].partition(":")[0] for row in rows} == {"operator"}
    shown = shell.run("audit", "list", "--app", owner["appId"], "--operation", "application.authorize").stdout
    assert other["appId"] in shown
    assert "application.create" not in shown
    assert shell.json("audit", "list", "--app", owner["appId"], "--until", "2000-01-01") == []
    assert "application-unknown" in shell.run("audit", "list", "--app", "nobody", code=1).stderr
    assert "authorization-unknown" in shell.run("app", "unauthorize", owner["appId"], other["appId"], code=1).stderr


def test_devices_are_registered_shown_and_deleted(shell: Shell) -> None:
    made = shell.json("device", "register", "reg-1", *PRODUCT, "--name", "first", "--with-token")
    assert {"deviceId", "nodeId", "verifyCode", "psk", "targetToken"} == set(made)
    assert "node-id-taken, nodeId" in shell.run("device", "register", "reg-1", *PRODUCT, code=1).stderr
    shown = shell.json("device", "show", "reg-1")
    assert (shown["deviceId"], shown["name"], shown["status"]) == (made["deviceId"], "first", "INACTIVE")
    assert "reg-1" in shell.run("device", "show", made["deviceId"]).stdout
    token = shell.run("device", "token", "reg-1").stdout.strip()
    assert token not in ("", made["targetToken"])
    shell.run("device", "token", "reg-1", "--remove")
    assert shell.json("device", "show", "reg-1")["hasTargetToken"] is False
    assert shell.json("device", "delete", "reg-1") == {"deleted": ["reg-1"]}
    assert "device-unknown" in shell.run("device", "show", "reg-1", code=1).stderr


def test_an_import_says_which_lines_were_refused(shell: Shell) -> None:
    file = shell.devices_file("imp", 3)
    file.write_text("\n".join([*file.read_text().splitlines(), "", "{}", '{"nodeId":"imp-0"}']))
    done = shell.run("device", "import", str(file), code=1)
    assert "line 5: " in done.stderr
    assert "line 6: " in done.stderr
    assert "3 registered, 2 refused" in done.stderr
    again = shell.run("device", "import", "-", "--json", code=1, given=file.read_text()).stdout.splitlines()
    assert [json.loads(line)["line"] for line in again] == [1, 2, 3, 5, 6]
    assert "imp-2" in shell.run("device", "list", "--device-type", "sensor", "--all").stdout


def test_a_group_is_upgraded_and_watched_to_its_end(shell: Shell) -> None:
    devices = shell.devices_file("grp", 12)
    shell.run("device", "import", str(devices))
    group = shell.json("group", "create", "hall3", "--from", str(devices))
    assert group["deviceCount"] == 12
    assert shell.json("group", "remove", "hall3", "grp-11")["deviceCount"] == 11
    assert shell.json("group", "add", "hall3", "grp-11")["deviceCount"] == 12
    assert len(shell.run("group", "members", "hall3", "--all", "--json").stdout.splitlines()) == 12
    assert [g["name"] for g in shell.json("group", "list")["items"]] == ["hall3"]

    package = shell.upload("V2")
    assert shell.json("package", "show", package)["version"] == "V2"
    task = shell.run("task", "create", "--package", package, "--group", "hall3").stdout.strip()
    assert "has not ended" in shell.run("task", "wait", task, "--timeout", "0", code=4).stderr
    assert "package-in-use" in shell.run("package", "delete", package, "--give-up-retries", code=1).stderr

    summary = shell.json("simulate", "--devices", str(devices), *FAST, "--until-done", "--duration", "60")
    assert (summary["ended"], summary["succeeded"], summary["violations"]) == ("done", 12, [])
    shell.run("task", "wait", task, "--timeout", "20")
    shown = shell.json("task", "show", task)
    assert (shown["status"], shown["counters"]["success"]) == ("success", 12)
    lines = shell.run("task", "show", task, "--watch", "--json").stdout.splitlines()
    assert json.loads(lines[-1]) == shown
    listed = shell.json("task", "list", "--type", "firmware", "--status", "success")
    assert [t["operationId"] for t in listed["items"]] == [task]
    assert shell.json("task", "list", "--device", "imp-0")["items"] == []
    assert task in shell.run("task", "list").stdout
    assert "success" in shell.run("task", "devices", task, "--state", "success").stdout
    assert shell.json("task", "check", task)["exact"] is True
    assert shell.json("task", "history", task, "grp-0")["changes"][-1]["toState"] == "success"

    exported = shell.run("task", "export", task).stdout.splitlines()
    assert {json.loads(line)["nodeId"] for line in exported} == {f"grp-{n}" for n in range(12)}
    shell.run("task", "export", task, "--format", "csv", "-o", "out.csv")
    assert len((shell.folder / "out.csv").read_text().splitlines()) == 13
    assert shell.json("group", "delete", "hall3") == {"deleted": [group["groupId"]]}
    assert shell.json("package", "delete", package) == {"deleted": [package]}
    assert shell.json("package", "list")["items"] == []


def test_a_failed_task_is_retried_and_a_stopped_one_stays(shell: Shell) -> None:
    made = shell.json("app", "list")
    token = shell.json("app", "gateway-token", made[0]["appId"], "--name", "line", *PRODUCT)["token"]
    (shell.folder / "token").write_text(token)
    fleet = ("simulate", "--token-file", "token", "--prefix", "gw", "--count", "2", "--version", "V1", *FAST)
    shell.run(*fleet, "--duration", "1")
    package = shell.upload("V3")
    create = ("task", "create", "--package", package, "--device", "gw-000000", "--device", "gw-000001")
    task = shell.run(*create).stdout.strip()
    shell.json(*fleet, "--failure-rate", "1", "--until-done", "--duration", "30")
    assert "fail 2" in shell.run("task", "wait", task, "--timeout", "20", code=1).stderr
    assert shell.json("task", "retry", task)["status"] == "processing"
    shell.json(*fleet, "--until-done", "--duration", "30")
    shell.run("task", "wait", task, "--timeout", "20")

    stopped = shell.run("task", "create", "--package", shell.upload("V4"), *create[4:]).stdout.strip()
    shell.run("task", "stop", stopped, "--device", "gw-000000")
    assert shell.json("task", "stop", stopped)["status"] == "stop"
    assert "stopped" in shell.run("task", "wait", stopped, "--timeout", "20", code=3).stderr
    assert "campaign-finished" in shell.run("task", "stop", stopped, code=1).stderr
    assert "no device nobody" in shell.run(*create[:4], "--device", "nobody", code=1).stderr


def test_what_was_not_delivered_is_listed_and_replayed(shell: Shell) -> None:
    callback = f"http://127.0.0.1:{free_port()}/"  # nobody is there
    subscribe(shell, callback)
    shell.json("device", "import", str(shell.devices_file("told", 1)))
    subscription = wait_for(lambda: [s for s in shell.json("subscription", "list")["items"] if s["undelivered"]])[0]
    assert (subscription["notifyType"], subscription["callbackUrl"]) == ("deviceAdded", callback)
    (notice,) = shell.json("notice", "list", "--subscription", subscription["subscriptionId"])["items"]
    assert notice["body"]["deviceInfo"]["nodeId"] == "told-0"
    shown = " ".join(shell.run("notice", "list").stdout.split())
    assert notice["noticeId"] in shown
    assert shell.json("notice", "replay", notice["noticeId"]) == {"replayed": 1}
    wait_for(lambda: shell.json("notice", "list")["items"])
    assert shell.json("notice", "replay", "--subscription", subscription["subscriptionId"]) == {"replayed": 1}
    assert "notice-unknown" in shell.run("notice", "replay", "999999", code=1).stderr
    assert "give a notice id" in shell.run("notice", "replay", code=2).stderr


def subscribe(shell: Shell, callback: str) -> None:
    form = {"appId": shell.environment["OPENIODM_APP_ID"], "secret": shell.environment["OPENIODM_SECRET"]}
    token = httpx.post(f"{shell.url}/iocm/app/sec/v1.1.0/login", data=form).json()["accessToken"]
    answer = httpx.post(
        f"{shell.url}/iocm/app/sub/v1.2.0/subscriptions",
        headers={"app_key": form["appId"], "Authorization": f"Bearer {token}"},
        json={"notifyType": "deviceAdded", "callbackUrl": callback},
    )
    assert answer.status_code == 201, answer.text


def wait_for(condition: Callable[[], list[Any]]) -> list[Any]:
    until = time.monotonic() + START_WITHIN_S
    while not (found := condition()):
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.2)
    return found


def test_what_callbacks_are_made_with_is_set_by_the_operator(shell: Shell) -> None:
    app_id = shell.environment["OPENIODM_APP_ID"]
    signed = shell.json("app", "callback-signature", app_id)
    assert (signed["signed"], len(signed["secret"])) == (True, 43)
    assert shell.json("app", "callback-signature", app_id, "--off")["secret"] is None
    shell.run("tls", "init", "--dir", "pki")
    client = ("--cert", "pki/client.crt", "--key", "pki/client.key")
    shown = shell.json("app", "callback-tls", app_id, "--ca", "pki/ca.crt", *client)
    assert (shown["ownAuthorities"], shown["clientCertificate"]) == (True, True)
    assert "caPem" in shell.run("app", "callback-tls", app_id, "--ca", "pki/client.key", code=1).stderr
    assert "keyPem" in shell.run("app", "callback-tls", app_id, "--cert", "pki/client.crt", code=1).stderr
    assert "nowhere" in shell.run("app", "callback-tls", app_id, "--ca", "nowhere", code=2).stderr
    shell.json("app", "callback-tls", app_id)


def test_wrong_usage_is_one_line_and_code_2(shell: Shell) -> None:
    # A server that meets a taken address has opened its database by then, and said so in its log.
    quiet = Shell(shell.url, shell.folder, {**shell.environment, "OPENIODM_LOG_LEVEL": "warning"})
    (shell.folder / os.fsdecode(b"ger\xe4t.bin")).write_bytes(b"x")
    for arguments in (
        ("serve", "--listen", "nonsense"),
        ("serve", "--listen", shell.url.removeprefix("http://"), "--data-dir", "elsewhere"),
        ("serve",),  # another server owns the database
        ("task", "create", "--package", "x"),
        ("simulate",),
        ("device", "import", "missing.ndjson"),
        ("demo", "--once", "--port", shell.url.rpartition(":")[2]),
        ("device", "list", "--url", "http://[::1"),
        ("device", "show", os.fsdecode(b"\xff")),
        ("package", "upload", os.fsdecode(b"ger\xe4t.bin"), "--type", "firmware", "--version", "2"),
        ("task", "create", "--package", "x", "--device", "d", "--idempotency-key", "\xe4"),
    ):
        done = quiet.run(*arguments, code=2)
        assert done.stderr.startswith("openiodm: "), arguments
        assert len(done.stderr.splitlines()) == 1, arguments
    without = Shell(shell.url, shell.folder)
    assert "--app-id" in without.run("device", "list", code=2).stderr
    assert "cannot reach" in shell.run("device", "list", "--url", "http://127.0.0.1:1", code=1).stderr


def test_help_and_version_are_quick_and_complete(shell: Shell) -> None:
    commands = shell.run("--help").stdout
    for name in ("serve", "app", "audit", "device", "group", "package", "task", "simulate", "demo"):
        assert name in commands
    assert shell.run("--version").stdout.startswith("openiodm ")


def test_the_first_start_shows_an_application_once(tmp_path: Path) -> None:
    port = free_port()
    shell = Shell(f"http://127.0.0.1:{port}", tmp_path)
    serve = ("serve", "--data-dir", "data", "--listen", f"127.0.0.1:{port}")

    server = shell.start(*serve, *PRODUCT)
    wait_until_ready(server, shell.url)
    out, err = end(server, signal.SIGINT)
    assert (server.returncode, out) == (0, "")
    said = dict(line.split(maxsplit=2)[-2:] for line in err.splitlines() if line.startswith(("  secret", "  address")))
    assert said["address"] == shell.url
    assert len(said["secret"]) == 43
    assert "gateway token of sensor m1, acme: " in err

    server = shell.start(*serve)
    wait_until_ready(server, shell.url)
    _, err = end(server)
    assert "secret" not in err
    (application,) = shell.json("app", "list", "--data-dir", "data")
    assert application["name"] == "default"


def test_the_demo_shows_an_upgrade_with_a_retry_and_ends(tmp_path: Path) -> None:
    # A setting of the visitor's own server must not lead the demo to their database.
    shell = Shell("", tmp_path, {"OPENIODM_DATABASE": f"sqlite:///{tmp_path / 'theirs.db'}"})
    done = shell.run("demo", "--once", "--devices", "20", "--port", "0", "--data-dir", "demo")
    assert "GET /iodm/northbound/v1.5.0/operations" in done.stdout
    assert "success" in done.stdout
    assert "0 of them retries" not in done.stdout
    assert "processing" in done.stderr
    assert not (tmp_path / "theirs.db").exists()
    assert (tmp_path / "demo" / "openiodm.db").exists()
    assert "not empty" in shell.run("demo", "--once", "--data-dir", "demo", "--port", "0", code=2).stderr


def test_the_demo_ends_cleanly_at_ctrl_c(tmp_path: Path) -> None:
    shell = Shell("", tmp_path)
    demo = shell.start("demo", "--devices", "5", "--port", "0")
    assert demo.stdout is not None
    while "Task " not in demo.stdout.readline():
        assert demo.poll() is None
    out, err = end(demo, signal.SIGINT)
    assert demo.returncode == 0
    assert "Stopped." in out
    assert "Traceback" not in err
