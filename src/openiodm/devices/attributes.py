"""What a device tells of itself, as pure functions: merging it, and reading versions and product out of it."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from openiodm.access.model import Product
from openiodm.errors import Reason, Refusal

ATTRIBUTES = 100
"""Most attributes of a device, in keys."""


class AttributeMode(StrEnum):
    """How hawkBit's configData changes what is there."""

    MERGE = "merge"
    REPLACE = "replace"
    REMOVE = "remove"


def merge_attributes(current: Mapping[str, str], mode: AttributeMode, data: Mapping[str, str | None]) -> dict[str, str]:
    """The attributes after one configData. A null value removes its key when merging and is skipped when replacing.

    Raises:
        Refusal: BAD_INPUT; the device would have more than `ATTRIBUTES` keys.
    """
    told = {key: value for key, value in data.items() if value is not None}
    if mode is AttributeMode.REPLACE:
        merged = told
    else:
        dropped = data.keys() if mode is AttributeMode.REMOVE else data.keys() - told.keys()
        merged = {key: value for key, value in current.items() if key not in dropped}
        if mode is AttributeMode.MERGE:
            merged.update(told)
    if len(merged) > ATTRIBUTES:
        raise Refusal(Reason.BAD_INPUT, f"a device has at most {ATTRIBUTES} attributes", field="data")
    return merged


def first_of(attributes: Mapping[str, str], keys: Sequence[str]) -> str | None:
    """The value of the first of `keys` that is there and not empty."""
    return next((attributes[key] for key in keys if attributes.get(key)), None)


def versions_of(
    attributes: Mapping[str, str], fw_keys: Sequence[str], sw_keys: Sequence[str]
) -> tuple[str | None, str | None]:
    """The firmware and the software version that a device tells, each None when it tells none."""
    return first_of(attributes, fw_keys), first_of(attributes, sw_keys)


def product_of(
    attributes: Mapping[str, str],
    profile: Product,
    device_type_keys: Sequence[str],
    model_keys: Sequence[str],
    manufacturer_keys: Sequence[str],
) -> Product:
    """What the device says it is; members that it does not tell come from `profile` (its gateway token's)."""
    return Product(
        first_of(attributes, device_type_keys) or profile.device_type,
        first_of(attributes, model_keys) or profile.model,
        first_of(attributes, manufacturer_keys) or profile.manufacturer_name,
    )
