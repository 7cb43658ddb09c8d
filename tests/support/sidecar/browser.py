"""A headless Chromium with a profile of its own and no JavaScript, for one page at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.processes import LIMIT

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # as root, and in containers
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",  # what a page does against its policy is told there
)


@dataclass(frozen=True)
class Seen:
    """What the browser made of a page."""

    output: str
    log: str


def missing() -> str | None:
    """Why there is no browser to test in, or None."""
    if os.environ.get("SHAREDVOL_TEST_CHROMIUM") == "no":
        return "the page is not tested in a browser: SHAREDVOL_TEST_CHROMIUM=no"
    if _program() is None:
        return "the page is not tested in a browser: run scripts/install-chromium, as 'make test' does"
    return None


def browse(url: str, *options: str, javascript: bool = False) -> Seen:
    """Open ``url`` and end.

    Args:
        url: of a server on this host.
        options: what to do, such as ``--dump-dom``.
        javascript: whether scripts may run.
    """
    program = _program()
    if program is None:
        pytest.fail(str(missing()), pytrace=False)
    with tempfile.TemporaryDirectory(prefix="sharedvol-browser-", ignore_cleanup_errors=True) as profile:
        if not javascript:
            # As a user would set it: --blink-settings=scriptEnabled=false takes --dump-dom away, too.
            preferences = {"profile": {"default_content_setting_values": {"javascript": 2}}}
            Path(profile, "Default").mkdir()
            Path(profile, "Default", "Preferences").write_text(json.dumps(preferences))
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", *options, url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, log = process.communicate(timeout=LIMIT)
        except BaseException:
            # It is not reaped yet, so the group is still its own. Else its helpers, which have its pipes, are gone.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
    assert process.returncode == 0, log
    return Seen(output, log)


def _program() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)
