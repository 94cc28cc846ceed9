"""The two transition tables as a specification, and the page that is drawn from them."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from openiodm.campaigns import diagrams
from openiodm.campaigns.states import (
    CAMPAIGN_FINAL,
    CAMPAIGN_TRANSITIONS,
    COUNTER_OF,
    FINAL,
    GRANTED,
    UPGRADE_TRANSITIONS,
    CampaignEvent,
    CampaignStatus,
    Counter,
    UpgradeEvent,
    UpgradeState,
    next_campaign_status,
    next_upgrade_state,
)

STATES_PAGE = Path(__file__).parents[2] / "docs" / "states.md"

S, E, C, F = UpgradeState, UpgradeEvent, CampaignStatus, CampaignEvent
T = TypeVar("T", bound=Hashable)

# The way forward; steps may be skipped, never taken back. `cancelling` stands beside it.
WAY = (S.WAIT, S.OFFERED, S.DOWNLOADING, S.DOWNLOADED, S.INSTALLING, S.VERIFYING)


def reachable(table: Mapping[T, Mapping[object, T]], start: T) -> set[T]:
    seen, todo = {start}, [start]
    while todo:
        fresh = set(table[todo.pop()].values()) - seen
        seen |= fresh
        todo += fresh
    return seen


def test_wait_granted_and_final_states_are_a_partition() -> None:
    assert {S.WAIT} | GRANTED | FINAL == set(S)
    assert len(GRANTED) + len(FINAL) + 1 == len(S)
    assert not GRANTED & FINAL


def test_both_tables_have_a_row_for_every_state() -> None:
    assert set(UPGRADE_TRANSITIONS) == set(S)
    assert set(CAMPAIGN_TRANSITIONS) == set(C)


def test_every_state_counts_in_exactly_one_counter_and_no_counter_is_empty() -> None:
    assert set(COUNTER_OF) == set(S)
    assert set(COUNTER_OF.values()) == set(Counter)


def test_the_contract_shows_every_granted_state_as_processing_and_no_other() -> None:
    assert {s for s in S if COUNTER_OF[s] is Counter.PROCESSING} == GRANTED


@pytest.mark.parametrize("state", [S.FAIL, S.TIMEOUT])
def test_only_a_retry_leaves_fail_and_timeout(state: UpgradeState) -> None:
    assert UPGRADE_TRANSITIONS[state] == {E.RETRIED: S.WAIT}


@pytest.mark.parametrize("state", [S.SUCCESS, S.STOP])
def test_success_and_stop_are_never_left(state: UpgradeState) -> None:
    assert UPGRADE_TRANSITIONS[state] == {}


def test_a_retry_is_legal_nowhere_else() -> None:
    assert {s for s in S if E.RETRIED in UPGRADE_TRANSITIONS[s]} == {S.FAIL, S.TIMEOUT}


def test_only_a_waiting_device_is_granted_its_turn() -> None:
    assert {s for s in S if E.GRANTED in UPGRADE_TRANSITIONS[s]} == {S.WAIT}
    assert {s for s in S if S.OFFERED in UPGRADE_TRANSITIONS[s].values()} == {S.WAIT}


def test_the_way_goes_forward_only() -> None:
    for place, state in enumerate(WAY):
        for target in UPGRADE_TRANSITIONS[state].values():
            assert target in FINAL or target is S.CANCELLING or WAY.index(target) > place, (state, target)


def test_an_event_leads_to_the_same_state_from_wherever_it_is_legal() -> None:
    """A stop alone depends on where it meets the device: one that waits has nothing to cancel."""
    for event in set(E) - {E.STOPPED}:
        assert len({t for s in S if (t := next_upgrade_state(s, event)) is not None}) <= 1, event
    assert next_upgrade_state(S.WAIT, E.STOPPED) is S.STOP
    assert {next_upgrade_state(s, E.STOPPED) for s in GRANTED - {S.CANCELLING}} == {S.CANCELLING}


def test_no_event_leads_back_to_where_it_found_the_device() -> None:
    assert not [(s, e) for s in S for e in E if next_upgrade_state(s, e) is s]


def test_every_unfinished_upgrade_can_fail_and_succeed() -> None:
    for state in {S.WAIT} | GRANTED:
        assert next_upgrade_state(state, E.FAILED) is S.FAIL
        assert next_upgrade_state(state, E.SUCCEEDED) is S.SUCCESS


def test_every_unfinished_upgrade_has_an_end_by_the_clock() -> None:
    for state in {S.WAIT} | GRANTED:
        event = E.CANCELLED if state is S.CANCELLING else E.EXPIRED
        assert next_upgrade_state(state, event) in {S.TIMEOUT, S.STOP}


def test_every_state_is_reachable_and_every_final_one_from_every_unfinished_one() -> None:
    assert reachable(UPGRADE_TRANSITIONS, S.WAIT) == set(S)
    for state in {S.WAIT} | GRANTED:
        assert reachable(UPGRADE_TRANSITIONS, state) >= FINAL, state


def test_a_stopped_campaign_and_a_successful_one_stay_so() -> None:
    assert {c for c in C if not CAMPAIGN_TRANSITIONS[c]} == {C.SUCCESS, C.STOP}
    assert CAMPAIGN_TRANSITIONS[C.FAILED] == {F.RETRIED: C.PROCESSING}
    assert {C.SUCCESS, C.FAILED, C.STOP} == CAMPAIGN_FINAL


def test_a_campaign_starts_once_and_never_waits_again() -> None:
    assert {c for c in C if F.STARTED in CAMPAIGN_TRANSITIONS[c]} == {C.WAIT}
    assert not [c for c in C if C.WAIT in CAMPAIGN_TRANSITIONS[c].values()]


def test_an_unfinished_campaign_can_be_stopped_and_a_finished_one_cannot() -> None:
    assert {c for c in C if next_campaign_status(c, F.STOPPED) is C.STOP} == set(C) - CAMPAIGN_FINAL


def test_every_final_status_is_reachable_from_every_unfinished_one() -> None:
    for status in set(C) - CAMPAIGN_FINAL:
        assert reachable(CAMPAIGN_TRANSITIONS, status) >= CAMPAIGN_FINAL


def test_the_page_of_states_is_drawn_from_the_tables() -> None:
    assert STATES_PAGE.read_text("utf-8") == diagrams.page(), "python -m openiodm.campaigns.diagrams > docs/states.md"


def test_a_diagram_has_an_edge_for_every_transition() -> None:
    drawn = diagrams.diagram(UPGRADE_TRANSITIONS, S.WAIT, FINAL)
    for state, events in UPGRADE_TRANSITIONS.items():
        for event, target in events.items():
            (line,) = [x for x in drawn.splitlines() if x.strip().startswith(f"{state.value} --> {target.value}:")]
            assert event.value in line.partition(": ")[2].split(", ")
