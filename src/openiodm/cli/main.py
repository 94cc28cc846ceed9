"""The command `openiodm`."""

import os
import sys
from typing import Annotated

import typer

from openiodm.cli import (
    apps,
    audit,
    backups,
    callbacks,
    demo,
    devices,
    groups,
    notices,
    packages,
    serve,
    simulate,
    tasks,
    tls,
)
from openiodm.cli.failure import INTERRUPTED, Failure

EPILOG = (
    "Exit codes: 0 done, 1 refused or failed, 2 wrong usage or settings, 3 the task was stopped, 4 not done in time."
)

app = typer.Typer(
    name="openiodm",
    help="A self-hosted OTA server, and its client.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serve.serve)
apps.app.command("callback-tls")(callbacks.callback_tls)
apps.app.command("callback-signature")(callbacks.callback_signature)
app.add_typer(apps.app, name="app")
app.add_typer(audit.app, name="audit")
app.add_typer(devices.app, name="device")
app.add_typer(groups.app, name="group")
app.add_typer(packages.app, name="package")
app.add_typer(tasks.app, name="task")
app.add_typer(notices.subscriptions, name="subscription")
app.add_typer(notices.notices, name="notice")
app.add_typer(tls.app, name="tls")
app.command("backup")(backups.backup)
app.command("restore")(backups.restore)
app.command("simulate")(simulate.simulate)
app.command("demo")(demo.demo)


def _version(asked: bool) -> None:
    if asked:
        from openiodm import __version__

        print(f"openiodm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """A self-hosted OTA server, and its client."""


def main() -> None:
    """Runs a command. A failure is one line on stderr; a trace means a bug."""
    try:
        app()
    except Failure as failure:
        print(f"openiodm: {failure}", file=sys.stderr)
        sys.exit(failure.code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`). What Python would flush at its end has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
