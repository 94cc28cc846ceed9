"""How silent a device is, and the filter that says the same in SQL."""

from hypothesis import given
from hypothesis import strategies as st

from openiodm.clock import Instant, Millis
from openiodm.devices.model import DeviceStatus, Silences

SILENCES = Silences(abnormal_after=Millis(100), offline_after=Millis(200))
NOW = Instant(10_000)


def test_a_silence_becomes_abnormal_and_then_offline() -> None:
    ages = {0: "ONLINE", 99: "ONLINE", 100: "ABNORMAL", 199: "ABNORMAL", 200: "OFFLINE", 10_000: "OFFLINE"}
    assert {age: SILENCES.status(Instant(NOW - age), NOW).value for age in ages} == ages
    assert SILENCES.status(None, NOW) is DeviceStatus.INACTIVE


@given(st.integers(-1000, 20_000))
def test_every_contact_lies_in_exactly_the_window_of_its_status(seen: int) -> None:
    status = SILENCES.status(Instant(seen), NOW)
    inside = []
    for each in (DeviceStatus.ONLINE, DeviceStatus.ABNORMAL, DeviceStatus.OFFLINE):
        after, until = SILENCES.window(each, NOW)
        if (after is None or seen > after) and (until is None or seen <= until):
            inside.append(each)
    assert inside == [status]
