"""Reading compose files: parsing, merging and normalizing."""
