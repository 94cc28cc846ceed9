"""Object 5: the session against a device model, with the core's pure rules in between."""

from dataclasses import dataclass, field

import pytest

from openiodm.campaigns import texts
from openiodm.campaigns.states import UpgradeState as S
from openiodm.protocols.lwm2m.session import firmware
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
from openiodm.protocols.lwm2m.session.firmware import Known
from tests.support.upgrade import Upgrade

CHANGED, CONTENT, BAD_REQUEST, NOT_FOUND, NOT_ALLOWED = 0x44, 0x45, 0x80, 0x84, 0x85
URI = "coap://server/fw"
SOURCES = Sources({Scheme.COAP: URI}, Scheme.COAP)


@dataclass
class Device:
    """Object 5 as the standard has it, with what real devices do otherwise."""

    version: str | None = "V1"
    state: int = 0
    result: int = 0
    delivery: int | None = None
    protocols: tuple[int, ...] | None = (0,)
    takes_uri: bool = True
    takes_push: bool = True
    observed: bool = False
    needs_observation: bool = False
    busy_answers: int = 0  # to Execute, while a notification is open
    lost: set[str] = field(default_factory=set)  # names of effects whose answer is lost, once each
    uri: str = ""
    asked: list[str] = field(default_factory=list)

    def answer(self, effect: Effect) -> Event:
        name = type(effect).__name__
        self.asked.append(name)
        event = self._answer(effect)
        if name in self.lost:
            self.lost.remove(name)
            return Unanswered(effect)
        return event

    def _answer(self, effect: Effect) -> Answered:
        match effect:
            case Observe():
                self.observed = True
                return Answered(effect, CONTENT, self.state)
            case Read(path=(5, 0, 5)):
                return Answered(effect, CONTENT, self.result)
            case Read(path=(5, 0, 9)):
                return self._value(effect, self.delivery)
            case Read(path=(5, 0, 8)):
                return self._value(effect, None if self.protocols is None else list(self.protocols))
            case Read(path=(3, 0, 3)):
                return self._value(effect, self.version)
            case Write(text=""):
                self.state, self.result, self.uri = 0, 0, ""
                return Answered(effect, CHANGED)
            case Write():
                if not self.takes_uri:
                    return Answered(effect, NOT_ALLOWED)
                self.uri, self.result = effect.text, 0
                return Answered(effect, CHANGED)
            case Upload():
                if not self.takes_push:
                    return Answered(effect, NOT_ALLOWED)
                self.state = 2
                return Answered(effect, CHANGED)
            case Execute():
                if self.busy_answers:
                    self.busy_answers -= 1
                    return Answered(effect, BAD_REQUEST)
                self.state = 3
                return Answered(effect, CHANGED)
            case Pause():
                return Answered(effect, CHANGED)
            case _:
                return Answered(effect, NOT_FOUND)

    @staticmethod
    def _value(effect: Effect, value: object) -> Answered:
        return Answered(effect, NOT_FOUND) if value is None else Answered(effect, CONTENT, value)  # type: ignore[arg-type]


class Play:
    """The session between the two."""

    def __init__(
        self, device: Device | None = None, upgrade: Upgrade | None = None, sources: Sources = SOURCES
    ) -> None:
        self.device = device or Device()
        self.upgrade = upgrade or Upgrade()
        self.sources = sources
        self.known = Known()

    def hear(self, event: Event) -> None:
        self.known, signals = firmware.hear(self.upgrade.standing, self.known, event)
        self.upgrade.signal(signals)

    def go_on(self) -> None:
        """As long as the session has something to ask."""
        for _ in range(30):
            effect = firmware.next_effect(self.upgrade.standing, self.known, self.sources)
            if effect is None:
                return
            if isinstance(effect, Write | Upload) and offers(effect):
                self.hear(Offering(effect))
            self.hear(self.device.answer(effect))
        raise AssertionError(f"it never comes to rest: {self.device.asked[-5:]}")

    def here(self, *, new: bool = False) -> None:
        self.hear(Here(new))
        self.go_on()

    def notify(self, state: int, result: int | None = None, *, lost: bool = False) -> None:
        self.device.state = state
        self.device.result = self.device.result if result is None else result
        if not lost:
            self.hear(Notified((5, 0, 3), state))
            self.go_on()

    def reboot(self, version: str | None, result: int, state: int = 0) -> None:
        self.device.state, self.device.result, self.device.version = state, result, version
        self.here(new=True)


