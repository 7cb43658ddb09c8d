"""The experiments of `sharedvol doctor`, a module for each group."""
