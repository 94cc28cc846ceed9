"""Pages of docs/ that are rendered from the code: `python -m tests.support.pages settings > docs/settings.md`; `cli`.

What a setting means is the string literal below its field, which only the source has: it is read with `ast`. What a
command does is told by typer. `tests/unit/test_docs.py` holds the pages equal to what this prints.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec
import typer

from openiodm.cli.main import app
from openiodm.settings import PREFIX, SECRETS, Settings

_UNITS = {"_s": "seconds", "_bytes": "bytes", "_minute": "calls"}
_KINDS = {"string": "text", "integer": "integer", "boolean": "true or false", "array": "list of texts"}

_SETTINGS_HEAD = """\
# Settings

This page is generated from `src/openiodm/settings.py`, and a test keeps it so. Write it anew with
`.venv/bin/python -m tests.support.pages settings > docs/settings.md`.

Settings are read once, at the start: first the TOML file of `--config` or `OPENIODM_CONFIG`, then the environment,
then the command line; the later one wins. A setting `listen` is `listen = "..."` in the file and `OPENIODM_LISTEN` in
the environment. There a list is separated by commas. An unknown name, or a value that makes no sense, stops the start
with exit code 2 and the setting's name.

```toml
data_dir = "/var/lib/openiodm"
listen = "127.0.0.1:8743"
device_listen = "127.0.0.1:8744"
trusted_proxies = ["127.0.0.1"]
log_format = "json"
```

What may hold a password can come from a file of its own, named in the environment: {secrets}.

The variables `OPENIODM_URL`, `OPENIODM_APP_ID`, `OPENIODM_SECRET`, `OPENIODM_SECRET_FILE`, `OPENIODM_TOKEN`,
`OPENIODM_TOKEN_FILE`, `OPENIODM_CA` and `OPENIODM_CLIENT_CERT` are read by the [client commands](cli.md), not by the
server.

