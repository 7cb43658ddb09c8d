"""The process that an experiment runs in another container. It imports the standard library and this package only."""
