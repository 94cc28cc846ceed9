"""Object 9: the session against a device model, with the core's pure rules in between."""

from dataclasses import dataclass, field

import pytest

from openiodm.campaigns import texts
from openiodm.campaigns.model import CampaignKind
from openiodm.campaigns.states import UpgradeState as S
from openiodm.protocols.lwm2m.session import software
from openiodm.protocols.lwm2m.session.dialogue import (
    Answered,
    Effect,
    Event,
    Execute,
    Here,
    Notified,
    Observe,
    Offering,
    Pause,
    Read,
    Scheme,
    Sources,
    Stopping,
    Unanswered,
    Upload,
    Write,
    offers,
)
from openiodm.protocols.lwm2m.session.software import Known
from tests.support.upgrade import Upgrade

CHANGED, CONTENT, BAD_REQUEST, NOT_FOUND, NOT_ALLOWED = 0x44, 0x45, 0x80, 0x84, 0x85
SOURCES = Sources({Scheme.COAP: "coap://server/sw"}, Scheme.COAP)


@dataclass
class Device:
    """Instance 2 of object 9."""

    version: str | None = None
    state: int = 0
    result: int = 0
    active: int = 0
    takes_uri: bool = True
    uninstalls: bool = True
    busy_answers: int = 0
    lost: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def answer(self, effect: Effect) -> Event:
        name = type(effect).__name__ + (str(effect.path[2]) if isinstance(effect, Read | Execute) else "")
        self.asked.append(name)
        event = self._answer(effect)
        if name in self.lost:
            self.lost.remove(name)
            return Unanswered(effect)
        return event

    def _answer(self, effect: Effect) -> Answered:
        match effect:
            case Observe(path=(9, 2, 7)):
                return Answered(effect, CONTENT, self.state)
            case Read(path=(9, 2, 9)):
                return Answered(effect, CONTENT, self.result)
            case Read(path=(9, 2, 12)):
                return Answered(effect, CONTENT, self.active)
            case Read(path=(9, 2, 1)) if self.version is not None:
                return Answered(effect, CONTENT, self.version)
            case Write(path=(9, 2, 3)):
                return Answered(effect, CHANGED if self.takes_uri else NOT_ALLOWED)
            case Upload(path=(9, 2, 2)):
                self.state = 3
                return Answered(effect, CHANGED)
            case Execute(path=(9, 2, 6)):
                if not self.uninstalls:
                    return Answered(effect, NOT_ALLOWED)
                self.state = 0
                return Answered(effect, CHANGED)
            case Execute(path=(9, 2, 4)) if self.busy_answers:
                self.busy_answers -= 1
                return Answered(effect, BAD_REQUEST)
            case Execute(path=(9, 2, 10)):
                self.active = 1
                return Answered(effect, CHANGED)
            case Execute() | Pause():
                return Answered(effect, CHANGED)
            case _:
                return Answered(effect, NOT_FOUND)


class Play:
    """The session between the two."""

    def __init__(self, device: Device | None = None, version: str | None = None) -> None:
        self.device = device or Device()
        self.upgrade = Upgrade(CampaignKind.SOFTWARE, version=version)
        self.known = Known(2)

    def hear(self, event: Event) -> None:
        self.known, signals = software.hear(self.upgrade.standing, self.known, event)
        self.upgrade.signal(signals)

    def go_on(self) -> None:
        for _ in range(30):
            effect = software.next_effect(self.upgrade.standing, self.known, SOURCES)
            if effect is None:
                return
            if isinstance(effect, Write | Upload) and offers(effect):
                self.hear(Offering(effect))
            self.hear(self.device.answer(effect))
        raise AssertionError(f"it never comes to rest: {self.device.asked[-5:]}")

    def here(self, *, new: bool = False) -> None:
        self.hear(Here(new))
        self.go_on()

    def notify(self, state: int, result: int | None = None, version: str | None = None) -> None:
        self.device.state = state
        self.device.result = self.device.result if result is None else result
        self.device.version = version or self.device.version
        self.hear(Notified((9, 2, 7), state))
        self.go_on()


ALL_THE_WAY = [S.WAIT, S.OFFERED, S.DOWNLOADING, S.DOWNLOADED, S.INSTALLING, S.SUCCESS]


def test_pull_all_the_way() -> None:
    play = Play()
    play.here(new=True)
    assert play.device.asked == ["Observe", "Write"]
    play.notify(1)
    play.notify(2)
    play.notify(3, 3)
    assert play.device.asked[-3:] == ["Execute4", "Pause", "Read9"]
    play.notify(4, 2, "V2")
    assert play.device.asked[-4:] == ["Read9", "Read12", "Execute10", "Read1"]
    assert play.upgrade.states == ALL_THE_WAY
    assert play.upgrade.standing.detail == texts.UPGRADED


def test_a_device_that_refuses_the_uri_is_pushed_to() -> None:
    play = Play(Device(takes_uri=False))
    play.here(new=True)
    assert play.device.asked == ["Observe", "Write", "Upload"]
    play.notify(3)
    play.notify(4, 2, "V2")
    assert play.upgrade.states == ALL_THE_WAY


