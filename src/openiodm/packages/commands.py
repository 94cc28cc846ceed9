"""Upload, deletion and collection of packages.

The bytes are on the disk before the row is committed and nobody can find them before that; whatever goes wrong in
between leaves a file without a row, which `collect` takes away, and never a row without a file.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import structlog

from openiodm.access.model import Actor, Product
from openiodm.clock import Clock, random_id
from openiodm.errors import Reason, Refusal
from openiodm.packages import sota
from openiodm.packages.model import (
    MAX_SOURCE_VERSIONS,
    Collected,
    FileType,
    Need,
    NewPackage,
    Package,
    PackageDraft,
    checked_file_name,
    checked_sha256,
    checked_text,
    is_searchable,
)
from openiodm.packages.ports import BlobReads, BlobStore, PackageWork, PackageWriter, StagedFile

log = structlog.get_logger(__name__)


class PackageCommands:
    """Everything that changes packages."""

    def __init__(
        self,
        writer: PackageWriter,
        clock: Clock,
        store: BlobStore,
        blobs: BlobReads,
        *,
        max_package_bytes: int,
        new_id: Callable[[], str] = random_id,
    ) -> None:
        """`blobs` reads committed rows outside of any transaction; the collection asks it."""
        self._writer = writer
        self._clock = clock
        self._store = store
        self._blobs = blobs
        self._max_bytes = max_package_bytes
        self._new_id = new_id
        self._publications: set[asyncio.Task[Package]] = set()

    async def upload(
        self,
        actor: Actor,
        description: NewPackage,
        chunks: AsyncIterator[bytes],
        *,
        expected_size: int | None = None,
        sha256: str | None = None,
    ) -> Package:
        """Stores a file and its package; returns once both are durable.

        1. What the caller says is checked before the first byte is taken.
        2. The bytes stream to the disk, digests are computed on the way.
        3. The digest is compared; a SOTA zip's own description completes the caller's, or contradicts it.
        4. The file is put in its place and the row committed.

        Args:
            actor: the owner to be.
            description: what the file is.
            chunks: the file, in pieces of any size.
            expected_size: bytes announced (Content-Length).
            sha256: digest announced, hex.

        Raises:
            Refusal: BAD_INPUT (naming the field), PACKAGE_TOO_LARGE, STORE_FULL, STORE_AWAY,
                PACKAGE_DIGEST_MISMATCH. Nothing is kept.
        """
        said = _checked(description)
        wanted = None if sha256 is None else checked_sha256(sha256)
        async with self._store.receive(chunks, limit=self._max_bytes, expected=expected_size) as staged:
            if staged.blob.size == 0:
                raise Refusal(Reason.BAD_INPUT, "the file is empty", field="file")
            if wanted is not None and staged.blob.sha256 != wanted:
                raise Refusal(
                    Reason.PACKAGE_DIGEST_MISMATCH, f"the bytes have SHA-256 {staged.blob.sha256}", field="sha256"
                )
            inside = await staged.inspect(sota.read) if said.type is FileType.SOFTWARE else None
            return await self._publish(actor, _completed(said, inside), staged)

    async def _publish(self, actor: Actor, draft: PackageDraft, staged: StagedFile) -> Package:
        # A caller that is cancelled while the commit runs must not let go of the file: the row may come to be.
        task = asyncio.create_task(self._publication(actor, draft, staged), name="publish-package")
        self._publications.add(task)
        task.add_done_callback(self._publications.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    async def _publication(self, actor: Actor, draft: PackageDraft, staged: StagedFile) -> Package:
        async def commit(work: PackageWork) -> Package:
            file_id, now = self._new_id(), self._clock.now()
            key = await work.packages.add(actor.application, file_id, draft, staged.blob, now)
            await work.audit.record(actor, "package.upload", file_id, now, f"{staged.blob.size} bytes")
            return Package(key, file_id, now, draft, staged.blob)

        async with staged.published():
            package = await self._writer.run(commit)
        log.info("package_uploaded", file_id=package.file_id, size=staged.blob.size, sha256=staged.blob.sha256)
        return package

    async def delete(self, actor: Actor, file_id: str, *, give_up_retries: bool = False) -> None:
        """Hides the package for good; its bytes go with the next collection if nobody else refers to them.

        `give_up_retries`: failed tasks that could be retried do not keep it, and cannot be retried from then on.

        Raises:
            Refusal: PACKAGE_UNKNOWN; PACKAGE_IN_USE while an unfinished campaign or a possible retry needs it.
        """

        async def command(work: PackageWork) -> None:
            key = await work.packages.locked(actor.application, file_id) if is_searchable(file_id) else None
            if key is None:
                raise Refusal(Reason.PACKAGE_UNKNOWN, field="fileId")
            now = self._clock.now()
            need = await work.packages.needed_by(key, now)
            if need is Need.UNFINISHED:
                raise Refusal(Reason.PACKAGE_IN_USE, "an unfinished task needs the package", field="fileId")
            if need is Need.RETRY and not give_up_retries:
                raise Refusal(Reason.PACKAGE_IN_USE, "a retry of a failed task would need the package", field="fileId")
            await work.packages.mark_deleted(key, now)
            await work.audit.record(actor, "package.delete", file_id, now)

        await self._writer.run(command)
        log.info("package_deleted", file_id=file_id)

    async def collect(self) -> Collected:
        """Deletes the files that no package and no unfinished campaign refers to.

        An upload of the same bytes at the same time is safe: it holds its prefix from before the file is visible
        until its row is committed, and a prefix that is held is left for the next collection.
        """
        files = size = 0
        async for group in self._store.prefixes():
            garbage = set(group) - await self._blobs.referenced(group)
            if not garbage:
                continue
            async with self._store.exclusive(group[0][:2]) as alone:
                if not alone:
                    continue
                removed = await self._store.remove(sorted(garbage - await self._blobs.referenced(garbage)))
            files, size = files + removed[0], size + removed[1]
        if files:
            log.info("package_bytes_collected", files=files, bytes=size)
        return Collected(files, size)

    async def close(self) -> None:
        """Waits for publications under way; call it before the writer ends."""
        if self._publications:
            await asyncio.wait(self._publications)


def _checked(said: NewPackage) -> NewPackage:
    """Everything the caller says, checked; what only a SOTA zip can still say may be missing for software."""

    def text(value: str | None, name: str) -> str | None:
        return None if value is None else checked_text(value, name)

    checked = NewPackage(
        type=said.type,
        name=None if said.name is None else checked_file_name(said.name),
        version=text(said.version, "version"),
        device_type=text(said.device_type, "deviceType"),
        model=text(said.model, "model"),
        manufacturer_name=text(said.manufacturer_name, "manufacturerName"),
        source_versions=_checked_versions(said.source_versions),
        description=text(said.description, "description"),
        protocol_type=text(said.protocol_type, "protocolType"),
        build_date=text(said.build_date, "buildDate"),
    )
    if checked.type is FileType.FIRMWARE:
        _completed(checked, None)  # refuses what is missing now, not after a gigabyte
    return checked


def _checked_versions(versions: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if versions is None:
        return None
    if len(versions) > MAX_SOURCE_VERSIONS:
        raise Refusal(
            Reason.BAD_INPUT, f"sourceVersions has more than {MAX_SOURCE_VERSIONS} entries", field="sourceVersions"
        )
    return tuple(dict.fromkeys(checked_text(version, "sourceVersions") for version in versions))


def _completed(said: NewPackage, inside: sota.SotaDescription | None) -> PackageDraft:
    """One description out of the caller's and the file's.

    Raises:
        Refusal: BAD_INPUT; something is missing in both, or they contradict each other.
    """
    found = _found(inside)
    return PackageDraft(
        file_type=said.type,
        # The zip's own name naturally differs from that of the payload inside, which serves when none is given.
        name=said.name or _agreed("name", None, found.name),
        version=_agreed("version", said.version, found.version),
        product=Product(
            _agreed("deviceType", said.device_type, found.device_type),
            _agreed("model", said.model, found.model),
            _agreed("manufacturerName", said.manufacturer_name, found.manufacturer_name),
        ),
        source_versions=_agreed_versions(said.source_versions, found.source_versions),
        description=said.description or found.description,
        protocol_type=said.protocol_type or found.protocol_type,
        build_date=said.build_date or found.build_date,
        extra=_extra(inside),
    )


def _found(inside: sota.SotaDescription | None) -> NewPackage:
    if inside is None:
        return NewPackage(FileType.SOFTWARE)
    return NewPackage(
        FileType.SOFTWARE,
        inside.file_name,
        inside.version,
        inside.device_type,
        inside.model,
        inside.manufacturer_name,
        inside.source_versions or None,
        inside.description,
        inside.protocol_type,
        inside.date,
    )


def _agreed(name: str, given: str | None, found: str | None) -> str:
    value = given if given is not None else found
    if value is None:
        raise Refusal(Reason.BAD_INPUT, f"{name} is missing", field=name)
    if given is not None and found is not None and given != found:
        raise Refusal(Reason.BAD_INPUT, f"{name} is {given!r}, but the file says {found!r}", field=name)
    return value


def _agreed_versions(given: tuple[str, ...] | None, found: tuple[str, ...] | None) -> tuple[str, ...]:
    if given is not None and found is not None and set(given) != set(found):
        raise Refusal(Reason.BAD_INPUT, f"the file says sourceVersions {', '.join(found)}", field="sourceVersions")
    return given or found or ()


def _extra(inside: sota.SotaDescription | None) -> dict[str, str | int]:
    if inside is None:
        return {}
    found = {
        "versionCheckCode": inside.version_check_code,
        "deviceShard": inside.device_shard,
        "platform": inside.platform,
    }
    return {name: value for name, value in found.items() if value is not None}
