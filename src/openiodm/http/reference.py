"""An OpenAPI document as a page for people: plain HTML, no script, nothing fetched from anywhere.

It knows the part of OpenAPI 3.1 that `http.openapi` writes. Everything that comes from a document is escaped.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

MEDIA = "text/html; charset=utf-8"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
DEEPEST = 6  # members of members; no type of ours goes deeper, and one that contains itself would go on for ever

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --link: #0a58ca; --get: #0b7a4b; --post: #9a5b00;
  --put: #6a3fb5; --delete: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --link: #7db3ff; --get: #4cc38a; --post: #e5a54b; --put: #b79cf2;
  --delete: #ff8f87; } }
* { box-sizing: border-box }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif }
a { color: var(--link); text-decoration: none } a:hover { text-decoration: underline }
header, main, nav { padding: 1rem 1.5rem }
header { border-bottom: 1px solid var(--line) } header h1 { margin: 0 0 .3rem; font-size: 1.5rem }
header p { margin: .3rem 0; max-width: 60rem }
.columns { display: grid; grid-template-columns: 21rem minmax(0, 1fr) }
nav { border-right: 1px solid var(--line); position: sticky; top: 0; height: 100vh; overflow: auto; font-size: .9rem }
nav h2 { font-size: .8rem; letter-spacing: .05em; text-transform: uppercase; margin: 1rem 0 .2rem }
nav ul { list-style: none; margin: 0; padding: 0 } nav li { display: flex; gap: .5rem; padding: .1rem 0 }
section { border-bottom: 1px solid var(--line); padding: .5rem 0 1.2rem; max-width: 62rem }
section h3 { margin: 1rem 0 .2rem; font-size: 1.1rem }
.call { font: 600 .95rem ui-monospace, monospace; background: var(--soft); padding: .4rem .6rem; border-radius: .3rem;
  overflow-wrap: anywhere }
.verb { font: 700 .75rem/1.9 ui-monospace, monospace; width: 3.6rem; flex: none }
.call .verb { font-size: .95rem; margin-right: .5rem }
.get { color: var(--get) } .post { color: var(--post) } .put { color: var(--put) } .delete { color: var(--delete) }
h4 { margin: 1rem 0 .3rem; font-size: .95rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: 600 } code { font: .9em ui-monospace, monospace; overflow-wrap: break-word }
td:first-child { white-space: nowrap } .must { color: var(--delete) } .note { opacity: .75 }
@media (max-width: 55rem) { .columns { display: block } nav { position: static; height: auto; border: 0 }
  table { display: block; overflow-x: auto } }
"""


def page(document: Mapping[str, Any], others: Mapping[str, str]) -> str:
    """The reference of one document. `others` are links of the head: text -> address."""
    about = document["info"]
    groups = _by_tag(document)
    links = " · ".join(f'<a href="{escape(to)}">{escape(text)}</a>' for text, to in others.items())
    head = (
        f"<h1>{escape(about['title'])} <small class=note>{escape(about['version'])}</small></h1>"
        f"<p>{_text(about['description'])}</p><p>{links}</p>"
    )
    nav = "".join(_nav_group(tag, operations) for tag, operations in groups.items())
    body = "".join(_Section(document, *each).html() for operations in groups.values() for each in operations)
    content = f"<header>{head}</header><div class=columns><nav>{nav}</nav><main>{body}</main></div>"
    return _html(about["title"], content)


def index(title: str, links: Mapping[str, str]) -> str:
    """A page of links: address -> what is there."""
    items = "".join(f'<li><a href="{escape(to)}">{escape(to)}</a>: {escape(text)}</li>' for to, text in links.items())
    return _html(title, f"<header><h1>{escape(title)}</h1></header><main><ul>{items}</ul></main>")


def _html(title: str, content: str) -> str:
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>'
        f'{escape(title)}</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{content}</body></html>"
    )


Operation = tuple[str, str, Mapping[str, Any]]  # method, path, description


