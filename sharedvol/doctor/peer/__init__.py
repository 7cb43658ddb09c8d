"""Experiments between two containers."""
