"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates every table and index."""
    op.create_table(
        "application",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("app_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.Text(), nullable=False),
        sa.Column("target_tokens", sa.Boolean(), nullable=False),
        sa.Column("gateway_tokens", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("frozen_at", sa.BigInteger(), nullable=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_application")),
        sa.UniqueConstraint("app_id", name=op.f("uq_application_app_id")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "blob",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("sha1", sa.Text(), nullable=False),
        sa.Column("md5", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blob")),
    )
    op.create_table(
        "job",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("cursor", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        sa.UniqueConstraint("kind", "subject", name=op.f("uq_job_kind_subject")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_job_due_at"), "job", ["due_at"], unique=False)
    op.create_table(
        "product",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("device_type", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("manufacturer_name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_product")),
        sa.UniqueConstraint(
            "device_type", "model", "manufacturer_name", name=op.f("uq_product_device_type_model_manufacturer_name")
        ),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "access_token",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("application_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('access', 'refresh')", name=op.f("ck_access_token_kind")),
        sa.ForeignKeyConstraint(["application_id"], ["application.id"], name=op.f("fk_access_token_application_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_token")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_access_token_token_hash")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_access_token_application_id_kind"), "access_token", ["application_id", "kind"], unique=False
    )
    op.create_index(op.f("ix_access_token_expires_at"), "access_token", ["expires_at"], unique=False)
    op.create_table(
        "device",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("application_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("product_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("protocol_type", sa.Text(), nullable=True),
        sa.Column("fw_version", sa.Text(), nullable=True),
        sa.Column("sw_version", sa.Text(), nullable=True),
        sa.Column("reports_fw", sa.Boolean(), nullable=False),
        sa.Column("reports_sw", sa.Boolean(), nullable=False),
        sa.Column("self_registered", sa.Boolean(), nullable=False),
        sa.Column("attributes", sa.Text(), nullable=False),
        sa.Column("attributes_wanted", sa.Boolean(), nullable=False),
        sa.Column("auto_confirm", sa.Text(), nullable=True),
        sa.Column("info", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=True),
        sa.Column("verify_code", sa.Text(), nullable=True),
        sa.Column("psk", sa.Text(), nullable=True),
        sa.Column("activation_timeout", sa.BigInteger(), nullable=False),
        sa.Column("registered_at", sa.BigInteger(), nullable=False),
        sa.Column("modified_at", sa.BigInteger(), nullable=False),
        sa.Column("activated_at", sa.BigInteger(), nullable=True),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("attempt_seq", sa.Integer(), nullable=False),
        sa.Column("installed_action_id", sa.Integer(), nullable=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["application_id"], ["application.id"], name=op.f("fk_device_application_id")),
        sa.ForeignKeyConstraint(["product_id"], ["product.id"], name=op.f("fk_device_product_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device")),
        sa.UniqueConstraint("device_id", name=op.f("uq_device_device_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_device_application_registered_live",
        "device",
        ["application_id", "id"],
        unique=False,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index("ix_device_node_attempts", "device", ["application_id", "node_id", "attempt_seq"], unique=False)
    op.create_index(
        "uq_device_application_id_node_id_live",
        "device",
        ["application_id", "node_id"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "uq_device_verify_code_live",
        "device",
        ["verify_code"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL AND verify_code IS NOT NULL"),
        postgresql_where=sa.text("deleted_at IS NULL AND verify_code IS NOT NULL"),
    )
    op.create_table(
        "device_group",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("application_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("max_devices", sa.Integer(), nullable=False),
        sa.Column("device_count", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["application_id"], ["application.id"], name=op.f("fk_device_group_application_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device_group")),
        sa.UniqueConstraint("group_id", name=op.f("uq_device_group_group_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_device_group_name_live",
        "device_group",
        ["application_id", "name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "flow_control",
        sa.Column("application_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("tokens", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["application_id"], ["application.id"], name=op.f("fk_flow_control_application_id")),
        sa.PrimaryKeyConstraint("application_id", name=op.f("pk_flow_control")),
    )
    op.create_table(
        "gateway_token",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("application_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("product_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["application_id"], ["application.id"], name=op.f("fk_gateway_token_application_id")),
        sa.ForeignKeyConstraint(["product_id"], ["product.id"], name=op.f("fk_gateway_token_product_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gateway_token")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_gateway_token_token_hash")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_gateway_token_application_id"), "gateway_token", ["application_id"], unique=False)
    op.create_table(
        "idempotency",
        sa.Column("application_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.Text(), nullable=False),
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["application_id"], ["application.id"], name=op.f("fk_idempotency_application_id")),
        sa.PrimaryKeyConstraint("application_id", "key", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_created_at"), "idempotency", ["created_at"], unique=False)
    op.create_table(
        "package",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("application_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("file_type", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("product_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("protocol_type", sa.Text(), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("build_date", sa.Text(), nullable=True),
        sa.Column("source_versions", sa.Text(), nullable=False),
        sa.Column("extra", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("uploaded_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("file_type IN ('firmwarePackage', 'softwarePackage')", name=op.f("ck_package_file_type")),
        sa.ForeignKeyConstraint(["application_id"], ["application.id"], name=op.f("fk_package_application_id")),
        sa.ForeignKeyConstraint(["product_id"], ["product.id"], name=op.f("fk_package_product_id")),
        sa.ForeignKeyConstraint(["sha256"], ["blob.sha256"], name=op.f("fk_package_sha256")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_package")),
        sa.UniqueConstraint("file_id", name=op.f("uq_package_file_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_package_application_live",
        "package",
        ["application_id", "id"],
        unique=False,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(op.f("ix_package_sha256"), "package", ["sha256"], unique=False)
    op.create_table(
        "campaign",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("application_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("package_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("product_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device_type", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("manufacturer_name", sa.Text(), nullable=False),
        sa.Column("target_version", sa.Text(), nullable=False),
        sa.Column("target_devices", sa.Text(), nullable=True),
        sa.Column("target_groups", sa.Text(), nullable=True),
        sa.Column("policy_given", sa.Boolean(), nullable=False),
        sa.Column("execute_type", sa.Text(), nullable=False),
        sa.Column("window_start", sa.BigInteger(), nullable=True),
        sa.Column("window_end", sa.BigInteger(), nullable=True),
        sa.Column("retry_times", sa.Integer(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("confirmation", sa.Boolean(), nullable=False),
        sa.Column("clocks", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("work", sa.Text(), nullable=False),
        sa.Column("stopped_by_operator", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("stopped_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("kind IN ('firmware_upgrade', 'software_upgrade')", name=op.f("ck_campaign_kind")),
        sa.CheckConstraint(
            "status IN ('wait', 'processing', 'success', 'failed', 'stop')", name=op.f("ck_campaign_status")
        ),
        sa.CheckConstraint("work IN ('idle', 'expanding', 'retrying', 'sweeping')", name=op.f("ck_campaign_work")),
        sa.ForeignKeyConstraint(["application_id"], ["application.id"], name=op.f("fk_campaign_application_id")),
        sa.ForeignKeyConstraint(["package_id"], ["package.id"], name=op.f("fk_campaign_package_id")),
        sa.ForeignKeyConstraint(["product_id"], ["product.id"], name=op.f("fk_campaign_product_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaign")),
        sa.UniqueConstraint("operation_id", name=op.f("uq_campaign_operation_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_campaign_application_id_id"), "campaign", ["application_id", "id"], unique=False)
    op.create_index(
        op.f("ix_campaign_application_id_status_id"), "campaign", ["application_id", "status", "id"], unique=False
    )
    op.create_index(op.f("ix_campaign_package_id"), "campaign", ["package_id"], unique=False)
    op.create_table(
        "group_member",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("group_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("product_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_group_member_device_id")),
        sa.ForeignKeyConstraint(["group_id"], ["device_group.id"], name=op.f("fk_group_member_group_id")),
        sa.ForeignKeyConstraint(["product_id"], ["product.id"], name=op.f("fk_group_member_product_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_group_member")),
        sa.UniqueConstraint("group_id", "device_id", name=op.f("uq_group_member_group_id_device_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_group_member_device_id"), "group_member", ["device_id"], unique=False)
    op.create_index("ix_group_member_expansion", "group_member", ["group_id", "product_id", "id"], unique=False)
    op.create_table(
        "campaign_counters",
        sa.Column(
            "campaign_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("wait", sa.Integer(), nullable=False),
        sa.Column("processing", sa.Integer(), nullable=False),
        sa.Column("success", sa.Integer(), nullable=False),
        sa.Column("fail", sa.Integer(), nullable=False),
        sa.Column("stop", sa.Integer(), nullable=False),
        sa.Column("timeout", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "total = wait + processing + success + fail + stop + timeout", name=op.f("ck_campaign_counters_sum")
        ),
        sa.CheckConstraint(
            "wait >= 0 AND processing >= 0 AND success >= 0 AND fail >= 0 AND stop >= 0 AND timeout >= 0",
            name=op.f("ck_campaign_counters_not_negative"),
        ),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_campaign_counters_campaign_id")),
        sa.PrimaryKeyConstraint("campaign_id", name=op.f("pk_campaign_counters")),
    )
    op.create_table(
        "campaign_group",
        sa.Column("campaign_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("group_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("watermark", sa.BigInteger(), nullable=False),
        sa.Column("expanded_to", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_campaign_group_campaign_id")),
        sa.ForeignKeyConstraint(["group_id"], ["device_group.id"], name=op.f("fk_campaign_group_group_id")),
        sa.PrimaryKeyConstraint("campaign_id", "group_id", name=op.f("pk_campaign_group")),
    )
    op.create_table(
        "upgrade",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("campaign_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("action_id", sa.Integer(), nullable=True),
        sa.Column("confirmed", sa.Boolean(), nullable=True),
        sa.Column("halted_in", sa.Text(), nullable=True),
        sa.Column("source_version", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("blocker_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "(state IN ('success', 'fail', 'timeout', 'stop')) = (finished_at IS NOT NULL)",
            name=op.f("ck_upgrade_final"),
        ),
        sa.CheckConstraint(
            "state IN ('wait', 'offered', 'downloading', 'downloaded', 'installing', 'verifying', 'cancelling', 'success', 'fail', 'timeout', 'stop')",
            name=op.f("ck_upgrade_state"),
        ),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_upgrade_campaign_id")),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_upgrade_device_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upgrade")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_upgrade_campaign_id_state_ordinal"), "upgrade", ["campaign_id", "state", "ordinal"], unique=False
    )
    op.create_index(op.f("ix_upgrade_device_id_campaign_id"), "upgrade", ["device_id", "campaign_id"], unique=False)
    op.create_index(
        "ix_upgrade_due_at",
        "upgrade",
        ["due_at"],
        unique=False,
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index("uq_upgrade_campaign_id_ordinal", "upgrade", ["campaign_id", "ordinal"], unique=True)
    op.create_index(
        "uq_upgrade_device_id_open",
        "upgrade",
        ["device_id"],
        unique=True,
        sqlite_where=sa.text("finished_at IS NULL"),
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_table(
        "device_log",
        sa.Column("upgrade_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("action_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("lines", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["upgrade_id"], ["upgrade.id"], name=op.f("fk_device_log_upgrade_id")),
        sa.PrimaryKeyConstraint("upgrade_id", "action_id", "n", name=op.f("pk_device_log")),
    )
    op.create_table(
        "history",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("upgrade_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("from_state", sa.Text(), nullable=False),
        sa.Column("to_state", sa.Text(), nullable=False),
        sa.Column("action_id", sa.Integer(), nullable=True),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["upgrade_id"], ["upgrade.id"], name=op.f("fk_history_upgrade_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_history")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_history_upgrade_id_id"), "history", ["upgrade_id", "id"], unique=False)
