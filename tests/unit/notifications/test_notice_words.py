"""Which notices a change makes, and what they say (section 4.4)."""

import json

import pytest

from openiodm.campaigns.model import CampaignKind
from openiodm.campaigns.states import UPGRADE_TRANSITIONS, UpgradeState
from openiodm.clock import Instant
from openiodm.notifications import bodies
from openiodm.notifications.bodies import Facts

S = UpgradeState

# Every transition there is, with its words; those of the newer two stand first.
WORDS = {
    (S.WAIT, S.OFFERED): ["otacreated"],
    (S.OFFERED, S.DOWNLOADING): ["RequestDownload", "downloading"],
    (S.OFFERED, S.DOWNLOADED): ["downloaded"],
    (S.OFFERED, S.INSTALLING): ["updating"],
    (S.OFFERED, S.VERIFYING): ["updating"],
    (S.DOWNLOADING, S.DOWNLOADED): ["downloaded"],
    (S.DOWNLOADING, S.INSTALLING): ["updating"],
    (S.DOWNLOADING, S.VERIFYING): ["updating"],
    (S.DOWNLOADED, S.INSTALLING): ["updating"],
    (S.DOWNLOADED, S.VERIFYING): ["updating"],
    (S.INSTALLING, S.VERIFYING): [],  # it was updating already
    (S.CANCELLING, S.VERIFYING): [],
}
UNDER_WAY = (S.OFFERED, S.DOWNLOADING, S.DOWNLOADED, S.INSTALLING, S.VERIFYING)


def expected(before: UpgradeState, after: UpgradeState) -> list[str]:
    if after in (S.SUCCESS, S.FAIL, S.TIMEOUT, S.STOP) and before is not S.WAIT:
        return ["idle"]
    return WORDS.get((before, after), [])


def test_every_transition_has_the_words_that_are_written_down() -> None:
    legal = {(before, after) for before, moves in UPGRADE_TRANSITIONS.items() for after in moves.values()}
    assert set(WORDS) <= legal
    for before, after in legal:
        assert list(bodies.words(before, after, newer=True)) == expected(before, after), (before, after)


def test_the_newer_words_can_be_left_out() -> None:
    assert bodies.words(S.WAIT, S.OFFERED, newer=False) == ()
    assert bodies.words(S.OFFERED, S.DOWNLOADING, newer=False) == ("downloading",)
    assert bodies.words(S.DOWNLOADED, S.INSTALLING, newer=False) == ("updating",)


def test_a_result_is_told_of_every_end_but_that_of_a_device_that_is_stopped_while_it_waits() -> None:
    for before, moves in UPGRADE_TRANSITIONS.items():
        for after in moves.values():
            ends = after in (S.SUCCESS, S.FAIL, S.TIMEOUT, S.STOP)
            assert bodies.has_result(before, after) is (ends and (before, after) != (S.WAIT, S.STOP))


def facts(kind: CampaignKind, state: UpgradeState, **others: object) -> Facts:
    given: dict[str, object] = {
        "kind": kind,
        "app_id": "a",
        "operation_id": "o",
        "sub_operation_id": "s",
        "device_id": "d",
        "target_version": "1.5",
        "source_version": "1.0",
        "version": "1.3",
        "state": state,
        "detail": "Connection lost",
        "error_code": "7",
        "started_at": Instant(1_000),
        "finished_at": Instant(62_999),
        **others,
    }
    return Facts(**given)  # type: ignore[arg-type]


HEAD = '"deviceId":"d","appId":"a","operationId":"o","subOperationId":"s",'
VERSIONS = '"targetVersion":"1.5","sourceVersion":"1.0",'


@pytest.mark.parametrize(
    ("kind", "state", "body"),
    [
        (
            CampaignKind.SOFTWARE,
            S.FAIL,
            f'{{"notifyType":"swUpgradeResultNotify",{HEAD}"curVersion":"1.3",{VERSIONS}"swUpgradeResult":"FAIL",'
            '"upgradeTime":61,"resultDesc":"Connection lost","errorCode":"7","description":"Connection lost"}',
        ),
        (
            CampaignKind.SOFTWARE,
            S.SUCCESS,
            f'{{"notifyType":"swUpgradeResultNotify",{HEAD}"curVersion":"1.5",{VERSIONS}"swUpgradeResult":"SUCCESS",'
            '"upgradeTime":61,"resultDesc":"Connection lost","errorCode":"0","description":""}',
        ),
        (
            CampaignKind.FIRMWARE,
            S.TIMEOUT,
            f'{{"notifyType":"fwUpgradeResultNotify",{HEAD}"curVersion":"1.3",{VERSIONS}"status":"FAIL",'
            '"statusDesc":"Connection lost","upgradeTime":61}',
        ),
        (
            CampaignKind.FIRMWARE,
            S.STOP,
            f'{{"notifyType":"fwUpgradeResultNotify",{HEAD}"curVersion":"1.3",{VERSIONS}"status":"FAIL",'
            '"statusDesc":"Connection lost","upgradeTime":61}',
        ),
    ],
)
def test_result_bodies_are_compact_and_have_every_member(kind: CampaignKind, state: UpgradeState, body: str) -> None:
    assert bodies.result_body(facts(kind, state)) == body


def test_state_bodies_are_compact_and_have_every_member() -> None:
    (software,) = bodies.state_bodies(facts(CampaignKind.SOFTWARE, S.INSTALLING), ["updating"])
    assert software == f'{{"notifyType":"swUpgradeStateChangeNotify",{HEAD}"swUpgradeState":"updating"}}'
    firmware = list(bodies.state_bodies(facts(CampaignKind.FIRMWARE, S.INSTALLING), ["downloaded", "idle"]))
    assert firmware[0] == f'{{"notifyType":"fwUpgradeStateChangeNotify",{HEAD}"step":"2","stepDesc":"downloaded"}}'
    assert json.loads(firmware[1])["step"] == "0"


def test_what_is_not_known_is_an_empty_text_and_no_time() -> None:
    """All members are mandatory."""
    unknown = facts(
        CampaignKind.SOFTWARE, S.FAIL, source_version=None, version=None, detail=None, error_code=None, started_at=None
    )
    body = json.loads(bodies.result_body(unknown))
    assert {k: body[k] for k in ("curVersion", "sourceVersion", "resultDesc", "errorCode", "upgradeTime")} == {
        "curVersion": "",
        "sourceVersion": "",
        "resultDesc": "",
        "errorCode": "",
        "upgradeTime": 0,
    }
