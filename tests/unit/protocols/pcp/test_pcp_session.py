"""The PCP dialogue, with the core's pure rules in between: what real devices do, one test each."""

import pytest

from openiodm.campaigns import texts
from openiodm.campaigns.model import CampaignKind
from openiodm.campaigns.states import UpgradeState as S
from openiodm.clock import SECOND, Instant
from openiodm.protocols.pcp import session
from openiodm.protocols.pcp.codec import (
    AskFragment,
    Code,
    DownloadState,
    DownloadStateAnswer,
    Execute,
    ExecuteAnswer,
    Fragment,
    FromDevice,
    FromPlatform,
    NewVersion,
    NewVersionAnswer,
    QueryVersion,
    Status,
    UpgradeResult,
    UpgradeResultAnswer,
    VersionAnswer,
)
from openiodm.protocols.pcp.session import Open, Package
from tests.support.upgrade import Upgrade

OK = Status.OK
BODY = bytes(range(256)) * 6  # 1,536 bytes: 4 fragments of 500
PACKAGE = Package(BODY, 500)


class Play:
    """The platform's side of one device."""

    def __init__(self, upgrade: Upgrade | None = None) -> None:
        self.upgrade = upgrade or Upgrade(CampaignKind.SOFTWARE)
        self.asked: Open | None = None
        self.ended = False

    def contact(self, *, new: bool = True) -> list[FromPlatform]:
        self.asked, frames = session.contact(self.upgrade.open, self.asked, self.upgrade.now, new=new)
        return frames

    def say(self, message: FromDevice) -> list[FromPlatform]:
        self.upgrade.signal(session.hear(self.upgrade.open, self.asked, message))
        s, now = self.upgrade.open, self.upgrade.now
        self.ended = self.ended or s is None
        self.asked, frames = session.answer(s, self.asked, message, PACKAGE, now, ended=self.ended)
        return frames

    def fetch(self, first: int = 0) -> bytes:
        got = b""
        for number in range(first, PACKAGE.fragments):
            (frame,) = self.say(AskFragment("V2", number))
            assert isinstance(frame, Fragment)
            assert (frame.status, frame.number) == (OK, number)
            got += frame.data
        return got

    def until_download(self) -> None:
        self.contact()
        self.say(VersionAnswer(OK, "V1"))
        self.say(NewVersionAnswer(OK))

    def until_installing(self) -> None:
        self.until_download()
        self.fetch()
        assert self.say(DownloadState(OK)) == [DownloadStateAnswer(OK), Execute()]

    def pass_seconds(self, seconds: int) -> None:
        self.upgrade.now = Instant(self.upgrade.now + seconds * SECOND)


def test_all_the_way() -> None:
    play = Play()
    assert play.contact() == [QueryVersion()]
    assert play.say(VersionAnswer(OK, "V1")) == [NewVersion("V2", 500, 4, 0)]
    assert play.say(NewVersionAnswer(OK)) == []
    assert play.fetch() == BODY
    assert play.say(DownloadState(OK)) == [DownloadStateAnswer(OK), Execute()]
    assert play.say(ExecuteAnswer(OK)) == []
    assert play.say(UpgradeResult(OK, "V2")) == [UpgradeResultAnswer(OK)]
    assert play.upgrade.states == [S.WAIT, S.OFFERED, S.DOWNLOADING, S.DOWNLOADED, S.INSTALLING, S.SUCCESS]


def test_a_device_on_the_target_version_has_nothing_to_do() -> None:
    play = Play(Upgrade(CampaignKind.SOFTWARE, version=None))
    play.contact()
    assert play.say(VersionAnswer(OK, "V2")) == []
    assert play.upgrade.state is S.SUCCESS


def test_a_fresh_device_tells_sixteen_zero_bytes_and_is_upgraded() -> None:
    play = Play(Upgrade(CampaignKind.SOFTWARE, version=None))
    play.contact()
    assert play.say(VersionAnswer(OK, "")) == [NewVersion("V2", 500, 4, 0)]
    assert play.upgrade.told == []
    play.fetch()
    play.say(DownloadState(OK))
    play.say(UpgradeResult(OK, "V2"))
    assert (play.upgrade.state, play.upgrade.standing.detail) == (S.SUCCESS, texts.UPGRADED)


def test_a_version_that_the_package_does_not_start_from_fails() -> None:
    play = Play(Upgrade(CampaignKind.SOFTWARE, version=None, sources=["V1"]))
    play.contact()
    assert play.say(VersionAnswer(OK, "V0")) == []
    assert (play.upgrade.state, play.upgrade.standing.detail) == (S.FAIL, texts.SOURCE_VERSION)


