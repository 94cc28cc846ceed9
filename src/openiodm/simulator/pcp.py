"""A simulated device's side of PCP, over any carrier: as LiteOS_Lab does it, with its flash and its impatience.

It asks again for what does not come, goes on unasked after a reboot, says that it has everything until it is told to
install, and tells its result until that is answered.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from openiodm.protocols.pcp.codec import (
    AskFragment,
    DownloadState,
    DownloadStateAnswer,
    Execute,
    ExecuteAnswer,
    Fragment,
    FromDevice,
    NewVersion,
    NewVersionAnswer,
    PcpFormatError,
    QueryVersion,
    Status,
    UpgradeResult,
    UpgradeResultAnswer,
    VersionAnswer,
    decode_platform,
    encode,
)


class Stage(Enum):
    """Where it is; in flash."""

    IDLE = "idle"
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    UPGRADED = "upgraded"  # and the result is not told yet


@dataclass
class PcpFlash:
    """What outlives a reboot. `fails` is a state that the next download ends in, or a result of the installation."""

    version: str
    stage: Stage = Stage.IDLE
    target: str = ""
    check_code: int = 0
    fragment_bytes: int = 0
    fragments: int = 0
    have: list[bytes] = field(default_factory=list)
    result: int = 0


@dataclass
class PcpFaults:
    """What goes wrong, once each."""

    refuses: int = 0  # answer to the new version
    download_state: int = 0
    install_result: int = 0
    reboots_at: int | None = None  # loses power with so many fragments
    loses_execute_answer: bool = False
    wrong_version: bool = False  # says result 0 and runs the old one


class PcpSide:
    """The protocol side; `send` gives a frame to the carrier, `start` runs a task until the next reboot."""

    def __init__(
        self,
        flash: PcpFlash,
        *,
        send: Callable[[bytes], Awaitable[None]],
        start: Callable[[Coroutine[Any, Any, None]], None],
        reboot: Callable[[], None],
        ended: Callable[[str, int], None],
        answers_new_version: bool = True,
        ask_again: float = 2.0,
    ) -> None:
        self.flash = flash
        self.faults = PcpFaults()
        self.asked_for: list[int] = []
        self._send = send
        self._start = start
        self._reboot = reboot
        self._ended = ended
        self._answers_new_version = answers_new_version
        self._ask_again = ask_again
        self._heard = asyncio.Event()
        self._busy = False

    def boot(self) -> None:
        """It goes on when somebody listens: see `observed`."""
        self._busy = False

    def observed(self) -> None:
        """The platform listens now."""
        self._go_on()

    def _go_on(self) -> None:
        if not self._busy and self.flash.stage is not Stage.IDLE:
            self._busy = True
            self._start(self._insist())

    async def _insist(self) -> None:
        """Says what it has to say until it is answered."""
        while self._busy:
            message = self._wish()
            if message is None:
                self._busy = False
                return
            self._heard.clear()
            if isinstance(message, AskFragment):
                self.asked_for.append(message.number)
            await self._send(encode(message))
            try:
                await asyncio.wait_for(self._heard.wait(), self._ask_again)
            except TimeoutError:
                continue

    def _wish(self) -> FromDevice | None:
        flash = self.flash
        match flash.stage:
            case Stage.DOWNLOADING:
                return AskFragment(flash.target, len(flash.have))
            case Stage.DOWNLOADED:
                return DownloadState(Status.OK)
            case Stage.UPGRADED:
                return UpgradeResult(flash.result, flash.version)
            case Stage.IDLE:
                return None

    def take(self, raw: bytes) -> None:
        """A frame of the platform; a damaged one is dropped."""
        try:
            message = decode_platform(raw)
        except PcpFormatError:
            return
        match message:
            case QueryVersion():
                self._say(VersionAnswer(Status.OK, self.flash.version))
            case NewVersion():
                self._offered(message)
            case Fragment():
                self._fragment(message)
            case Execute():
                self._execute()
            case UpgradeResultAnswer() if self.flash.stage is Stage.UPGRADED:
                self.flash.stage = Stage.IDLE
                self._heard.set()
            case DownloadStateAnswer() if message.status == Status.NO_SUCH_TASK:
                self.flash.stage = Stage.IDLE
                self._heard.set()
            case _:
                pass

    def _say(self, message: FromDevice) -> None:
        async def say() -> None:
            await self._send(encode(message))

        self._start(say())

    def _offered(self, offer: NewVersion) -> None:
        flash = self.flash
        if self.faults.refuses:
            self._say(NewVersionAnswer(self.faults.refuses))
            self._ended("", self.faults.refuses)
            self.faults.refuses = 0
            return
        if (flash.target, flash.check_code) != (offer.version, offer.check_code) or flash.stage is Stage.IDLE:
            flash.have = []
            flash.stage = Stage.DOWNLOADING
        flash.target, flash.check_code = offer.version, offer.check_code
        flash.fragment_bytes, flash.fragments = offer.fragment_bytes, offer.fragments
        if self._answers_new_version:
            self._say(NewVersionAnswer(Status.OK))
        self._go_on()

    def _fragment(self, fragment: Fragment) -> None:
        flash = self.flash
        if flash.stage is not Stage.DOWNLOADING:
            return
        if fragment.status == Status.NO_SUCH_TASK:
            flash.stage = Stage.IDLE
            self._heard.set()
            return
        if fragment.status != Status.OK or fragment.number != len(flash.have):
            return  # it asks again for the one that it wants
        flash.have.append(fragment.data)
        if self.faults.reboots_at == len(flash.have):
            self.faults.reboots_at = None
            self._reboot()
            return
        if len(flash.have) == flash.fragments:
            self._complete()
        self._heard.set()

    def _complete(self) -> None:
        if self.faults.download_state:
            self._say(DownloadState(self.faults.download_state))
            self._ended("", self.faults.download_state)
            self.faults.download_state = 0
            self.flash.stage = Stage.IDLE
            return
        self.flash.stage = Stage.DOWNLOADED

    def _execute(self) -> None:
        flash = self.flash
        if flash.stage is not Stage.DOWNLOADED:
            return
        digest = hashlib.sha256(b"".join(flash.have)).hexdigest()
        flash.result, self.faults.install_result = self.faults.install_result, 0
        if flash.result == Status.OK and not self.faults.wrong_version:
            flash.version = flash.target
        self.faults.wrong_version = False
        flash.stage, flash.have = Stage.UPGRADED, []
        self._ended(digest, flash.result)
        if self.faults.loses_execute_answer:
            self.faults.loses_execute_answer = False
            self._reboot()
            return

        async def answer_and_reboot() -> None:
            await self._send(encode(ExecuteAnswer(Status.OK)))
            self._reboot()

        self._busy = False
        self._start(answer_and_reboot())
