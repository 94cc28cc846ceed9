"""A real nginx (Debian's package nginx-light) in front of a server: `docs/nginx.conf` with other ports and folders."""

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.process import accepts

START_WITHIN_S = 20.0
PUBLISHED = Path(__file__).parents[2] / "docs" / "nginx.conf"

# From here nginx asks the server, so that a test's own requests, from 127.0.0.1, come from no trusted proxy.
FROM = "127.0.0.2"

_MAIN = """\
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
{user}
worker_processes 1;
events {{ worker_connections 512; }}
http {{
  proxy_bind {proxy};
  log_format told '$request_method $status $body_bytes_sent $request_uri $upstream_http_x_accel_redirect';
  access_log {folder}/access.log told;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  scgi_temp_path {folder}/scgi;
  uwsgi_temp_path {folder}/uwsgi;
{site}
}}
"""

needs_nginx = pytest.mark.skipif(
    not shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") and not os.environ.get("CI"),
    reason="needs Debian's package nginx-light; with CI set its lack fails",
)


def published(changes: Mapping[str, str]) -> str:
    """The configuration of the docs with each text of `changes`, which must be in it, changed."""
    text = PUBLISHED.read_text("utf-8")
    for old, new in changes.items():
        assert old in text, f"{PUBLISHED.name} has no {old!r}"
        text = text.replace(old, new)
    return text


class Nginx:
    """One that runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def told(self, client: httpx.AsyncClient) -> list[tuple[str, int, int, str]]:
        """What it logged: method, status, bytes of the body, and the file that it was told to send ("-": none).

        A line may come after its answer. So `client`, who has asked for all that is of interest, asks once more.
        """
        last = f"/healthz?{secrets.token_hex(8)}"
        await client.get(last)
        while True:
            lines = [line.split(" ") for line in (self._folder / "access.log").read_text().splitlines()]
            if any(uri == last for _, _, _, uri, _ in lines):
                return [(method, int(status), int(size), file) for method, status, size, _, file in lines]
            await asyncio.sleep(0.02)


@asynccontextmanager
async def nginx(folder: Path, site: str, *ports: int) -> AsyncIterator[Nginx]:
    """Starts nginx with `site` in its http block, until the end of the block; `ports` are what it must listen on."""
    folder.mkdir()
    user = "user root;" if os.geteuid() == 0 else ""  # its worker must read what the tests made
    (folder / "nginx.conf").write_text(_MAIN.format(folder=folder, user=user, proxy=FROM, site=site))
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    process = await asyncio.create_subprocess_exec(
        program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")
    )
    try:
        async with asyncio.timeout(START_WITHIN_S):
            while not all(map(accepts, ports)):
                assert process.returncode is None, (folder / "error.log").read_text()
                await asyncio.sleep(0.02)
        yield Nginx(folder)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