def test_a_request_for_a_fragment_instead_of_an_answer_to_the_offer_is_a_yes() -> None:
    play = Play()
    play.contact()
    play.say(VersionAnswer(OK, "V1"))
    assert play.say(AskFragment("V2", 0)) == [Fragment(OK, 0, BODY[:500])]
    assert play.upgrade.state is S.DOWNLOADING


def test_the_same_request_again_is_answered_in_full_and_is_no_progress() -> None:
    play = Play()
    play.until_download()
    first = [play.say(AskFragment("V2", 0)) for _ in range(3)]
    assert first == [[Fragment(OK, 0, BODY[:500])]] * 3
    assert play.upgrade.states == [S.WAIT, S.OFFERED, S.DOWNLOADING]


def test_fragments_may_be_asked_for_in_any_order_and_beyond_the_end() -> None:
    play = Play()
    play.until_download()
    assert play.say(AskFragment("V2", 3)) == [Fragment(OK, 3, BODY[1500:])]
    assert play.say(AskFragment("V2", 4)) == [Fragment(Status.NO_SUCH_FRAGMENT, 4)]
    assert play.say(AskFragment("V2", 0)) == [Fragment(OK, 0, BODY[:500])]


def test_fragments_of_another_version_are_no_task() -> None:
    play = Play()
    play.until_download()
    assert play.say(AskFragment("V3", 0)) == [Fragment(Status.NO_SUCH_TASK, 0)]


def test_after_a_power_loss_the_device_goes_on_unasked() -> None:
    play = Play()
    play.until_download()
    play.say(AskFragment("V2", 0))
    play.asked = None  # the server was restarted as well
    assert play.fetch(first=1) == BODY[500:]
    assert play.upgrade.state is S.DOWNLOADING


def test_after_a_power_loss_a_device_that_says_nothing_is_asked_and_told_again() -> None:
    play = Play()
    play.until_download()
    play.say(AskFragment("V2", 0))
    assert play.contact() == [QueryVersion()]
    assert play.say(VersionAnswer(OK, "V1")) == [NewVersion("V2", 500, 4, 0)]


def test_a_device_that_has_everything_says_so_until_it_is_told_to_go() -> None:
    play = Play()
    play.until_installing()
    for _ in range(3):
        assert play.say(DownloadState(OK)) == [DownloadStateAnswer(OK), Execute()]
    assert play.upgrade.states[2:] == [S.DOWNLOADING, S.DOWNLOADED, S.INSTALLING]


def test_the_download_state_of_an_earlier_task_does_not_start_this_one() -> None:
    play = Play()
    play.contact()
    assert play.say(DownloadState(OK)) == [DownloadStateAnswer(Status.NO_SUCH_TASK)]
    assert play.upgrade.state is S.OFFERED


def test_a_package_that_the_device_has_already_is_told_to_go_without_a_fragment() -> None:
    play = Play()
    play.until_download()
    assert play.say(DownloadState(OK)) == [DownloadStateAnswer(OK), Execute()]


def test_the_answer_to_the_execution_may_be_lost() -> None:
    play = Play()
    play.until_installing()
    assert play.contact() == [QueryVersion()]
    assert play.say(UpgradeResult(OK, "V2")) == [UpgradeResultAnswer(OK)]
    assert play.upgrade.state is S.SUCCESS


def test_a_lost_result_is_made_good_by_the_version() -> None:
    play = Play()
    play.until_installing()
    play.contact()
    play.say(VersionAnswer(OK, "V2"))
    assert play.upgrade.state is S.SUCCESS


def test_a_result_that_comes_again_is_answered_again() -> None:
    play = Play()
    play.until_installing()
    answers = [play.say(UpgradeResult(OK, "V2")) for _ in range(3)]
    assert answers == [[UpgradeResultAnswer(OK)]] * 3


def test_a_result_without_any_task_is_told_so() -> None:
    message = UpgradeResult(OK, "V9")
    assert session.answer(None, None, message, None, Instant(0), ended=False)[1] == [
        UpgradeResultAnswer(Status.NO_SUCH_TASK)
    ]
    assert session.answer(None, None, message, None, Instant(0), ended=True)[1] == [UpgradeResultAnswer(OK)]


def test_a_result_from_before_the_execution_is_of_an_earlier_task() -> None:
    play = Play()
    play.until_download()
    assert play.say(UpgradeResult(Status.INSTALL_FAILED, "V1")) == [UpgradeResultAnswer(OK)]
    assert play.upgrade.state is S.OFFERED


