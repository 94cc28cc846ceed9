"""Values of this room: what one may subscribe to, subscriptions, notices as their owner sees them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from openiodm.clock import Instant, Millis

SubscriptionKey = NewType("SubscriptionKey", int)  # row ids: never shown
ReceiverKey = NewType("ReceiverKey", int)
NoticeKey = NewType("NoticeKey", int)  # rises; also what a notice is called towards its owner


class NotifyType(StrEnum):
    """Everything that the published contract lets one subscribe to (sections 4.1 and 4.5)."""

    SW_STATE = "swUpgradeStateChangeNotify"
    SW_RESULT = "swUpgradeResultNotify"
    FW_STATE = "fwUpgradeStateChangeNotify"
    FW_RESULT = "fwUpgradeResultNotify"
    DEVICE_ADDED = "deviceAdded"
    DEVICE_INFO_CHANGED = "deviceInfoChanged"
    DEVICE_DELETED = "deviceDeleted"
    # Nothing here ever happens that these speak of: they are taken, listed, and never sent.
    BIND_DEVICE = "bindDevice"
    DEVICE_DATA_CHANGED = "deviceDataChanged"
    DEVICE_DATAS_CHANGED = "deviceDatasChanged"
    CAPABILITIES_CHANGED = "deviceCapabilitiesChanged"
    CAPABILITIES_ADDED = "deviceCapabilitiesAdded"
    CAPABILITIES_DELETED = "deviceCapabilitiesDeleted"
    MODEL_ADDED = "deviceModelAdded"
    MODEL_DELETED = "deviceModelDeleted"
    SERVICE_INFO_CHANGED = "serviceInfoChanged"
    MESSAGE_CONFIRM = "messageConfirm"
    COMMAND_RSP = "commandRsp"
    DEVICE_EVENT = "deviceEvent"
    RULE_EVENT = "ruleEvent"
    DESIRED_PROPERTIES = "deviceDesiredPropertiesModifyStatusChanged"


UPGRADE_TYPES = frozenset({NotifyType.SW_STATE, NotifyType.SW_RESULT, NotifyType.FW_STATE, NotifyType.FW_RESULT})


@dataclass(frozen=True, slots=True)
class Subscription:
    """One application's wish to be told of one type at one address."""

    key: SubscriptionKey
    subscription_id: str
    notify_type: NotifyType
    callback_url: str
    created_at: Instant


@dataclass(frozen=True, slots=True)
class SubscriptionHealth:
    """A subscription with how its delivery goes. `pending` are under way, `undelivered` were given up."""

    subscription: Subscription
    pending: int
    undelivered: int
    last_delivered_at: Instant | None
    last_error: str | None
    last_error_at: Instant | None


@dataclass(frozen=True, slots=True)
class SubscriptionFilter:
    """Conditions on the caller's own subscriptions; all given ones must hold."""

    notify_type: str | None = None
    callback_url: str | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice that is not delivered yet, or was given up at `given_up_at`."""

    key: NoticeKey
    subscription_id: str
    notify_type: NotifyType
    body: str
    created_at: Instant
    attempts: int
    due_at: Instant | None  # of the next attempt; None: as soon as its turn comes
    last_error: str | None
    given_up_at: Instant | None


@dataclass(frozen=True, slots=True)
class CallbackSecurity:
    """What an application set for its callbacks; None is "not set". Key and secret never leave the server."""

    ca_pem: str | None = None
    certificate_pem: str | None = None
    key_pem: str | None = None
    signing_secret: str | None = None
    changed_at: Instant | None = None


@dataclass(frozen=True, slots=True)
class DeliveryRules:
    """Bounds of delivery. `life` counts from a notice's first attempt; `at_once` is over all receivers together."""

    timeout: Millis
    life: Millis
    per_receiver: int
    at_once: int