def test_software_that_is_in_place_is_removed_for_the_update() -> None:
    play = Play(Device(state=4, version="V1", result=2))
    play.here(new=True)
    assert play.device.asked == ["Observe", "Read1", "Execute6", "Write"]
    assert play.upgrade.told == ["V1"]


def test_a_device_that_does_not_uninstall_is_given_the_package_nevertheless() -> None:
    play = Play(Device(state=4, version="V1", uninstalls=False))
    play.here(new=True)
    assert play.device.asked[-2:] == ["Execute6", "Write"]


def test_software_that_has_the_version_already_is_left_alone() -> None:
    play = Play(Device(state=4, version="V2"))
    play.here(new=True)
    assert play.device.asked == ["Observe", "Read1"]
    assert play.upgrade.state is S.SUCCESS


def test_what_was_delivered_before_is_removed_and_never_installed() -> None:
    play = Play(Device(state=3))
    play.here(new=True)
    assert play.device.asked == ["Observe", "Execute6", "Write"]


@pytest.mark.parametrize("result", sorted(software.TEXTS))
def test_every_result_code_ends_in_its_text(result: int) -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.notify(0, result)
    s = play.upgrade.standing
    assert (s.state, s.detail, s.error_code) == (S.FAIL, software.TEXTS[result], str(result))


def test_a_failing_installer_leaves_the_device_at_delivered() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.notify(3)
    play.notify(3, 58)
    assert (play.upgrade.state, play.upgrade.standing.error_code) == (S.FAIL, "58")


def test_an_installer_that_fails_without_a_change_of_state_is_noticed() -> None:
    play = Play()
    play.here(new=True)
    play.device.result = 58
    play.notify(3)
    assert play.device.asked[-3:] == ["Execute4", "Pause", "Read9"]
    assert (play.upgrade.state, play.upgrade.standing.error_code) == (S.FAIL, "58")


def test_one_that_fails_later_is_noticed_at_the_next_contact_and_not_told_again() -> None:
    for new in (False, True):
        play = Play()
        play.here(new=True)
        play.notify(3, 3)
        play.device.result = 58
        play.here(new=new)
        assert play.device.asked.count("Execute4") == 1
        assert (play.upgrade.state, play.upgrade.standing.error_code) == (S.FAIL, "58")


def test_a_busy_device_is_asked_again() -> None:
    play = Play(Device(busy_answers=2))
    play.here(new=True)
    play.notify(3)
    assert play.device.asked[-7:-2] == ["Execute4", "Pause", "Execute4", "Pause", "Execute4"]
    play = Play(Device(busy_answers=99))
    play.here(new=True)
    play.notify(3)
    assert play.upgrade.state is S.FAIL


def test_another_version_after_the_installation_is_a_failure() -> None:
    play = Play()
    play.here(new=True)
    play.notify(3)
    play.notify(4, 2, "V7")
    assert play.upgrade.state is S.FAIL


def test_a_device_without_a_readable_version_is_judged_by_its_result() -> None:
    play = Play()
    play.here(new=True)
    play.notify(3)
    play.notify(4, 2)
    assert (play.upgrade.state, play.upgrade.standing.detail) == (S.SUCCESS, texts.UPGRADED_UNVERIFIED)


@pytest.mark.parametrize("effect", ["Observe", "Write", "Execute4", "Read9", "Read12", "Execute10", "Read1"])
def test_a_lost_answer_is_made_good_at_the_next_contact(effect: str) -> None:
    play = Play(Device(lost={effect}))
    play.here(new=True)
    play.here()
    play.notify(1)
    play.notify(3)
    play.here()
    play.notify(4, 2, "V2")
    play.here()
    assert play.upgrade.states == ALL_THE_WAY


def test_power_loss_in_the_download_begins_it_again() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.device.state = 0
    play.here(new=True)
    assert play.device.asked.count("Write") == 2
    play.notify(3)
    play.here(new=True)
    assert play.device.asked.count("Execute4") == 2
    play.notify(4, 2, "V2")
    assert play.upgrade.states == ALL_THE_WAY


@pytest.mark.parametrize("state", [0, 1, 3])
def test_a_stop_before_the_installation_ends_at_once(state: int) -> None:
    play = Play()
    play.here(new=True)
    if state:
        play.notify(1)
    play.device.state = state
    play.upgrade.stop()
    play.hear(Stopping())
    play.notify(state)
    assert play.upgrade.state is S.STOP
    assert "Execute4" not in play.device.asked


def test_a_stop_in_the_installation_ends_as_the_device_reports() -> None:
    play = Play()
    play.here(new=True)
    play.notify(3)
    play.upgrade.stop()
    play.hear(Stopping())
    assert play.upgrade.state is S.CANCELLING
    play.notify(4, 2, "V2")
    assert play.upgrade.state is S.SUCCESS


def test_a_server_that_was_restarted_goes_on_from_the_standing() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.known = Known(2)
    play.device.state = 3
    play.here()
    assert play.upgrade.state is S.INSTALLING
    play.known = Known(2)
    play.device.state, play.device.result, play.device.version = 4, 2, "V2"
    play.here()
    assert play.upgrade.state is S.SUCCESS


def test_a_device_without_the_object_fails() -> None:
    play = Play()
    play.hear(Answered(Observe((9, 2, 7)), NOT_FOUND))
    assert play.upgrade.state is S.FAIL
