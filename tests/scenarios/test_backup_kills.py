"""`openiodm backup` and `openiodm restore` in processes of their own, killed again and again at their work."""

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import asyncpg
import pytest

from openiodm.storage.backup import load
from openiodm.storage.open import open_database
from tests.support.core import DEVICES

pytestmark = pytest.mark.scenario

DEVICES_OF_IT = 20_000
PAUSES_S = (0.0, 0.05, 0.15)  # from the first sign of its work to the kill

Sign = Callable[[], Awaitable[object]]


async def fill(url: str) -> None:
    database = await open_database(url)
    async with database.transaction() as tx:
        application = await tx.fetchval(
            "INSERT INTO application (app_id, name, secret_hash, target_tokens, gateway_tokens, created_at) "
            "VALUES ('a', 'n', 'x', FALSE, FALSE, 0) RETURNING id"
        )
        product = await tx.fetchval(
            "INSERT INTO product (device_type, model, manufacturer_name) VALUES ('x', 'y', 'z') RETURNING id"
        )
        rows = [
            (f"id{n}", application, f"n{n}", product, "V1", False, False, False, "{}", False, "{}", 0, 0, 0, 0)
            for n in range(DEVICES_OF_IT)
        ]
        await tx.insert_many(DEVICES, rows)
    await database.close()


async def devices_in(url: str) -> int:
    database = await open_database(url)
    try:
        return int(await database.fetchval("SELECT count(*) FROM device"))
    finally:
        await database.close()


@asynccontextmanager
async def another(url: str, folder: Path) -> AsyncIterator[tuple[str, Sign]]:
    """A database of the same engine with nothing in it, and how one sees that something is made of it."""
    name = f"r_{uuid.uuid4().hex}"
    if url.startswith("sqlite"):

        async def begun() -> object:
            return [each for each in folder.glob(f"{name}.db?*") if not each.name.endswith("lock")]

        yield f"sqlite:///{folder / name}.db", begun
        return
    administrator = await asyncpg.connect(url)

    async def at_work() -> object:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND xact_start IS NOT NULL"
        return await administrator.fetchval(sql, name)

    await administrator.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    path, _, host = url.partition("?")
    yield f"{path.rpartition('/')[0]}/{name}?{host}", at_work
    await administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await administrator.close()


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENIODM_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "openiodm.cli.main", *arguments, env=environment, stdout=asyncio.subprocess.PIPE
    )
    with closing(process._transport):  # type: ignore[attr-defined]  # else it warns when it is collected
        yield process


async def done(*arguments: str) -> str:
    """What it printed; it must succeed."""
    async with started(*arguments) as process:
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def killed(*arguments: str, at: Sign, pause_s: float) -> bool:
    """Was it killed `pause_s` after the sign, or did it end before?"""
    async with started(*arguments) as process:
        async with asyncio.timeout(60):
            while process.returncode is None and not await at():  # noqa: ASYNC110 - another process tells nobody
                await asyncio.sleep(0.001)
        await asyncio.sleep(pause_s)
        if process.returncode is None:
            process.kill()
        await process.communicate()
    assert process.returncode in {0, -signal.SIGKILL}
    return process.returncode != 0


async def test_a_backup_that_is_killed_is_none_and_the_next_one_is_whole(database_url: str, tmp_path: Path) -> None:
    await fill(database_url)
    folder = tmp_path / "backups"
    command = ("backup", str(folder), "--database", database_url, "--data-dir", str(tmp_path / "data"), "--json")
    first = Path(json.loads(await done(*command))["path"])

    def partial() -> list[Path]:
        return list(folder.glob(".*.partial"))

    for pause in PAUSES_S:
        await asyncio.sleep(1.1)  # they are named by the second
        before = partial()

        async def begun(before: list[Path] = before) -> object:
            return [each for each in partial() if each not in before]

        await killed(*command, at=begun, pause_s=pause)
        assert load.check(folder, packages=True).path >= first
    await asyncio.sleep(1.1)
    last = Path(json.loads(await done(*command))["path"])
    assert partial() == []
    assert load.check(folder, packages=True).path == last > first


async def test_a_restore_that_is_killed_made_nothing_and_is_done_again(database_url: str, tmp_path: Path) -> None:
    await fill(database_url)
    data = str(tmp_path / "data")
    await done("backup", str(tmp_path / "b"), "--database", database_url, "--data-dir", data)
    kills = 0
    for pause in PAUSES_S:
        async with another(database_url, tmp_path) as (target, begun):
            restore = ("restore", str(tmp_path / "b"), "--database", target, "--data-dir", data)
            if await killed(*restore, at=begun, pause_s=pause):
                kills += 1
                await done(*restore)
            assert await devices_in(target) == DEVICES_OF_IT
    assert kills, "no kill found a restore at work: this test shows too little"
