"""The loop of `run`: passes, events, retention and reports."""
