"""The source side: layout, scans, events, quiet time and the locks on containers' directories."""
