"""Pre-shared keys in memory, as a DTLS handshake needs them: by identity, without waiting.

All keys are loaded at the start, and those of devices that are registered later a second after. An identity that is
not known is looked up while the device's flight is held for a moment. One whose key did not fit is looked up for its
next try. Whether the device may register is decided by its row, not here: a key that is kept too long opens a handshake
and nothing else.
"""

import asyncio
from typing import Final

import structlog

from openiodm.devices.model import DeviceKey
from openiodm.protocols.port import EndpointDirectory

PAGE: Final = 5_000
"""Keys that are read at once."""
LOOK_BACK: Final = 1_000
"""Devices that are read again: on PostgreSQL a row may be committed after one with a higher id."""
LOOK_UPS: Final = 50
"""Unknown identities that are looked up at the same time; what exceeds it waits for the device's next try."""

log = structlog.get_logger(__name__)


class Keys:
    """The keys of all devices."""

    def __init__(self, directory: EndpointDirectory) -> None:
        self._directory = directory
        self._keys: dict[str, tuple[DeviceKey, bytes] | None] = {}  # None: devices of several applications
        self._last = DeviceKey(0)
        self._looking: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def of(self, identity: str) -> bytes | None:
        """The key, or None. Called within the handshake."""
        found = self._keys.get(identity)
        if found is None:
            if identity in self._keys:
                log.warning("lwm2m.ambiguous_identity", identity=identity, hint="use APP_ID/NODE_ID")
            self._look_up_soon(identity)
            return None
        return found[1]

    def seek(self, identity: str) -> bool:
        """Begins to look up a key that is not here; True when it may be here soon."""
        if self._keys.get(identity) is not None:
            return False
        self._look_up_soon(identity)
        return identity in self._looking

    def doubt(self, identity: str) -> None:
        """The key of that identity did not fit: the device may have another one now."""
        self._look_up_soon(identity)

    async def load(self) -> None:
        """Reads what is new since the last time; everything at the first one."""
        at = DeviceKey(max(0, self._last - LOOK_BACK))
        while rows := await self._directory.keys_after(at, PAGE):
            for device, node_id, psk in rows:
                known = self._keys.setdefault(node_id, (device, key_of(psk)))
                if known is not None and known[0] != device:
                    # Another application's device of that node id, or a later one of the same after a deletion.
                    self._look_up_soon(node_id)
            at = rows[-1][0]
            self._last = max(self._last, at)
            await asyncio.sleep(0)

    def _look_up_soon(self, identity: str) -> None:
        if len(self._looking) >= LOOK_UPS or identity in self._looking:
            return
        task = asyncio.get_running_loop().create_task(self._look_up(identity), name="lwm2m-key")
        self._looking[identity] = task
        task.add_done_callback(lambda _: self._looking.pop(identity, None))

    async def _look_up(self, identity: str) -> None:
        devices = await self._directory.key_of(identity)
        if not devices:
            app_id, slash, node_id = identity.partition("/")
            devices = [each for each in await self._directory.key_of(node_id) if each[0] == app_id] if slash else []
        if len(devices) == 1:
            _, device, psk = devices[0]
            self._keys[identity] = (device, key_of(psk))
        elif devices:
            self._keys[identity] = None
        else:
            self._keys.pop(identity, None)

    async def close(self) -> None:
        """Ends what is looked up."""
        tasks = list(self._looking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def key_of(psk: str) -> bytes:
    """A device's psk as bytes: an even number of hex digits (contract section 5.2) are bytes, else its text is."""
    try:
        return bytes.fromhex(psk) if psk.isalnum() else psk.encode()
    except ValueError:
        return psk.encode()
