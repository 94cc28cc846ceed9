"""The device list by index; time-outs of activation by index, counted anew by a refresh."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Its beginning: a whole one may be too long for an index of PostgreSQL.
LOCATION = {
    "sqlite": "substr(json_extract(info, '$.location'), 1, 256)",
    "postgresql": "substr(CAST(info AS json) ->> 'location', 1, 256)",
}


def upgrade() -> None:
    """Two columns, filled from what is there, and the indexes over them."""
    op.add_column("device", sa.Column("location", sa.Text(), nullable=True))
    op.add_column("device", sa.Column("activation_due_at", sa.BigInteger(), nullable=True))
    location = LOCATION[op.get_bind().dialect.name]
    op.execute(f"UPDATE device SET location = {location} WHERE info LIKE '%\"location\"%'")
    op.execute(
        "UPDATE device SET activation_due_at = registered_at + activation_timeout * 1000 WHERE activation_timeout > 0"
    )
    op.drop_index("ix_device_application_registered_live", table_name="device")
    _live_index("registered", ["registered_at", "id"])
    _live_index("product", ["product_id", "registered_at", "id"])
    _live_index("name", ["name", "registered_at", "id"], " AND name IS NOT NULL")
    _live_index("location", ["location", "registered_at", "id"], " AND location IS NOT NULL")
    _live_index("inactive", ["registered_at", "id"], " AND activated_at IS NULL")
    due = sa.text("activation_due_at IS NOT NULL AND activated_at IS NULL AND deleted_at IS NULL")
    op.create_index("ix_device_activation_due", "device", ["activation_due_at"], sqlite_where=due, postgresql_where=due)


def _live_index(name: str, columns: list[str], of: str = "") -> None:
    where = sa.text("deleted_at IS NULL" + of)
    op.create_index(
        f"ix_device_application_{name}_live",
        "device",
        ["application_id", *columns],
        sqlite_where=where,
        postgresql_where=where,
    )
