"""A long run of replicas and sidecars under faults, in which every record is counted.

`writers` writes records and acknowledges each outside the volume. `cast` starts and ends the processes, `chaos`
disturbs them, `judge` compares the destination with the acknowledgements. `run` puts these together; `python -m soak`
is the command.
"""
