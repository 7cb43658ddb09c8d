"""Directories, leases, locks and contents of files, by descriptors."""
