"""`Work`: all rooms' rows bound to one transaction (or, for queries, to plain reads)."""

from openiodm.storage.access import AccessRows
from openiodm.storage.audit import AuditRows
from openiodm.storage.campaigns import CampaignRows
from openiodm.storage.devices import DeviceRows
from openiodm.storage.engine import Tx
from openiodm.storage.jobs import JobRows
from openiodm.storage.packages import PackageRows
from openiodm.storage.told import ToldRows


class Work:
    """One transaction, seen through each room's port."""

    def __init__(self, tx: Tx) -> None:
        self.tx = tx
        self.access = AccessRows(tx)
        self.audit = AuditRows(tx)
        self.packages = PackageRows(tx)
        self.devices = DeviceRows(tx)
        self.told = ToldRows(tx)
        self.campaigns = CampaignRows(tx)
        self.jobs = JobRows(tx)
