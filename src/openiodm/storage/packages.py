"""Rows of packages and of the bytes behind them."""

from collections.abc import Collection

import msgspec

from openiodm.access.model import ApplicationKey, Product
from openiodm.clock import Instant
from openiodm.packages.model import (
    Blob,
    FileType,
    Need,
    Package,
    PackageDraft,
    PackageFilter,
    PackageKey,
    PackagePage,
)
from openiodm.storage.engine import Reader, Row, Tx
from openiodm.storage.products import product_key

_COLUMNS = """
SELECT k.id, k.file_id, k.uploaded_at, k.file_type, k.name, k.version, p.device_type, p.model, p.manufacturer_name,
       k.source_versions, k.description, k.protocol_type, k.build_date, k.extra, b.sha256, b.sha1, b.md5, b.size
FROM package k JOIN product p ON p.id = k.product_id JOIN blob b ON b.sha256 = k.sha256
"""
_ONE = _COLUMNS + "WHERE k.file_id = $1 AND k.application_id = $2 AND k.deleted_at IS NULL"
_COUNT = "SELECT count(*) FROM package k JOIN product p ON p.id = k.product_id "

_ADD_BLOB = """
INSERT INTO blob (sha256, sha1, md5, size, created_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING
"""
_ADD = """
INSERT INTO package (file_id, application_id, file_type, name, version, product_id, protocol_type, description,
                     build_date, source_versions, extra, sha256, uploaded_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING id
"""
_LOCKED = "SELECT id FROM package WHERE file_id = $1 AND application_id = $2 AND deleted_at IS NULL FOR UPDATE"
_DELETE = "UPDATE package SET deleted_at = $2 WHERE id = $1 AND deleted_at IS NULL"
_UNFINISHED = "SELECT 1 FROM campaign WHERE package_id = $1 AND status IN ('wait', 'processing') LIMIT 1"
# As `CampaignCommands.retry` has it: the task has failed, its window is not over, and a device that failed is there.
_RETRIABLE = """
SELECT 1 FROM campaign c
WHERE c.package_id = $1 AND c.status = 'failed' AND (c.window_end IS NULL OR c.window_end > $2) AND EXISTS (
    SELECT 1 FROM upgrade u JOIN device d ON d.id = u.device_id AND d.deleted_at IS NULL
    WHERE u.campaign_id = c.id AND u.state IN ('fail', 'timeout'))
LIMIT 1
"""
_REFERENCED = """
SELECT DISTINCT k.sha256 FROM package k WHERE k.sha256 = ANY($1::text[]) AND (k.deleted_at IS NULL OR EXISTS (
    SELECT 1 FROM campaign c WHERE c.package_id = k.id AND c.status IN ('wait', 'processing')))
"""

_versions = msgspec.json.Decoder(tuple[str, ...])
_extra = msgspec.json.Decoder(dict[str, str | int])


class PackageReads:
    """See `packages.ports.PackageReads` and `BlobReads`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def one(self, application: ApplicationKey, file_id: str) -> Package | None:
        """By its public id."""
        row = await self._reader.fetchrow(_ONE, file_id, application)
        return None if row is None else _package(row)

    async def page(self, application: ApplicationKey, wanted: PackageFilter, *, offset: int, limit: int) -> PackagePage:
        """Newest first. An application has packages by the hundred: counting them costs less than a round trip."""
        where, args = _conditions(application, wanted)
        total = int(await self._reader.fetchval(_COUNT + where, *args))
        if offset >= total:
            return PackagePage((), total)
        n = len(args)
        order = f" ORDER BY k.id DESC LIMIT ${n + 1} OFFSET ${n + 2}"
        rows = await self._reader.fetch(_COLUMNS + where + order, *args, limit, offset)
        return PackagePage(tuple(map(_package, rows)), total)

    async def referenced(self, sha256s: Collection[str]) -> set[str]:
        """Digests that something still needs."""
        return {row[0] for row in await self._reader.fetch(_REFERENCED, list(sha256s))}


class PackageRows(PackageReads):
    """See `packages.ports.PackageRows`."""

    def __init__(self, tx: Tx) -> None:
        super().__init__(tx)
        self._tx = tx

    async def add(
        self, application: ApplicationKey, file_id: str, about: PackageDraft, blob: Blob, at: Instant
    ) -> PackageKey:
        """Blob and product are shared rows, written by whoever comes first."""
        await self._tx.execute(_ADD_BLOB, blob.sha256, blob.sha1, blob.md5, blob.size, at)
        key = await self._tx.fetchval(
            _ADD,
            file_id,
            application,
            about.file_type.value,
            about.name,
            about.version,
            await product_key(self._tx, about.product),
            about.protocol_type,
            about.description,
            about.build_date,
            msgspec.json.encode(about.source_versions).decode(),
            msgspec.json.encode(about.extra).decode(),
            blob.sha256,
            at,
        )
        return PackageKey(key)

    async def locked(self, application: ApplicationKey, file_id: str) -> PackageKey | None:
        """On SQLite the one writer is the lock."""
        key = await self._tx.fetchval(_LOCKED, file_id, application)
        return None if key is None else PackageKey(key)

    async def needed_by(self, key: PackageKey, now: Instant) -> Need | None:
        """By the index of campaigns by package."""
        if await self._tx.fetchval(_UNFINISHED, key) is not None:
            return Need.UNFINISHED
        return None if await self._tx.fetchval(_RETRIABLE, key, now) is None else Need.RETRY

    async def mark_deleted(self, key: PackageKey, at: Instant) -> None:
        """Soft: finished tasks still speak of it."""
        await self._tx.execute(_DELETE, key, at)


def _conditions(application: ApplicationKey, wanted: PackageFilter) -> tuple[str, list[object]]:
    where = "WHERE k.application_id = $1 AND k.deleted_at IS NULL"
    args: list[object] = [application]
    for column, value in (
        ("k.file_type", wanted.file_type.value if wanted.file_type is not None else None),
        ("p.device_type", wanted.device_type),
        ("p.model", wanted.model),
        ("p.manufacturer_name", wanted.manufacturer_name),
        ("k.version", wanted.version),
    ):
        if value is not None:
            args.append(value)
            where += f" AND {column} = ${len(args)}"
    return where, args


def _package(row: Row) -> Package:
    (key, file_id, uploaded_at, file_type, name, version, device_type, model, manufacturer_name, source_versions) = row[
        :10
    ]
    description, protocol_type, build_date, extra, sha256, sha1, md5, size = row[10:]
    about = PackageDraft(
        file_type=FileType(file_type),
        name=name,
        version=version,
        product=Product(device_type, model, manufacturer_name),
        source_versions=_versions.decode(source_versions),
        description=description,
        protocol_type=protocol_type,
        build_date=build_date,
        extra=_extra.decode(extra),
    )
    return Package(PackageKey(key), file_id, Instant(uploaded_at), about, Blob(sha256, sha1, md5, size))
