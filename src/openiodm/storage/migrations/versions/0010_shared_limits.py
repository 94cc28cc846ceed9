"""native_flow_control, login_count: limits that several servers share

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """New tables."""
    op.create_table(
        "native_flow_control",
        sa.Column("application_id", ID, nullable=False),
        sa.Column("tokens", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["application_id"], ["application.id"], name=op.f("fk_native_flow_control_application_id")
        ),
        sa.PrimaryKeyConstraint("application_id", name=op.f("pk_native_flow_control")),
    )
    op.create_table(
        "login_count",
        sa.Column("application", sa.Text(), nullable=False),
        sa.Column("network", sa.Text(), nullable=False),
        sa.Column("known_at", sa.BigInteger(), nullable=True),
        sa.Column("owed", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("application", "network", name=op.f("pk_login_count")),
    )
