"""Which collected files are deleted, and when."""
