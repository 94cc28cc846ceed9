"""One noisy peer beside a normal fleet (D16): ten times the limit from one address, one application, one device."""

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.drills import flood
from tests.drills.flood import Plan
from tests.drills.world import Report, World, world
from tests.support.process import Northbound, fresh_database

FACTOR = 10
WORSE = 2.0  # what p99 of the others may become
FLEET = 100  # devices of the others
POLLS_AND_REPORTS = 3, 1  # of the others
OTHERS_PER_SECOND = 180
LEAD_S = 1.5
ADDRESS_PER_MINUTE = 12_000
DEVICE_PER_MINUTE = 600
NATIVE_PER_MINUTE = 6000
JSON = "Content-Type: application/json\r\n"


async def noisy(report: Report, folder: Path, *, rounds: int, seconds: float) -> None:
    """The others poll and report without a flood and beside one by turns, `rounds` times `seconds` each; the median of
    the rounds' p99 with is compared with that without, so that a pause of the machine in one round says nothing.
    Nobody of the others is refused, and the flood gets what it may.

    A flood is ahead by the time that it takes to use up what a limit lets pass at once after a pause.
    """
    limits = {
        "address_requests_per_minute": str(ADDRESS_PER_MINUTE),
        "native_calls_per_minute": str(NATIVE_PER_MINUTE),
        "device_requests_per_minute": str(DEVICE_PER_MINUTE),
    }
    async with fresh_database(report.engine, folder) as url, world(report.engine, url, folder, **limits) as here:
        await here.register(FLEET + 1)
        others = _others(here, seconds)
        await flood.send(others)  # everybody is known, and nothing is cold
        for make in (_from_one_address, _of_one_application, _of_one_device):
            plan = await make(here, seconds)
            began = time.monotonic()
            quiet, loud = _Times(), _Times()
            answers: Counter[int] = Counter()
            for _ in range(rounds):
                quiet.add(report, await flood.send(others))
                storm = asyncio.create_task(flood.beside(plan.sent))
                await asyncio.sleep(LEAD_S)
                loud.add(report, await flood.send(others))
                answers += await storm
            _judge(report, plan, answers, time.monotonic() - began, quiet, loud)
        report.wrong += await here.wrong_rows()


@dataclass(frozen=True)
class _Flood:
    """What is sent beside the others, and its limit; `in_advance_s` seconds of it are let pass at once."""

    name: str
    sent: Plan
    per_minute: int
    in_advance_s: int


class _Times:
    """How long the polls and the reports of the others took: p99 of each round, in milliseconds."""

    def __init__(self) -> None:
        self._rounds: list[tuple[float, ...]] = []

    def add(self, report: Report, seen: flood.Seen) -> None:
        if set(seen.statuses) - {200, 304}:
            report.wrong.append(f"the others were answered {dict(seen.statuses)}")
        polls: list[float] = []
        reports: list[float] = []
        for number, took in enumerate(seen.took_ms):
            (polls if number % sum(POLLS_AND_REPORTS) < POLLS_AND_REPORTS[0] else reports).extend(took)
        self._rounds.append(tuple(sorted(each)[len(each) * 99 // 100] for each in (polls + reports, polls, reports)))

    def p99(self) -> list[float]:
        """Of all, of the polls and of the reports: the median of the rounds."""
        return [round(statistics.median(each), 1) for each in zip(*self._rounds, strict=True)]


def _judge(report: Report, flooding: _Flood, answers: Counter[int], took: float, quiet: _Times, loud: _Times) -> None:
    name, plan = flooding.name, flooding.sent
    taken = sum(count for status, count in answers.items() if status != 429)
    figures: dict[str, Any] = {"asked, 1/s": round(plan.per_second), "refused": answers[429], "let pass": taken}
    for what, before, after in zip(("all", "polls", "reports"), quiet.p99(), loud.p99(), strict=True):
        figures[f"others' {what}, p99 ms"] = [before, after]
        if what == "all" and after > WORSE * before:
            report.wrong.append(f"{name}: p99 of the others went from {before} to {after} ms")
    allowed = flooding.per_minute * (took + flooding.in_advance_s) / 60
    if not answers[429] or taken > allowed:
        report.wrong.append(f"{name}: {taken} were let pass, {allowed:.0f} may: {dict(answers)}")
    report.figures[name] = figures


def _request(here: World, method: str, path: str, headers: str, body: str = "") -> str:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{here.server.port}\r\n{headers}{length}\r\n{body}"


def _others(here: World, seconds: float) -> Plan:
    token = f"Authorization: GatewayToken {here.token}\r\n"
    polls, reports = POLLS_AND_REPORTS
    requests = []
    for n in range(2 * FLEET):
        path = f"/DEFAULT/controller/v1/drill-{n % FLEET:06d}"
        if n % (polls + reports) < polls:
            requests.append(_request(here, "GET", path, token))
        else:  # another word each time, so that there is something to write
            body = f'{{"mode":"merge","data":{{"n":"{n}"}}}}'
            requests.append(_request(here, "PUT", f"{path}/configData", token + JSON, body))
    return Plan(here.server.port, ["127.0.0.1"], requests, OTHERS_PER_SECOND, seconds)


async def _from_one_address(here: World, seconds: float) -> _Flood:
    """Of nobody in particular: devices that do not exist, with wrong tokens, and calls without one."""
    wrong = "Authorization: TargetToken guess\r\n"
    requests = [_request(here, "GET", f"/DEFAULT/controller/v1/nobody-{n}", wrong) for n in range(100)]
    requests += [_request(here, "GET", "/api/v1/tasks", "") for _ in range(100)]
    plan = Plan(here.server.port, ["127.0.0.2"], requests, FACTOR * ADDRESS_PER_MINUTE / 60, seconds + LEAD_S)
    return _Flood("address", plan, ADDRESS_PER_MINUTE, 10)


async def _of_one_application(here: World, seconds: float) -> _Flood:
    """From many addresses, none of which asks too much, with a good token."""
    made = await here.server.cli("app", "create", "noisy", "--json")
    headers = await Northbound(here.http, made["appId"], made["secret"]).headers()
    listed = _request(here, "GET", "/api/v1/tasks", "".join(f"{k}: {v}\r\n" for k, v in headers.items()))
    sources = [f"127.0.0.{n}" for n in range(10, 30)]
    cheap = listed.replace("/api/v1/tasks", "/api/v1/application")
    while (await flood.beside(Plan(here.server.port, sources, [cheap], 2000, 1.0)))[429] < 500:
        pass  # what it has in advance, a minute's calls, is used up first
    plan = Plan(here.server.port, sources, [listed], FACTOR * NATIVE_PER_MINUTE / 60, seconds + LEAD_S)
    return _Flood("application", plan, NATIVE_PER_MINUTE, 5)


async def _of_one_device(here: World, seconds: float) -> _Flood:
    token = f"Authorization: GatewayToken {here.token}\r\n"
    poll = _request(here, "GET", f"/DEFAULT/controller/v1/drill-{FLEET:06d}", token)
    plan = Plan(here.server.port, ["127.0.0.3"], [poll], FACTOR * DEVICE_PER_MINUTE / 60, seconds + LEAD_S)
    return _Flood("device", plan, DEVICE_PER_MINUTE, 60)
