"""The routes of both northbound APIs as `app` wires them, without a server: for tests that walk every one."""

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from msgspec import inspect

from openiodm.front import compat_routes, native_routes
from openiodm.http.routes import Route
from openiodm.rooms import Rooms
from openiodm.settings import load


def bare_rooms() -> Any:
    """Rooms that nobody lives in: enough to list routes, of no use to call them."""
    fields: dict[str, Any] = dict.fromkeys(f.name for f in dataclasses.fields(Rooms))
    return SimpleNamespace(**{**fields, "settings": load(environ={})})


COMPAT: list[Route] = compat_routes(bare_rooms())
NATIVE: list[Route] = native_routes(bare_rooms())


def label(route: Route) -> str:
    return f"{route.method} {route.path}"


def members(struct: Any) -> list[str]:
    """The names that a query or a body may have, as they are sent; nested ones as `targets.devices`."""
    return [] if struct is None else list(_members(inspect.type_info(struct), ""))


def _members(info: inspect.Type, at: str) -> Iterator[str]:
    match info:
        case inspect.StructType():
            for field in info.fields:
                yield at + field.encode_name
                yield from _members(field.type, f"{at}{field.encode_name}.")
        case inspect.UnionType():
            for option in info.types:
                yield from _members(option, at)
        case inspect.ListType() | inspect.VarTupleType():
            yield from _members(info.item_type, at)
        case inspect.Metadata():
            yield from _members(info.type, at)
