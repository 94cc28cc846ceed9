"""Alembic's home: `run.py` applies, `env.py` is Alembic's entry, `versions/` holds released steps, never edited."""
