"""Alembic's entry point: runs on the connection that `run.py` (or a test) put into the configuration."""

from alembic import context

from openiodm.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