def test_pull_all_the_way() -> None:
    play = Play()
    play.here(new=True)
    assert play.device.asked == ["Observe", "Read", "Read", "Write"]
    assert play.device.uri == URI
    play.notify(1)
    play.notify(2)
    assert play.device.asked[-1] == "Execute"
    play.notify(3)
    play.reboot("V2", 1)
    assert play.upgrade.states == [S.WAIT, S.OFFERED, S.DOWNLOADING, S.DOWNLOADED, S.INSTALLING, S.SUCCESS]
    assert play.upgrade.standing.detail == texts.UPGRADED


def test_the_state_is_observed_before_anything_is_written() -> None:
    play = Play()
    play.here(new=True)
    assert play.device.asked.index("Observe") < play.device.asked.index("Write")


def test_a_device_that_wants_to_be_pushed_to_is() -> None:
    play = Play(Device(delivery=1))
    play.here(new=True)
    assert "Write" not in play.device.asked
    assert "Upload" in play.device.asked
    play.notify(2)
    play.notify(3)
    play.reboot("V2", 1)
    assert play.upgrade.states[2:] == [S.DOWNLOADING, S.DOWNLOADED, S.INSTALLING, S.SUCCESS]


def test_a_device_that_refuses_the_uri_is_pushed_to() -> None:
    play = Play(Device(takes_uri=False))
    play.here(new=True)
    assert play.device.asked[-2:] == ["Write", "Upload"]


def test_a_device_that_can_only_pull_and_refuses_the_uri_fails() -> None:
    play = Play(Device(takes_uri=False, delivery=0))
    play.here(new=True)
    assert (play.upgrade.state, play.upgrade.standing.detail) == (S.FAIL, texts.INVALID_URI)
    assert play.upgrade.standing.error_code == "4.05"


def test_a_device_that_refuses_both_ways_fails() -> None:
    play = Play(Device(takes_uri=False, takes_push=False))
    play.here(new=True)
    assert play.upgrade.state is S.FAIL


def test_a_device_that_supports_no_scheme_of_ours_is_pushed_to_or_has_no_way() -> None:
    play = Play(Device(protocols=(4, 5)))
    play.here(new=True)
    assert play.device.asked[-1] == "Upload"
    play = Play(Device(protocols=(4, 5), delivery=0))
    play.here(new=True)
    assert firmware.hopeless(play.known, SOURCES) is not None


@pytest.mark.parametrize(
    ("supported", "secure", "uri"),
    [
        (None, False, "coap"),
        (None, True, "coaps"),
        ((0,), True, "coap"),  # Huawei's: it says CoAP and fetches on its DTLS association
        ((0, 1), True, "coaps"),
        ((0, 1), False, "coap"),
        ((2, 3), True, "https"),
        ((2,), True, "http"),
        ((4,), True, None),
    ],
)
def test_the_scheme_is_chosen_from_what_the_device_supports(
    supported: tuple[int, ...] | None, secure: bool, uri: str | None
) -> None:
    own = Scheme.COAPS if secure else Scheme.COAP
    assert Sources({s: s.name.lower() for s in Scheme}, own).uri(supported) == uri


@pytest.mark.parametrize("result", sorted(firmware.TEXTS))
def test_every_result_code_ends_in_its_text(result: int) -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.notify(0, result)
    s = play.upgrade.standing
    assert (s.state, s.detail, s.error_code) == (S.FAIL, firmware.TEXTS[result], str(result))