def _by_tag(document: Mapping[str, Any]) -> dict[str, list[Operation]]:
    groups: dict[str, list[Operation]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for tag in operation["tags"]:
                groups.setdefault(tag, []).append((method.upper(), path, operation))
    return groups


def _nav_group(tag: str, operations: Sequence[Operation]) -> str:
    items = "".join(
        f'<li>{_verb(method)}<a href="#{escape(operation["operationId"])}">{escape(operation["summary"])}</a></li>'
        for method, _, operation in operations
    )
    return f"<h2>{escape(tag)}</h2><ul>{items}</ul>"


def _verb(method: str) -> str:
    return f'<span class="verb {escape(method.lower())}">{escape(method)}</span>'


def _text(text: str) -> str:
    """Words between backticks are code, as in the documents' descriptions."""
    parts = escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{column}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


class _Section:
    """One operation."""

    def __init__(self, document: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]) -> None:
        self._components: Mapping[str, Any] = document["components"]["schemas"]
        self._schemes: Mapping[str, Any] = document["components"]["securitySchemes"]
        self._method = method
        self._path = path
        self._operation = operation

    def html(self) -> str:
        operation = self._operation
        parts = [
            f'<section id="{escape(operation["operationId"])}"><h3>{escape(operation["summary"])}</h3>',
            f"<div class=call>{_verb(self._method)}{escape(self._path)}</div>",
            f"<p>{_text(operation['description'])}</p>" if "description" in operation else "",
            f"<p class=note>{self._needs()}</p>",
            *self._parameters(),
            *self._body(),
            *self._answers(),
            "</section>",
        ]
        return "".join(parts)

    def _needs(self) -> str:
        headers = [self._header(name) for schemes in self._operation["security"] for name in schemes]
        return f"Needs {' and '.join(headers)}." if headers else "Needs no token."

    def _header(self, scheme: str) -> str:
        described = self._schemes[scheme]
        if described["type"] == "apiKey":
            return f"<code>{escape(described['name'])}</code>"
        return "<code>Authorization: Bearer …</code>"

    def _parameters(self) -> Iterator[str]:
        rows = [
            [_name(p["name"], required=p["required"]), escape(p["in"]), self._type(p["schema"]), _about(p)]
            for p in self._operation["parameters"]
        ]
        if rows:
            yield f"<h4>Parameters</h4>{_table(('name', 'in', 'value', ''), rows)}"

    def _body(self) -> Iterator[str]:
        for media, content in self._operation.get("requestBody", {}).get("content", {}).items():
            schema = content.get("schema", {})
            yield f"<h4>Body <code>{escape(media)}</code></h4>{self._schema(schema, marks_required=True)}"

    def _answers(self) -> Iterator[str]:
        good = {s: r for s, r in self._operation["responses"].items() if s.startswith("2")}
        for status, response in good.items():
            contents = response.get("content", {})
            kinds = ", ".join(f"<code>{escape(media)}</code>" for media in contents)
            yield f"<h4>{escape(status)} {kinds or 'without a body'}</h4>"
            yield from (self._schema(c["schema"], marks_required=False) for c in contents.values() if c.get("schema"))
        rows = [row for status, response in self._operation["responses"].items() for row in _refusals(status, response)]
        if rows:
            yield f"<h4>Refusals</h4>{_table(('status', 'code', ''), rows)}"

    def _schema(self, schema: Mapping[str, Any], *, marks_required: bool) -> str:
        """Of an answer every member is there, so that marks would tell nothing."""
        members = self._members(schema, "", 0)
        rows = [
            [_name(path, required=required and marks_required), self._type(member), _about(self._resolved(member))]
            for path, member, required in members
        ]
        if rows:
            return _table(("member", "value", ""), rows)
        return f"<p>{self._type(schema)}</p>"

    def _members(self, schema: Mapping[str, Any], at: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
        """(path, schema, required) of each member, and of the members below: `data[].targets.devices`."""
        resolved = self._resolved(schema)
        if depth > DEEPEST:
            return
        if "items" in resolved:
            yield from self._members(resolved["items"], f"{at}[]", depth + 1)
        required = set(resolved.get("required", ()))
        for name, member in resolved.get("properties", {}).items():
            path = f"{at}.{name}".lstrip(".")
            yield path, member, name in required
            yield from self._members(member, path, depth + 1)

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without reference and without null: of several kinds, the first that is not null."""
        if "$ref" in schema:
            return self._resolved(self._components[schema["$ref"].rpartition("/")[2]])
        options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
        return self._resolved(options[0]) if options else schema

    def _type(self, schema: Mapping[str, Any]) -> str:
        if "$ref" in schema:
            return self._type(self._resolved(schema))
        if "enum" in schema:
            return ", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"]) + _default(schema)
        if "anyOf" in schema:
            return " or ".join(dict.fromkeys(self._type(option) for option in schema["anyOf"])) + _default(schema)
        if "items" in schema:
            return f"list of {self._type(schema['items'])}{_bounds(schema, 'minItems', 'maxItems', ' items')}"
        kind = escape(str(schema.get("type", "any JSON")))
        unit = _bounds(schema, "minLength", "maxLength", " characters") or _bounds(schema, "minimum", "maximum", "")
        form = f", {escape(schema['format'])}" if "format" in schema else ""
        return f"{kind}{form}{unit}{_default(schema)}"


def _refusals(status: str, response: Mapping[str, Any]) -> Iterator[list[str]]:
    """Codes where there are some, else the names that the description lists."""
    codes = {
        name: example["summary"]
        for content in response.get("content", {}).values()
        for name, example in content.get("examples", {}).items()
    }
    if not codes and not status.startswith("2"):
        codes = dict.fromkeys(response["description"].split("; "), "")
    for code, text in codes.items():
        yield [escape(status), f"<code>{escape(code)}</code>", escape(text)]


def _name(name: str, *, required: bool) -> str:
    return f"<code>{escape(name)}</code>" + (' <span class=must title="must be given">*</span>' if required else "")


def _about(described: Mapping[str, Any]) -> str:
    return _text(described.get("description", ""))


def _bounds(schema: Mapping[str, Any], least: str, most: str, unit: str) -> str:
    match schema.get(least), schema.get(most):
        case None, None:
            return ""
        case None, high:
            return f", at most {high}{unit}"
        case low, None:
            return f", at least {low}{unit}"
        case low, high:
            return f", {low} to {high}{unit}"


def _default(schema: Mapping[str, Any]) -> str:
    if schema.get("default") is None:
        return ""
    return f"; else <code>{escape(json.dumps(schema['default']))}</code>"
