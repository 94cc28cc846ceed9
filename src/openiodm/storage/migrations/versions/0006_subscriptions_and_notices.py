"""Subscriptions, notices, and who is still owed the result of an upgrade."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates receivers, subscriptions, notices and what secures callbacks; adds `result_owed` to upgrades."""
    op.create_table(
        "receiver",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("failing_since", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_receiver")),
        sa.UniqueConstraint("name", name=op.f("uq_receiver_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "callback_security",
        sa.Column(
            "application_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("ca_pem", sa.Text(), nullable=True),
        sa.Column("certificate_pem", sa.Text(), nullable=True),
        sa.Column("key_pem", sa.Text(), nullable=True),
        sa.Column("signing_secret", sa.Text(), nullable=True),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("(certificate_pem IS NULL) = (key_pem IS NULL)", name=op.f("ck_callback_security_pair")),
        sa.ForeignKeyConstraint(
            ["application_id"], ["application.id"], name=op.f("fk_callback_security_application_id")
        ),
        sa.PrimaryKeyConstraint("application_id", name=op.f("pk_callback_security")),
    )
    op.create_table(
        "subscription",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("application_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("notify_type", sa.Text(), nullable=False),
        sa.Column("callback_url", sa.Text(), nullable=False),
        sa.Column("receiver_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("last_error_at", sa.BigInteger(), nullable=True),
        sa.Column("last_delivered_at", sa.BigInteger(), nullable=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["application_id"], ["application.id"], name=op.f("fk_subscription_application_id")),
        sa.ForeignKeyConstraint(["receiver_id"], ["receiver.id"], name=op.f("fk_subscription_receiver_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subscription")),
        sa.UniqueConstraint("subscription_id", name=op.f("uq_subscription_subscription_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_subscription_receiver_live",
        "subscription",
        ["receiver_id"],
        unique=False,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "uq_subscription_type_live",
        "subscription",
        ["application_id", "notify_type"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )

    op.create_table(
        "notice",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("subscription_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device_id", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("pending_since", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("first_tried_at", sa.BigInteger(), nullable=True),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("given_up_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["subscription_id"], ["subscription.id"], name=op.f("fk_notice_subscription_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notice")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_notice_pending",
        "notice",
        ["subscription_id", "id"],
        unique=False,
        sqlite_where=sa.text("given_up_at IS NULL"),
        postgresql_where=sa.text("given_up_at IS NULL"),
    )
    op.create_index(
        "ix_notice_undelivered",
        "notice",
        ["subscription_id", "id"],
        unique=False,
        sqlite_where=sa.text("given_up_at IS NOT NULL"),
        postgresql_where=sa.text("given_up_at IS NOT NULL"),
    )
    op.create_index(
        "ix_notice_waiting",
        "notice",
        ["subscription_id", "due_at"],
        unique=False,
        sqlite_where=sa.text("due_at IS NOT NULL AND given_up_at IS NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL AND given_up_at IS NULL"),
    )

    op.add_column("upgrade", sa.Column("result_owed", sa.Boolean(), nullable=True))
    op.create_index(
        "ix_upgrade_result_owed",
        "upgrade",
        ["campaign_id", "ordinal"],
        unique=False,
        sqlite_where=sa.text("result_owed IS NOT NULL"),
        postgresql_where=sa.text("result_owed IS NOT NULL"),
    )
