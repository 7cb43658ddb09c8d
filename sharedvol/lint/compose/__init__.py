"""Compose files: read, merged and brought into one form."""
