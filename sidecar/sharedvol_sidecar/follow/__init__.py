"""Logs that are copied while they are open."""
