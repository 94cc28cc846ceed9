"""Every table, once, for both engines (SQLAlchemy Core). Read by Alembic and by the schema tests only.

The running server never imports this module: its statements are plain SQL (see the other modules of this folder).

Conventions: moments are BIGINT milliseconds since the epoch, UTC; public ids are opaque random text; rows that other
rows or people may still speak of are soft-deleted (`deleted_at`), and their ids are never reused; JSON is text.
A CHECK or index below that carries a rule of the design says which.
"""

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives a row id to INTEGER only; on PostgreSQL it must be 64 bits wide.
BigId = BigInteger().with_variant(Integer(), "sqlite")

UPGRADE_FINAL = "('success', 'fail', 'timeout', 'stop')"


def _id() -> Column[int]:
    return Column("id", BigId, primary_key=True, autoincrement=True)


def _ref(name: str, target: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, BigId, ForeignKey(f"{target}.id"), nullable=nullable)


def _live_index(name: str, *columns: str, of: str = "") -> Index:
    """Of an application's live devices, those for which `of` holds."""
    where = text("deleted_at IS NULL" + (f" AND {of}" if of else ""))
    name = f"ix_device_application_{name}_live"
    return Index(name, "application_id", *columns, sqlite_where=where, postgresql_where=where)


application = Table(
    "application",
    metadata,
    _id(),
    Column("app_id", Text, nullable=False, unique=True),  # the contract's appId = app_key
    Column("name", Text, nullable=False),
    Column("secret_hash", Text, nullable=False),  # SHA-256 of a 256-bit random secret, hex
    Column("target_tokens", Boolean, nullable=False),  # DDI: may devices use their own token?
    Column("gateway_tokens", Boolean, nullable=False),  # DDI: may devices share a gateway token?
    Column("created_at", BigInteger, nullable=False),
    Column("frozen_at", BigInteger),
    Column("deleted_at", BigInteger),
    sqlite_autoincrement=True,
)

