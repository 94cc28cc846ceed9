"""The one vocabulary of "no" inside the server: a named Refusal, free of any protocol's codes.

A `Refusal` is an answer, not a bug: the caller asked for something the rules do not allow. Each edge (compatible
northbound API, native API, DDI, CLI) maps `Refusal.reason` to its own codes. `Unavailable` is an answer too: ask again.
Anything else that is raised is a bug and is logged with its trace.
"""

from enum import Enum, StrEnum


class Kind(Enum):
    """What sort of "no" it is; enough for an edge that has no code of its own for the reason."""

    INVALID = "invalid"  # the request can never succeed as it is
    UNAUTHENTICATED = "unauthenticated"  # who is asking?
    FORBIDDEN = "forbidden"  # known, and not allowed
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"  # true for now: the state of a thing is against it
    GONE = "gone"  # it was there and is closed for good
    TOO_LARGE = "too_large"
    THROTTLED = "throttled"  # try again later
    UNAVAILABLE = "unavailable"  # our side lacks something (disk, database); try again later


class Reason(StrEnum):
    """Every named refusal. The value is what logs and problem+json documents show."""

    # any room
    BAD_INPUT = "bad-input"
    MESSAGE_BAD = "message-bad"
    BAD_PAGING = "bad-paging"
    BAD_FILTER = "bad-filter"
    # access
    CREDENTIALS_MISSING = "credentials-missing"
    CREDENTIALS_WRONG = "credentials-wrong"
    TOKEN_INVALID = "token-invalid"
    APPLICATION_FROZEN = "application-frozen"
    APPLICATION_UNKNOWN = "application-unknown"
    APPLICATION_UNAUTHORIZED = "application-unauthorized"
    AUTHORIZATION_UNKNOWN = "authorization-unknown"
    GATEWAY_TOKEN_UNKNOWN = "gateway-token-unknown"
    THROTTLED = "throttled"
    # packages
    PACKAGE_UNKNOWN = "package-unknown"
    PACKAGE_IN_USE = "package-in-use"
    PACKAGE_TOO_LARGE = "package-too-large"
    PACKAGE_DIGEST_MISMATCH = "package-digest-mismatch"
    STORE_FULL = "store-full"
    STORE_AWAY = "store-away"
    # devices and groups
    DEVICE_UNKNOWN = "device-unknown"
    DEVICE_LIMIT = "device-limit"
    DEVICE_ONLINE = "device-online"
    NODE_ID_TAKEN = "node-id-taken"
    VERIFY_CODE_TAKEN = "verify-code-taken"
    VERIFY_CODE_BAD = "verify-code-bad"
    DEVICE_LIST_UNBOUND = "device-list-unbound"
    GROUP_UNKNOWN = "group-unknown"
    GROUP_NAME_TAKEN = "group-name-taken"
    GROUP_FULL = "group-full"
    GROUP_LIMIT = "group-limit"
    GROUP_TOO_MANY_DEVICES = "group-too-many-devices"
    # campaigns
    CAMPAIGN_UNKNOWN = "campaign-unknown"
    CAMPAIGN_FINISHED = "campaign-finished"
    NOTHING_TO_RETRY = "nothing-to-retry"
    UPGRADE_UNKNOWN = "upgrade-unknown"
    UPGRADE_CLOSED = "upgrade-closed"
    UPGRADE_NOT_WAITING = "upgrade-not-waiting"
    PACKAGE_TYPE_MISMATCH = "package-type-mismatch"
    TARGET_MISMATCH = "target-mismatch"
    TARGETS_MISSING = "targets-missing"
    TARGETS_BOTH = "targets-both"
    TARGETS_TOO_MANY = "targets-too-many"
    TARGET_MANUFACTURER_MISSING = "target-manufacturer-missing"
    TARGET_DEVICE_TYPE_MISSING = "target-device-type-missing"
    TARGET_MODEL_MISSING = "target-model-missing"
    EXECUTE_TYPE_BAD = "execute-type-bad"
    WINDOW_BAD = "window-bad"
    WINDOW_REVERSED = "window-reversed"
    WINDOW_IN_PAST = "window-in-past"
    WINDOW_TOO_SHORT = "window-too-short"
    RETRY_TIMES_BAD = "retry-times-bad"
    IDEMPOTENCY_KEY_REUSED = "idempotency-key-reused"
    # notifications
    CALLBACK_BAD = "callback-bad"
    SUBSCRIPTION_UNKNOWN = "subscription-unknown"
    SUBSCRIPTION_EXISTS = "subscription-exists"
    SUBSCRIPTIONS_NONE = "subscriptions-none"
    NOTICE_UNKNOWN = "notice-unknown"


