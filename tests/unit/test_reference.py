"""The reference pages: every operation of both descriptions, nothing fetched from elsewhere, nothing unescaped."""

import re
from html import escape
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from openiodm.http import reference
from openiodm.http.routes import api_router
from openiodm.northbound.native.edge import NativeEdge
from tests.support.routes import NATIVE

PAGES = {"/api/docs/compatible": "/api/v1/compat-openapi.json", "/api/docs/native": "/api/v1/openapi.json"}
VOID = {"meta", "br"}


async def get(path: str) -> httpx.Response:
    nobody: Any = None  # no token is asked for
    transport = httpx.ASGITransport(api_router(NATIVE, NativeEdge(), nobody))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        return await http.get(path)


class Reader(HTMLParser):
    """Tags must close in order; attributes are collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert name in {"id", "href", "class", "title", "lang", "charset", "name", "content"}, (tag, name)
            if name == "id":
                self.ids.append(str(value))
            if name == "href":
                self.links.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_has_every_operation_and_every_code_of_its_description(path: str) -> None:
    html = (await get(path)).text
    document = (await get(PAGES[path])).json()
    for at, methods in document["paths"].items():
        for method, operation in methods.items():
            section = html.partition(f'<section id="{operation["operationId"]}">')[2].partition("</section>")[0]
            assert f"{method.upper()}</span>{at}</div>" in section
            assert escape(operation["summary"]) in section
            for parameter in operation["parameters"]:
                assert f"<code>{parameter['name']}</code>" in section
            for response in operation["responses"].values():
                for content in response.get("content", {}).values():
                    for code, example in content.get("examples", {}).items():
                        assert f"<code>{code}</code></td><td>{escape(example['summary'])}</td>" in section


async def test_members_are_shown_with_bounds_and_words_down_to_the_deepest() -> None:
    html = (await get("/api/docs/compatible")).text
    section = html.partition('<section id="create_firmware_upgrade">')[2].partition("</section>")[0]
    assert '<code>fileId</code> <span class=must title="must be given">*</span></td><td>string, 1 to 256' in section
    assert "<code>targets.devices</code></td><td>list of string, 1 to 256 characters or null" in section
    assert "<code>policy.executeType</code></td><td><code>now</code>, <code>device_online</code>" in section
    listed = html.partition('<section id="list_operations">')[2].partition("</section>")[0]
    assert "integer, 1 to 100; else <code>10</code>" in listed
    assert "<code>data[].staResult.timeout</code></td><td>integer" in listed


@pytest.mark.parametrize("path", ["/api/docs", *PAGES])
async def test_a_page_is_whole_by_itself(path: str) -> None:
    answer = await get(path)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    reader = read(answer.text)
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(reader.tags)
    assert not re.search(r"url\(|@import", answer.text)
    assert len(set(reader.ids)) == len(reader.ids)
    paths = {route.path for route in NATIVE}
    for link in reader.links:
        assert link in paths or (link.startswith("#") and link[1:] in reader.ids), link


async def test_the_head_of_the_pages_leads_to_the_two_references_and_descriptions() -> None:
    assert set(read((await get("/api/docs")).text).links) == {*PAGES, *PAGES.values()}


def test_what_a_document_says_cannot_become_markup() -> None:
    evil = "<script>alert(1)</script>\"'&"
    schema = {"type": "object", "properties": {evil: {"type": "string", "enum": [evil], "description": evil}}}
    document = {
        "info": {"title": evil, "version": evil, "description": evil},
        "paths": {
            "/" + evil: {
                "get": {
                    "tags": [evil],
                    "operationId": evil,
                    "summary": evil,
                    "description": evil,
                    "security": [{"key": []}],
                    "parameters": [
                        {"name": evil, "in": evil, "required": True, "schema": {"type": evil, "default": evil}}
                    ],
                    "requestBody": {"content": {evil: {"schema": {"$ref": "#/components/schemas/Evil"}}}},
                    "responses": {
                        "200": {"description": evil, "content": {evil: {"schema": {"items": schema}}}},
                        "400": {"description": evil},
                        "409": {"content": {evil: {"examples": {evil: {"summary": evil}}}}},
                    },
                }
            }
        },
        "components": {
            "schemas": {"Evil": schema},
            "securitySchemes": {"key": {"type": "apiKey", "name": evil}},
        },
    }
    reader = read(reference.page(document, {evil: evil}))
    assert "script" not in reader.tags
    assert set(reader.ids) == {evil}


def test_a_schema_that_contains_itself_ends() -> None:
    tree = {"type": "object", "properties": {"children": {"items": {"$ref": "#/components/schemas/Tree"}}}}
    operation = {
        "tags": ["t"],
        "operationId": "o",
        "summary": "s",
        "security": [],
        "parameters": [],
        "responses": {
            "200": {
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Tree"}}},
                "description": "",
            }
        },
    }
    document = {
        "info": {"title": "t", "version": "1", "description": ""},
        "paths": {"/tree": {"get": operation}},
        "components": {"schemas": {"Tree": tree}, "securitySchemes": {}},
    }
    assert reference.page(document, {}).count("children[].children") > 1
