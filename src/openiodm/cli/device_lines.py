"""The file of `simulate --devices`: a JSON object a line, each a device to be."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openiodm.cli.failure import USAGE, Failure


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """One line; `place` says which, for a person."""

    place: str
    said: dict[str, object]

    @property
    def node_id(self) -> str:
        """The nodeId.

        Raises:
            Failure: it is not there, or is none.
        """
        found = self.said.get("nodeId")
        if not isinstance(found, str) or not found or not found.isprintable():
            raise self.wrong("nodeId", "a text")
        return found

    def secret(self, member: str) -> str:
        """A token or a key: printable ASCII.

        Raises:
            Failure: it is not there, or is none.
        """
        found = self.said.get(member)
        if not isinstance(found, str) or not found or not (found.isascii() and found.isprintable()):
            raise self.wrong(member, "a text of ASCII characters")
        return found

    def wrong(self, member: str, wanted: str) -> Failure:
        """What to raise for a member that is missing, or something else."""
        return Failure(f"{self.place}: {member} must be {wanted}", USAGE)


def device_lines(file: Path) -> Iterator[DeviceLine]:
    """The lines that are not blank.

    Raises:
        Failure: the file cannot be read or names no device, or a line is no JSON object.
    """
    found = False
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    found = True
                    place = f"{file}, line {number}"
                    yield DeviceLine(place, _object(line, place))
    except OSError as error:
        raise Failure(f"cannot read {file}: {error.strerror}", USAGE) from error
    if not found:
        raise Failure(f"{file} names no device", USAGE)


def _object(line: bytes, place: str) -> dict[str, object]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Failure(f"{place}: no JSON", USAGE) from error
    if not isinstance(said, dict):
        raise Failure(f"{place}: no JSON object", USAGE)
    return said
