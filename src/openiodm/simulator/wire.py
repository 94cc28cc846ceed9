"""One device's requests: its paths, its token, its ETag; every exchange is counted in its record and the stats."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random
from urllib.parse import quote

from openiodm.simulator import messages
from openiodm.simulator.http import HttpClient, Response, Stream, TransportError
from openiodm.simulator.messages import BadAnswerError, PollAnswer
from openiodm.simulator.profile import DeviceProfile, Pace, TokenKind
from openiodm.simulator.record import GONE, DeviceRecord
from openiodm.simulator.stats import FleetStats

MAX_RETRY_AFTER_SECONDS = 60
NOT_FOUND = 404
NOT_MODIFIED = 304


class UnusableError(Exception):
    """An answer that does not help now (5xx, 429, 401 ...): try again, not before `at_least` seconds."""

    def __init__(self, what: str, headers: Mapping[str, str]) -> None:
        super().__init__(what)
        self.at_least = retry_after_seconds(headers)


class Wire:
    """The requests of one device over the fleet's client. All methods may raise `TransportError`."""

    def __init__(
        self,
        profile: DeviceProfile,
        client: HttpClient,
        record: DeviceRecord,
        stats: FleetStats,
        pace: Pace,
        timing: Random,
    ) -> None:
        self.last_poll = PollAnswer()
        self._profile = profile
        self._client = client
        self._record = record
        self._stats = stats
        self._pace = pace
        self._timing = timing
        self._etag: str | None = None
        self._path = f"/{quote(profile.tenant, safe='')}/controller/v1/{quote(profile.controller_id, safe='')}"
        self._headers = {"Accept": "application/hal+json, application/json"}
        if profile.token_kind is not TokenKind.NONE:
            self._headers["Authorization"] = f"{profile.token_kind.value} {profile.token}"
        self._json_headers = {**self._headers, "Content-Type": "application/json"}

    async def poll(self) -> PollAnswer:
        """Poll, with the ETag of the last answer; a 304 stands for that answer again.

        Raises `UnusableError` or `BadAnswerError`.
        """
        headers = self._headers if self._etag is None else {**self._headers, "If-None-Match": self._etag}
        response = await self._request("GET", self._client.base_path + self._path, headers)
        if response.status == 200:
            self.last_poll = messages.parse_poll(response.body)
            self._etag = response.headers.get("etag")
        elif response.status == NOT_MODIFIED and self._etag is not None:
            self._stats.not_modified += 1
            self._record.not_modified += 1
        else:
            raise UnusableError(f"poll answered {response.status}", response.headers)
        self._stats.polls += 1
        self._stats.registered += self._record.polls == 0
        self._record.polls += 1
        return self.last_poll

    async def get(self, href: str) -> bytes | None:
        """The body of a 200, None for 404 and 410; anything else raises `UnusableError`."""
        response = await self._request("GET", self._target(href), self._headers)
        if response.status == 200:
            return response.body
        if response.status in {NOT_FOUND, GONE}:
            return None
        raise UnusableError(f"GET answered {response.status}", response.headers)

    async def put(self, href: str, body: bytes) -> Response:
        """PUT JSON to a link of the server."""
        return await self._request("PUT", self._target(href), self._json_headers, body)

    async def post(self, path: str, body: bytes) -> Response:
        """POST JSON to a path below the device's own, which agents build themselves."""
        return await self._request("POST", self._client.base_path + self._path + path, self._json_headers, body)

    @asynccontextmanager
    async def download(self, href: str, byte_range: str | None) -> AsyncIterator[Stream]:
        """GET bytes; `byte_range` as in the Range header, without its unit."""
        headers = {**self._headers, "Accept": "*/*"}
        if byte_range is not None:
            headers["Range"] = f"bytes={byte_range}"
        try:
            async with self._client.stream(self._target(href), headers) as stream:
                self._count(stream.status)
                yield stream
        except TransportError:
            self._lost()
            raise

    def backoff(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row: doubling, bounded, the upper half by chance."""
        ceiling = min(self._pace.backoff_most, self._pace.backoff_first * 2.0 ** min(failures - 1, 30))
        return ceiling * self._timing.uniform(0.5, 1.0)

    def misbehaved(self, what: str) -> None:
        """Note an answer that breaks the contract."""
        self._record.problem(what)
        self._stats.errors += 1

    def _target(self, href: str) -> str:
        try:
            return self._client.localise(href)
        except ValueError as error:
            raise BadAnswerError(f"link {href[:100]!r}: {error}") from error

    async def _request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Response:
        try:
            response = await self._client.request(method, target, headers, body)
        except TransportError:
            self._lost()
            raise
        self._count(response.status)
        return response

    def _count(self, status: int) -> None:
        self._stats.requests += 1
        self._stats.by_status[status] += 1
        if status >= 500:
            self._stats.errors += 1

    def _lost(self) -> None:
        self._record.transport_errors += 1
        self._stats.errors += 1


def retry_after_seconds(headers: Mapping[str, str]) -> float:
    """The Retry-After header in seconds, bounded; 0 when there is none or it is a date."""
    value = headers.get("retry-after", "")
    return float(min(int(value), MAX_RETRY_AFTER_SECONDS)) if value.isascii() and value.isdigit() else 0.0
