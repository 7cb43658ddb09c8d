"""The harness that stops a mover at each of its system calls, and kills, fails or cuts the power there.

`Traced` runs a mover as a child that the kernel stops before each call that changes something. `Scene` makes
the volume, `judge` says what is wrong with it, `sweeps` go through all points. Everything runs in a process
of its own (`isolated`), so that mounts, traced children and planted bugs end with it.
"""