def test_a_failed_update_leaves_the_device_at_state_2_with_result_8() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.notify(2)
    play.notify(3)
    play.notify(2, 8)
    assert (play.upgrade.state, play.upgrade.standing.error_code) == (S.FAIL, "8")


def test_so_it_does_after_a_reboot() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.notify(2)
    play.notify(3)
    play.reboot("V1", 8, state=2)
    assert play.upgrade.state is S.FAIL
    assert play.device.asked.count("Execute") == 1


def test_a_failure_whose_notification_was_lost_is_noticed_at_the_next_contact_and_not_told_again() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.notify(2)
    play.notify(2, 8, lost=True)
    play.here()
    assert play.device.asked.count("Execute") == 1
    assert (play.upgrade.state, play.upgrade.standing.error_code) == (S.FAIL, "8")


def test_success_with_another_version_is_a_failure() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.notify(2)
    play.notify(3)
    play.reboot("V1.5", 1)
    assert play.upgrade.state is S.FAIL
    assert "the device reports version V1.5" in (play.upgrade.standing.detail or "")


def test_a_device_without_a_readable_version_is_judged_by_its_result() -> None:
    play = Play(Device(version=None), Upgrade(version=None))
    play.here(new=True)
    play.notify(1)
    play.notify(2)
    play.notify(3)
    play.reboot(None, 1)
    assert (play.upgrade.state, play.upgrade.standing.detail) == (S.SUCCESS, texts.UPGRADED_UNVERIFIED)


def test_a_result_of_an_earlier_attempt_counts_for_nothing() -> None:
    for stale in (1, 5, 8):
        play = Play(Device(result=stale, version=None), Upgrade(version=None))
        play.here(new=True)
        assert play.upgrade.state is S.OFFERED
        assert play.device.uri == URI


def test_a_stale_success_after_a_power_loss_in_the_download_is_no_success() -> None:
    play = Play(Device(version=None), Upgrade(version=None))
    play.here(new=True)
    play.notify(1)
    play.reboot(None, 1)
    play.here()
    assert play.upgrade.state is S.DOWNLOADING
    assert play.device.asked.count("Write") == 2


def test_power_loss_in_the_download_begins_it_again() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.reboot("V1", 0)
    play.here()
    assert play.device.asked.count("Write") == 2
    play.notify(1)
    play.notify(2)
    play.reboot("V2", 1)
    assert play.upgrade.states == [S.WAIT, S.OFFERED, S.DOWNLOADING, S.DOWNLOADED, S.INSTALLING, S.SUCCESS]


def test_power_loss_after_the_download_goes_on_where_the_device_is() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.notify(2, lost=True)
    play.reboot("V1", 0, state=2)
    assert play.device.asked[-1] == "Execute"
    assert play.upgrade.state is S.INSTALLING


def test_power_loss_while_it_is_told_to_update_tells_it_again() -> None:
    play = Play(Device(lost={"Execute"}))
    play.here(new=True)
    play.notify(1)
    play.notify(2)
    play.reboot("V1", 0, state=2)
    assert play.device.asked.count("Execute") == 2


def test_a_device_that_comes_back_without_a_result_is_judged_by_its_version() -> None:
    for version, state in (("V2", S.SUCCESS), ("V1", S.FAIL)):
        play = Play()
        play.here(new=True)
        play.notify(1)
        play.notify(2)
        play.notify(3)
        play.reboot(version, 0)
        assert play.upgrade.state is state


def test_lost_notifications_are_made_good_at_the_next_contact() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1, lost=True)
    play.notify(2, lost=True)
    play.here()
    assert play.upgrade.state is S.INSTALLING
    assert play.device.asked[-1] == "Execute"