| setting | type | default | meaning |
| --- | --- | --- | --- |
"""

_SETTINGS_TAIL = """
The phase clocks are explained in [campaigns.md](campaigns.md#clocks), addresses and proxies in
[operations.md](operations.md).
"""

_CLI_HEAD = """\
# The command line

This page is generated from the commands themselves, and a test keeps it so. Write it anew with
`.venv/bin/python -m tests.support.pages cli > docs/cli.md`.

Two kinds of commands: `serve`, `app`, `audit`, `backup` and `restore` work on the server's database and need its
[settings](settings.md); all others, but `tls`, which only writes files, are clients, which speak HTTP to a server, here
or elsewhere, as one application.

| variable | for |
| --- | --- |
| `OPENIODM_URL` | clients: where the server is; without it `http://127.0.0.1:8743` |
| `OPENIODM_APP_ID` | clients: the application |
| `OPENIODM_SECRET`, `OPENIODM_SECRET_FILE` | clients: its secret, or a file that holds it |
| `OPENIODM_CA` | clients: PEM file of the authorities to trust for `https`; without it the system's |
| `OPENIODM_CLIENT_CERT` | clients: `CERT,KEY`, PEM files of the certificate to show to a server that asks for one |
| `OPENIODM_TOKEN`, `OPENIODM_TOKEN_FILE` | `simulate`: a gateway token, or a file that holds it |
| `OPENIODM_CONFIG` | `serve`, `app`, `audit`, `backup` and `restore`: settings as TOML |
| `OPENIODM_...` | `serve`, `app`, `audit`, `backup` and `restore`: every [setting](settings.md) |

A secret is never an option, since others could read that in the process list.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage or settings, 3 the task was stopped, 4 not done in time. A
failure is one line on stderr, with the reason's name in brackets.

Every client command logs in anew, and a login ends the access token that another program of the same application holds
(the contract's rule: the newest wins). Where an application must not be disturbed by its operator's commands, set
`token_grace_s = 3600`.
"""


def settings_page() -> str:
    """docs/settings.md."""
    secrets = ", ".join(f"`{PREFIX}{name.upper()}_FILE` for `{name}`" for name in sorted(SECRETS))
    return _SETTINGS_HEAD.format(secrets=secrets) + "".join(_setting_rows()) + _SETTINGS_TAIL


def meanings() -> dict[str, str]:
    """Setting -> the docstring below it, on one line."""
    (struct,) = ast.parse(textwrap.dedent(inspect.getsource(Settings))).body
    assert isinstance(struct, ast.ClassDef)
    found: dict[str, str] = {}
    for field, after in zip(struct.body, struct.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match after:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[field.target.id] = " ".join(text.split())
    return found


def _setting_rows() -> Iterator[str]:
    said = meanings()
    schema = msgspec.json.schema(Settings)["$defs"]["Settings"]["properties"]
    for field in msgspec.structs.fields(Settings):
        cells = (f"`{field.name}`", _type(field.name, schema[field.name]), _default(field.default), said[field.name])
        yield f"| {' | '.join(cells)} |\n"


def _type(name: str, schema: dict[str, Any]) -> str:
    kind = _KINDS[schema["type"]]
    unit = next((unit for end, unit in _UNITS.items() if name.endswith(end)), kind) if kind == "integer" else kind
    least, most = schema.get("minimum"), schema.get("maximum")
    return unit + ("" if least is None else f", {least} or more" if most is None else f", {least} to {most}")


def _default(value: object) -> str:
    match value:
        case bool():
            return f"`{str(value).lower()}`"
        case tuple():
            return ", ".join(f"`{item}`" for item in value) or "none"
        case "":
            return "none"
        case _:
            return f"`{value}`"


def cli_page() -> str:
    """docs/cli.md."""
    return _CLI_HEAD + "".join(_sections(typer.main.get_command(app), "openiodm"))


def commands(command: Any = None, name: str = "openiodm") -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its whole name."""
    command = command or typer.main.get_command(app)
    if not hasattr(command, "commands"):
        yield name, command
        return
    for child in command.commands:
        yield from commands(command.commands[child], f"{name} {child}")


def _sections(root: Any, name: str) -> Iterator[str]:
    for child in root.commands:
        command = root.commands[child]
        yield f"\n## {name} {child}\n"
        if hasattr(command, "commands"):
            yield f"\n{command.help}\n"
            for leaf, each in commands(command, f"{name} {child}"):
                yield f"\n### {leaf}\n{_about(leaf, each)}"
        else:
            yield _about(f"{name} {child}", command)


def _about(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([name, *(_argument(p) for p in arguments), "[OPTIONS]"])
    text = "\n\n".join(textwrap.fill(part, 120) for part in inspect.cleandoc(command.help).split("\n\n"))
    rows = "".join(f"| {_spelt(p)} | {_said(p)} |\n" for p in command.params)
    return f"\n`{usage}`\n\n{text}\n\n| | |\n| --- | --- |\n{rows}"


def _argument(p: Any) -> str:
    name = str(p.metavar or p.name.upper())
    return name if p.required or name.startswith("[") else f"[{name}]"


def _spelt(p: Any) -> str:
    if p.param_type_name == "argument":
        return f"`{_argument(p)}`"
    value = "" if getattr(p, "is_flag", False) else f" {p.metavar or 'VALUE'}"
    return ", ".join(f"`{opt}{value}`" for opt in p.opts)


def _said(p: Any) -> str:
    parts = [getattr(p, "help", None) or ""]
    if p.param_type_name == "option" and p.required:
        parts.append("Needed.")
    if p.default not in (None, False, [], ()) and not p.required:
        parts.append(f"Default: {p.default}.")
    return " ".join(part for part in parts if part)


if __name__ == "__main__":
    sys.stdout.write({"settings": settings_page, "cli": cli_page}[sys.argv[1]]())
