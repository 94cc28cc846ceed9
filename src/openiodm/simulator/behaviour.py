"""What a simulated device is like, and the chance in it.

Every draw of one device comes from `random.Random` seeded with (seed, controller id): the n-th action of a device
fares the same in every run with the same seed, however often it polled in between. Delays between requests have a
stream of their own for that reason.
"""

from dataclasses import dataclass
from enum import StrEnum
from random import Random

Seconds = float
Span = tuple[Seconds, Seconds]


class Phase(StrEnum):
    """Where in an update a device may fall silent."""

    OFFERED = "offered"  # after the poll that showed the offer, before anything else
    DOWNLOADING = "downloading"  # with half of the bytes
    DOWNLOADED = "downloaded"  # all bytes checked, nothing installed
    INSTALLING = "installing"  # half-way through the installation
    REPORTING = "reporting"  # installed, result not told


class CancelAnswer(StrEnum):
    """How a device takes a cancelAction."""

    ACCEPT = "accept"  # stops, closed/success
    REJECT = "reject"  # goes on, closed/failure
    IGNORE = "ignore"  # never answers and goes on


class ConfirmAnswer(StrEnum):
    """How a device takes a confirmationBase."""

    CONFIRM = "confirm"
    DENY = "deny"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Rates are probabilities in [0, 1] per action (or per report where said); spans are uniform, in seconds."""

    failure_rate: float = 0.0  # the installation fails: closed/failure
    corrupt_rate: float = 0.0  # the bytes arrive damaged, the digest check fails: closed/failure
    rollback_rate: float = 0.0  # says success and boots the old version again
    silence_rate: float = 0.0  # falls silent in one of `silent_phases`
    silent_phases: tuple[Phase, ...] = tuple(Phase)
    silent_seconds: Span | None = None  # None: for ever
    deny_rate: float = 0.0
    ignore_confirmation_rate: float = 0.0
    cancel_reject_rate: float = 0.0
    cancel_ignore_rate: float = 0.0
    cancel_says_canceled: bool = False  # sends execution `canceled` before the closing answer
    duplicate_rate: float = 0.0  # per report: sent again after its answer
    reorder_rate: float = 0.0  # per report that does not close: sent after the following one
    install_seconds: Span = (0.0, 0.0)
    reboot_seconds: Span = (0.0, 0.0)
    download: bool = True  # False: never fetches bytes, installs at once
    download_pieces: int = 1  # 1: one GET without Range; k: k GETs with Range
    download_bytes_per_second: float | None = None
    report_download: bool = True  # sends `download` and `downloaded`
    progress_reports: int = 0  # `proceeding` reports during the installation
    reports_version: bool = True  # configData carries the version keys
    probe_after_final: bool = False  # asks for one byte after the end, to see that it is refused

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if name.endswith("_rate") and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, not {value}")
        for name in ("install_seconds", "reboot_seconds", "silent_seconds"):
            span = getattr(self, name)
            if span is not None and not 0 <= span[0] <= span[1]:
                raise ValueError(f"{name} must be (low, high) with 0 <= low <= high, not {span}")
        if self.download_pieces < 1 or self.progress_reports < 0:
            raise ValueError("download_pieces must be 1 or more, progress_reports 0 or more")
        if self.download_bytes_per_second is not None and self.download_bytes_per_second <= 0:
            raise ValueError("download_bytes_per_second must be above 0")
        if self.silence_rate and not self.silent_phases:
            raise ValueError("silence_rate needs silent_phases")


@dataclass(frozen=True, slots=True)
class Plan:
    """How one action of one device goes, drawn in advance; `chance` serves the draws per report."""

    fails: bool
    corrupts: bool
    rolls_back: bool
    silent_in: Phase | None
    silent_seconds: Seconds | None  # None with `silent_in`: for ever
    confirm: ConfirmAnswer
    cancel: CancelAnswer
    install_seconds: Seconds
    reboot_seconds: Seconds
    chance: Random


def timing_of(seed: int, controller_id: str) -> Random:
    """The stream for delays: poll jitter and back-off."""
    return Random(f"{seed}/{controller_id}/timing")


def plan_of(behaviour: Behaviour, seed: int, controller_id: str, ordinal: int) -> Plan:
    """Draw the device's `ordinal`-th action. Each draw is made always, so that one rate never shifts another's."""
    chance = Random(f"{seed}/{controller_id}/{ordinal}")
    fails = chance.random() < behaviour.failure_rate
    corrupts = chance.random() < behaviour.corrupt_rate
    rolls_back = chance.random() < behaviour.rollback_rate
    silent = chance.random() < behaviour.silence_rate
    phase_draw, span_draw = chance.random(), chance.random()
    confirm_draw, cancel_draw = chance.random(), chance.random()
    install_draw, reboot_draw = chance.random(), chance.random()
    phases = behaviour.silent_phases
    span = behaviour.silent_seconds
    confirm = ConfirmAnswer.CONFIRM
    if confirm_draw < behaviour.deny_rate:
        confirm = ConfirmAnswer.DENY
    elif confirm_draw < behaviour.deny_rate + behaviour.ignore_confirmation_rate:
        confirm = ConfirmAnswer.IGNORE
    cancel = CancelAnswer.ACCEPT
    if cancel_draw < behaviour.cancel_reject_rate:
        cancel = CancelAnswer.REJECT
    elif cancel_draw < behaviour.cancel_reject_rate + behaviour.cancel_ignore_rate:
        cancel = CancelAnswer.IGNORE
    return Plan(
        fails=fails,
        corrupts=corrupts,
        rolls_back=rolls_back,
        silent_in=phases[int(phase_draw * len(phases))] if silent else None,
        silent_seconds=_within(span, span_draw) if silent and span is not None else None,
        confirm=confirm,
        cancel=cancel,
        install_seconds=_within(behaviour.install_seconds, install_draw),
        reboot_seconds=_within(behaviour.reboot_seconds, reboot_draw),
        chance=chance,
    )


def _within(span: Span, draw: float) -> Seconds:
    low, high = span
    return low + (high - low) * draw
