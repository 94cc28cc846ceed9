"""What a device tells of itself: merging it, and reading versions and product out of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openiodm.access.model import Product
from openiodm.devices.attributes import (
    ATTRIBUTES,
    AttributeMode,
    first_of,
    merge_attributes,
    product_of,
    versions_of,
)
from openiodm.errors import Reason, Refusal

MERGE, REPLACE, REMOVE = AttributeMode.MERGE, AttributeMode.REPLACE, AttributeMode.REMOVE
KNOWN = {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("mode", "data", "after"),
    [
        (MERGE, {"b": "3", "c": "4"}, {"a": "1", "b": "3", "c": "4"}),
        (MERGE, {"a": None, "x": None}, {"b": "2"}),
        (MERGE, {}, KNOWN),
        (REPLACE, {"c": "4", "a": None}, {"c": "4"}),
        (REPLACE, {}, {}),
        (REMOVE, {"a": "whatever", "x": None}, {"b": "2"}),
        (REMOVE, {"a": None}, {"b": "2"}),
    ],
)
def test_modes_do_what_hawkbit_says(mode: AttributeMode, data: dict[str, str | None], after: dict[str, str]) -> None:
    assert merge_attributes(KNOWN, mode, data) == after
    assert KNOWN == {"a": "1", "b": "2"}


def test_a_device_has_at_most_a_hundred_attributes() -> None:
    full = {str(i): "x" for i in range(ATTRIBUTES)}
    assert merge_attributes(full, MERGE, {"0": "y"})["0"] == "y"
    assert len(merge_attributes(full, MERGE, {"0": None, "new": "y"})) == ATTRIBUTES
    with pytest.raises(Refusal) as refused:
        merge_attributes(full, MERGE, {"new": "y"})
    assert refused.value.reason is Reason.BAD_INPUT


_attributes = st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=20)
_data = st.dictionaries(st.text(max_size=3), st.none() | st.text(max_size=3), max_size=20)


@given(_attributes, st.sampled_from(AttributeMode), _data)
def test_telling_the_same_twice_is_telling_it_once(
    current: dict[str, str], mode: AttributeMode, data: dict[str, str | None]
) -> None:
    once = merge_attributes(current, mode, data)
    assert merge_attributes(once, mode, data) == once


def test_the_first_key_that_is_told_wins_and_empty_values_are_not_told() -> None:
    assert first_of({"b": "2", "a": "1"}, ("a", "b")) == "1"
    assert first_of({"b": "2", "a": ""}, ("a", "b")) == "2"
    assert first_of({}, ("a",)) is None


def test_versions_are_found_by_their_keys() -> None:
    told = {"fw_version": "1", "swVersion": "2"}
    assert versions_of(told, ("fwVersion", "fw_version"), ("swVersion",)) == ("1", "2")
    assert versions_of(told, (), ()) == (None, None)


def test_a_product_is_what_the_device_tells_over_what_its_gateway_says() -> None:
    profile = Product("Meter", "M1", "Acme")
    keys = (("deviceType",), ("model",), ("manufacturer",))
    assert product_of({"model": "M2", "deviceType": ""}, profile, *keys) == Product("Meter", "M2", "Acme")
    assert product_of({}, profile, *keys) == profile
