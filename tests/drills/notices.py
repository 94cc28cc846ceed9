"""`kill -9` of a real server in mid-delivery: no notice is lost, and each device hears of its upgrade in order.

python -m tests.drills.notices [--kills 5] [--devices 200] [--engine sqlite|postgresql|both]
"""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import httpx

from openiodm.simulator import Behaviour, Fleet, Pace, TokenKind, make_profiles
from tests.support.process import Northbound, Server, free_port, fresh_database, gateway_token
from tests.support.receiver import Receiver, receiving

TYPES = ("fwUpgradeStateChangeNotify", "fwUpgradeResultNotify")
ORDER = ("otacreated", "RequestDownload", "downloading", "downloaded", "updating", "idle", "SUCCESS")
END_WITHIN_S = 120.0


async def drill(database: str, folder: Path, *, kills: int, devices: int) -> list[str]:
    """One campaign whose notices go to a receiver that is slow enough to be caught; what is wrong, in sentences."""
    server = Server(
        folder, database, free_port(), callback_allow="127.0.0.1", callbacks_per_receiver="4", callback_timeout_s="1"
    )
    application = await server.cli("app", "create", "drill", "--json")
    token = await gateway_token(server, application["appId"])
    await server.start()
    try:
        async with receiving(lambda body: 0.05) as receiver, httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            api = Northbound(http, application["appId"], application["secret"])
            operation = await _upgrade(server, api, token, receiver, devices)
            await api.wait_until_final(operation)
            for _ in range(kills):
                count = len(receiver.heard)
                async with asyncio.timeout(30):
                    while len(receiver.heard) < count + devices // 4:  # in the middle of it
                        await asyncio.sleep(0.01)
                await server.end(signal.SIGKILL)
                await server.start()
            await _until_all_told(receiver, devices)
            return _wrong(receiver, devices)
    finally:
        await server.end(signal.SIGTERM)


async def _upgrade(server: Server, api: Northbound, token: str, receiver: Receiver, devices: int) -> str:
    """All devices have gone their way; their notices are on theirs."""
    fleet = _fleet(server.url, token, devices)
    await fleet.run_until(lambda f: f.stats.attributes_sent >= devices, within=60)
    for notify_type in TYPES:
        body = {"notifyType": notify_type, "callbackUrl": receiver.url()}
        answer = await api.send("POST", "/iodm/app/sub/v1.1.0/subscribe", json=body)
        assert answer.status_code == 200, answer.text
    file_id = await api.upload("drill.bin", b"x" * 10_000)
    await api.create_group("drill", await api.device_ids(devices))
    operation = await api.create_task(
        file_id, deviceGroups=["drill"], deviceType="sensor", model="m1", manufacturerName="acme"
    )
    fleet = _fleet(server.url, token, devices)
    async with fleet.running():
        await fleet.wait_for(within=END_WITHIN_S)
    return operation


def _fleet(url: str, token: str, devices: int) -> Fleet:
    profiles = make_profiles(
        devices,
        prefix="told",
        token_kind=TokenKind.GATEWAY,
        token=token,
        behaviour=Behaviour(install_seconds=(0.0, 0.2)),
    )
    return Fleet(url, profiles, seed=7, pace=Pace(poll_seconds=1.0), max_connections=16, ramp_seconds=1.0)


async def _until_all_told(receiver: Receiver, devices: int) -> None:
    async with asyncio.timeout(END_WITHIN_S):
        while len({b["deviceId"] for b in receiver.taken if "status" in b}) < devices:
            await asyncio.sleep(0.05)


def _wrong(receiver: Receiver, devices: int) -> list[str]:
    """Each device heard every word it must, and the first hearing of each in order; repeats are allowed."""
    heard: defaultdict[str, list[str]] = defaultdict(list)
    for body in receiver.taken:
        heard[body["deviceId"]].append(str(body.get("stepDesc") or body["status"]))
    wrong = [] if len(heard) == devices else [f"{len(heard)} of {devices} devices were told of"]
    for device, words in heard.items():
        first = list(dict.fromkeys(words))
        missing = {"otacreated", "downloading", "idle", "SUCCESS"} - set(first)
        if missing:
            wrong.append(f"{device}: {missing} never came")
        if [ORDER.index(w) for w in first] != sorted(ORDER.index(w) for w in first):
            wrong.append(f"{device}: told in the order {first}")
        if any(ORDER.index(b) < ORDER.index(a) - 4 for a, b in pairwise(words)):
            wrong.append(f"{device}: went back too far: {words}")
    return wrong


async def _all(options: argparse.Namespace) -> int:
    engines = ("sqlite", "postgresql") if options.engine == "both" else (options.engine,)
    failed = False
    for engine in engines:
        with tempfile.TemporaryDirectory() as folder:
            async with fresh_database(engine, Path(folder)) as database:
                wrong = await drill(database, Path(folder), kills=options.kills, devices=options.devices)
        print(f"{engine}: {'; '.join(wrong) or 'nothing is wrong'}")
        failed = failed or bool(wrong)
    return int(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--engine", choices=("sqlite", "postgresql", "both"), default="both")
    sys.exit(asyncio.run(_all(parser.parse_args())))
