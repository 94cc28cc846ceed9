"""`docs/nginx.conf` in a real nginx, before a real server: what it sends itself, what the server keeps to itself."""

import hashlib
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from openiodm.access.model import Product
from openiodm.rooms import open_rooms
from openiodm.settings import load
from tests.support.certificates import Certificates
from tests.support.nginx import FROM, Nginx, needs_nginx, nginx, published
from tests.support.process import Northbound, Server, free_port

pytestmark = [pytest.mark.scenario, needs_nginx]

IMAGE = os.urandom(1_000_000)  # beyond what the server reads at once
POLL = "/DEFAULT/controller/v1/dev1"


@dataclass
class Site:
    """nginx with TLS, a server behind it, and a device that was made an offer. `image` is the download's path."""

    nginx: Nginx
    api: Northbound
    device: httpx.AsyncClient  # through nginx
    direct: httpx.AsyncClient  # past it
    operation: str
    image: str
    folder: Path

    async def handed_over(self) -> list[tuple[str, int, int]]:
        """Method, status and size of what nginx was told to send to the device, so far."""
        return [
            (method, status, size) for method, status, size, file in await self.nginx.told(self.device) if file != "-"
        ]


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[Site]:
    ports = [free_port() for _ in range(4)]
    applications, devices, behind, behind_devices = ports
    certificates = Certificates(folder)
    files = certificates.server
    changed = published(
        {
            "listen 443 ssl;\n  server_name ota.": f"listen 127.0.0.1:{applications} ssl;\n  server_name ota.",
            "listen 443 ssl;\n  server_name devices.": f"listen 127.0.0.1:{devices} ssl;\n  server_name devices.",
            "/etc/ssl/ota.crt": str(files.certificate),
            "/etc/ssl/ota.key": str(files.key),
            "/etc/ssl/devices.crt": str(files.certificate),
            "/etc/ssl/devices.key": str(files.key),
            "127.0.0.1:8743;": f"127.0.0.1:{behind};",
            "127.0.0.1:8744;": f"127.0.0.1:{behind_devices};",
            "alias /var/lib/openiodm/packages/;": f"alias {folder}/packages/;",
        }
    )
    server = Server(
        folder,
        f"sqlite:///{folder / 'openiodm.db'}",
        behind,
        device_listen=f"127.0.0.1:{behind_devices}",
        trusted_proxies=FROM,
        accel_prefix="/packages/",
    )
    async with open_rooms(load(environ={}, data_dir=str(folder))) as rooms:  # quicker than two commands
        application = await rooms.access.create_application("fleet")
        login = await rooms.access.login(application.app_id, application.secret)
        actor = await rooms.access_queries.authenticate(application.app_id, login.access_token)
        _, token = await rooms.access.create_gateway_token(actor, "fleet", Product("sensor", "m1", "acme"))
    await server.start()
    try:
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(nginx(folder / "nginx", changed, applications, devices))
            trust = ssl.create_default_context(cafile=str(certificates.ca))

            async def client(url: str, **headers: str) -> httpx.AsyncClient:
                made = httpx.AsyncClient(base_url=url, headers=headers, verify=trust, timeout=60)
                return await stack.enter_async_context(made)

            authorization = {"Authorization": f"GatewayToken {token}"}
            device = await client(f"https://127.0.0.1:{devices}", **authorization)
            direct = await client(f"http://127.0.0.1:{behind_devices}", **authorization)
            http = await client(f"https://127.0.0.1:{applications}")
            api = Northbound(http, application.app_id, application.secret)
            assert (await device.get(POLL)).status_code == 200
            operation = await api.create_task(await api.upload("image.bin", IMAGE), devices=await api.device_ids(1))
            link = (await device.get(POLL)).json()["_links"]["deploymentBase"]["href"]
            assert link.startswith(f"https://127.0.0.1:{devices}/")  # as nginx told it
            artifact = (await device.get(link)).json()["deployment"]["chunks"][0]["artifacts"][0]
            yield Site(
                running, api, device, direct, operation, httpx.URL(artifact["_links"]["download"]["href"]).path, folder
            )
    finally:
        assert await server.end(signal.SIGTERM) == 0


