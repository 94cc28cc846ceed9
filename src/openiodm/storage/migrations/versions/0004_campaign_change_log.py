"""The change log of the task list, written by triggers; read by every server's index of the list."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the log, the mark of what was cut off, and the triggers of `campaign`."""
    op.create_table(
        "campaign_change",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("campaign_id", sa.BigInteger(), nullable=False),
        sa.Column("xid", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaign_change")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_campaign_change_xid_id",
        "campaign_change",
        ["xid", "id"],
        unique=False,
        sqlite_where=sa.text("xid IS NOT NULL"),
        postgresql_where=sa.text("xid IS NOT NULL"),
    )
    op.create_table(
        "campaign_change_trimmed",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("mark", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaign_change_trimmed")),
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            """CREATE TRIGGER tr_campaign_inserted AFTER INSERT ON campaign
            BEGIN INSERT INTO campaign_change (campaign_id) VALUES (NEW.id); END"""
        )
        op.execute(
            """CREATE TRIGGER tr_campaign_status AFTER UPDATE OF status ON campaign
            WHEN NEW.status <> OLD.status
            BEGIN INSERT INTO campaign_change (campaign_id) VALUES (NEW.id); END"""
        )
        op.execute(
            """CREATE TRIGGER tr_campaign_deleted AFTER DELETE ON campaign
            BEGIN INSERT INTO campaign_change (campaign_id) VALUES (OLD.id); END"""
        )
    else:
        op.execute(
            """CREATE FUNCTION campaign_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO campaign_change (campaign_id, xid)
        VALUES (coalesce(NEW.id, OLD.id), CAST(CAST(pg_current_xact_id() AS text) AS bigint));
        RETURN NULL; END $$"""
        )
        op.execute(
            """CREATE TRIGGER tr_campaign_listed AFTER INSERT OR DELETE ON campaign
            FOR EACH ROW EXECUTE FUNCTION campaign_changed()"""
        )
        op.execute(
            """CREATE TRIGGER tr_campaign_status AFTER UPDATE OF status ON campaign
            FOR EACH ROW WHEN (NEW.status <> OLD.status) EXECUTE FUNCTION campaign_changed()"""
        )
