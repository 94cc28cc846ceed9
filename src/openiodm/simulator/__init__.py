"""Simulated devices that speak hawkBit DDI over real sockets, and remember what the server did to them.

For `openiodm simulate` and `demo`, for tests, and for drills that kill the server. `fleet` runs many devices,
`device` is one life, `profile` who it is, `behaviour` the chance in it, `record` its memory, `stats` the live
numbers; below them `reports`, `download` and `digests`, then `wire` (one device's requests), `messages` (the DDI
bodies) and `http` (the sockets). It knows nothing of the server but the protocol.
"""

from openiodm.simulator.behaviour import Behaviour, CancelAnswer, ConfirmAnswer, Phase
from openiodm.simulator.device import Device
from openiodm.simulator.fleet import Fleet, make_profiles
from openiodm.simulator.http import HttpClient, TransportError
from openiodm.simulator.profile import DeviceProfile, Pace, TokenKind
from openiodm.simulator.record import ActionRecord, DeviceRecord, Overlap
from openiodm.simulator.stats import DeviceState, FleetStats

__all__ = [
    "ActionRecord",
    "Behaviour",
    "CancelAnswer",
    "ConfirmAnswer",
    "Device",
    "DeviceProfile",
    "DeviceRecord",
    "DeviceState",
    "Fleet",
    "FleetStats",
    "HttpClient",
    "Overlap",
    "Pace",
    "Phase",
    "TokenKind",
    "TransportError",
    "make_profiles",
]
