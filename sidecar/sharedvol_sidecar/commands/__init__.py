"""The commands of `sharedvol-sidecar`, a module each."""
