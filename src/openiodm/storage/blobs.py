"""Package bytes on a file system: `ab/cd/<sha256>` under one folder, received into `incoming/` beside them.

A file appears under its digest whole and durable: it is written and fsynced in `incoming/`, renamed, and the folders
are fsynced, before anybody commits a row that speaks of it. Locks are the kernel's (flock), so they also hold between
several servers on one folder and end with the process:

* a file in `incoming/` is locked by its receiver; one that nobody locks is left from a crash, and `sweep` removes it;
* `ab/lock` is held shared from before a file of that prefix appears until its row is committed, and exclusively by
  the collection while it looks and deletes.

Every system call that may wait for the disk runs in a thread.
"""

import asyncio
import errno
import fcntl
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeVar

import structlog

from openiodm.clock import random_id
from openiodm.errors import Reason, Refusal
from openiodm.packages.model import Blob

PIECE_BYTES = 1024 * 1024  # collected before a thread writes and digests them
THREADS = 4
GROUP = 500  # digests that a collection asks about at once
LOCK_RETRY_S = 0.01
INCOMING = "incoming"
LOCK_FILE = "lock"
FILE_MODE, FOLDER_MODE = 0o640, 0o750

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PREFIX = re.compile(r"[0-9a-f]{2}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Disk:
    """The two things a disk can run out of, apart so that a test can be a full one."""

    def free(self, folder: Path) -> int:
        """Bytes that an ordinary user may still write."""
        stat = os.statvfs(folder)
        return stat.f_bavail * stat.f_frsize

    def write(self, fd: int, data: memoryview) -> int:
        """See `os.write`."""
        return os.write(fd, data)


class FileStore:
    """See `packages.ports.BlobStore`."""

    def __init__(self, folder: Path, *, min_free_bytes: int = 0, disk: Disk | None = None) -> None:
        """Nothing is opened yet. Uploads that would leave less than `min_free_bytes` on the disk are refused."""
        self.folder = folder
        self.incoming = folder / INCOMING
        self.min_free_bytes = min_free_bytes
        self.disk = disk or Disk()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="packages")

    def path(self, sha256: str) -> Path:
        """Where the bytes lie; the file may be opened and sent as it is."""
        return self.folder / sha256[:2] / sha256[2:4] / sha256

    async def local(self, sha256: str) -> Path:
        """See `protocols.port.LocalFile`: it lies here."""
        return self.path(sha256)

    async def in_thread(self, call: Callable[..., T], *args: Any) -> T:
        """Runs a call that may wait for the disk."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)

    async def open(self) -> int:
        """Creates the folder, removes what a crash left in `incoming/`; the number of files removed."""
        return await self.in_thread(self._sweep)

    async def close(self) -> None:
        """Waits for what the threads are doing."""
        await asyncio.to_thread(self._threads.shutdown)

    def _sweep(self) -> int:
        self.incoming.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        removed = 0
        for path in self.incoming.iterdir():
            try:
                fd = os.open(path, os.O_RDWR)
            except FileNotFoundError:  # another process of ours was quicker, or its upload has just ended
                continue
            try:
                if _locked(fd, fcntl.LOCK_EX):
                    path.unlink(missing_ok=True)
                    removed += 1
            finally:
                os.close(fd)
        if removed:
            log.info("package_leftovers_removed", files=removed)
        return removed

    @asynccontextmanager
    async def receive(
        self, chunks: AsyncIterator[bytes], *, limit: int, expected: int | None = None
    ) -> AsyncIterator["Incoming"]:
        """See `BlobStore`."""
        if expected is not None and expected > limit:
            raise _too_large(limit)
        incoming = Incoming(self)
        try:
            await self.in_thread(incoming.open, expected or 0)
            async for piece in _pieces(chunks, limit):
                await self.in_thread(incoming.write, piece)
            if expected is not None and incoming.blob.size != expected:
                raise Refusal(Reason.BAD_INPUT, f"{incoming.blob.size} of {expected} bytes came", field="file")
            await self.in_thread(incoming.sync)
            yield incoming
        finally:
            await self.in_thread(incoming.discard)

    async def prefixes(self) -> AsyncIterator[Sequence[str]]:
        """See `BlobStore`."""
        for prefix in await self.in_thread(_names, self.folder, _PREFIX):
            digests = await self.in_thread(self._digests, prefix)
            for start in range(0, len(digests), GROUP):
                yield digests[start : start + GROUP]

    def _digests(self, prefix: str) -> list[str]:
        folder = self.folder / prefix
        return [name for second in _names(folder, _PREFIX) for name in _names(folder / second, _DIGEST)]

    @asynccontextmanager
    async def exclusive(self, prefix: str) -> AsyncIterator[bool]:
        """See `BlobStore`."""
        lock = _PrefixLock(self.folder / prefix)
        try:
            yield await self.in_thread(lock.acquire, fcntl.LOCK_EX)
        finally:
            await self.in_thread(lock.release)

    @asynccontextmanager
    async def shared(self, prefix: str) -> AsyncIterator[None]:
        """Waits for a collection of this prefix, then keeps the next one out."""
        lock = _PrefixLock(self.folder / prefix)
        try:
            # Not a waiting flock: the collection needs one of the same few threads to end.
            while not await self.in_thread(lock.acquire, fcntl.LOCK_SH):  # noqa: ASYNC110 - flock tells nobody
                await asyncio.sleep(LOCK_RETRY_S)
            yield
        finally:
            await self.in_thread(lock.release)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keeps collections away from all that is here now, for a backup."""
        async with AsyncExitStack() as stack:
            for prefix in await self.in_thread(_names, self.folder, _PREFIX):
                await stack.enter_async_context(self.shared(prefix))
            yield

    async def remove(self, sha256s: Sequence[str]) -> tuple[int, int]:
        """See `BlobStore`."""
        return await self.in_thread(self._remove, sha256s)

    def _remove(self, sha256s: Sequence[str]) -> tuple[int, int]:
        files = size = 0
        for path in map(self.path, sha256s):
            try:
                length = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                continue
            files, size = files + 1, size + length
        return files, size


