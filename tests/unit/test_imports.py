"""Imports point one way: the rules of the rooms as a table, held against every module's syntax tree.

A new room needs a row in `RULES`. A module may always import its own room; what it may import besides is listed.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src"
PACKAGE = "openiodm"

DOMAIN = ("access", "packages", "devices", "campaigns")
BASE = ("clock", "errors")
ANYTHING = ("",)
# What protocols have in common beside their port: how bytes go out over HTTP.
SHARED = ("protocols.port", "protocols.ranges", "protocols.download", "protocols.etags", "protocols.signed")

# room -> what its modules may import besides the room itself; the longest matching room counts. `*` is one name.
RULES: dict[str, tuple[str, ...]] = {
    "clock": (),
    "errors": (),
    "settings": ("clock", "errors"),
    "logs": ("clock", "settings"),
    "tls": (),
    "listeners": ("http", "settings", "tls"),
    "metrics": (),
    "traces": (),
    "workers": (),
    "access": BASE,
    "packages": (*BASE, "access"),
    "devices": (*BASE, "access"),
    "scheduler": ("clock",),
    "campaigns": (*BASE, "access", "packages", "devices", "scheduler.model"),
    "notifications": (*BASE, "access", "devices", "campaigns", "scheduler.model"),
    # `protocols.port` is a port like those of the domain rooms: no codec, no session, no server.
    "storage": (*BASE, *DOMAIN, "notifications", "scheduler.model", "settings", "protocols.port", "metrics"),
    "http": ("access.model", "errors"),
    "northbound": (*BASE, *DOMAIN, "notifications", "http", "settings"),
    "northbound.compat": (*BASE, *DOMAIN, "notifications", "http", "settings", "northbound.*"),
    "northbound.native": (*BASE, *DOMAIN, "notifications", "http", "settings", "northbound.*"),
    "protocols": (*BASE, *DOMAIN, "settings"),
    "protocols.signed": (*BASE, "http", *SHARED),
    "protocols.*": (*BASE, *DOMAIN, "http", "settings", *SHARED),
    # A carrier knows no domain: LwM2M rides on it, and nothing else of a protocol's folder is another's.
    "protocols.coap": ("clock",),
    "protocols.lwm2m": (*BASE, *DOMAIN, "http", "settings", *SHARED, "protocols.coap", "protocols.pcp"),
    # DTLS is OpenSSL's on both sides of the wire: there is no second opinion to be had from a second binding.
    "simulator": ("clock", "protocols.*.codec", "protocols.coap.dtls"),
    "rooms": ANYTHING,
    "front": ANYTHING,
    "app": ANYTHING,
    "cli": ANYTHING,
    "__main__": ANYTHING,
}

# Holes in the rows above: what a pattern would let through and must not.
NEVER: dict[str, tuple[str, ...]] = {
    "northbound.compat": ("northbound.native",),
    "northbound.native": ("northbound.compat",),
    "rooms": ("app", "cli", "front", "listeners"),
    "front": ("app", "cli", "listeners"),
    "app": ("cli",),
}

# Imports inside functions, each with the reason why it does not stand at the top of its file.
LAZY = {
    "rooms": "a bucket's client is an extra that most installations do not have",
    "storage.open": "Alembic costs more than the rest of the start together, and is needed only when a schema is old",
    "cli": "a command that only asks a server must not wait for SQLAlchemy, uvicorn and the server's own modules",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for p in sorted((ROOT / PACKAGE).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8"), str(path)) for name, path in MODULES.items()}


def ours(tree: ast.AST) -> Iterator[str]:
    """Names of our modules that a tree imports, without `openiodm.`; those under TYPE_CHECKING count too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            head, _, module = node.module.partition(".")
            if head != PACKAGE:
                continue
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                yield inner if inner in MODULES else module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                head, _, module = alias.name.partition(".")
                if head == PACKAGE:
                    yield module


