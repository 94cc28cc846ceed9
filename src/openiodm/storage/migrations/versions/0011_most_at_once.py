"""How many devices of a task may be under way at once.

Revision ID: 0011
Revises: 0010
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column that is empty in the rows that are there: no bound. Batch mode would make `campaign` anew."""
    op.execute(
        "ALTER TABLE campaign ADD COLUMN max_concurrent INTEGER CONSTRAINT ck_campaign_max_concurrent "
        "CHECK (max_concurrent > 0)"
    )
