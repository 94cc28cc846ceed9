"""The history tells on PostgreSQL which transaction wrote a row: then it can be read as a log of changes."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column, empty in the rows that are there; its default; an index of the rows that have it."""
    op.add_column("history", sa.Column("xid", sa.BigInteger(), nullable=True))
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "ALTER TABLE history ALTER COLUMN xid SET DEFAULT CAST(CAST(pg_current_xact_id() AS text) AS bigint)"
        )
    op.create_index(
        "ix_history_xid_id",
        "history",
        ["xid", "id"],
        unique=False,
        sqlite_where=sa.text("xid IS NOT NULL"),
        postgresql_where=sa.text("xid IS NOT NULL"),
    )