def test_repeated_and_late_notifications_change_nothing() -> None:
    play = Play()
    play.here(new=True)
    for state in (1, 1, 2, 1, 2, 3, 3, 2):
        play.notify(state)
        play.device.state = 3
    assert play.upgrade.states[2:] == [S.DOWNLOADING, S.DOWNLOADED, S.INSTALLING]
    assert play.device.asked.count("Execute") == 1
    play.reboot("V2", 1)
    play.notify(0)
    assert play.upgrade.state is S.SUCCESS


@pytest.mark.parametrize("effect", ["Observe", "Read", "Write", "Execute"])
def test_a_lost_answer_is_made_good_at_the_next_contact(effect: str) -> None:
    play = Play(Device(lost={effect}))
    play.here(new=True)
    play.here()
    play.notify(1)
    play.here()
    play.notify(2)
    play.here()
    play.notify(3)
    play.reboot("V2", 1)
    assert play.upgrade.state is S.SUCCESS


def test_a_write_that_arrived_and_whose_answer_was_lost_is_not_undone() -> None:
    play = Play(Device(lost={"Write"}))
    play.here(new=True)
    play.device.state = 1
    play.here()
    assert play.upgrade.state is S.DOWNLOADING
    assert play.device.asked.count("Write") == 1


@pytest.mark.parametrize("lost", [False, True])
def test_states_that_overtake_the_answer_to_the_write_count(lost: bool) -> None:
    play = Play()
    play.hear(Here(new=True))
    for _ in range(3):
        effect = firmware.next_effect(play.upgrade.standing, play.known, SOURCES)
        assert effect is not None
        play.hear(play.device.answer(effect))
    write = firmware.next_effect(play.upgrade.standing, play.known, SOURCES)
    assert isinstance(write, Write)
    play.hear(Offering(write))
    for state in (1, 2):
        play.device.state = state
        play.hear(Notified((5, 0, 3), state))
    play.hear(Unanswered(write) if lost else Answered(write, CHANGED))
    play.go_on()
    assert play.device.asked[-1] == "Execute"
    assert play.upgrade.state is S.INSTALLING


def test_a_broken_upload_is_begun_again_at_the_next_contact() -> None:
    play = Play(Device(delivery=1, lost={"Upload"}))
    play.here(new=True)
    play.device.state = 0
    play.here()
    play.here()
    assert play.device.asked.count("Upload") == 2
    play.notify(2)
    assert play.upgrade.state is S.INSTALLING


def test_a_device_that_refuses_to_update_while_a_notification_is_open_is_asked_again() -> None:
    play = Play(Device(busy_answers=2))
    play.here(new=True)
    play.notify(1)
    play.notify(2)
    assert play.device.asked[-5:] == ["Execute", "Pause", "Execute", "Pause", "Execute"]
    assert play.upgrade.state is S.INSTALLING


def test_one_that_always_refuses_fails() -> None:
    play = Play(Device(busy_answers=99))
    play.here(new=True)
    play.notify(1)
    play.notify(2)
    assert play.device.asked.count("Execute") == firmware.TRIES
    assert play.upgrade.state is S.FAIL


def test_what_a_device_has_from_before_is_dropped_first() -> None:
    for state in (1, 2):
        play = Play(Device(state=state))
        play.here(new=True)
        assert play.device.asked[:2] == ["Observe", "Write"]
        assert play.device.uri == URI
        assert play.upgrade.state is S.OFFERED


def test_a_deferred_update_is_asked_for_again_at_the_next_contact() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.notify(2)
    play.notify(2, 11)
    assert play.upgrade.state is S.INSTALLING
    assert play.device.asked.count("Execute") == 1
    play.device.state = 2
    play.here()
    assert play.device.asked.count("Execute") == 2


def test_a_device_without_object_5_fails() -> None:
    play = Play()
    play.hear(Here(new=True))
    play.hear(Answered(Observe((5, 0, 3)), NOT_FOUND))
    assert play.upgrade.state is S.FAIL


