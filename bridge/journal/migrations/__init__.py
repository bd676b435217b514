"""Alembic migrations of the journal; run once, by the master process before it forks."""
