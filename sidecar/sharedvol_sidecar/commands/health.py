"""The command ``health``: query the running service, for a container's HEALTHCHECK without curl."""

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
from sharedvol_sidecar.commands.output import report_error, say
from sharedvol_sidecar.config.listen import DEFAULT_LISTEN, format_address, parse_listen, reachable
from sharedvol_sidecar.config.secret import read_variable
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.humanize import plain, toml_problem

_LARGEST = 65_536
_PAUSE = 0.1  # seconds
_LISTEN = "SHAREDVOL_LISTEN"


@click.command(name="health")
@click.option("--ready", is_flag=True, help="Check that it is ready, and not just alive.")
@click.option(
    "--listen",
    metavar="ADDRESS",
    help=f"Where the service listens, as in its own settings. [default: {DEFAULT_LISTEN}]",
)
@click.option(
    "--config",
    metavar="FILE",
    envvar="SHAREDVOL_CONFIG",
    type=click.Path(path_type=Path),
    help="The service's TOML file, which may contain the address.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    default=3.0,
    show_default=True,
    type=click.FloatRange(0, 600, min_open=True),
    help="How long to wait for the connection and for the response.",
)
def health_command(ready: bool, listen: str | None, config: Path | None, timeout: float) -> None:
    """Query the service on this host and print one line. The exit code is 0 if it is well, else 1.

    \b
      HEALTHCHECK CMD ["sharedvol-sidecar", "health"]
    """
    try:
        address = parse_listen(listen or _from_environment() or _configured(config) or DEFAULT_LISTEN)
    except ConfigError as error:
        _fail(str(error))
    if address is None:
        _fail("there is no server to query: listen is off")
    host, port = reachable(address[0]), address[1]
    path = "/readyz" if ready else "/healthz"
    try:
        code, body = _query_until_answered(host, port, path, timeout)
    except (OSError, http.client.HTTPException) as error:
        _fail(f"no answer from {format_address(host, port)}: {str(error) or type(error).__name__}")
    said = plain(_in_words(body))
    # Another program may listen there and answer with 200.
    if code != 200 or body.get("status") not in ("alive", "ready"):
        _fail(f"{said} (HTTP {code} from {format_address(host, port)}{path})")
    say(said)


def _query_until_answered(host: str, port: int, path: str, timeout: float) -> tuple[int, dict[str, Any]]:
    """Query until there is a response, because a service with too many connections closes new ones."""
    end = time.monotonic() + timeout
    while True:
        try:
            return _query(host, port, path, timeout)
        except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
            if time.monotonic() + _PAUSE > end:
                raise
        time.sleep(_PAUSE)


def _query(host: str, port: int, path: str, timeout: float) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(host, port, timeout=timeout)  # it uses no proxy
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
    given = [one for one in reasons if isinstance(one, dict)] if isinstance(reasons, list) else []
    return "; ".join([status, *(f"{one.get('reason')}: {one.get('detail')}" for one in given)])


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
    # Always 1, because Docker reserves 2.
    report_error(message)
    sys.exit(1)
