"""Package bytes in a bucket of an S3-compatible store, each object `ab/<sha256>/<random>`; whole copies on the disk.

What comes is received on the disk as without a bucket, with its digests, and only then put into the bucket: what is
broken off has left nothing there. What goes out is fetched whole at first, and read from the disk from then on, in any
pieces: ranges, CoAP blocks, nginx. The copies are bounded; the one that was not used for longest goes.

Every upload makes an object of its own, so servers need no lock between them: `remove` deletes the very objects that
`prefixes` has listed, and those only when they are old enough that their rows are committed.
"""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import S3Store

from openiodm.clock import SECOND, Clock, random_id
from openiodm.errors import Reason, Refusal
from openiodm.packages.model import Blob
from openiodm.protocols.port import PackageAway
from openiodm.storage.blobs import FileStore, Incoming

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import S3Config

PIECE_BYTES = 4 * 1024 * 1024  # of one request for bytes
PART_BYTES = 8 * 1024 * 1024  # of one request of an upload; the protocol asks for 5 MiB at least
AT_ONCE = 3  # requests of one transfer
MOST_PARTS = 9_000  # of an upload; the protocol's limit is 10,000
SETTLED_S = 3600  # an object that is younger may wait for its row
LIST_EVERY_S = 3600.0  # a bucket's listing is paid for
IN_USE_S = 60  # a copy that was asked for since then stays, whatever the limit
KNOWN = 1000  # digests whose object is remembered
KNOWN_S = 60.0

FAULTS = (BaseError, OSError)  # the library's own, and FileNotFoundError where there is no such bucket

log = structlog.get_logger(__name__)

T = TypeVar("T")


class _Object(NamedTuple):
    modified: datetime
    path: str
    size: int


def connect(url: str, endpoint: str, region: str) -> S3Store:
    """`s3://bucket/prefix`. What is empty, and the credentials, come from the environment or from the machine's role,
    as with AWS's tools. Nothing is asked yet.
    """
    name, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
    config: S3Config = {}
    if endpoint:
        config["endpoint"] = endpoint
    if region:
        config["region"] = region
    return S3Store(
        name,
        prefix=prefix or None,
        config=config,
        client_options={"allow_http": endpoint.startswith("http://"), "connect_timeout": "5s", "timeout": "60s"},
        retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=20)},
    )