class Incoming:
    """A file that is being received. Its mutex lets `discard` wait for a thread that a cancelled caller left behind."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._path = store.incoming / random_id()
        self._fd = -1
        self._size = 0
        self._hashes = hashlib.sha256(), hashlib.sha1(usedforsecurity=False), hashlib.md5(usedforsecurity=False)
        self._mutex = Lock()
        self._discarded = False
        self._placed = False

    @property
    def path(self) -> Path:
        """Where the bytes lie until they are placed."""
        return self._path

    @property
    def blob(self) -> Blob:
        """What has come so far."""
        sha256, sha1, md5 = (h.hexdigest() for h in self._hashes)
        return Blob(sha256, sha1, md5, self._size)

    def open(self, expected: int) -> None:
        """Creates the file, locked; `expected` bytes must fit on the disk."""
        with self._mutex, _refusing_when_full():
            if self._discarded:
                return
            self._require(expected)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE)
            # Another server's sweep may have come between: then its lock or the missing link tells.
            while not _locked(self._fd, fcntl.LOCK_EX) or os.fstat(self._fd).st_nlink == 0:
                os.close(self._fd)
                self._path = self._store.incoming / random_id()
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE)

    def _require(self, size: int) -> None:
        if self._store.disk.free(self._store.incoming) - size < self._store.min_free_bytes:
            raise _full()

    def write(self, piece: Sequence[bytes]) -> None:
        """Digests and writes."""
        with self._mutex, _refusing_when_full():
            if self._discarded:
                return
            self._require(sum(map(len, piece)))
            for chunk in piece:
                self._append(chunk)

    def _append(self, chunk: bytes) -> None:
        for h in self._hashes:
            h.update(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._store.disk.write(self._fd, rest) :]
        self._size += len(chunk)

    def sync(self) -> None:
        """Waits until the bytes are on the disk."""
        with self._mutex, _refusing_when_full():
            if not self._discarded:
                os.fsync(self._fd)

    async def inspect(self, read: Callable[[BinaryIO], T]) -> T:
        """See `StagedFile`."""

        def run() -> T:
            with self._mutex, self._path.open("rb") as file:
                return read(file)

        return await self._store.in_thread(run)

    @asynccontextmanager
    async def published(self) -> AsyncIterator[None]:
        """See `StagedFile`."""
        async with self._store.shared(self.blob.sha256[:2]):
            await self._store.in_thread(self._place)
            yield

    def _place(self) -> None:
        """Renames over a file of the same content where there is one: that repairs it, should it have rotted."""
        with self._mutex, _refusing_when_full():
            if self._discarded:
                raise FileNotFoundError(self._path)
            target = self._store.path(self.blob.sha256)
            target.parent.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
            self._path.replace(target)
            self._placed = True
            for folder in (target.parent, target.parent.parent, self._store.folder):
                _sync_folder(folder)

    def discard(self) -> None:
        """Closes the file, and removes it unless it was placed."""
        with self._mutex:
            self._discarded = True
            if self._fd < 0:
                return
            if not self._placed:
                self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


class _PrefixLock:
    """The lock file of one prefix, for one holder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd = -1
        self._mutex = Lock()
        self._released = False

    def acquire(self, how: int) -> bool:
        """Tries once."""
        with self._mutex, _refusing_when_full():
            if self._released:
                return False
            if self._fd < 0:
                self._folder.mkdir(exist_ok=True, mode=FOLDER_MODE)
                self._fd = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, FILE_MODE)
            return _locked(self._fd, how)

    def release(self) -> None:
        """Closing the file is what unlocks."""
        with self._mutex:
            self._released = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def _locked(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if pattern.fullmatch(name))
    except FileNotFoundError:
        return []


def _too_large(limit: int) -> Refusal:
    return Refusal(Reason.PACKAGE_TOO_LARGE, f"a package has at most {limit} bytes", field="file")


def _full() -> Refusal:
    return Refusal(Reason.STORE_FULL, "the disk of the package store is full")


@contextmanager
def _refusing_when_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full() from error
        raise


async def _pieces(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[list[bytes]]:
    """Gathers what comes until it is worth a thread's while; at most one piece and one chunk are in memory.

    The chunks are not joined: a fresh megabyte costs the loop up to 5 ms when the kernel is short of clean pages.
    """
    piece: list[bytes] = []
    size = total = 0
    async for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise _too_large(limit)
        piece.append(chunk)
        size += len(chunk)
        if size >= PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
