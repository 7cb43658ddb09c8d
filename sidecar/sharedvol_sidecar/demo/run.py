"""Run the demo: start replicas and sidecars, kill one, and compare what was written with what was collected."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from sharedvol_sidecar.demo.verdict import judge, table

_SIDECAR = (sys.executable, "-P", "-m", "sharedvol_sidecar")
_QUIET = "0.4"
_NAMESPACES = ("unshare", "--uts", "--pid", "--mount", "--fork", "--mount-proc", "--propagation", "private")


def run_demo(replicas: int, seconds: float, *, keep: bool, as_json: bool) -> int:
    """Run the demo, print the verdict, and return the exit code.

    Args:
        replicas: the number of replicas.
        seconds: how long they write.
        keep: keep the volume.
        as_json: print JSON instead of the table.
    """
    volume = Path(tempfile.mkdtemp(prefix="sharedvol-demo-"))
    try:
        return _run(volume, replicas, seconds, as_json)
    finally:
        if keep:
            print(f"the volume is in {volume}", file=sys.stderr)
        else:
            shutil.rmtree(volume)


def _run(volume: Path, replicas: int, seconds: float, as_json: bool) -> int:
    spool, collected, records, stop = (volume / name for name in ("spool", "collected", "records", "stop"))
    for directory in (spool, spool / "results", collected, records):
        directory.mkdir()
    namespaces = _namespaces()
    where = "each with its own UTS and PID namespace" if namespaces else "each with its own HOSTNAME"

    def say(text: str) -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    with ExitStack() as stack:
        stack.callback(stop.touch)
        first, second = [_start_sidecar(volume, spool, collected, number, stack) for number in (1, 2)]
        writers = [_start_replica(namespaces, spool, records, stop, stack) for _ in range(replicas)]
        say(f"{replicas} replicas write for {seconds:g} s, {where}; two sidecars collect")
        began = time.monotonic()
        time.sleep(seconds / 2)
        while_moving = _wait_for_claim(spool)
        first.kill()
        first.wait()
        say(f"killed a sidecar with SIGKILL {'while it moved files' if while_moving else 'between two moves'}")
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        stop.touch()
        failed = sum(_wait(writer) != 0 for writer in writers)
        second.send_signal(signal.SIGTERM)
        stopped = _wait(second)
        say("the replicas have ended; the other sidecar was stopped with SIGTERM; the rest is drained")
    drained = subprocess.run(
        [*_SIDECAR, "once", "--from", spool, "--to", collected, "--quiet", _QUIET],
        stdout=subprocess.DEVNULL,
        process_group=0,
    )
    verdict = judge(records, spool, collected)
    good = verdict.good and not failed and not stopped and not drained.returncode
    if as_json:
        print(json.dumps({**asdict(verdict), "good": good}))
        return not good
    print()
    print(table(verdict))
    print()
    if verdict.foreign or verdict.left:
        print(f"half-written: {verdict.foreign}, left in the spool: {verdict.left}")
    if failed or stopped or drained.returncode:
        print(f"processes failed: {failed} replicas, sidecar {stopped}, once {drained.returncode}")
    print("verdict: nothing lost, nothing doubled, nothing overwritten" if good else "verdict: FAILED")
    return not good


def _namespaces() -> tuple[str, ...]:
    """Return the command that gives a process its own namespaces; empty if the machine forbids that."""
    probe = (sys.executable, "-P", "-c", "import socket; socket.sethostname('probe')")
    for extra in ((), ("--user", "--map-root-user")):
        command = (*_NAMESPACES, *extra, "--kill-child")
        try:
            if subprocess.run([*command, *probe], stderr=subprocess.DEVNULL).returncode == 0:
                return command
        except FileNotFoundError:
            break
    return ()


def _start_replica(
    namespaces: tuple[str, ...], spool: Path, records: Path, stop: Path, stack: ExitStack
) -> subprocess.Popen[bytes]:
    name = os.urandom(6).hex()  # like the name that Docker gives a container
    command = [*namespaces, sys.executable, "-P", "-m", "sharedvol_sidecar.demo.replica"]
    command += [str(path) for path in (spool, records, stop)]
    if namespaces:
        command.append(name)  # the host name for its namespace
    # In its own process group, here and below, so that Ctrl-C reaches only the demo, which then ends its processes.
    process = subprocess.Popen(command, env={**os.environ, "HOSTNAME": name}, process_group=0)
    stack.callback(_reap, process)
    return process


def _start_sidecar(
    volume: Path, spool: Path, collected: Path, number: int, stack: ExitStack
) -> subprocess.Popen[bytes]:
    path = volume / f"sidecar-{number}.jsonl"
    log = stack.enter_context(path.open("wb"))
    process = subprocess.Popen(
        [*_SIDECAR, "run", "--from", spool, "--to", collected, "--quiet", _QUIET, "--interval", "1", "--listen", "off"],
        stdout=log,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        process_group=0,
    )
    stack.callback(_reap, process)
    # It logs once it has its slot. So the first to start has slot 0, which `_wait_for_claim` checks.
    while not path.stat().st_size and process.poll() is None:
        time.sleep(0.01)
    return process


def _wait_for_claim(spool: Path) -> bool:
    """Wait, at most two seconds, until the first sidecar has claimed a file: the moment to kill it."""
    claims = spool / ".sharedvol" / "claims" / "0"
    end = time.monotonic() + 2
    while time.monotonic() < end:
        try:
            if any(claims.glob("*/*/*/*")):
                return True
        except OSError:
            pass  # the sidecar removed a directory meanwhile
    return False


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        return -1


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
