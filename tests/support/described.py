"""What tests of an API against its own description share: requests are made from it, answers held against it."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import schemathesis

EXAMPLES = 20  # an operation, beside those that the coverage phase derives from the schemas
THINGS = 40  # of each kind: some are deleted on the way


class Address:
    """The ASGI application that the schema speaks to: set once the server is there, after the tests were collected."""

    def __init__(self) -> None:
        self.app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def schema_of(document: dict[str, Any], address: Address) -> Any:
    """The document as schemathesis has it, with a fixed seed."""
    schema = schemathesis.openapi.from_dict(document)
    schema.app = address
    schema.config.seed = 1
    # The test sends the token. A NUL, which PostgreSQL cannot hold, is refused in any text and no schema says so.
    schema.config.generation.update(with_security_parameters=False, allow_x00=False)
    return schema


def existing(parameters: dict[str, Any], known: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """For one half of the texts that schemathesis makes, an id that exists: which one, the text itself decides."""
    filled = dict(parameters)
    for name, value in parameters.items():
        number = zlib.crc32(repr(value).encode())
        if name in known and number % 2:
            filled[name] = known[name][(number // 2) % len(known[name])]
    return filled


def whole(value: Any) -> Any:
    """1.0 is JSON Schema's integer and not ours: it is sent as 1."""
    if isinstance(value, dict):
        return {k: whole(v) for k, v in value.items()}
    if isinstance(value, list):
        return [whole(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
