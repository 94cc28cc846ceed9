#!/usr/bin/env python3
"""OpenIODM and goosebit side by side, in one run, under the same load: what `make bench` shows.

    python bench/compare.py            three rounds, 1,000 devices, 100 MB (some ten minutes)
    python bench/compare.py --quick    one round, 200 devices, 20 MB (some two minutes)
    python bench/compare.py --only goosebit

Both servers start empty in each round and are measured in turn, step by step, so that a busy minute of the machine
hits both. The server runs on the first core, the generator on the last. Figures are medians over the rounds; a ratio is
the median of the rounds' ratios. `bench/README.md` says how to read them.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, ClassVar

from peer_goosebit import GoosebitServer
from server import CORES, HERE, WORK, BenchError, Server, make_artifact

RESULTS = HERE / "results" / "latest.json"
TARGETS = {"idle_poll": 10.0, "whole_update": 8.0, "download": 0.8}
STARTUP_TARGET_S = 1.5
RSS_TARGET_MIB = 150.0
FLEET = 10_000
PAGE = 250  # devices, the contract's largest
PROBE = "bench-000000"

Metrics = dict[str, float]


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
        }

    def prepare(self, n_devices: int, artifact: Path) -> None:
        self._log_in()
        self.register(0, n_devices)
        query = {"type": "firmwarePackage", "name": "bench", "version": artifact.stem, **self.product}
        upload = f"/api/v1/packages?{urllib.parse.urlencode(query)}"
        file = {**self.token, "Content-Type": "application/octet-stream"}
        self.file_id = self.upload("POST", upload, artifact, file)["fileId"]
        group = {"name": "bench", "appId": self.application["appId"]}
        group_id = self.ask("POST", "/iocm/app/devgroup/v1.3.0/devGroups", group, self.token)["id"]
        for page in range((n_devices + PAGE - 1) // PAGE):
            where = f"/iocm/app/dm/v1.4.0/devices?pageNo={page}&pageSize={PAGE}"
            devices = [device["deviceId"] for device in self.ask("GET", where, headers=self.token)["devices"]]
            members = {"devGroupId": group_id, "deviceIds": devices}
            self.ask("POST", "/iocm/app/dm/v1.1.0/devices/addDevGroupTagToDevices", members, self.token)

    def offer_to_all(self) -> None:
        targets = {"deviceGroups": ["bench"], **self.product}
        operations = "/iodm/northbound/v1.5.0/operations"
        task = {"fileId": self.file_id, "targets": targets}
        operation = self.ask("POST", f"{operations}/firmwareUpgrade", task, self.token)["operationId"]
        end = time.monotonic() + 60
        # A large group is expanded by a job; until it is complete nobody is offered anything.
        while time.monotonic() < end:
            self.call("GET", self.path.replace("{id}", PROBE), headers=dict([self.headers[0].split(": ", 1)]))
            status, answer = self.call("GET", f"{operations}/{operation}", headers=self.token)
            if self.accepted("GET", operations, status, answer)["status"] == "processing":
                return
            time.sleep(0.1)
        raise BenchError("openiodm: the task offers nothing after a minute")

    def _log_in(self) -> None:
        form = urllib.parse.urlencode({"appId": self.application["appId"], "secret": self.application["secret"]})
        login = "/iocm/app/sec/v1.1.0/login"
        answer = self.accepted("POST", login, *self.call("POST", login, form.encode()))
        self.token = {"app_key": self.application["appId"], "Authorization": f"Bearer {answer['accessToken']}"}

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


# --- the steps of a round -----------------------------------------------------------------------------------------
def idle_poll(server: Server, options: argparse.Namespace) -> Metrics:
    seconds = ("--duration", str(options.seconds), "--warmup", "2")
    got = server.load("poll", "--devices", str(options.devices), "--concurrency", "32", *seconds)
    cpu = 1000 * got["server"]["cpu_s"] / got["requests"]
    return {
        "idle_poll_per_s": got["per_s"],
        "idle_poll_p50_ms": got["ms"]["p50"],
        "idle_poll_p99_ms": got["ms"]["p99"],
        "idle_poll_cpu_ms": round(cpu, 4),
        "idle_poll_others_pct": got["others_pct"],
    }


def download(server: Server, options: argparse.Namespace) -> Metrics:
    metrics: Metrics = {}
    before = 0.0
    for connections, count in ((1, options.downloads), (8, 2 * options.downloads)):
        verify = ("--verify",) if connections == 1 else ()
        where = ("--concurrency", str(connections), "--count", str(max(count, connections)))
        got = server.load("download", *where, *verify)
        if not all(got.get("hashes_match", {}).values()):
            raise BenchError(f"{server.name}: the bytes are not what their hashes say: {got['hashes_match']}")
        metrics[f"download_{connections}_mb_per_s"] = got["mb_per_s"]
        before = before or got["server"]["rss_mib_before"]
        metrics["download_rss_growth_mib"] = round(got["server"]["rss_mib"] - before, 1)
    metrics["download_best_mb_per_s"] = max(metrics["download_1_mb_per_s"], metrics["download_8_mb_per_s"])
    return metrics


def whole_update(server: Server, options: argparse.Namespace) -> Metrics:
    got = server.load("cycle", "--devices", str(options.devices), "--concurrency", "16")
    if got["updates"] != options.devices:
        raise BenchError(f"{server.name}: {got['updates']} of {options.devices} devices were updated")
    return {"whole_update_per_s": got["updates_per_s"], "rss_mib_after": got["server"]["rss_mib"]}


STEPS: tuple[tuple[str, Callable[[Server, argparse.Namespace], Metrics]], ...] = (
    ("idle polls", idle_poll),
    ("downloads", download),
    ("whole updates", whole_update),
)


def one_round(servers: list[Server], options: argparse.Namespace, number: int) -> dict[str, Metrics]:
    """Each step on every server before the next step; who goes first changes from round to round."""
    order = servers if number % 2 else servers[::-1]
    metrics: dict[str, Metrics] = {server.name: {} for server in servers}
    artifact = make_artifact(WORK / f"2.0.{number}.swu", f"2.0.{number}", options.megabytes)
    with contextlib.ExitStack() as stack:
        for server in order:
            say(f"round {number}: {server.name}: {options.devices} devices and the package")
            server.reset()
            server.start()
            stack.callback(server.stop)
            server.prepare(options.devices, artifact)
        for name, step in STEPS:
            for server in order:
                if step is download:
                    server.offer_to_all()
                say(f"round {number}: {server.name}: {name}")
                metrics[server.name] |= step(server, options)
    artifact.unlink()
    return metrics


def startup(server: Server, options: argparse.Namespace) -> Metrics:
    """On a database that has been used, as a restart meets it."""
    say(f"{server.name}: start-up")
    got = server.startup(3 if options.quick else 7)
    return {"startup_s": got["startup_median_s"], "startup_rss_mib": statistics.median(got["rss_mib"])}


def fleet(server: Server, artifact: Path) -> Metrics:
    """Memory with 10,000 devices that have all polled."""
    say(f"{server.name}: {FLEET} devices")
    server.reset()
    server.start()
    try:
        server.prepare(FLEET, artifact)
        got = server.load("poll", "--devices", str(FLEET), "--concurrency", "32", "--duration", "10")
        return {"fleet_rss_mib": got["server"]["rss_mib"], "fleet_poll_per_s": got["per_s"]}
    finally:
        server.stop()


# --- what comes of it -------------------------------------------------------------------------------------------
def medians(rounds: list[Metrics]) -> Metrics:
    return {key: round(statistics.median(one[key] for one in rounds), 4) for key in (rounds[0] if rounds else {})}


def ratios(ours: list[Metrics], peer: list[Metrics]) -> Metrics:
    keys = {
        "idle_poll": "idle_poll_per_s",
        "whole_update": "whole_update_per_s",
        "download": "download_best_mb_per_s",
    }
    return {
        name: round(statistics.median(a[key] / b[key] for a, b in zip(ours, peer, strict=True)), 2)
        for name, key in keys.items()
    }


def machine() -> dict[str, Any]:
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model,
        "cores": len(CORES),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def verdicts(report: dict[str, Any]) -> list[tuple[str, str, str, str, str, bool | None]]:
    """Rows of the table: what, ours, goosebit, ratio, target, met (None: not measured)."""
    ours, peer, ratio = report["ours"], report["peer"], report["ratios"]

    def show(side: Metrics, key: str) -> str:
        return f"{side[key]:,.1f}" if key in side else "-"

    rows: list[tuple[str, str, str, str, str, bool | None]] = []
    for name, key, title in (
        ("idle_poll", "idle_poll_per_s", "idle polls /s"),
        ("whole_update", "whole_update_per_s", "whole updates /s"),
        ("download", "download_best_mb_per_s", "download, best MB/s"),
    ):
        met = ratio[name] >= TARGETS[name] if name in ratio else None
        share = f"{ratio[name]:.2f}" if name in ratio else "-"
        rows.append((title, show(ours, key), show(peer, key), share, f"ratio >= {TARGETS[name]:g}", met))
    for key, title, limit, unit in (
        ("startup_s", "start to first answer, s", STARTUP_TARGET_S, "s"),
        ("fleet_rss_mib", f"RSS with {FLEET:,} devices, MiB", RSS_TARGET_MIB, "MiB"),
    ):
        met = ours[key] < limit if key in ours else None
        digits = (f"{side[key]:.2f}" if key in side else "-" for side in (ours, peer))
        rows.append((title, *digits, "", f"ours < {limit:g} {unit}", met))  # type: ignore[arg-type]
    for key, title in (
        ("idle_poll_p99_ms", "idle poll p99, ms"),
        ("idle_poll_cpu_ms", "server CPU per poll, ms"),
        ("download_1_mb_per_s", "download, 1 connection"),
        ("download_8_mb_per_s", "download, 8 connections"),
        ("download_rss_growth_mib", "RSS growth by downloads"),
        ("rss_mib_after", "RSS after the updates, MiB"),
        ("idle_poll_others_pct", "CPU others took, %"),
    ):
        digits = (f"{side[key]:,.2f}" if key in side else "-" for side in (ours, peer))
        # CPU time is what noise changes least: fewer is better, so this ratio is the other way round.
        share = f"{peer[key] / ours[key]:.2f}" if key == "idle_poll_cpu_ms" and key in ours and key in peer else ""
        rows.append((title, *digits, share, "", None))  # type: ignore[arg-type]
    return rows


def table(rows: Iterable[tuple[str, str, str, str, str, bool | None]]) -> str:
    lines = [f"{'':34}{'OpenIODM':>12}{'goosebit':>12}{'ratio':>9}  target"]
    for title, ours, peer, ratio, target, met in rows:
        mark = "" if met is None else " met" if met else " MISSED"
        lines.append(f"{title:34}{ours:>12}{peer:>12}{ratio:>9}  {target}{mark}".rstrip())
    return "\n".join(lines)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["openiodm", "goosebit"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    options = parser.parse_args()
    quick = options.quick
    options.rounds, options.devices, options.seconds = (1, 200, 3) if quick else (3, 1000, 10)
    options.megabytes, options.downloads = (20, 10) if quick else (100, 10)
    commands: list[str] = []
    everyone: list[Server] = [OursServer(18054, commands), GoosebitServer(18053, commands)]
    servers = [server for server in everyone if options.only in (None, server.name)]
    began = time.monotonic()
    for server in servers:
        server.setup()
    rounds: dict[str, list[Metrics]] = {server.name: [] for server in everyone}
    for number in range(1, options.rounds + 1):
        for name, metrics in one_round(servers, options, number).items():
            rounds[name].append(metrics)
    sides: dict[str, Any] = {name: medians(many) for name, many in rounds.items()}
    for server in servers:
        sides[server.name] |= startup(server, options)
        if server.name == OursServer.name:
            sides[server.name] |= fleet(server, make_artifact(WORK / "3.0.0.swu", "3.0.0", 1))
        sides[server.name]["version"] = server.version()
        server.reset()  # its packages are large
    both = len(servers) == len(everyone)
    report = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "took_s": round(time.monotonic() - began),
        "ratios": ratios(rounds["openiodm"], rounds["goosebit"]) if both else {},
        "targets": TARGETS,
        "ours": sides["openiodm"],
        "peer": sides["goosebit"],
        "rounds": rounds,
        "machine": machine(),
        "commands": commands,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    rows = verdicts(report)
    print(table(rows))
    return int(options.check and any(met is False for *_, met in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench: {error}")
