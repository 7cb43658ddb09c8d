"""Rows of collected files, and the comparison of rows and files."""
