"""What the packages room asks of storage."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import BinaryIO, Protocol, TypeVar

from openiodm.access.model import ApplicationKey
from openiodm.access.ports import Audited
from openiodm.clock import Instant
from openiodm.packages.model import Blob, Need, Package, PackageDraft, PackageFilter, PackageKey, PackagePage

T = TypeVar("T")


class PackageReads(Protocol):
    """Packages that are not deleted, of one application."""

    async def one(self, application: ApplicationKey, file_id: str) -> Package | None:
        """By its public id."""
        ...

    async def page(self, application: ApplicationKey, wanted: PackageFilter, *, offset: int, limit: int) -> PackagePage:
        """Newest first, with the exact total."""
        ...


class BlobReads(Protocol):
    """Which bytes are still needed, by any application."""

    async def referenced(self, sha256s: Collection[str]) -> set[str]:
        """Those of `sha256s` that a committed package or an unfinished campaign refers to."""
        ...


class PackageRows(PackageReads, BlobReads, Protocol):
    """Packages in one transaction."""

    async def add(
        self, application: ApplicationKey, file_id: str, about: PackageDraft, blob: Blob, at: Instant
    ) -> PackageKey:
        """Writes the package, and its blob and product where they are new."""
        ...

    async def locked(self, application: ApplicationKey, file_id: str) -> PackageKey | None:
        """Finds the package and keeps others from changing it, or creating tasks with it, until the commit."""
        ...

    async def needed_by(self, key: PackageKey, now: Instant) -> Need | None:
        """What needs it most; None: nothing does."""
        ...

    async def mark_deleted(self, key: PackageKey, at: Instant) -> None:
        """Hides it for good; the row stays for what speaks of it."""
        ...


class PackageWork(Audited, Protocol):
    """One transaction, as far as this room sees it."""

    @property
    def packages(self) -> PackageRows:
        """The room's rows."""
        ...


class PackageWriter(Protocol):
    """Runs commands in transactions."""

    async def run(self, command: Callable[[PackageWork], Awaitable[T]]) -> T:
        """The command's result, once it is durable."""
        ...


class StagedFile(Protocol):
    """Bytes that have been received whole and are durable, and that nobody can find yet."""

    @property
    def blob(self) -> Blob:
        """Their digests and size."""
        ...

    async def inspect(self, read: Callable[[BinaryIO], T]) -> T:
        """Runs `read` over the open file, in a thread."""
        ...

    def published(self) -> AbstractAsyncContextManager[None]:
        """Puts the bytes in their place; until the end of the block no collection removes them.

        The row that refers to them is committed inside. Without such a row a later collection takes them away.

        Raises:
            Refusal: STORE_AWAY.
        """
        ...


class BlobStore(Protocol):
    """Bytes by SHA-256."""

    def receive(
        self, chunks: AsyncIterator[bytes], *, limit: int, expected: int | None
    ) -> AbstractAsyncContextManager[StagedFile]:
        """Streams `chunks` to the disk. At the end of the block what was not published is removed.

        Raises:
            Refusal: PACKAGE_TOO_LARGE (more than `limit` bytes), STORE_FULL, BAD_INPUT (not `expected` bytes).
        """
        ...

    def prefixes(self) -> AsyncIterator[Sequence[str]]:
        """The SHA-256 of every file, in groups whose members share their first two digits."""
        ...

    def exclusive(self, prefix: str) -> AbstractAsyncContextManager[bool]:
        """Keeps publications of this prefix out; False when one is under way (never waits)."""
        ...

    async def remove(self, sha256s: Sequence[str]) -> tuple[int, int]:
        """Deletes files; number and bytes. Only inside `exclusive`."""
        ...