class BucketStore:
    """See `packages.ports.BlobStore`. `cache` receives uploads and holds the copies, of `cache_bytes` in all."""

    def __init__(
        self, bucket: S3Store, cache: FileStore, clock: Clock, *, cache_bytes: int, list_every_s: float = LIST_EVERY_S
    ) -> None:
        self._bucket = bucket
        self._cache = cache
        self._clock = clock
        self._cache_bytes = cache_bytes
        self._list_every_s = list_every_s
        self._listed_at: float | None = None
        self._adopted = False
        self._old: dict[str, list[_Object]] = {}  # of the group that `prefixes` has last given
        self._known: OrderedDict[str, tuple[float, _Object]] = OrderedDict()
        self._fetches: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> int:
        """As `FileStore.open`. A bucket that does not answer is told in the log and stops no start."""
        removed = await self._cache.open()
        try:
            async for _ in obstore.list(self._bucket, chunk_size=1):
                break
        except FAULTS as error:
            log.error("package_store_failed", error=_text(error))
        return removed

    async def close(self) -> None:
        """Ends what is being fetched."""
        for task in self._fetches.values():
            task.cancel()
        await asyncio.gather(*self._fetches.values(), return_exceptions=True)
        await self._cache.close()

    # -- in

    @asynccontextmanager
    async def receive(
        self, chunks: AsyncIterator[bytes], *, limit: int, expected: int | None = None
    ) -> AsyncIterator["_Staged"]:
        """See `BlobStore`."""
        async with self._cache.receive(chunks, limit=limit, expected=expected) as incoming:
            yield _Staged(self, incoming)

    async def put(self, file: Path, sha256: str) -> None:
        """A new object of these bytes.

        Raises:
            Refusal: STORE_AWAY.
        """
        path = f"{sha256[:2]}/{sha256}/{random_id()}"
        part = max(PART_BYTES, -(-(await self._cache.in_thread(file.stat)).st_size // MOST_PARTS))
        try:
            await obstore.put_async(self._bucket, path, file, chunk_size=part, max_concurrency=AT_ONCE)
        except FAULTS as error:
            log.error("package_store_failed", error=_text(error))
            raise Refusal(Reason.STORE_AWAY, "the package store does not answer") from error

    # -- out

    async def local(self, sha256: str) -> Path:
        """The copy on the disk, fetched if it is not there; all who ask meanwhile wait for the same fetch.

        Raises:
            FileNotFoundError: it is not in the bucket.
            PackageAway: the bucket does not answer, or the disk is full.
        """
        path = self._cache.path(sha256)
        if not await self._cache.in_thread(_touch, path):
            fetch = self._fetches.get(sha256)
            if fetch is None:
                fetch = self._fetches[sha256] = asyncio.create_task(self._fetch(sha256), name="fetch-package")
                fetch.add_done_callback(lambda done: self._fetched(sha256, done))
            await asyncio.shield(fetch)  # a device that leaves takes the bytes from nobody
        return path

    def _fetched(self, sha256: str, done: "asyncio.Task[None]") -> None:
        del self._fetches[sha256]
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("package_not_fetched", sha256=sha256, error=_text(error))

    async def _fetch(self, sha256: str) -> None:
        with _away():
            found = await self._find(sha256)
            began = time.monotonic()
            try:
                pieces = self._pieces(found)
                async with self._cache.receive(pieces, limit=found.size, expected=found.size) as incoming:
                    if incoming.blob.sha256 != sha256:
                        raise PackageAway(f"the object's bytes have SHA-256 {incoming.blob.sha256}")
                    async with incoming.published():
                        await self.trim()
            except Refusal as refusal:
                raise PackageAway(refusal.detail) from refusal
        log.info("package_fetched", sha256=sha256, bytes=found.size, seconds=round(time.monotonic() - began, 3))

    async def _pieces(self, found: _Object) -> AsyncIterator[bytes]:
        for first in range(0, found.size, AT_ONCE * PIECE_BYTES):
            starts = range(first, min(first + AT_ONCE * PIECE_BYTES, found.size), PIECE_BYTES)
            ends = [min(start + PIECE_BYTES, found.size) for start in starts]
            asked = [
                obstore.get_range_async(self._bucket, found.path, start=start, end=end)
                for start, end in zip(starts, ends, strict=True)
            ]
            for piece in await asyncio.gather(*asked):
                yield bytes(piece)

    async def url(self, sha256: str, life_s: int) -> str:
        """An address at which anybody gets the bytes from the bucket, for so long; signed with our credentials.

        Raises:
            FileNotFoundError: it is not in the bucket.
            PackageAway: the bucket does not answer.
        """
        with _away():
            known = self._known.get(sha256)
            if known is None or time.monotonic() - known[0] > KNOWN_S:
                known = self._known[sha256] = (time.monotonic(), await self._find(sha256))
                while len(self._known) > KNOWN:
                    self._known.popitem(last=False)
            return await obstore.sign_async(self._bucket, "GET", known[1].path, timedelta(seconds=life_s))

    async def _find(self, sha256: str) -> _Object:
        """The newest of its objects, so the one that the next collection deletes last."""
        try:
            listing = _listing(self._bucket, f"{sha256[:2]}/{sha256}")
            found = [_object(meta) async for group in listing for meta in group]
        except FAULTS as error:
            raise PackageAway(_text(error)) from error
        if not found:
            raise FileNotFoundError(sha256)
        return max(found)

    async def trim(self) -> None:
        """Deletes copies, the one that was not used for longest first, down to their bound; none before `adopt`."""
        if self._adopted:
            await self._cache.in_thread(_trim, self._cache, self._cache_bytes)

    # -- collection

    async def prefixes(self) -> AsyncIterator[Sequence[str]]:
        """See `BlobStore`. Once in a while only; digests of which an object is old enough to be deleted."""
        now = time.monotonic()
        if self._listed_at is not None and now - self._listed_at < self._list_every_s:
            return
        self._listed_at = now
        listed = set[str]()
        settled = self._clock.now() - SETTLED_S * SECOND
        try:
            async for group in _listing(self._bucket):
                for meta in group:
                    found = _object(meta)
                    prefix, _, rest = found.path.partition("/")
                    sha256 = rest.partition("/")[0]
                    listed.add(sha256)
                    if self._old and prefix != next(iter(self._old))[:2]:
                        yield list(self._old)
                        self._old = {}
                    if found.modified.timestamp() * 1000 < settled:
                        self._old.setdefault(sha256, []).append(found)
            if self._old:
                yield list(self._old)
            if not self._adopted:
                await self.adopt(listed)
        except FAULTS as error:
            log.error("package_store_failed", error=_text(error))
        finally:
            self._old = {}

    async def adopt(self, listed: Collection[str]) -> None:
        """Puts what the disk has and the bucket has not into it: packages from before there was a bucket, or from a
        backup. Once after a start, and before any copy is deleted.
        """
        async for group in self._cache.prefixes():
            for sha256 in group:
                if sha256 in listed:
                    continue
                try:
                    await self.put(self._cache.path(sha256), sha256)
                except Refusal:
                    self._listed_at = None  # at the next turn
                    return
                log.info("package_adopted", sha256=sha256)
        self._adopted = True
        await self.trim()

    @asynccontextmanager
    async def exclusive(self, prefix: str) -> AsyncIterator[bool]:
        """See `BlobStore`: whoever publishes at the same time makes another object."""
        yield True

    async def remove(self, sha256s: Sequence[str]) -> tuple[int, int]:
        """See `BlobStore`: of the objects that were listed."""
        objects = [found for sha256 in sha256s for found in self._old.get(sha256, ())]
        if not objects:
            return 0, 0
        for sha256 in sha256s:
            self._known.pop(sha256, None)
        await self._cache.remove(sha256s)
        try:
            await obstore.delete_async(self._bucket, [found.path for found in objects])
        except FAULTS as error:  # the next collection tries again
            log.error("package_store_failed", error=_text(error))
            return 0, 0
        return len(objects), sum(found.size for found in objects)


class _Staged:
    """See `packages.ports.StagedFile`."""

    def __init__(self, store: BucketStore, incoming: Incoming) -> None:
        self._store = store
        self._incoming = incoming

    @property
    def blob(self) -> Blob:
        return self._incoming.blob

    async def inspect(self, read: Callable[[BinaryIO], T]) -> T:
        return await self._incoming.inspect(read)

    @asynccontextmanager
    async def published(self) -> AsyncIterator[None]:
        await self._store.put(self._incoming.path, self.blob.sha256)
        async with self._incoming.published():
            await self._store.trim()
            yield


def _listing(bucket: S3Store, prefix: str | None = None) -> "AsyncIterator[Sequence[ObjectMeta]]":
    return obstore.list(bucket, prefix, chunk_size=1000)


def _object(meta: "ObjectMeta") -> _Object:
    return _Object(meta["last_modified"], meta["path"], meta["size"])


def _touch(path: Path) -> bool:
    """Notes that a copy is used; False when there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _trim(cache: FileStore, limit: int) -> None:
    copies = []
    for path in cache.folder.glob("??/??/*"):
        try:
            stat = path.stat()
        except FileNotFoundError:  # another server of this folder was first
            continue
        copies.append((stat.st_mtime, stat.st_size, path))
    total, recent = sum(size for _, size, _ in copies), time.time() - IN_USE_S
    for used, size, path in sorted(copies):
        if total <= limit or used > recent:
            return
        path.unlink(missing_ok=True)
        total -= size


@contextmanager
def _away() -> Iterator[None]:
    try:
        yield
    except BaseError as error:
        raise PackageAway(_text(error)) from error


def _text(error: BaseException) -> str:
    """The first line: the rest are the library's internals."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