def matches(module: str, pattern: str) -> bool:
    """Is `module` what the pattern names, or inside it?"""
    if not pattern:
        return True
    wanted, have = pattern.split("."), module.split(".")
    return len(have) >= len(wanted) and all(w in ("*", h) for w, h in zip(wanted, have, strict=False))


def room_of(module: str) -> str | None:
    rooms = [r for r in RULES if matches(module, r)]
    return max(rooms, key=lambda r: (r.count("."), "*" not in r), default=None)


def own_room(module: str, room: str) -> str:
    """The room with its `*` filled in: `protocols.*` of `protocols.ddi.codec` is `protocols.ddi`."""
    return ".".join(module.split(".")[: room.count(".") + 1])


def violations(module: str, imported: str) -> str | None:
    room = room_of(module)
    if room is None:
        return f"{module}: its room has no row in RULES"
    if any(matches(imported, p) for p in NEVER.get(room, ())):
        return f"{module} imports {imported}"
    if matches(imported, own_room(module, room)) or any(matches(imported, p) for p in RULES[room]):
        return None
    return f"{module} imports {imported}"


def test_every_module_imports_only_what_its_room_may() -> None:
    # The package itself, "", holds the version alone: anyone may ask for it, and it asks for nothing.
    found = {violations(m, i) for m, tree in TREES.items() for i in ours(tree) if i} - {None}
    assert not found, "\n".join(sorted(map(str, found)))


def test_every_module_belongs_to_a_room() -> None:
    assert [m for m in MODULES if m and room_of(m) is None] == []


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("campaigns.commands", "campaigns.states", True),
        ("campaigns.commands", "scheduler.model", True),
        ("campaigns.commands", "scheduler.runner", False),
        ("campaigns.commands", "storage.campaigns", False),
        ("campaigns.commands", "notifications.model", False),
        ("devices.commands", "campaigns.model", False),
        ("scheduler.runner", "errors", False),
        ("storage.contacts", "protocols.port", True),
        ("storage.contacts", "protocols.ddi.codec", False),
        ("http.routes", "access.commands", False),
        ("northbound.compat.tasks", "northbound.native.edge", False),
        ("northbound.native.tasks", "northbound.compat.codes", False),
        ("northbound.native.tasks", "northbound.guard", True),
        ("northbound.compat.tasks", "storage.work", False),
        ("protocols.ddi.server", "protocols.lwm2m.codec", False),
        ("protocols.ddi.server", "protocols.coap.carrier", False),
        ("protocols.ddi.server", "storage.contacts", False),
        ("protocols.lwm2m.server", "protocols.coap.carrier", True),
        ("protocols.lwm2m.upgrades", "protocols.pcp.session", True),
        ("protocols.pcp.session", "protocols.lwm2m.codec", False),
        ("protocols.coap.endpoint", "protocols.lwm2m.codec", False),
        ("protocols.coap.endpoint", "campaigns.model", False),
        ("protocols.port", "protocols.ddi.codec", False),
        ("simulator.device", "protocols.ddi.codec", True),
        ("simulator.device", "protocols.ddi.session", False),
        ("simulator.device", "campaigns.model", False),
        ("app", "cli.main", False),
        ("cli.main", "app", True),
    ],
)
def test_the_table_means_what_the_design_says(module: str, imported: str, allowed: bool) -> None:
    assert (violations(module, imported) is None) is allowed


def test_no_import_is_relative() -> None:
    found = [m for m, t in TREES.items() for n in ast.walk(t) if isinstance(n, ast.ImportFrom) and n.level]
    assert found == []


def test_imports_inside_functions_are_on_the_list_of_reasons() -> None:
    found = {
        module
        for module, tree in TREES.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert [m for m in sorted(found) if not any(matches(m, lazy) for lazy in LAZY)] == []


def test_modules_form_no_cycle() -> None:
    graph = {m: set(ours(tree)) - {m} for m, tree in TREES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