def test_a_device_that_stays_at_one_state_is_left_to_the_clocks() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    asked = len(play.device.asked)
    for _ in range(5):
        play.here()
        play.notify(1)
    assert len(play.device.asked) == asked
    assert play.upgrade.state is S.DOWNLOADING


def test_a_server_that_was_restarted_goes_on_from_the_standing() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.known = Known()
    play.here()
    assert play.device.asked[-1] == "Observe"
    assert play.upgrade.state is S.DOWNLOADING
    play.notify(2)
    play.known = Known()
    play.device.state = 3
    play.here()
    play.reboot("V2", 1)
    assert play.upgrade.state is S.SUCCESS


@pytest.mark.parametrize("state", [0, 1, 2])
def test_a_stop_before_the_update_makes_the_device_drop_the_package(state: int) -> None:
    play = Play()
    play.here(new=True)
    if state:
        play.notify(1)
    if state == 2:
        play.device.busy_answers = 99
        play.device.state = 2
    play.upgrade.stop()
    if state == 2:  # it has finished the download meanwhile
        play.hear(Notified((5, 0, 3), 2))
    play.hear(Stopping())
    play.go_on()
    assert play.upgrade.state is S.STOP
    assert play.device.uri == ""
    assert "Execute" not in play.device.asked


def test_a_download_that_fails_because_the_task_is_being_stopped_is_no_failure() -> None:
    """The stop closes the task at once, and comes to each device a little later."""
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.upgrade.close()
    play.notify(0, 4)
    assert play.upgrade.state is S.DOWNLOADING
    play.upgrade.stop()
    play.hear(Stopping())
    play.go_on()
    assert play.upgrade.state is S.STOP


def test_a_stop_before_anything_was_said_ends_with_a_look_at_the_device() -> None:
    play = Play()
    play.upgrade.stop()
    play.hear(Stopping())
    play.go_on()
    assert play.device.asked == ["Observe"]
    assert play.upgrade.state is S.STOP


def test_a_stop_in_the_update_ends_as_the_device_reports() -> None:
    for version, result, state in (("V2", 1, S.SUCCESS), ("V1", 8, S.FAIL)):
        play = Play()
        play.here(new=True)
        play.notify(1)
        play.notify(2)
        play.notify(3)
        play.upgrade.stop()
        play.hear(Stopping())
        play.go_on()
        assert play.upgrade.state is S.CANCELLING
        play.reboot(version, result)
        assert play.upgrade.state is state


def test_a_stop_that_a_device_in_its_update_meets_before_it_was_told_ends_at_once() -> None:
    play = Play(Device(lost={"Execute"}))
    play.here(new=True)
    play.notify(1)
    play.notify(2)
    play.device.state = 2
    play.upgrade.stop()
    play.hear(Stopping())
    play.go_on()
    assert play.upgrade.state is S.STOP


def test_so_does_one_whose_state_overtakes_its_answer() -> None:
    """A device that has deferred its update, as Anjay does it: it tells state 0 before it answers the write."""
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.notify(2)
    play.notify(2, 11)
    play.upgrade.stop()
    play.hear(Stopping())
    effect = firmware.next_effect(play.upgrade.standing, play.known, SOURCES)
    assert effect == Write((5, 0, 1), "")
    play.hear(Offering(effect))
    answer = play.device.answer(effect)
    play.hear(Notified((5, 0, 3), 0))
    play.hear(answer)
    assert play.upgrade.state is S.STOP


def test_after_the_end_nothing_is_asked() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.notify(0, 5)
    asked = len(play.device.asked)
    play.here(new=True)
    play.notify(2)
    assert len(play.device.asked) == asked


def test_a_retry_begins_afresh() -> None:
    play = Play()
    play.here(new=True)
    play.notify(1)
    play.notify(0, 5)
    play.upgrade.retry()
    play.known = Known()
    play.here()
    assert play.upgrade.state is S.OFFERED
    play.notify(1)
    play.notify(2)
    play.reboot("V2", 1)
    assert play.upgrade.state is S.SUCCESS