# application_id lets authorized_id act on its things (the contract's appId and accessAppId).
application_authorization = Table(
    "application_authorization",
    metadata,
    Column("application_id", BigId, ForeignKey("application.id"), primary_key=True),
    Column("authorized_id", BigId, ForeignKey("application.id"), primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    CheckConstraint("application_id <> authorized_id", name="not_itself"),
    Index(None, "authorized_id"),
)

# Who changed what, written with the change. The indexes are those of the filters, each in the order of the pages.
audit = Table(
    "audit",
    metadata,
    _id(),
    _ref("application_id", "application"),  # whose things
    Column("at", BigInteger, nullable=False),
    Column("caller", Text, nullable=False),  # an appId, or who ran the command line
    Column("address", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("object_id", Text),
    Column("outcome", Text, nullable=False),
    Index("ix_audit_at", "at", "id"),
    Index("ix_audit_application", "application_id", "at", "id"),
    Index("ix_audit_operation", "application_id", "operation", "at", "id"),
    Index("ix_audit_object", "application_id", "object_id", "at", "id"),
    sqlite_autoincrement=True,
)


def _buckets(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("application_id", BigId, ForeignKey("application.id"), primary_key=True),
        Column("tokens", Float, nullable=False),
        Column("updated_at", BigInteger, nullable=False),
    )


# Rate limits' buckets, one row an application, used where several servers share a database: of the compatible API, and
# of the native one.
flow_control = _buckets("flow_control")
native_flow_control = _buckets("native_flow_control")

# Wrong secrets, for an application, a network or both; and where an application has logged in. Used as the above.
login_count = Table(
    "login_count",
    metadata,
    Column("application", Text, primary_key=True),  # what was tried: there may be no such application
    Column("network", Text, primary_key=True),
    Column("known_at", BigInteger),
    Column("owed", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

access_token = Table(
    "access_token",
    metadata,
    _id(),
    Column("token_hash", Text, nullable=False, unique=True),
    _ref("application_id", "application"),
    Column("kind", Text, nullable=False),
    Column("issued_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    CheckConstraint("kind IN ('access', 'refresh')", name="kind"),
    Index(None, "application_id", "kind"),
    Index(None, "expires_at"),
    sqlite_autoincrement=True,
)

# What a device is: interned, so that a group's members of one product are one index range (group_member).
product = Table(
    "product",
    metadata,
    _id(),
    Column("device_type", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("manufacturer_name", Text, nullable=False),
    UniqueConstraint("device_type", "model", "manufacturer_name"),
    sqlite_autoincrement=True,
)

# A DDI gateway token with the product that devices which register themselves with it get.
gateway_token = Table(
    "gateway_token",
    metadata,
    _id(),
    _ref("application_id", "application"),
    Column("token_hash", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    _ref("product_id", "product"),
    Column("created_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
    Index(None, "application_id"),
    sqlite_autoincrement=True,
)

device = Table(
    "device",
    metadata,
    _id(),
    Column("device_id", Text, nullable=False, unique=True),  # ours, opaque
    _ref("application_id", "application"),
    Column("node_id", Text, nullable=False),  # the device's own name; DDI's controllerId
    _ref("product_id", "product"),
    Column("name", Text),
    Column("protocol_type", Text),
    Column("fw_version", Text),
    Column("sw_version", Text),
    # Has it ever told a version of that kind? Then success needs the version's proof (verifying).
    Column("reports_fw", Boolean, nullable=False),
    Column("reports_sw", Boolean, nullable=False),
    Column("self_registered", Boolean, nullable=False),  # with a gateway token: then its attributes say what it is
    Column("attributes", Text, nullable=False),  # JSON object of strings: DDI configData
    Column("attributes_wanted", Boolean, nullable=False),
    Column("auto_confirm", Text),  # JSON {initiator, remark, activatedAt} while active
    Column("info", Text, nullable=False),  # JSON: the contract's other deviceInfo members
    Column("location", Text),  # of info, its beginning copied: the list filters by it
    Column("token_hash", Text),  # DDI target token
    Column("verify_code", Text),
    Column("psk", Text),
    Column("activation_timeout", BigInteger, nullable=False),  # seconds; 0 = never
    Column("activation_due_at", BigInteger),  # then it is deleted, unless it made contact; null = never
    Column("registered_at", BigInteger, nullable=False),
    Column("modified_at", BigInteger, nullable=False),
    Column("activated_at", BigInteger),  # first contact
    Column("last_seen_at", BigInteger),  # written in bulk, a few seconds late
    Column("address", Text),
    # The number of its newest attempt = DDI action id; rises for ever, also over deletion and new registration.
    Column("attempt_seq", Integer, nullable=False),
    Column("installed_action_id", Integer),
    Column("deleted_at", BigInteger),
    Index(
        "uq_device_application_id_node_id_live",
        "application_id",
        "node_id",
        unique=True,
        sqlite_where=text("deleted_at IS NULL"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
    Index("ix_device_node_attempts", "application_id", "node_id", "attempt_seq"),
    Index(
        "uq_device_verify_code_live",
        "verify_code",
        unique=True,
        sqlite_where=text("deleted_at IS NULL AND verify_code IS NOT NULL"),
        postgresql_where=text("deleted_at IS NULL AND verify_code IS NOT NULL"),
    ),
    # What the device list filters by, each in the list's order. Not by the last contact: it changes all the time, and
    # PostgreSQL would write every index of the row with it.
    _live_index("registered", "registered_at", "id"),
    _live_index("product", "product_id", "registered_at", "id"),
    _live_index("name", "name", "registered_at", "id", of="name IS NOT NULL"),
    _live_index("location", "location", "registered_at", "id", of="location IS NOT NULL"),
    _live_index("inactive", "registered_at", "id", of="activated_at IS NULL"),
    Index(
        "ix_device_activation_due",
        "activation_due_at",
        sqlite_where=text("activation_due_at IS NOT NULL AND activated_at IS NULL AND deleted_at IS NULL"),
        postgresql_where=text("activation_due_at IS NOT NULL AND activated_at IS NULL AND deleted_at IS NULL"),
    ),
    sqlite_autoincrement=True,
)

device_group = Table(
    "device_group",
    metadata,
    _id(),
    Column("group_id", Text, nullable=False, unique=True),
    _ref("application_id", "application"),
    Column("name", Text, nullable=False),
    Column("description", Text),
    Column("max_devices", Integer, nullable=False),  # 0 = no limit
    Column("device_count", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
    Index(
        "uq_device_group_name_live",
        "application_id",
        "name",
        unique=True,
        sqlite_where=text("deleted_at IS NULL"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
    sqlite_autoincrement=True,
)

# id rises for ever: a campaign remembers the newest id at its creation (watermark) and expands up to it.
group_member = Table(
    "group_member",
    metadata,
    _id(),
    _ref("group_id", "device_group"),
    _ref("device_id", "device"),
    _ref("product_id", "product"),  # the device's, copied: expansion and its EXISTS are index ranges
    UniqueConstraint("group_id", "device_id"),
    Index(None, "device_id"),
    Index("ix_group_member_expansion", "group_id", "product_id", "id"),
    sqlite_autoincrement=True,
)

# Bytes, shared by reference across applications; collected by a job when nobody refers to them.
blob = Table(
    "blob",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("sha1", Text, nullable=False),
    Column("md5", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

package = Table(
    "package",
    metadata,
    _id(),
    Column("file_id", Text, nullable=False, unique=True),
    _ref("application_id", "application"),
    Column("file_type", Text, nullable=False),
    Column("name", Text, nullable=False),  # the file's name
    Column("version", Text, nullable=False),
    _ref("product_id", "product"),
    Column("protocol_type", Text),
    Column("description", Text),
    Column("build_date", Text),  # free text, as the contract has it
    Column("source_versions", Text, nullable=False),  # JSON list; empty = any
    Column("extra", Text, nullable=False),  # JSON: versionCheckCode, deviceShard, platform of a SOTA zip
    Column("sha256", Text, ForeignKey("blob.sha256"), nullable=False),
    Column("uploaded_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
    CheckConstraint("file_type IN ('firmwarePackage', 'softwarePackage')", name="file_type"),
    Index(
        "ix_package_application_live",
        "application_id",
        "id",
        sqlite_where=text("deleted_at IS NULL"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
    Index(None, "sha256"),
    sqlite_autoincrement=True,
)

# id is the list's order: newest first.
campaign = Table(
    "campaign",
    metadata,
    _id(),
    Column("operation_id", Text, nullable=False, unique=True),
    _ref("application_id", "application"),
    Column("kind", Text, nullable=False),
    _ref("package_id", "package"),
    _ref("product_id", "product"),
    Column("device_type", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("manufacturer_name", Text, nullable=False),
    Column("target_version", Text, nullable=False),
    Column("target_devices", Text),  # JSON list of device ids, as given; null for a group task
    Column("target_groups", Text),  # JSON list of group names, as given; null for a device task
    Column("policy_given", Boolean, nullable=False),  # the contract answers policy null when none was given
    Column("execute_type", Text, nullable=False),
    Column("window_start", BigInteger),
    Column("window_end", BigInteger),
    Column("retry_times", Integer, nullable=False),
    Column("round", Integer, nullable=False),  # 0 = first; rises with every retry
    Column("confirmation", Boolean, nullable=False),
    Column("clocks", Text, nullable=False),  # JSON: milliseconds per phase
    Column("status", Text, nullable=False),
    # What the server itself still has to do with the rows; a task is complete only while this is 'idle'.
    Column("work", Text, nullable=False),
    Column("stopped_by_operator", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("stopped_at", BigInteger),
    # Since a restore: nobody goes on ('all'), or only devices that show their version ('unproven' ones wait).
    Column("hold", Text),
    Column("max_concurrent", Integer),  # devices under way at once; null: no bound
    CheckConstraint("kind IN ('firmware_upgrade', 'software_upgrade')", name="kind"),
    CheckConstraint("hold IN ('all', 'unproven')", name="hold"),
    CheckConstraint("max_concurrent > 0", name="max_concurrent"),
    CheckConstraint("status IN ('wait', 'processing', 'success', 'failed', 'stop')", name="status"),
    CheckConstraint("work IN ('idle', 'expanding', 'retrying', 'sweeping')", name="work"),
    Index(None, "application_id", "id"),
    Index(None, "application_id", "status", "id"),
    Index(None, "package_id"),
    sqlite_autoincrement=True,
)

# The groups that a campaign is still to be expanded over, and how far that is.
campaign_group = Table(
    "campaign_group",
    metadata,
    Column("campaign_id", BigId, ForeignKey("campaign.id"), primary_key=True),
    Column("group_id", BigId, ForeignKey("device_group.id"), primary_key=True),
    Column("watermark", BigInteger, nullable=False),  # newest group_member.id at creation
    Column("expanded_to", BigInteger, nullable=False),  # group_member.id done so far
)

# Apart from campaign: touched once per commit of the writer. `open` is the fence: no grant commits while it is false.
campaign_counters = Table(
    "campaign_counters",
    metadata,
    Column("campaign_id", BigId, ForeignKey("campaign.id"), primary_key=True, autoincrement=False),
    Column("open", Boolean, nullable=False),
    Column("total", Integer, nullable=False),
    Column("wait", Integer, nullable=False),
    Column("processing", Integer, nullable=False),
    Column("success", Integer, nullable=False),
    Column("fail", Integer, nullable=False),
    Column("stop", Integer, nullable=False),
    Column("timeout", Integer, nullable=False),
    CheckConstraint("total = wait + processing + success + fail + stop + timeout", name="sum"),
    CheckConstraint(
        "wait >= 0 AND processing >= 0 AND success >= 0 AND fail >= 0 AND stop >= 0 AND timeout >= 0",
        name="not_negative",
    ),
)

upgrade = Table(
    "upgrade",
    metadata,
    _id(),
    Column("public_id", Text, nullable=False),  # subOperationId; never looked up by
    _ref("campaign_id", "campaign"),
    Column("ordinal", Integer, nullable=False),  # dense from 1 within the campaign
    _ref("device_id", "device"),
    Column("state", Text, nullable=False),
    Column("round", Integer, nullable=False),
    Column("action_id", Integer),  # the newest attempt's number (device.attempt_seq), null before one
    Column("confirmed", Boolean),  # null: not asked yet; false: denied
    Column("halted_in", Text),  # the state that a stop found it in
    Column("source_version", Text),
    Column("detail", Text),
    Column("error_code", Text),
    Column("blocker_id", BigInteger),  # campaign.id that held the device at a Task Conflict
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("due_at", BigInteger),  # the clock of the present phase
    Column("result_owed", Boolean),  # true: it has failed, and subscribers are told only if no round retries it
    CheckConstraint(
        "state IN ('wait', 'offered', 'downloading', 'downloaded', 'installing', 'verifying', 'cancelling', "
        "'success', 'fail', 'timeout', 'stop')",
        name="state",
    ),
    # finished_at IS NULL says "not final"; the index for law 1 below stands on it.
    CheckConstraint(f"(state IN {UPGRADE_FINAL}) = (finished_at IS NOT NULL)", name="final"),
    Index("uq_upgrade_campaign_id_ordinal", "campaign_id", "ordinal", unique=True),
    Index(None, "campaign_id", "state", "ordinal"),
    Index(None, "device_id", "campaign_id"),
    # Law 1: at most one unfinished upgrade per device, over all campaigns.
    Index(
        "uq_upgrade_device_id_open",
        "device_id",
        unique=True,
        sqlite_where=text("finished_at IS NULL"),
        postgresql_where=text("finished_at IS NULL"),
    ),
    Index(
        "ix_upgrade_due_at",
        "due_at",
        sqlite_where=text("due_at IS NOT NULL"),
        postgresql_where=text("due_at IS NOT NULL"),
    ),
    Index(
        "ix_upgrade_result_owed",
        "campaign_id",
        "ordinal",
        sqlite_where=text("result_owed IS NOT NULL"),
        postgresql_where=text("result_owed IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

# Law 6: exactly one row for every change of state.
history = Table(
    "history",
    metadata,
    _id(),
    _ref("upgrade_id", "upgrade"),
    Column("at", BigInteger, nullable=False),
    Column("from_state", Text, nullable=False),
    Column("to_state", Text, nullable=False),
    Column("action_id", Integer),
    Column("cause", Text, nullable=False),
    # PostgreSQL: the transaction, by default; ids are not given in the order of commits there (`change_log.py`).
    Column("xid", BigInteger),
    Index(None, "upgrade_id", "id"),
    Index(
        None,
        "xid",
        "id",
        sqlite_where=text("xid IS NOT NULL"),
        postgresql_where=text("xid IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

# What devices said, bounded per attempt.
device_log = Table(
    "device_log",
    metadata,
    Column("upgrade_id", BigId, ForeignKey("upgrade.id"), primary_key=True),
    Column("action_id", Integer, primary_key=True, autoincrement=False),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("lines", Text, nullable=False),  # JSON list of strings
)

# Work that is due; the scheduler leases rows and knows no domain word.
job = Table(
    "job",
    metadata,
    _id(),
    Column("kind", Text, nullable=False),
    Column("subject", BigInteger, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("owner", Text),
    Column("lease_until", BigInteger),
    Column("epoch", Integer, nullable=False),  # rises with every lease: the fence of a lost lease
    Column("failures", Integer, nullable=False),
    Column("cursor", BigInteger, nullable=False),  # how far a job that goes in chunks has come
    UniqueConstraint("kind", "subject"),
    Index(None, "due_at"),
    sqlite_autoincrement=True,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("application_id", BigId, ForeignKey("application.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_hash", Text, nullable=False),
    Column("operation_id", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index(None, "created_at"),
)

# What changed in the task list, for every server's index of it (`storage/change_log.py`). Triggers write it, in the
# transaction of the change. Apart from `campaign`, so that a change of status touches no index there. No foreign key:
# a deleted campaign's last entry outlives it.
campaign_change = Table(
    "campaign_change",
    metadata,
    _id(),
    Column("campaign_id", BigInteger, nullable=False),
    Column("xid", BigInteger),  # PostgreSQL: the transaction, since ids are not given in the order of commits there
    Index(
        None,
        "xid",
        "id",
        sqlite_where=text("xid IS NOT NULL"),
        postgresql_where=text("xid IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

# How far the log was cut off at its old end: a reader that has not come as far must read the table anew. One row.
campaign_change_trimmed = Table(
    "campaign_change_trimmed",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("mark", BigInteger, nullable=False),  # SQLite: the newest id that went; PostgreSQL: the newest xid
)

# Where callbacks lead: HOST:PORT. Whoever holds its lease delivers to it, so that order and bounds need no other lock.
receiver = Table(
    "receiver",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("owner", Text),
    Column("lease_until", BigInteger),
    Column("failing_since", BigInteger),  # no delivery has succeeded since then
    sqlite_autoincrement=True,
)

subscription = Table(
    "subscription",
    metadata,
    _id(),
    Column("subscription_id", Text, nullable=False, unique=True),
    _ref("application_id", "application"),
    Column("notify_type", Text, nullable=False),
    Column("callback_url", Text, nullable=False),
    _ref("receiver_id", "receiver"),
    Column("created_at", BigInteger, nullable=False),
    Column("last_error", Text),
    Column("last_error_at", BigInteger),
    Column("last_delivered_at", BigInteger),
    Column("deleted_at", BigInteger),
    Index(
        "uq_subscription_type_live",
        "application_id",
        "notify_type",
        unique=True,
        sqlite_where=text("deleted_at IS NULL"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
    Index("ix_subscription_receiver", "receiver_id"),
    Index(
        "ix_subscription_receiver_live",
        "receiver_id",
        sqlite_where=text("deleted_at IS NULL"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
    sqlite_autoincrement=True,
)

# The outbox: written in the transaction of the change, deleted when delivered. device_id is the order's key and no
# foreign key: its check would lock the device after the upgrade, and everybody else locks them the other way round.
notice = Table(
    "notice",
    metadata,
    _id(),
    _ref("subscription_id", "subscription"),
    Column("device_id", BigInteger, nullable=False),
    Column("body", Text, nullable=False),  # JSON, as it is sent
    Column("created_at", BigInteger, nullable=False),
    Column("pending_since", BigInteger, nullable=False),  # created_at, or when it was replayed
    Column("attempts", Integer, nullable=False),
    Column("first_tried_at", BigInteger),
    Column("due_at", BigInteger),  # not before then; null: never tried
    Column("last_error", Text),
    Column("given_up_at", BigInteger),  # null: to be delivered
    Index(
        "ix_notice_pending",
        "subscription_id",
        "id",
        sqlite_where=text("given_up_at IS NULL"),
        postgresql_where=text("given_up_at IS NULL"),
    ),
    Index(
        "ix_notice_waiting",
        "subscription_id",
        "due_at",
        sqlite_where=text("due_at IS NOT NULL AND given_up_at IS NULL"),
        postgresql_where=text("due_at IS NOT NULL AND given_up_at IS NULL"),
    ),
    Index(
        "ix_notice_undelivered",
        "subscription_id",
        "id",
        sqlite_where=text("given_up_at IS NOT NULL"),
        postgresql_where=text("given_up_at IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

# What an application wants at its callbacks: whom to trust, whom to be, how to sign. The key and the secret are
# needed as they are, so they are kept as they are, and never shown.
callback_security = Table(
    "callback_security",
    metadata,
    Column("application_id", BigId, ForeignKey("application.id"), primary_key=True, autoincrement=False),
    Column("ca_pem", Text),
    Column("certificate_pem", Text),
    Column("key_pem", Text),
    Column("signing_secret", Text),
    Column("changed_at", BigInteger, nullable=False),
    CheckConstraint("(certificate_pem IS NULL) = (key_pem IS NULL)", name="pair"),
)

# Defaults that one engine has. SQLite knows no such function, and needs no such number.
DEFAULTS = {
    "postgresql": (
        "ALTER TABLE history ALTER COLUMN xid SET DEFAULT CAST(CAST(pg_current_xact_id() AS text) AS bigint)",
    ),
}

# Of a campaign's listed attributes only the status ever changes. Batch mode on SQLite drops a table's triggers:
# `migrations/run.py` puts back what is missing.
TRIGGERS = {
    "sqlite": (
        """CREATE TRIGGER IF NOT EXISTS tr_campaign_inserted AFTER INSERT ON campaign
        BEGIN INSERT INTO campaign_change (campaign_id) VALUES (NEW.id); END""",
        """CREATE TRIGGER IF NOT EXISTS tr_campaign_status AFTER UPDATE OF status ON campaign
        WHEN NEW.status <> OLD.status
        BEGIN INSERT INTO campaign_change (campaign_id) VALUES (NEW.id); END""",
        """CREATE TRIGGER IF NOT EXISTS tr_campaign_deleted AFTER DELETE ON campaign
        BEGIN INSERT INTO campaign_change (campaign_id) VALUES (OLD.id); END""",
    ),
    "postgresql": (
        """CREATE FUNCTION campaign_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO campaign_change (campaign_id, xid)
        VALUES (coalesce(NEW.id, OLD.id), CAST(CAST(pg_current_xact_id() AS text) AS bigint));
        RETURN NULL; END $$""",
        """CREATE TRIGGER tr_campaign_listed AFTER INSERT OR DELETE ON campaign
        FOR EACH ROW EXECUTE FUNCTION campaign_changed()""",
        """CREATE TRIGGER tr_campaign_status AFTER UPDATE OF status ON campaign
        FOR EACH ROW WHEN (NEW.status <> OLD.status) EXECUTE FUNCTION campaign_changed()""",
    ),
}
for _engine, _statements in (*DEFAULTS.items(), *TRIGGERS.items()):
    for _statement in _statements:
        _ddl = DDL(_statement)  # type: ignore[no-untyped-call]  # SQLAlchemy has no annotation there
        event.listen(metadata, "after_create", _ddl.execute_if(dialect=_engine))

# LwM2M registrations. A row stays when its registration ends: the token outlives it (observations, package URIs).
lwm2m_registration = Table(
    "lwm2m_registration",
    metadata,
    Column("device_id", BigId, ForeignKey("device.id"), primary_key=True, autoincrement=False),
    Column("endpoint", Text, nullable=False),
    Column("location", Text, nullable=False, unique=True),
    Column("token", Text, nullable=False, unique=True),
    Column("address", Text, nullable=False),  # JSON: the socket's
    Column("secure", Boolean, nullable=False),
    Column("lifetime_s", BigInteger, nullable=False),
    Column("version", Text, nullable=False),
    Column("binding", Text, nullable=False),
    Column("links", Text, nullable=False),  # paths, separated by blanks
    Column("speaks_pcp", Boolean, nullable=False),
    Column("registered_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
)

# One row for every time that this database was made from a backup.
restoration = Table(
    "restoration",
    metadata,
    _id(),
    Column("restored_at", BigInteger, nullable=False),
    Column("taken_at", BigInteger, nullable=False),  # the moment of the backup
    # Every attempt number that was given before is at most this one, whoever got it: devices begin above it.
    Column("attempt_base", Integer, nullable=False),
    sqlite_autoincrement=True,
)
