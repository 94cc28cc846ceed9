"""DDI bodies: examples of the contract, and bytes that are none."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openiodm.simulator import messages
from openiodm.simulator.messages import BadAnswerError, Link

POLL = b"""{ "config": { "polling": { "sleep": "00:01:30" } },
  "_links": { "deploymentBase": { "href": "http://h/default/controller/v1/d/deploymentBase/5?c=-2127183556" },
              "configData":     { "href": "http://h/default/controller/v1/d/configData" } } }"""


def test_a_poll_answer_of_2_1_is_read() -> None:
    answer = messages.parse_poll(POLL)
    assert answer.sleep_seconds == 90
    assert answer.deployment == Link("5", "http://h/default/controller/v1/d/deploymentBase/5?c=-2127183556")
    assert answer.config_data == "http://h/default/controller/v1/d/configData"
    assert answer.actions == ("5",)


def test_links_may_be_absent() -> None:
    assert messages.parse_poll(b'{"config":{"polling":{"sleep":"00:05:00"}}}').actions == ()


def test_feedback_has_the_shape_of_2_3() -> None:
    body = messages.feedback("5", messages.Execution.CLOSED, messages.Finished.SUCCESS, ["a"], 17)
    assert json.loads(body) == {
        "id": "5",
        "timestamp": 17,
        "status": {"execution": "closed", "result": {"finished": "success"}, "details": ["a"]},
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["config", "polling", "sleep", "_links", "deploymentBase", "href", "id", "deployment"])
            | st.text(),
            inner,
        )
    ),
    max_leaves=12,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_a_value_or_the_one_error(body: bytes) -> None:
    for parse in (messages.parse_poll, messages.parse_deployment, messages.parse_stop):
        with contextlib.suppress(BadAnswerError):
            parse(body)


@pytest.mark.parametrize("depth", [100_000])
def test_deep_nesting_is_a_bad_answer(depth: int) -> None:
    with pytest.raises(BadAnswerError):
        messages.parse_poll(b"[" * depth)
