"""What `sharedvol doctor` tries, a module for each group of experiments."""
