"""Measurements against peers and limits, each pair in one run: ``python -m bench``."""
