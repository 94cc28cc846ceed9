#!/usr/bin/env python3
"""goosebit, the Python peer: set up below bench/.work, started, filled, stopped. Nothing of its source is kept here.

It runs as fast as it can be set: uvloop, httptools, no access log, log level WARNING, SQLite; one process, which is
what its in-process caches allow.

    python bench/peer_goosebit.py setup          venv, packages, schema
    python bench/peer_goosebit.py serve          in the foreground, until Ctrl-C
"""

import shutil
import sqlite3
import subprocess
import sys
import urllib.parse
import venv
from datetime import UTC, datetime, timedelta
from pathlib import Path

from server import BenchError, Server

VERSION = "0.2.12"
USER = {"username": "bench@bench.local", "password": "bench"}
SOFTWARE = 20  # what its rollouts in the list are of
BORN = datetime(2024, 1, 1, tzinfo=UTC)
LOGGING = """logging:
  version: 1
  handlers:
    console:
      class: logging.StreamHandler
  root:
    level: WARNING
    handlers: [console]
"""


class GoosebitServer(Server):
    """goosebit on SQLite; its `prepare` starts from an empty database each time."""

    name = "goosebit"

    def __init__(self, port: int, commands: list[str]) -> None:
        super().__init__(port, commands)
        self.bin = self.folder / "venv" / "bin"
        self.software = 0
        self.authorization: dict[str, str] = {}

    def version(self) -> str:
        return VERSION

    def setup(self) -> None:
        if not (self.bin / "uvicorn").exists():
            venv.create(self.folder / "venv", with_pip=True, clear=True)
            packages = [f"goosebit=={VERSION}", "uvloop", "httptools"]
            self._run(str(self.bin / "pip"), "install", "--quiet", *packages)

    def reset(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir(parents=True)
        (self.run / "goosebit.yaml").write_text(LOGGING)
        query = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        site = self._run(str(self.bin / "python"), "-c", query).strip()
        (self.run / "aerich.toml").write_text(
            '[tool.aerich]\ntortoise_orm = "goosebit.db.config.TORTOISE_CONF"\n'
            f'location = "{site}/goosebit/db/migrations"\nsrc_folder = "./."\n'
        )
        self._run(str(self.bin / "aerich"), "--config", "aerich.toml", "upgrade")

    def command(self) -> list[str]:
        fast = ("--loop", "uvloop", "--http", "httptools", "--no-access-log")
        return [str(self.bin / "uvicorn"), "goosebit:app", "--host", "127.0.0.1", "--port", str(self.port), *fast]

    def environment(self) -> dict[str, str]:
        return {
            "GOOSEBIT_ARTIFACTS_DIR": str(self.run / "artifacts"),
            "GOOSEBIT_DB_URI": f"sqlite:///{self.run / 'db.sqlite3'}",
            "GOOSEBIT_POLL_TIME": "00:01:00",
            "GOOSEBIT_SECRET_KEY": "bench-only-secret-0123456789abcdef",
            "GOOSEBIT_MAX_CONCURRENT_UPDATES": "1000000",
        }

    def prepare(self, n_devices: int, artifact: Path) -> None:
        self.log_in()
        # One device alone: it otherwise keeps several rows for the same board and answers 500.
        self.register(0, 1, concurrency=1)
        self.register(1, n_devices - 1)
        self.publish(artifact)

    def log_in(self) -> None:
        """The first user of an empty database, who may do everything."""
        if not self.authorization:
            status, answer = self.call("POST", "/setup", urllib.parse.urlencode(USER).encode())
            token = self.accepted("POST", "/setup", status, answer)["access_token"]
            self.authorization = {"Authorization": f"Bearer {token}"}
            self.secrets.append(token)

    def publish(self, artifact: Path) -> None:
        self.software = self.upload("PUT", "/api/v1/software", artifact, self.authorization, form="file")["id"]

    def offer_to_all(self) -> None:
        rollout = {"name": f"bench-{self.software}", "feed": "default", "software_id": self.software}
        self.ask("PUT", "/api/v1/rollouts", rollout, self.authorization)

    def fill_list(self, rows: int) -> None:
        database = sqlite3.connect(self.run / "db.sqlite3")
        with database:
            database.execute("INSERT INTO hardware (id, model, revision) VALUES (1, 'bench', '1.0')")
            for n in range(1, SOFTWARE + 1):
                file = (n, f"file:///bench/{n}.swu", 1_000_000, f"{n:040x}", f"1.{n}.0")
                database.execute("INSERT INTO software (id, uri, size, hash, version) VALUES (?, ?, ?, ?, ?)", file)
                database.execute("INSERT INTO software_compatibility (software_id, hardware_id) VALUES (?, 1)", (n,))
            database.executemany(
                "INSERT INTO rollout (id, created_at, name, feed, software_id, paused, success_count, failure_count) "
                "VALUES (?, ?, ?, 'default', ?, 0, 2, 0)",
                (
                    (n, (BORN + timedelta(seconds=n)).isoformat(" "), f"rollout {n}", n % SOFTWARE + 1)
                    for n in range(1, rows + 1)
                ),
            )
            database.execute("ANALYZE")
        database.close()

    def list_load(self) -> tuple[str, list[str]]:
        # Its API proper knows no pages and answers with all rollouts; its web pages ask this.
        order = urllib.parse.urlencode({"order[0][name]": "created_at", "order[0][dir]": "desc"})
        headers = [f"{name}: {value}" for name, value in self.authorization.items()]
        return f"/ui/bff/rollouts?start={{n}}00&length=100&{order}", headers

    def start(self) -> None:
        self.authorization = {}
        super().start()

    def _run(self, *command: str) -> str:
        cwd = self.run if self.run.exists() else None
        done = subprocess.run(
            command, cwd=cwd, env=self.full_environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchError(f"{Path(command[0]).name}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
        return done.stdout


def main() -> int:
    what = sys.argv[1] if len(sys.argv) == 2 else ""
    peer = GoosebitServer(18053, [])
    if what not in ("setup", "serve"):
        print(__doc__)
        return 2
    peer.setup()
    peer.reset()
    if what == "serve":
        peer.start()
        print(f"{peer.base} pid {peer.pid}")
        try:
            assert peer.process
            peer.process.wait()
        except KeyboardInterrupt:
            pass
        finally:
            peer.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
