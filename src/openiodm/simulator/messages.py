"""The DDI messages as a device sees them: bytes to values and back. No I/O, no decisions.

It shares nothing with the server, so that a mistake of one is not made by both.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_ACTION = re.compile(r"/(?:deploymentBase|cancelAction|confirmationBase)/([^/?#]+)")
_SLEEP = re.compile(r"(\d{1,4}):([0-5]?\d):([0-5]?\d)")


class BadAnswerError(Exception):
    """The server's body breaks the contract; says which field."""


class Execution(StrEnum):
    """`status.execution` of a feedback."""

    PROCEEDING = "proceeding"
    DOWNLOAD = "download"
    DOWNLOADED = "downloaded"
    CANCELED = "canceled"
    CLOSED = "closed"


class Finished(StrEnum):
    """`status.result.finished` of a feedback."""

    NONE = "none"
    SUCCESS = "success"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Link:
    """A link of the poll answer that names an action."""

    action_id: str
    href: str


@dataclass(frozen=True, slots=True)
class PollAnswer:
    """A poll answer; `sleep_seconds` is None when the server gave none that can be read."""

    sleep_seconds: float | None = None
    deployment: Link | None = None
    cancel: Link | None = None
    confirmation: Link | None = None
    config_data: str | None = None

    @property
    def actions(self) -> tuple[str, ...]:
        """The distinct actions that this answer names; more than one breaks the contract."""
        links = (self.deployment, self.cancel, self.confirmation)
        return tuple(dict.fromkeys(link.action_id for link in links if link))


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file to get; digests are lower-case hex or None when the server gave none."""

    filename: str
    size: int
    sha1: str | None
    sha256: str | None
    href: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A software module with its files."""

    part: str
    name: str
    version: str
    artifacts: tuple[Artifact, ...]


@dataclass(frozen=True, slots=True)
class Deployment:
    """What to install; `download` and `update` are skip, attempt or forced; `window` is None without a window."""

    action_id: str
    download: str
    update: str
    window: str | None
    chunks: tuple[Chunk, ...]

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """The files of all chunks, in their order."""
        return tuple(artifact for chunk in self.chunks for artifact in chunk.artifacts)


def parse_poll(body: bytes) -> PollAnswer:
    """Read the answer to a poll; raises `BadAnswerError`."""
    document = _object(_load(body), "body")
    links = _object(document.get("_links") or {}, "_links")
    polling = _object(document.get("config") or {}, "config").get("polling")
    sleep = _object(polling or {}, "config.polling").get("sleep")
    config = links.get("configData")
    return PollAnswer(
        sleep_seconds=_sleep(sleep),
        deployment=_action_link(links, "deploymentBase"),
        cancel=_action_link(links, "cancelAction"),
        confirmation=_action_link(links, "confirmationBase"),
        config_data=_text(_object(config, "configData").get("href"), "configData.href") if config else None,
    )


def parse_deployment(body: bytes, key: str = "deployment") -> Deployment:
    """Read deploymentBase, or with key `confirmation` a confirmationBase; raises `BadAnswerError`."""
    document = _object(_load(body), "body")
    action_id = _text(document.get("id"), "id")
    part = _object(document.get(key), key)
    window = part.get("maintenanceWindow")
    return Deployment(
        action_id=action_id,
        download=_text(part.get("download"), "download"),
        update=_text(part.get("update"), "update"),
        window=window if isinstance(window, str) else None,
        chunks=tuple(_chunk(_object(chunk, "chunk")) for chunk in _list(part.get("chunks"), "chunks")),
    )


def parse_stop(body: bytes) -> str:
    """The `stopId` of a cancelAction; raises `BadAnswerError`."""
    document = _object(_load(body), "body")
    return _text(_object(document.get("cancelAction"), "cancelAction").get("stopId"), "stopId")


def feedback(action_id: str, execution: Execution, finished: Finished, details: list[str], timestamp_ms: int) -> bytes:
    """A feedback for deploymentBase or cancelAction."""
    status = {"execution": execution.value, "result": {"finished": finished.value}, "details": details}
    return _dump({"id": action_id, "timestamp": timestamp_ms, "status": status})


def confirmation(confirmed: bool, details: list[str]) -> bytes:
    """A feedback for confirmationBase."""
    return _dump({"confirmation": "confirmed" if confirmed else "denied", "details": details})


def config_data(attributes: Mapping[str, str]) -> bytes:
    """A configData body that merges `attributes`."""
    return _dump({"mode": "merge", "data": dict(attributes)})


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _load(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadAnswerError(f"not JSON: {body[:60]!r}") from error


def _object(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadAnswerError(f"{field} is not an object")
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadAnswerError(f"{field} is not a list")
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadAnswerError(f"{field} is not a string")
    return value


def _sleep(value: Any) -> float | None:
    match = _SLEEP.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    hours, minutes, seconds = (int(group) for group in match.groups())
    return float(hours * 3600 + minutes * 60 + seconds)


def _action_link(links: dict[str, Any], name: str) -> Link | None:
    if not links.get(name):
        return None
    href = _text(_object(links[name], name).get("href"), f"{name}.href")
    match = _ACTION.search(href)
    if match is None:
        raise BadAnswerError(f"{name}.href names no action: {href[:100]}")
    return Link(match.group(1), href)


def _chunk(chunk: dict[str, Any]) -> Chunk:
    return Chunk(
        part=_text(chunk.get("part"), "part"),
        name=_text(chunk.get("name"), "name"),
        version=_text(chunk.get("version"), "version"),
        artifacts=tuple(
            _artifact(_object(item, "artifact")) for item in _list(chunk.get("artifacts") or [], "artifacts")
        ),
    )


def _artifact(item: dict[str, Any]) -> Artifact:
    size = item.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BadAnswerError("artifact.size is not a number of bytes")
    hashes = _object(item.get("hashes") or {}, "hashes")
    links = _object(item.get("_links") or {}, "artifact._links")
    link = links.get("download") or links.get("download-http")
    return Artifact(
        filename=_text(item.get("filename"), "filename"),
        size=size,
        sha1=_digest(hashes.get("sha1")),
        sha256=_digest(hashes.get("sha256")),
        href=_text(_object(link, "artifact link").get("href"), "artifact href"),
    )


def _digest(value: Any) -> str | None:
    return value.lower() if isinstance(value, str) and value else None