def test_success_with_another_version_is_a_failure() -> None:
    for version in ("V1", ""):
        play = Play()
        play.until_installing()
        play.say(UpgradeResult(OK, version))
        assert play.upgrade.state is S.FAIL


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        (NewVersionAnswer(0x03), "up to date"),
        (NewVersionAnswer(0x04), "battery"),
        (NewVersionAnswer(0x05), texts.NO_STORAGE),
        (NewVersionAnswer(0x42), "internal error"),
        (VersionAnswer(0x01, "V1"), "in use"),
        (DownloadState(0x07), texts.INTEGRITY),
        (DownloadState(0x08), texts.UNSUPPORTED_TYPE),
        (DownloadState(0x09), texts.OUT_OF_MEMORY),
    ],
)
def test_what_a_device_refuses_ends_in_its_text(message: FromDevice, detail: str) -> None:
    play = Play()
    play.contact()
    if not isinstance(message, VersionAnswer):
        play.say(VersionAnswer(OK, "V1"))
    if isinstance(message, DownloadState):
        play.fetch()
    play.say(message)
    s = play.upgrade.standing
    assert s.state is S.FAIL
    assert detail in (s.detail or "")
    assert s.error_code == str(message.status)


def test_a_download_time_out_of_the_device_counts_as_a_timeout() -> None:
    play = Play()
    play.until_download()
    play.fetch()
    assert play.say(DownloadState(Status.DOWNLOAD_TIMEOUT)) == [DownloadStateAnswer(OK)]
    assert play.upgrade.state is S.TIMEOUT


def test_a_refused_execution_and_a_failed_installation_fail() -> None:
    for message in (ExecuteAnswer(Status.LOW_BATTERY), UpgradeResult(Status.INSTALL_FAILED, "V1")):
        play = Play()
        play.until_installing()
        play.say(message)
        assert play.upgrade.state is S.FAIL


def test_a_version_report_that_nobody_asked_for_is_a_fresh_report() -> None:
    play = Play()
    play.until_download()
    play.fetch()
    assert play.say(VersionAnswer(OK, "V1")) == []
    assert play.upgrade.told == ["V1", "V1"]
    assert session.hear(None, None, VersionAnswer(OK, "V7")) != []


def test_a_device_that_never_answers_the_version_query_fails() -> None:
    play = Play()
    play.contact()
    play.pass_seconds(30)
    assert play.contact(new=False) == []
    play.pass_seconds(60)
    assert play.contact(new=False) == [QueryVersion()]
    assert session.overdue(play.upgrade.standing, play.asked, play.upgrade.now) is None
    play.pass_seconds(90)
    result = session.overdue(play.upgrade.standing, play.asked, play.upgrade.now)
    assert result is not None
    play.upgrade.signal([result])
    assert (play.upgrade.state, play.upgrade.standing.detail) == (S.TIMEOUT, texts.VERSION_TIMEOUT)


def test_an_old_question_does_not_make_a_new_one_overdue() -> None:
    play = Play()
    play.until_download()
    play.pass_seconds(600)
    assert play.contact(new=False) == [QueryVersion()]
    assert play.asked is not None
    assert play.asked.code is Code.VERSION_QUERY
    assert session.overdue(play.upgrade.standing, play.asked, play.upgrade.now) is None


@pytest.mark.parametrize("reached", [S.OFFERED, S.DOWNLOADING])
def test_a_stop_before_the_execution_refuses_every_fragment_and_ends_at_once(reached: S) -> None:
    play = Play()
    play.until_download()
    if reached is S.DOWNLOADING:
        play.fetch()
    play.upgrade.stop()
    assert play.say(AskFragment("V2", 1)) == [Fragment(Status.NO_SUCH_TASK, 1)]
    assert play.say(DownloadState(OK)) == [DownloadStateAnswer(Status.NO_SUCH_TASK)]
    answer = session.stopped(play.upgrade.standing)
    assert answer is not None
    play.upgrade.signal([answer])
    assert play.upgrade.state is S.STOP
    assert play.contact() == []
    assert play.say(AskFragment("V2", 1)) == [Fragment(Status.NO_SUCH_TASK, 1)]


def test_a_stop_after_the_execution_waits_for_the_result() -> None:
    play = Play()
    play.until_installing()
    play.upgrade.stop()
    assert session.stopped(play.upgrade.standing) is None
    play.say(UpgradeResult(OK, "V2"))
    assert play.upgrade.state is S.SUCCESS


def test_a_stop_that_overtakes_the_download_state_keeps_the_device_from_being_told_to_go() -> None:
    play = Play()
    play.until_download()
    play.fetch()
    signals = session.hear(play.upgrade.standing, play.asked, DownloadState(OK))
    play.upgrade.stop()  # commits first
    play.upgrade.signal(signals)
    _, frames = session.answer(play.upgrade.standing, None, DownloadState(OK), PACKAGE, play.upgrade.now, ended=False)
    assert Execute() not in frames


def test_a_retry_offers_the_package_again() -> None:
    play = Play()
    play.until_download()
    play.say(NewVersionAnswer(Status.LOW_BATTERY))
    play.upgrade.retry()
    play.asked = None
    assert play.contact(new=False) == [QueryVersion()]
