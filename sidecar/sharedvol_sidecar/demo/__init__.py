"""The demo: replicas write, two sidecars collect, one is killed, and every file is accounted for."""

from sharedvol_sidecar.demo.run import run_demo

__all__ = ["run_demo"]
