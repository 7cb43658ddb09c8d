"""The sources of migrations: directories of SQL files, Alembic, Python functions."""
