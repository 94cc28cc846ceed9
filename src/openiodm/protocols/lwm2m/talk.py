"""One attempt's dialogue with a device: the pure session, what it knows, and nothing of sockets or rows.

`FirmwareTalk` is object 5, `SoftwareTalk` object 9, `PcpTalk` the fragments on object 19. The server holds one for the
attempt that is open, feeds it events, commits its signals, and does what it asks for.
"""

from openiodm.campaigns import texts
from openiodm.campaigns.model import CampaignKind, LogEntry
from openiodm.campaigns.rollout import Result, Standing, What
from openiodm.clock import Instant
from openiodm.protocols.lwm2m.codec.registration import Links
from openiodm.protocols.lwm2m.session import firmware, software
from openiodm.protocols.lwm2m.session.dialogue import NO_WAY, Effect, Event, Sources
from openiodm.protocols.pcp import codec as pcp_codec
from openiodm.protocols.pcp import session as pcp
from openiodm.protocols.pcp.codec import FRAGMENTS_MAX, NewVersion, PcpFormatError, fragments

BINARY_UP = (19, 0, 0)
BINARY_DOWN = (19, 1, 0)


def speaks_pcp(links: Links) -> bool:
    """Software goes by PCP to a device with both containers of object 19 and without object 9."""
    return links.has(19, 0) and links.has(19, 1) and not links.has(software.OBJECT)


class FirmwareTalk:
    """Object 5."""

    state_path = firmware.STATE

    def __init__(self, action_id: int) -> None:
        self.action_id = action_id
        self.stopping = False
        self._known = firmware.Known()

    def hear(self, s: Standing, event: Event) -> list[What]:
        """Signals of an event."""
        self._known, signals = firmware.hear(s, self._known, event)
        return signals

    def next_effect(self, s: Standing, sources: Sources) -> Effect | None:
        """What to do now."""
        return firmware.next_effect(s, self._known, sources)

    def give_up(self, s: Standing, sources: Sources) -> Result | None:
        """The end, where there is no way at all."""
        why = firmware.hopeless(self._known, sources)
        return None if why is None else _impossible(self.action_id, why)


class SoftwareTalk:
    """Object 9, in its instance with the lowest id."""

    def __init__(self, action_id: int, instance: int) -> None:
        self.action_id = action_id
        self.stopping = False
        self._known = software.Known(instance)
        self.state_path = self._known.path(software.STATE)

    def hear(self, s: Standing, event: Event) -> list[What]:
        """Signals of an event."""
        self._known, signals = software.hear(s, self._known, event)
        return signals

    def next_effect(self, s: Standing, sources: Sources) -> Effect | None:
        """What to do now."""
        return software.next_effect(s, self._known, sources)

    def give_up(self, s: Standing, sources: Sources) -> Result | None:
        """There is always the push."""
        return None


class PcpTalk:
    """PCP on object 19."""

    def __init__(self, action_id: int) -> None:
        self.action_id = action_id
        self.stopping = False
        self.asked: pcp.Open | None = None
        self.begun = False

    def contact(self, s: Standing, now: Instant, *, new: bool) -> list[bytes]:
        """Frames to send of our own accord."""
        self.asked, frames = pcp.contact(s, self.asked, now, new=new or not self.begun)
        self.begun = True
        return [pcp_codec.encode(frame) for frame in frames]

    def overdue(self, s: Standing, now: Instant) -> Result | None:
        """The end of a device that does not answer."""
        return pcp.overdue(s, self.asked, now)


class NoTalk:
    """A device that has nothing to be upgraded through: its attempt ends at once."""

    def __init__(self, action_id: int, why: str) -> None:
        self.action_id = action_id
        self.stopping = False
        self.end = _impossible(action_id, why)


Talk = FirmwareTalk | SoftwareTalk | PcpTalk | NoTalk


def begin(s: Standing, links: Links, size: int, fragment_bytes: int) -> Talk:
    """The dialogue for an attempt, from what is upgraded and what the device has."""
    assert s.action_id is not None
    if s.kind is CampaignKind.FIRMWARE:
        if links.has(5):
            return FirmwareTalk(s.action_id)
        return NoTalk(s.action_id, "the device has no object 5 (Firmware Update)")
    instances = links.instances(software.OBJECT)
    if instances:
        return SoftwareTalk(s.action_id, instances[0])
    if speaks_pcp(links):
        why = unfit_for_pcp(s.target_version, size, fragment_bytes)
        return PcpTalk(s.action_id) if why is None else NoTalk(s.action_id, why)
    return NoTalk(s.action_id, "the device has neither an instance of object 9 nor object 19 for PCP")


def unfit_for_pcp(version: str, size: int, fragment_bytes: int) -> str | None:
    """Why a package cannot be sent by PCP, if it cannot."""
    count = fragments(size, fragment_bytes)
    if count > FRAGMENTS_MAX:
        return f"the package has {count} fragments of {fragment_bytes} bytes, and PCP can count {FRAGMENTS_MAX}"
    try:
        pcp_codec.encode(NewVersion(version, fragment_bytes, count))
    except PcpFormatError:
        return f"PCP cannot carry version {version!r}: it has room for 16 ASCII characters"
    return None


def _impossible(action_id: int, why: str) -> Result:
    detail = why if why is NO_WAY else f"{texts.UPDATE_FAILED}: {why}"
    return Result(action_id, False, LogEntry("lwm2m", (why,)), detail=detail)
