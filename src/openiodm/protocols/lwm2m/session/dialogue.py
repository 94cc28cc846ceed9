"""What a session asks of the server, and what it hears from it.

A session is two pure functions over what is known of the device (`Known`, in the memory of this process alone):
`hear` makes signals of an event; once they are committed, `next_effect` says from the standing after that commit what
to do next, one thing at a time, or that there is nothing to do but wait. So nothing is asked of a device on the
strength of something that was not written, or that a stop overtook; and after a restart of either side the standing,
and what the device tells when it is asked, are enough to go on.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Final

from openiodm.campaigns import texts
from openiodm.campaigns.model import LogEntry
from openiodm.campaigns.rollout import Result, Standing, Versions, What
from openiodm.campaigns.states import UpgradeState
from openiodm.protocols.lwm2m.codec.values import Path, Raw

# -- what the session asks for


@dataclass(frozen=True, slots=True)
class Observe:
    """Observe a resource; the answer has its value, and changes come as `Notified`."""

    path: Path


@dataclass(frozen=True, slots=True)
class Read:
    """Read a resource."""

    path: Path


@dataclass(frozen=True, slots=True)
class Write:
    """Write a text resource."""

    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class Execute:
    """Execute a resource."""

    path: Path
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Upload:
    """Write the package into a resource, block by block."""

    path: Path


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait a little before trying again; `Answered` comes after it."""

    seconds: float


Effect = Observe | Read | Write | Execute | Upload | Pause


# -- what it hears


@dataclass(frozen=True, slots=True)
class Here:
    """The device is in contact. `new`: it has registered anew, so it may have been rebooted."""

    new: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to an effect: `code` as CoAP has it (0x44 is 2.04); `value` where there is one."""

    effect: Effect
    code: int
    value: Raw | list[int] | None = None

    @property
    def ok(self) -> bool:
        """Class 2."""
        return self.code >> 5 == 2

    @property
    def code_text(self) -> str:
        """`4.05`."""
        return f"{self.code >> 5}.{self.code & 31:02}"


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No answer came; whether the device has acted is not known."""

    effect: Effect


@dataclass(frozen=True, slots=True)
class Notified:
    """An observed resource has this value now."""

    path: Path
    value: int


@dataclass(frozen=True, slots=True)
class Offering:
    """The package, or its URI, is about to be sent, or (an empty URI) to be dropped. What the device tells from now on
    may be about that already.
    """

    effect: Write | Upload


@dataclass(frozen=True, slots=True)
class Stopping:
    """The core wants the upgrade to stop."""


def offers(effect: Effect) -> bool:
    """Is it one that an `Offering` goes before?"""
    return isinstance(effect, Upload | Write)


Event = Here | Answered | Unanswered | Notified | Offering | Stopping


class Scheme(Enum):
    """How a device may fetch a package, with its number in 5/0/8 (LwM2M 1.0 appendix E.6)."""

    COAP = 0
    COAPS = 1
    HTTP = 2
    HTTPS = 3


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the package of an attempt is; a scheme that is not served is not there. `own`: of the association."""

    uris: dict[Scheme, str]
    own: Scheme

    def uri(self, supported: Collection[int] | None) -> str | None:
        """The best URI for a device that supports these schemes (None: it does not say).

        The association's own scheme comes first: then even a device that ignores host and port, and fetches on its
        association whatever the URI says, gets what it expects. One that supports CoAP alone, as it says, but speaks
        DTLS to us, is such a device (Huawei's), so `coap` is tried before HTTP.
        """
        order = [self.own, *(s for s in (Scheme.COAPS, Scheme.COAP, Scheme.HTTPS, Scheme.HTTP) if s is not self.own)]
        if supported is None:
            order = [self.own, *(s for s in order if s in (Scheme.COAP, Scheme.COAPS))]
        chosen = (s for s in order if supported is None or s.value in supported)
        return next((self.uris[s] for s in chosen if s in self.uris), None)


NO_WAY: Final = f"{texts.UPDATE_FAILED}: no way of delivery that the device supports is served"


def failure(action_id: int, detail: str, line: str, error_code: str | None = None) -> Result:
    """The end of an attempt that the device did not succeed in."""
    return Result(action_id, False, LogEntry("lwm2m", (line,)), detail=detail, error_code=error_code)


def is_being_stopped(s: Standing) -> bool:
    """Has a stop closed the task, and not come to this device yet? Then its download fails because we refuse the bytes,
    and that is no failure of the device's.
    """
    return not s.open and s.state in (UpgradeState.OFFERED, UpgradeState.DOWNLOADING)


def verdict(action_id: int, target: str, versions: Collection[str], told: Versions | None) -> list[What]:
    """The end of an attempt that the device calls a success: judged by the version that it tells, if it tells one."""
    log = LogEntry("lwm2m", ("the device reports success",))
    said: list[What] = [] if told is None else [told]
    if not versions or target in versions:
        return [*said, Result(action_id, True, log)]
    detail = f"{texts.UPDATE_FAILED}: the device reports version {', '.join(sorted(versions))}"
    return [*said, Result(action_id, False, log, detail=detail)]
