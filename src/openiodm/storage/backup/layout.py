"""What a backup is: a folder `<DEST>/<moment>` that can be moved, packed and read without this program.

    manifest.json                 what it is of, table by table
    rows/<table>.ndjson.gz        a line a row: a JSON array of the manifest's columns
    packages/ab/cd/<sha256>       package files, hard links to those of the backup before where it has them
    SHA256SUMS                    of all of the above, as `sha256sum -c` reads it

It gets its name when all of it is on disk: before, it is `.<moment>.partial`, which nobody takes for a backup.
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

FORMAT = 1
MANIFEST, SUMS, ROWS, PACKAGES = "manifest.json", "SHA256SUMS", "rows", "packages"
FILE_MODE, FOLDER_MODE = 0o600, 0o700  # rows hold keys of devices
PIECE = 1024 * 1024

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NAME = re.compile(r"\d{8}T\d{6}Z")
_SUM = re.compile(r"([0-9a-f]{64})  (\S.*)")


class BackupError(Exception):
    """Why there is no backup, or no database from one: a sentence for the operator."""


class Table(msgspec.Struct, frozen=True):
    """One table's rows. `columns`: name -> PostgreSQL type; `last_id`: the newest id ever given, if it has ids."""

    name: str
    columns: dict[str, str]
    rows: int
    last_id: int | None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a backup is of. Tables come in an order in which foreign keys hold."""

    format: int
    version: str  # of this program
    revision: str  # of the schema
    engine: str
    taken_at: int  # ms since the epoch
    tables: list[Table]
    packages: int
    package_bytes: int
    damaged_packages: list[str]  # SHA-256 of files that were missing or not what they should be


def rows_of(table: str) -> str:
    """Where a table's rows are."""
    return f"{ROWS}/{table}.ndjson.gz"


def package_of(sha256: str) -> str:
    """Where a package's bytes are."""
    return f"{PACKAGES}/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def backups(folder: Path) -> list[Path]:
    """The whole backups in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / SUMS).is_file())


def chosen(source: Path) -> Path:
    """`source` itself if it is a backup, else the newest one in it.

    Raises:
        BackupError: it is neither, or one that was not finished.
    """
    if (source / SUMS).is_file():
        if source.name.endswith(".partial"):
            raise BackupError(f"{source} is a backup that was not finished")
        return source
    found = backups(source)
    if not found:
        raise BackupError(f"there is no whole backup in {source}")
    return found[-1]


class Sums:
    """The check sums of a backup's files: path -> SHA-256."""

    def __init__(self, backup: Path) -> None:
        self.backup = backup
        self.of = dict(_sums(backup))

    def check(self, path: str) -> None:
        """Reads a file and compares.

        Raises:
            BackupError: it is not there, not listed, or damaged.
        """
        if path not in self.of:
            raise BackupError(f"{self.backup}: {path} is not in {SUMS}: the backup is damaged")
        try:
            actual = digest(self.backup / path)
        except FileNotFoundError as error:
            raise BackupError(f"{self.backup}: {path} is missing: the backup is damaged") from error
        if actual != self.of[path]:
            raise BackupError(f"{self.backup}: {path} is not what was written: the backup is damaged")


def _sums(backup: Path) -> Iterator[tuple[str, str]]:
    for line in (backup / SUMS).read_text("utf-8").splitlines():
        match = _SUM.fullmatch(line)
        if match is None:
            raise BackupError(f"{backup}: {SUMS} is damaged")
        yield match[2], match[1]


def read_manifest(sums: Sums) -> Manifest:
    """The manifest, with the rows' files checked.

    Raises:
        BackupError: something is damaged, or of a format that this version does not know.
    """
    sums.check(MANIFEST)
    raw = (sums.backup / MANIFEST).read_bytes()
    try:
        which = msgspec.json.decode(raw, type=dict[str, object]).get("format")
        if which != FORMAT:
            raise BackupError(f"{sums.backup} is of format {which}; this version reads format {FORMAT}")
        manifest = msgspec.json.decode(raw, type=Manifest)
    except msgspec.DecodeError as error:
        raise BackupError(f"{sums.backup}: {MANIFEST} makes no sense: {error}") from error
    for table in manifest.tables:
        sums.check(rows_of(table.name))
    return manifest


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path, mode: int = FOLDER_MODE) -> None:
    """With those above it; by itself `mkdir` gives these a mode that others may read."""
    if not folder.is_dir():
        make_folder(folder.parent, mode)
        folder.mkdir(mode=mode, exist_ok=True)


def create(path: Path, mode: int = FILE_MODE) -> int:
    """A new file that nobody else may read, unless `mode` says so; its descriptor."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def copy(source: Path, target: Path, mode: int = FILE_MODE) -> tuple[str, int]:
    """Copies a file, durably; its SHA-256 and size."""
    seen = hashlib.sha256()
    size = 0
    with source.open("rb") as inp, os.fdopen(create(target, mode), "wb") as out:
        while piece := inp.read(PIECE):
            seen.update(piece)
            out.write(piece)
            size += len(piece)
        out.flush()
        os.fsync(out.fileno())
    return seen.hexdigest(), size


def sync_folder(folder: Path) -> None:
    """Makes names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """What the system says about a folder, as a sentence.

    Raises:
        BackupError: the disk is full, or the system refused.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise BackupError(f"no room is left in {folder}") from error
        raise BackupError(f"{error.filename or folder}: {error.strerror or error}") from error
