"""`openiodm backup` and `openiodm restore`, for whoever runs the server: on its database and package files."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openiodm.cli import options, tables
from openiodm.cli.apps import operator
from openiodm.cli.failure import REFUSED, USAGE, Failure
from openiodm.cli.serve import database_errors, load_settings
from openiodm.cli.tables import field

if TYPE_CHECKING:
    from openiodm.settings import Settings
    from openiodm.storage.backup.aftermath import Restored
    from openiodm.storage.backup.layout import Manifest
    from openiodm.storage.backup.write import Written

HELD_COLUMNS: tuple[tables.Column, ...] = (
    ("held task", field("operationId")),
    ("application", field("application")),
    ("app id", field("appId")),
    ("version", field("targetVersion")),
    *((name, field(name)) for name in ("total", "wait", "processing")),
)


def backup(
    folder: Annotated[Path, typer.Argument(metavar="DEST", help="A folder of backups; each gets a folder in it.")],
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Back the database and the package files up, while the server runs or not.

    The backup is the folder that is printed, named by the moment (UTC). Package files that the backup before has are
    linked to it, not copied; with `package_store` it has the rows alone. It holds keys of devices: nobody else may read
    it. Exit code 1 also when package files of the server are missing or damaged; the backup is kept then, without them.
    """
    settings = load_settings(config, database, data_dir)
    written = _run(_backup(settings, folder))
    shown = _written_json(written)
    if as_json:
        tables.print_json(shown)
    else:
        print(shown["path"])
        rows, files = sum(shown["rows"].values()), shown["packages"]
        tables.note(f"{rows} rows, {files} package files ({tables.size(shown['copiedBytes'])} of them copied)")
    if damaged := written.manifest.damaged_packages:
        raise Failure(f"package files are missing or damaged, and not in the backup: {', '.join(damaged)}", REFUSED)


def restore(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A backup, or a folder of them: then its newest.")],
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    check: Annotated[bool, typer.Option("--check", help="Only read all of it and compare the check sums.")] = False,
    as_json: options.Json = False,
) -> None:
    """Make a database from a backup, of either engine. It must be new or empty, and no server may run on it.

    Tasks that were not finished are held, and shown: nobody is upgraded until `task resume` or `task stop`. Devices are
    asked for their versions, and those that were upgraded after the backup end without a download.
    """
    if check:
        manifest = _run(_check(source))
        _print_manifest(manifest, as_json=as_json)
        return
    settings = load_settings(config, database, data_dir)
    restored = _run(_restore(settings, source))
    shown = _restored_json(restored)
    if as_json:
        tables.print_json(shown)
        return
    print(f"restored as of {shown['takenAt']}: {restored.devices} devices, {len(restored.held)} tasks held")
    if restored.held:
        tables.print_table(shown["held"], HELD_COLUMNS)
        tables.note("start the server, let devices make contact, then: openiodm task resume (or stop) OPERATION_ID")


def _run(what: Any) -> Any:
    """Runs it; what can go wrong becomes one line.

    Raises:
        Failure: there is no backup, or no database from it.
    """
    from openiodm.storage.backup.layout import BackupError

    try:
        return asyncio.run(what)
    except BackupError as error:
        raise Failure(str(error), REFUSED) from error
    except database_errors() as error:
        raise Failure(f"the database cannot be used: {error}", USAGE) from error


async def _backup(settings: "Settings", folder: Path) -> "Written":
    from openiodm.clock import SystemClock
    from openiodm.storage.backup.layout import BackupError
    from openiodm.storage.backup.write import write
    from openiodm.storage.blobs import FileStore
    from openiodm.storage.open import HEAD, open_database, revision_of

    url = settings.database_url
    revision = await revision_of(url)
    if revision is None:
        raise BackupError("there is no database of OpenIODM to back up")
    if revision != HEAD:  # opening it would migrate it, under a server of another version
        raise BackupError(
            f"the database's schema is {revision}, this version's is {HEAD}: back up with the version that runs"
        )
    opened = await open_database(url)
    store = None if settings.package_store else FileStore(settings.package_dir)
    try:
        now = await opened.now() or SystemClock().now()
        return await write(opened, store, folder, now)
    finally:
        if store is not None:
            await store.close()
        await opened.close()


async def _check(source: Path) -> "Manifest":
    from openiodm.storage.backup.load import check

    return check(source, packages=True).manifest


async def _restore(settings: "Settings", source: Path) -> "Restored":
    from openiodm.clock import SystemClock
    from openiodm.storage.backup.load import restore as load

    return await load(source, settings.database_url, settings.package_dir, SystemClock().now(), operator())


def _moment(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _manifest_json(manifest: "Manifest") -> dict[str, Any]:
    return {
        "takenAt": _moment(manifest.taken_at),
        "version": manifest.version,
        "revision": manifest.revision,
        "engine": manifest.engine,
        "rows": {table.name: table.rows for table in manifest.tables},
        "packages": manifest.packages,
        "packageBytes": manifest.package_bytes,
        "damagedPackages": manifest.damaged_packages,
    }


def _written_json(written: "Written") -> dict[str, Any]:
    return {"path": str(written.path), "copiedBytes": written.copied_bytes, **_manifest_json(written.manifest)}


def _print_manifest(manifest: "Manifest", *, as_json: bool) -> None:
    shown = _manifest_json(manifest)
    if as_json:
        tables.print_json(shown)
        return
    tables.print_fields(
        [
            *((name, shown[name]) for name in ("takenAt", "version", "revision", "engine")),
            ("rows", sum(shown["rows"].values())),
            ("packages", shown["packages"]),
        ]
    )


def _restored_json(restored: "Restored") -> dict[str, Any]:
    held = [
        {
            "appId": task.app_id,
            "application": task.application,
            "operationId": task.operation_id,
            "targetVersion": task.target_version,
            "total": task.total,
            "wait": task.wait,
            "processing": task.processing,
        }
        for task in restored.held
    ]
    return {
        "takenAt": _moment(restored.taken_at),
        "restoredAt": _moment(restored.restored_at),
        "attemptBase": restored.attempt_base,
        "devices": restored.devices,
        "held": held,
    }
