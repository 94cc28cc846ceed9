"""Docs that tests keep true: rendered pages, lists of routes, codes and texts, links."""

import ast
import dataclasses
import inspect
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from openiodm.campaigns import queries, texts
from openiodm.northbound.compat import edge
from openiodm.protocols.coap.codec import DATAGRAM_BYTES
from openiodm.protocols.coap.dtls import SUITES
from openiodm.protocols.coap.limits import Limits
from openiodm.settings import load
from tests.support import pages
from tests.support.routes import COMPAT, NATIVE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in ROOT.rglob("*.md") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts))

_FENCED = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def read(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


@pytest.mark.parametrize(("page", "rendered"), [("settings", pages.settings_page), ("cli", pages.cli_page)])
def test_a_rendered_page_is_what_the_code_says(page: str, rendered: object) -> None:
    assert callable(rendered)
    again = f".venv/bin/python -m tests.support.pages {page} > docs/{page}.md"
    assert read(f"{page}.md") == rendered(), f"write it anew: {again}"


def test_every_setting_has_a_meaning_and_every_option_a_line() -> None:
    assert set(pages.meanings()) == set(load(environ={}).__struct_fields__)
    page = read("cli.md")
    for name, command in pages.commands():
        about = page.partition(f"# {name}\n")[2].partition("\n#")[0]
        for option in (opt for p in command.params if p.param_type_name == "option" for opt in p.opts):
            assert f"`{option}" in about, (name, option)


def test_every_usage_closes_the_brackets_that_it_opens() -> None:
    usages = re.findall(r"^`(openiodm .*)`$", read("cli.md"), re.MULTILINE)
    assert len(usages) > 40
    assert [usage for usage in usages if usage.count("[") != usage.count("]")] == []


def test_make_help_lists_every_target() -> None:
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)[0].split()
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted(line.split()[0] for line in shown.splitlines()) == sorted(targets)


def test_every_command_of_a_client_answers_programs_in_json() -> None:
    """All but those that have a form of their own: bytes, or a server that runs."""
    others = {"openiodm serve", "openiodm demo", "openiodm task export", "openiodm tls init"}
    without = {
        name for name, command in pages.commands() if "--json" not in {o for p in command.params for o in p.opts}
    }
    assert without == others


def test_native_api_lists_exactly_the_native_routes() -> None:
    listed = re.findall(r"^\| `([A-Z]+)` \| `(/\S+)` \|", read("native-api.md"), re.MULTILINE)
    assert sorted(listed) == sorted((route.method, route.path) for route in NATIVE)


def test_northbound_lists_exactly_the_compatible_routes() -> None:
    listed = re.findall(r"^\| [^|]+ \| `([A-Z]+) (/\S+)` \|", read("northbound.md"), re.MULTILINE)
    assert sorted(listed) == sorted((route.method, route.path) for route in COMPAT)


def test_northbound_has_every_error_that_the_edge_can_send() -> None:
    tables = [edge.COMMON, *(family.rows for _, family in edge.FAMILIES)]
    nos = {no for table in tables for no in table.values()} | {family.bad_request for _, family in edge.FAMILIES}
    page = read("northbound.md")
    for no in nos:
        status = f"{no.status} ({no.strict})" if no.strict else str(no.status)
        assert f"| {status} | {no.code} | {no.desc} |" in page, no


def test_campaigns_has_every_text_of_an_upgrade_and_every_reason_to_wait() -> None:
    said = [value for name, value in vars(texts).items() if name.isupper()]
    said += list(_returned(inspect.getsource(queries.why_waiting)))
    assert len(said) > 20
    page = read("campaigns.md")
    assert [text for text in said if f"`{text}`" not in page] == []


def test_coap_lists_every_limit_with_its_default_and_every_suite_in_its_order() -> None:
    page = read("coap.md")
    listed = dict(re.findall(r"^\| `([a-z_]+)` \| ([0-9,]+)(?: s)? \|", page, re.MULTILINE))
    defaults = {field.name: field.default for field in dataclasses.fields(Limits)}
    assert list(listed) == list(defaults)
    assert {name: int(value.replace(",", "")) for name, value in listed.items()} == {
        name: value // 1000 if name.endswith("_time") else value for name, value in defaults.items()
    }
    assert re.findall(r"^\| `([A-Z0-9-]+)` \|", page, re.MULTILINE) == list(SUITES)
    assert f"{DATAGRAM_BYTES:,} bytes" in page


def _returned(source: str) -> Iterator[str]:
    for statement in ast.walk(ast.parse(source)):
        if isinstance(statement, ast.Return) and statement.value is not None:
            for node in ast.walk(statement.value):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_within_the_repository_resolves(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in _anchors(target), link


def _anchors(page: Path) -> set[str]:
    """Headings as GitHub names them."""
    headings = _HEADING.findall(_FENCED.sub("", page.read_text("utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
