"""``sharedvol-sidecar health``: asks the running service how it is, for a container's HEALTHCHECK without curl."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import click

from sharedvol.errors import describe
from sharedvol_sidecar.commands.exit import report_error, say
from sharedvol_sidecar.config.listen import DEFAULT_LISTEN, format_address, parse_listen, reachable
from sharedvol_sidecar.config.secret import read_variable
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.humanize import plain, toml_problem

_LARGEST = 65_536
_PAUSE = 0.1  # seconds
_LISTEN = "SHAREDVOL_LISTEN"


@click.command(name="health")
@click.option("--ready", is_flag=True, help="Ask whether it is ready, not only whether it is alive.")
@click.option(
    "--listen",
    metavar="ADDRESS",
    help=f"Where the service listens, as it was told itself. [default: {DEFAULT_LISTEN}]",
)
@click.option(
    "--config",
    metavar="FILE",
    envvar="SHAREDVOL_CONFIG",
    type=click.Path(path_type=Path),
    help="The service's TOML file, which may hold the address.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    default=3.0,
    show_default=True,
    type=click.FloatRange(0, 600, min_open=True),
    help="How long to wait for the connection, and for the answer.",
)
def health_command(ready: bool, listen: str | None, config: Path | None, timeout: float) -> None:
    """Ask the service on this host how it is; one line, exit code 0 if it is well, else 1.

    \b
      HEALTHCHECK CMD ["sharedvol-sidecar", "health"]
    """
    try:
        address = parse_listen(listen or _from_environment() or _configured(config) or DEFAULT_LISTEN)
    except ConfigError as error:
        _fail(str(error))
    if address is None:
        _fail("there is nobody to ask: listen is off")
    host, port = reachable(address[0]), address[1]
    path = "/readyz" if ready else "/healthz"
    try:
        code, body = _ask_again(host, port, path, timeout)
    except (OSError, http.client.HTTPException) as error:
        _fail(f"no answer from {format_address(host, port)}: {str(error) or type(error).__name__}")
    said = plain(_in_words(body))
    # Something else may listen there, and be well.
    if code != 200 or body.get("status") not in ("alive", "ready"):
        _fail(f"{said} (HTTP {code} from {format_address(host, port)}{path})")
    say(said)


def _ask_again(host: str, port: int, path: str, timeout: float) -> tuple[int, dict[str, Any]]:
    """Ask until there is an answer: a service that has too many connections closes one more."""
    end = time.monotonic() + timeout
    while True:
        try:
            return _ask(host, port, path, timeout)
        except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
            if time.monotonic() + _PAUSE > end:
                raise
        time.sleep(_PAUSE)


def _ask(host: str, port: int, path: str, timeout: float) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(host, port, timeout=timeout)  # which knows no proxies
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, _parse(answer.read(_LARGEST))
    finally:
        connection.close()


def _parse(text: bytes) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _in_words(body: dict[str, Any]) -> str:
    status = str(body.get("status", "not an answer of this service")).replace("_", " ")
    reasons = body.get("reasons")
    told = [one for one in reasons if isinstance(one, dict)] if isinstance(reasons, list) else []
    return "; ".join([status, *(f"{one.get('reason')}: {one.get('detail')}" for one in told)])


def _from_environment() -> str | None:
    found = read_variable(_LISTEN)
    return found and found[0]


def _configured(config: Path | None) -> str | None:
    if config is None:
        return None
    try:
        value = tomllib.loads(config.read_text("utf-8")).get("listen")
    except OSError as error:
        raise ConfigError(f"cannot read {os.fspath(config)!r}: {describe(error)}; see --config") from None
    except ValueError as error:
        raise ConfigError(f"cannot read {os.fspath(config)!r}: {toml_problem(error)}; see --config") from None
    return None if value is None else str(value)


def _fail(message: str) -> NoReturn:
    # Docker keeps 2 for itself: whatever is wrong, the code is 1.
    report_error(message)
    sys.exit(1)
