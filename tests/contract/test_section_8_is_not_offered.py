"""Section 8 of the contract, batch tasks, commands, rules and deprecated calls: 404 with the error body, for all."""

from typing import Any

import httpx
import pytest

from openiodm.http.routes import api_router
from openiodm.northbound.compat.edge import CompatEdge
from tests.support.compat_server import no
from tests.support.routes import COMPAT

BATCH, COMMANDS, RULES = "/iocm/app/batchtask/v1.1.0", "/iocm/app/cmd/v1.4.0", "/iocm/app/rule/v1.2.0"
SECTION_8 = [
    ("POST", f"{BATCH}/tasks"),
    ("GET", f"{BATCH}/tasks/t1"),
    ("GET", f"{BATCH}/taskDetails?taskId=t1&appId=a&status=Pending&index=0&pageNo=0&pageSize=1"),
    ("POST", f"{COMMANDS}/deviceCommands"),
    ("GET", f"{COMMANDS}/deviceCommands?pageNo=0&pageSize=10&deviceId=d1"),
    ("PUT", f"{COMMANDS}/deviceCommands/c1"),
    ("POST", f"{COMMANDS}/deviceCommandCancelTasks"),
    ("GET", f"{COMMANDS}/deviceCommandCancelTasks?pageNo=0"),
    ("POST", "/iocm/app/signaltrans/v1.1.0/devices/d1/services/s1/sendCommand"),
    ("POST", f"{RULES}/rules"),
    ("PUT", f"{RULES}/rules"),
    ("GET", f"{RULES}/rules?author=a"),
    ("DELETE", f"{RULES}/rules/r1"),
    ("PUT", f"{RULES}/rules/r1/status/active"),
    ("PUT", f"{RULES}/rules/status"),
    ("POST", "/iocm/app/sub/v1.1.0/subscribe"),
    ("PUT", "/iocm/app/dm/v1.1.0/devices/d1/services/s1"),
]


@pytest.mark.parametrize(("method", "url"), SECTION_8)
async def test_section_8_is_answered_404_with_or_without_a_token(method: str, url: str) -> None:
    nobody: Any = None  # who is asking is not looked at
    transport = httpx.ASGITransport(api_router(COMPAT, CompatEdge(), nobody))
    async with httpx.AsyncClient(transport=transport, base_url="https://server") as http:
        for headers in ({}, {"app_key": "a", "Authorization": "Bearer t", "Content-Type": "application/json"}):
            answer = await http.request(method, url, headers=headers, content=b"{}" if method != "GET" else None)
            assert no(answer) == (404, "120015")
