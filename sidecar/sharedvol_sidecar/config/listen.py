"""Parse the address that the HTTP server listens on."""

from __future__ import annotations

import ipaddress
import re

from sharedvol_sidecar.errors import ConfigError

DEFAULT_LISTEN = "127.0.0.1:8788"
OFF = "off"

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_EXAMPLES = f"{DEFAULT_LISTEN}, [::1]:8788, 0.0.0.0:8788 for every interface, or {OFF}"


def parse_listen(text: str) -> tuple[str, int] | None:
    """Parse a setting such as ``127.0.0.1:8788`` or ``[::1]:8788`` into host and port; None for ``off``.

    With port 0 the kernel chooses one.

    Raises:
        ConfigError: it is not an address with a port.
    """
    text = text.strip()
    if text.lower() == OFF:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        raise ConfigError(f"listen {text!r} has no port: give {_EXAMPLES}")
    if int(port[:6]) > 65_535:
        raise ConfigError(f"listen {text!r}: a port is at most 65535: give {_EXAMPLES}")
    if not host:
        raise ConfigError(f"listen {text!r} has no address: give {_EXAMPLES}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not is_address(host) or ":" not in host:
            raise ConfigError(f"listen {text!r}: {host!r} is not an IPv6 address: give {_EXAMPLES}")
    elif ":" in host:
        raise ConfigError(f"listen {text!r}: write an IPv6 address in brackets: give {_EXAMPLES}")
    elif not _NAME.fullmatch(host) or (re.fullmatch(r"[0-9.]+", host) and not is_address(host)):
        raise ConfigError(f"listen {text!r}: {host!r} is neither an address nor a host's name: give {_EXAMPLES}")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """Return host and port as one text: the inverse of `parse_listen`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(host: str) -> str:
    """Return the address of a server that listens on ``host``: the loopback if that is every interface."""
    if not is_address(host) or not ipaddress.ip_address(host).is_unspecified:
        return host
    return "::1" if ":" in host else "127.0.0.1"


def is_address(text: str) -> bool:
    """Return whether a text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
