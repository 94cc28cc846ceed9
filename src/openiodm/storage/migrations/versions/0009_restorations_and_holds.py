"""Restored databases: when that was, from which attempt number on they count, and which tasks are held.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """A new table, and a column that is empty in the rows that are there. Batch mode would make `campaign` anew."""
    op.create_table(
        "restoration",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("restored_at", sa.BigInteger(), nullable=False),
        sa.Column("taken_at", sa.BigInteger(), nullable=False),
        sa.Column("attempt_base", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_restoration")),
        sqlite_autoincrement=True,
    )
    op.execute(
        "ALTER TABLE campaign ADD COLUMN hold TEXT CONSTRAINT ck_campaign_hold CHECK (hold IN ('all', 'unproven'))"
    )
