"""Receivers of callbacks that no subscription names any more are removed.

Revision ID: 0012
Revises: 0011
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """By which a receiver that goes is looked for in all subscriptions, deleted ones too: they refer to it."""
    op.create_index("ix_subscription_receiver", "subscription", ["receiver_id"])
