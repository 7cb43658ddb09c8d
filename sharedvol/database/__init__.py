"""Connections to databases, and their URLs."""
