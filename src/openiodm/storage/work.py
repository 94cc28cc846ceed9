"""`Work`: all rooms' rows bound to one transaction (or, for queries, to plain reads)."""

from openiodm.storage.access import AccessRows
from openiodm.storage.audit import AuditRows
from openiodm.storage.campaigns import CampaignRows
from openiodm.storage.device_notices import DeviceNoticeRows
from openiodm.storage.devices import DeviceRows
from openiodm.storage.engine import Tx
from openiodm.storage.jobs import JobRows
from openiodm.storage.notices import NoticeRows, NoticeRules
from openiodm.storage.outbox import OutboxRows
from openiodm.storage.packages import PackageRows
from openiodm.storage.subscriptions import SubscriptionRows
from openiodm.storage.told import ToldRows


class Work:
    """One transaction, seen through each room's port. `rules`: how changes are told to subscribers."""

    def __init__(self, tx: Tx, rules: NoticeRules) -> None:
        self.tx = tx
        self.access = AccessRows(tx)
        self.audit = AuditRows(tx)
        self.packages = PackageRows(tx)
        self.devices = DeviceRows(tx)
        self.told = ToldRows(tx)
        self.campaigns = CampaignRows(tx)
        self.jobs = JobRows(tx)
        self.notices = NoticeRows(tx, rules)
        self.device_notices = DeviceNoticeRows(tx, rules)
        self.subscriptions = SubscriptionRows(tx)
        self.outbox = OutboxRows(tx)
