"""One spool and one destination: passes, recovery and the helper process."""