async def test_nginx_sends_what_the_server_allowed(tmp_path: Path) -> None:
    size, tag = len(IMAGE), f'"{hashlib.sha1(IMAGE).hexdigest()}"'
    async with site(tmp_path) as at:

        async def get(**headers: str) -> httpx.Response:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await at.device.get(at.image, headers=named)

        whole = await get()
        assert (whole.status_code, whole.content) == (200, IMAGE)
        part = await get(Range="bytes=10-19")
        assert (part.status_code, part.content) == (206, IMAGE[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{size}"
        assert (await get(Range="bytes=-5")).content == IMAGE[-5:]
        resumed = await get(Range="bytes=999000-", If_Range=tag)
        assert (resumed.status_code, resumed.content) == (206, IMAGE[999_000:])
        assert await at.handed_over() == [("GET", 200, size), ("GET", 206, 10), ("GET", 206, 5), ("GET", 206, 1000)]

        # Who comes past nginx gets the bytes, and no header that is for nginx.
        own = await at.direct.get(at.image, headers={"X-Forwarded-For": FROM, "X-Forwarded-Host": "x"})
        assert (own.status_code, own.content) == (200, IMAGE)
        assert "x-accel-redirect" not in own.headers
        assert (await at.direct.get(at.image, headers={"Range": "bytes=0-9"})).content == IMAGE[:10]
        for answer in (whole, part, resumed):
            assert "x-accel-redirect" not in answer.headers
            for name in ("etag", "last-modified", "content-type", "content-disposition", "x-content-type-options"):
                assert answer.headers[name] == own.headers[name], name
        assert whole.headers["accept-ranges"] == "bytes"
        assert own.headers["etag"] == tag
        assert whole.headers["content-length"] == own.headers["content-length"] == str(size)
        (file,) = (at.folder / "packages").glob("??/??/*")
        assert (await at.device.get(f"/packages/{file.relative_to(at.folder / 'packages')}")).status_code == 404
        assert len(await at.handed_over()) == 4


async def test_the_server_answers_what_nginx_might_answer_otherwise(tmp_path: Path) -> None:
    size, tag = len(IMAGE), f'"{hashlib.sha1(IMAGE).hexdigest()}"'
    async with site(tmp_path) as at:

        async def get(**headers: str) -> tuple[int, bytes]:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            answer = await at.device.get(at.image, headers=named)
            assert "x-accel-redirect" not in answer.headers
            return answer.status_code, answer.content

        head = await at.device.head(at.image)
        assert (head.status_code, head.headers["content-length"], head.headers["etag"]) == (200, str(size), tag)
        assert await get(If_None_Match=tag) == (304, b"")
        assert await get(Range=f"bytes={size}-") == (416, b"")
        assert await get(If_Match='"other"') == (412, b"")
        assert await get(If_Match=tag, Range="bytes=0-3") == (206, IMAGE[:4])
        assert await get(If_Range='"other"', Range="bytes=0-3") == (200, IMAGE)
        assert await get(If_Unmodified_Since="Thu, 01 Jan 1970 00:00:00 GMT") == (200, IMAGE)
        status, parts = await get(Range="bytes=0-1,10-11")
        assert (status, parts.count(b"THIS_STRING_SEPARATES_MULTIPART")) == (206, 3)
        assert await at.handed_over() == []
        # Dates alone are nobody's business here, as without nginx.
        assert await get(If_Modified_Since="Fri, 01 Jan 2100 00:00:00 GMT") == (200, IMAGE)
        assert await at.handed_over() == [("GET", 200, size)]
        (file,) = (at.folder / "packages").glob("??/??/*")
        file.unlink()
        assert (await at.device.get(at.image)).status_code == 404
        assert len(await at.handed_over()) == 1


async def test_a_stop_refuses_the_next_request_at_once(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        assert (await at.device.get(at.image, headers={"Range": "bytes=0-9"})).status_code == 206
        other = at.device.headers["Authorization"].replace("GatewayToken ", "GatewayToken x")
        assert (await at.device.get(at.image, headers={"Authorization": other})).status_code == 401
        await at.api.call("POST", f"/api/v1/tasks/{at.operation}/stop")
        for headers in ({}, {"Range": "bytes=10-"}):
            refused = await at.device.get(at.image, headers=headers)
            assert refused.status_code == 404
            assert IMAGE[:10] not in refused.content
        assert len(await at.handed_over()) == 1
