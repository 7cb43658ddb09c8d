"""The command ``demo``."""

from __future__ import annotations

import sys

import click

from sharedvol_sidecar.demo import run_demo


@click.command(name="demo")
@click.option("--replicas", default=4, show_default=True, type=click.IntRange(1, 32), help="How many replicas write.")
@click.option("--seconds", default=6.0, show_default=True, type=click.FloatRange(2, 600), help="How long they write.")
@click.option("--keep", is_flag=True, help="Keep the volume and print its path.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def demo_command(replicas: int, seconds: float, keep: bool, as_json: bool) -> None:
    """Show how it works: replicas write, two sidecars collect, one is killed, and every file is accounted for.

    Exit codes: 0 nothing was lost, doubled or overwritten, else 1.
    """
    sys.exit(run_demo(replicas, seconds, keep=keep, as_json=as_json))
