"""Where migrations come from: directories of SQL files, Alembic, Python functions."""
