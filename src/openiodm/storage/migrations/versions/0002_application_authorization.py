"""application_authorization: one application may act on another's things

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """A new table."""
    op.create_table(
        "application_authorization",
        sa.Column("application_id", ID, nullable=False),
        sa.Column("authorized_id", ID, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("application_id <> authorized_id", name=op.f("ck_application_authorization_not_itself")),
        sa.ForeignKeyConstraint(
            ["application_id"], ["application.id"], name=op.f("fk_application_authorization_application_id")
        ),
        sa.ForeignKeyConstraint(
            ["authorized_id"], ["application.id"], name=op.f("fk_application_authorization_authorized_id")
        ),
        sa.PrimaryKeyConstraint("application_id", "authorized_id", name=op.f("pk_application_authorization")),
    )
    op.create_index(op.f("ix_application_authorization_authorized_id"), "application_authorization", ["authorized_id"])
