"""Whatever happens to one device, in whatever order: `rollout.step` keeps the laws; `conclude` by its definition."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from openiodm.campaigns.model import CampaignKey, CampaignKind, Clocks, Counters, Hold, LogEntry, UpgradeKey
from openiodm.campaigns.rollout import (
    Answer,
    CancelAnswer,
    Conclusion,
    Confirmation,
    Contact,
    Expiry,
    Gone,
    Halt,
    Progress,
    Replaced,
    Result,
    Standing,
    Step,
    Versions,
    What,
    asks_confirmation,
    conclude,
    offers_bytes,
    step,
    wants_contact,
)
from openiodm.campaigns.states import FINAL, GRANTED, UPGRADE_TRANSITIONS, UpgradeEvent, UpgradeState
from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey
from openiodm.packages.model import PackageKey
from openiodm.protocols.ddi.session import is_offered

S = UpgradeState
NOW = 1_000_000
CLOCKS = Clocks(online=100, download=40, install=30, verify=20, cancel=10)
LOG = LogEntry("device", ("a line",))
TARGET = "V2"

# What a phase's clock is, told anew: the code's own table would agree with itself.
CLOCK_OF = {
    S.OFFERED: CLOCKS.download,
    S.DOWNLOADING: CLOCKS.download,
    S.DOWNLOADED: CLOCKS.install,
    S.INSTALLING: CLOCKS.install,
    S.VERIFYING: CLOCKS.verify,
    S.CANCELLING: CLOCKS.cancel,
}
SAME_CLOCK = ({S.OFFERED, S.DOWNLOADING}, {S.DOWNLOADED, S.INSTALLING}, {S.VERIFYING}, {S.CANCELLING})

versions = st.sampled_from([None, "V0", "V1", TARGET])


@st.composite
def standings(draw: st.DrawFn) -> Standing:
    """A waiting upgrade of any campaign and device."""
    start = draw(st.sampled_from([None, None, None, NOW - 20, NOW, NOW + 20]))
    version = draw(versions)
    return Standing(
        upgrade=UpgradeKey(1),
        device=DeviceKey(2),
        campaign=CampaignKey(3),
        package=PackageKey(4),
        state=S.WAIT,
        round=0,
        action_id=None,
        confirmed=None,
        halted_in=None,
        source_version=None,
        detail=None,
        error_code=None,
        started_at=None,
        finished_at=None,
        due_at=None,
        kind=draw(st.sampled_from(CampaignKind)),
        target_version=TARGET,
        source_versions=draw(st.sampled_from([(), (), ("V0",), ("V1", "V0")])),
        confirmation=draw(st.booleans()),
        clocks=CLOCKS,
        window_start=None if start is None else Instant(start),
        window_end=None if start is None else Instant(start + draw(st.integers(1, 200))),
        open=draw(st.sampled_from([True, True, True, False])),
        version=version,
        reports_version=version is not None or draw(st.booleans()),
        auto_confirm=draw(st.sampled_from([False, False, True])),
        attempt_seq=draw(st.integers(0, 3)),
        sub_operation_id="sub-1",
        device_id="device-2",
        full=draw(st.sampled_from([False, False, False, True])),
        hold=draw(st.sampled_from([None, None, None, *Hold])),
    )


# A report's number against the device's newest attempt: most are of this attempt, some late, some of none.
PHASES = (UpgradeEvent.DOWNLOAD_STARTED, UpgradeEvent.DOWNLOADED, UpgradeEvent.INSTALL_STARTED)
ages = st.sampled_from([0, 0, 0, 0, 0, 0, -1, -2, 1, -100])

happenings = st.one_of(
    st.just(("contact",)),
    st.tuples(st.just("progress"), ages, st.sampled_from([None, *PHASES])),
    st.tuples(st.just("progress"), ages, st.sampled_from([*PHASES, *PHASES, *UpgradeEvent])),
    st.tuples(st.just("result"), ages, st.booleans(), st.booleans()),
    st.tuples(st.just("cancel"), ages, st.sampled_from([None, True, False])),
    st.tuples(st.just("confirm"), ages, st.booleans()),
    st.tuples(st.just("versions"), versions, versions),
    st.just(("expiry",)),
    st.just(("halt",)),
    st.sampled_from([("gone",), ("contact",), ("contact",), ("contact",)]),
    st.tuples(st.just("replaced"), st.integers(0, 3)),  # by how much the other node id's attempts are ahead
    st.just(("contact",)),
)
stories = st.lists(st.tuples(st.sampled_from([0, 0, 1, 5, 15, 50]), happenings), min_size=1, max_size=25)


def said(s: Standing, happening: tuple[Any, ...]) -> What:
    """The happening as the core is told of it."""
    match happening:
        case ("contact",):
            return Contact()
        case ("progress", age, event):
            return Progress(s.attempt_seq + age, LOG, event)
        case ("result", age, success, timed_out):
            return Result(s.attempt_seq + age, success, LOG, timed_out=timed_out)
        case ("cancel", age, accepted):
            return CancelAnswer(s.attempt_seq + age, accepted, LOG)
        case ("confirm", age, confirmed):
            return Confirmation(s.attempt_seq + age, confirmed, LOG)
        case ("versions", fw, sw):
            return Versions(fw, sw)
        case ("expiry",):
            return Expiry()
        case ("halt",):
            return Halt()
        case ("replaced", _):
            return Replaced()
        case _:
            return Gone()


def retried(s: Standing) -> Standing:
    """What a retry makes of the row."""
    return msgspec.structs.replace(
        s,
        state=S.WAIT,
        round=s.round + 1,
        action_id=None,
        confirmed=None,
        halted_in=None,
        detail=None,
        error_code=None,
        started_at=None,
        finished_at=None,
    )


def without_versions(s: Standing) -> Standing:
    return msgspec.structs.replace(s, version=None, reports_version=False)


def check(before: Standing, what: What, now: Instant, made: Step) -> None:
    after, moved = made.standing, made.transition
    if moved is None:
        assert after.state is before.state
        assert after.due_at == before.due_at
        assert after.finished_at == before.finished_at
    else:
        assert (moved.from_state, moved.to_state) == (before.state, after.state)
        assert moved.to_state in UPGRADE_TRANSITIONS[moved.from_state].values()
        assert moved.action_id == after.action_id
    check_final(before, after)
    check_numbers(before, what, after)
    check_clock(before, after, now)
    if before.state is S.WAIT and after.state in GRANTED:
        assert isinstance(what, Contact)
        assert before.open
        assert not before.full
        assert before.window_start is None or before.window_start <= now
        assert before.window_end is None or now < before.window_end
        assert wants_contact(before, now)
        assert not before.confirmation or before.confirmed or before.auto_confirm
        assert after.started_at == now
        assert before.version != TARGET
        assert before.version is not None if before.reports_version else before.hold is None, "a restore was forgotten"
    if not isinstance(what, Versions) and after.version != before.version:
        # It tells no version, so its success is believed.
        assert moved is not None
        assert (moved.to_state, after.version, before.reports_version) == (S.SUCCESS, TARGET, False)


def check_final(before: Standing, after: Standing) -> None:
    assert (after.finished_at is not None) is (after.state in FINAL)
    if before.state in FINAL:
        assert without_versions(after) == without_versions(before)
    if after.state in FINAL:
        assert not offers_bytes(after), "law 7"


def check_numbers(before: Standing, what: What, after: Standing) -> None:
    assert after.attempt_seq - before.attempt_seq in (0, 1)
    assert after.action_id is not None or after.state not in GRANTED
    if isinstance(what, Replaced):
        assert after.action_id == (None if before.state is S.WAIT else before.action_id)
        assert after.state not in GRANTED
    else:
        assert after.action_id in (before.action_id, after.attempt_seq)
        assert before.action_id is None or after.action_id == before.action_id
    assert after.action_id in (None, after.attempt_seq) or after.state in FINAL, "an open attempt is the newest"


def check_clock(before: Standing, after: Standing, now: Instant) -> None:
    assert (after.due_at is not None) is (after.state in GRANTED)
    if after.due_at is None:
        return
    if any({before.state, after.state} <= phase for phase in SAME_CLOCK):
        assert after.due_at == before.due_at, "a clock counts from the entry into its phase"
    else:
        assert after.due_at == now + CLOCK_OF[after.state]


def check_twice(made: Step, what: What, now: Instant) -> None:
    """The same again, as a device does that missed our answer."""
    again = step(made.standing, what, now)
    assert again.standing == made.standing
    assert again.transition is None
    if isinstance(what, Result) and made.answer is Answer.DONE:
        assert again.answer is Answer.DONE


@given(standings(), stories)
@settings(max_examples=600, deadline=None)
def test_any_story_of_a_device_keeps_the_laws(s: Standing, story: list[tuple[int, tuple[Any, ...]]]) -> None:
    now = NOW
    for passed, happening in story:
        now += passed
        at, what = Instant(now), said(s, happening)
        if s.state in (S.FAIL, S.TIMEOUT) and happening == ("contact",):
            s = retried(s)
        if happening[0] == "replaced":
            s = msgspec.structs.replace(s, attempt_seq=s.attempt_seq + happening[1])
        made = step(s, what, at)
        check(s, what, at, made)
        check_twice(made, what, at)
        s = made.standing


@given(standings(), stories, st.integers(1, 10**8))
@settings(max_examples=300, deadline=None)
def test_what_was_open_at_a_backup_is_never_offered_again_and_shown_to_be_done_it_succeeds(
    s: Standing, story: list[tuple[int, tuple[Any, ...]]], gap: int
) -> None:
    for passed, happening in story:
        s = step(s, said(s, happening), Instant(NOW + passed)).standing
    if s.state not in GRANTED:
        return
    s = msgspec.structs.replace(s, attempt_seq=s.attempt_seq + gap)
    made = step(s, Contact(), Instant(NOW + 60))
    assert made.standing == s
    assert not is_offered(s)
    assert not offers_bytes(s) or S.INSTALLING in (s.state, s.halted_in)
    assert step(s, Versions(TARGET, TARGET), Instant(NOW + 60)).standing.state is S.SUCCESS


@given(standings(), stories, st.integers(-100, 100).filter(bool), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_report_of_another_attempt_changes_nothing_wherever_the_device_stands(
    s: Standing, story: list[tuple[int, tuple[Any, ...]]], away: int, yes: bool
) -> None:
    for passed, happening in story:
        s = step(s, said(s, happening), Instant(NOW + passed)).standing
    number = (s.action_id or s.attempt_seq) + away
    for what in (
        Progress(number, LOG, UpgradeEvent.DOWNLOADED),
        Result(number, yes, LOG),
        CancelAnswer(number, yes, LOG),
        Confirmation(number, yes, LOG),
    ):
        made = step(s, what, Instant(NOW + 1))
        assert made.standing == s
        assert made.transition is None
        assert made.log is None
        assert made.answer is (Answer.GONE if 0 < number <= s.attempt_seq else Answer.UNKNOWN)


@given(standings(), stories)
@settings(max_examples=300, deadline=None)
def test_every_device_ends_by_its_clocks_alone_once_granted(
    s: Standing, story: list[tuple[int, tuple[Any, ...]]]
) -> None:
    now = NOW
    for passed, happening in story:
        now += passed
        s = step(s, said(s, happening), Instant(now)).standing
    if s.state is S.WAIT:
        return
    for _ in range(2):
        if s.due_at is not None:
            assert step(s, Expiry(), Instant(s.due_at - 1)).standing == s
            s = step(s, Expiry(), s.due_at).standing
    assert s.state in FINAL


@given(standings(), stories)
@settings(max_examples=300, deadline=None)
def test_a_verifying_device_succeeds_with_the_target_version_and_with_no_other(
    s: Standing, story: list[tuple[int, tuple[Any, ...]]]
) -> None:
    for _, happening in story:
        s = step(s, said(s, happening), Instant(NOW)).standing
    verifying = msgspec.structs.replace(
        s, state=S.VERIFYING, action_id=s.action_id or 1, due_at=Instant(NOW + 5), finished_at=None, halted_in=None
    )
    firmware = s.kind is CampaignKind.FIRMWARE

    def told(version: str) -> UpgradeState:
        what = Versions(fw=version) if firmware else Versions(sw=version)
        return step(verifying, what, Instant(NOW)).standing.state

    assert told(TARGET) is S.SUCCESS
    assert told("another") is S.FAIL
    other_kind = Versions(sw=TARGET) if firmware else Versions(fw=TARGET)
    assert step(verifying, other_kind, Instant(NOW)).standing == verifying
    halted = msgspec.structs.replace(verifying, state=S.CANCELLING, halted_in=S.VERIFYING)
    what = Versions(fw=TARGET, sw=TARGET)
    assert step(halted, what, Instant(NOW)).standing.state is S.SUCCESS


@given(standings(), st.integers(0, 300))
@settings(deadline=None)
def test_a_poll_needs_a_write_exactly_when_a_contact_changes_something(s: Standing, passed: int) -> None:
    at = Instant(NOW + passed)
    for _ in range(3):
        made = step(s, Contact(), at)
        assert wants_contact(s, at) is (made.standing != s)
        assert not (wants_contact(s, at) and asks_confirmation(s, at))
        s = made.standing
    assert not wants_contact(s, at)


few, mostly_none = st.integers(0, 3), st.sampled_from([0, 0, 0, 2])


@given(mostly_none, mostly_none, few, few, few, few, few, few, st.none() | st.integers(0, 2))
@settings(max_examples=600, deadline=None)
def test_a_campaign_ends_as_its_counters_say(
    wait: int, processing: int, success: int, fail: int, stop: int, timeout: int, round_: int, times: int, ends: int
) -> None:
    total = wait + processing + success + fail + stop + timeout
    counters = Counters(total, wait, processing, success, fail, stop, timeout)
    window_end = None if ends is None else Instant(ends)
    found = conclude(counters, round_=round_, retry_times=times, window_end=window_end, now=Instant(1))
    failed = bool(fail + timeout)
    again = failed and round_ < times and (window_end is None or window_end > 1)
    assert (found is None) is bool(wait + processing)
    if found is not None:
        assert (found is Conclusion.RETRY) is again
        assert (found is Conclusion.FAILED) is (failed and not again)
        assert (found is Conclusion.SUCCEEDED) is (success == total > 0)
