"""SQL scripts, their statements, and the runners that apply them."""