KIND_OF: dict[Reason, Kind] = {
    Reason.CREDENTIALS_MISSING: Kind.INVALID,
    Reason.CREDENTIALS_WRONG: Kind.UNAUTHENTICATED,
    Reason.TOKEN_INVALID: Kind.UNAUTHENTICATED,
    Reason.APPLICATION_FROZEN: Kind.FORBIDDEN,
    Reason.APPLICATION_UNKNOWN: Kind.NOT_FOUND,
    Reason.APPLICATION_UNAUTHORIZED: Kind.FORBIDDEN,
    Reason.AUTHORIZATION_UNKNOWN: Kind.NOT_FOUND,
    Reason.GATEWAY_TOKEN_UNKNOWN: Kind.NOT_FOUND,
    Reason.THROTTLED: Kind.THROTTLED,
    Reason.PACKAGE_UNKNOWN: Kind.NOT_FOUND,
    Reason.PACKAGE_IN_USE: Kind.CONFLICT,
    Reason.PACKAGE_TOO_LARGE: Kind.TOO_LARGE,
    Reason.STORE_FULL: Kind.UNAVAILABLE,
    Reason.STORE_AWAY: Kind.UNAVAILABLE,
    Reason.DEVICE_UNKNOWN: Kind.NOT_FOUND,
    Reason.DEVICE_LIMIT: Kind.CONFLICT,
    Reason.DEVICE_ONLINE: Kind.CONFLICT,
    Reason.NODE_ID_TAKEN: Kind.CONFLICT,
    Reason.VERIFY_CODE_TAKEN: Kind.CONFLICT,
    Reason.GROUP_UNKNOWN: Kind.NOT_FOUND,
    Reason.GROUP_NAME_TAKEN: Kind.CONFLICT,
    Reason.GROUP_FULL: Kind.CONFLICT,
    Reason.GROUP_LIMIT: Kind.CONFLICT,
    Reason.CAMPAIGN_UNKNOWN: Kind.NOT_FOUND,
    Reason.CAMPAIGN_FINISHED: Kind.CONFLICT,
    Reason.NOTHING_TO_RETRY: Kind.CONFLICT,
    Reason.UPGRADE_UNKNOWN: Kind.NOT_FOUND,
    Reason.UPGRADE_CLOSED: Kind.GONE,
    Reason.UPGRADE_NOT_WAITING: Kind.NOT_FOUND,
    Reason.SUBSCRIPTION_UNKNOWN: Kind.NOT_FOUND,
    Reason.SUBSCRIPTION_EXISTS: Kind.CONFLICT,
    Reason.SUBSCRIPTIONS_NONE: Kind.NOT_FOUND,
    Reason.NOTICE_UNKNOWN: Kind.NOT_FOUND,
}


class Unavailable(Exception):
    """The database is away, full or read-only for now. A write that ends so may have been kept, if it went away then.

    The text is for our log alone; what the caller is told names nothing of ours.
    """


class Refusal(Exception):
    """A named "no": `reason`, the `field` at fault where there is one, and a sentence for a person."""

    def __init__(self, reason: Reason, detail: str = "", *, field: str | None = None) -> None:
        super().__init__(detail or reason.value)
        self.reason = reason
        self.detail = detail or reason.value
        self.field = field

    @property
    def kind(self) -> Kind:
        """The sort of refusal; reasons without an entry are invalid requests."""
        return KIND_OF.get(self.reason, Kind.INVALID)
