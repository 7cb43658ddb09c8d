"""Where to listen, and which names of the host are believed."""

from __future__ import annotations

import ipaddress
import re

from sharedvol_sidecar.errors import ConfigError

DEFAULT_LISTEN = "127.0.0.1:8788"
OFF = "off"

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_EXAMPLES = f"{DEFAULT_LISTEN}, [::1]:8788, 0.0.0.0:8788 for every interface, or {OFF}"


def parse_listen(text: str) -> tuple[str, int] | None:
    """Host and port of a setting such as ``127.0.0.1:8788`` or ``[::1]:8788``; None for ``off``.

    Port 0 lets the kernel choose one.

    Raises:
        ConfigError: it is none of these.
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
        if not _is_address(host) or ":" not in host:
            raise ConfigError(f"listen {text!r}: {host!r} is no IPv6 address: give {_EXAMPLES}")
    elif ":" in host:
        raise ConfigError(f"listen {text!r}: an IPv6 address stands in brackets: give {_EXAMPLES}")
    elif not _NAME.fullmatch(host) or (re.fullmatch(r"[0-9.]+", host) and not _is_address(host)):
        raise ConfigError(f"listen {text!r}: {host!r} is neither an address nor a host's name: give {_EXAMPLES}")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """The inverse of `parse_listen`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this host alone: 127.0.0.0/8, ::1, or the first as IPv6."""
    if not _is_address(host):
        return False
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def reachable(host: str) -> str:
    """The address to ask a server at that listens on ``host``: of one on every interface, the loopback."""
    if not _is_address(host) or not ipaddress.ip_address(host).is_unspecified:
        return host
    return "::1" if ":" in host else "127.0.0.1"


class HostRule:
    """Whether a request's ``Host`` is believed: a guard against DNS rebinding.

    A page in a browser of this machine may let its own name resolve to 127.0.0.1 and then reads what listens
    there; the request has that page's name as its ``Host``. So a server on a loopback address answers for
    addresses, ``localhost``, and names that were allowed, alone. A server on another address is meant to be
    reached by others, under names that it does not know: it answers for all. Browsers always send a ``Host``;
    a request without one (HTTP/1.0) is answered.

    Args:
        bound: the address that the server listens on.
        allowed: names that are believed too.
    """

    def __init__(self, bound: str, allowed: tuple[str, ...] = ()) -> None:
        self._any = not is_loopback(bound)
        self._allowed = frozenset({"localhost", *(name.lower().rstrip(".") for name in allowed)})

    def believes(self, header: str | None) -> bool:
        """Whether to answer a request with this ``Host``, port and all."""
        if self._any or header is None:
            return True
        host = re.sub(r":[0-9]*\Z", "", header.strip()) if not header.endswith("]") else header.strip()
        if host.startswith("[") and host.endswith("]"):
            return ":" in host and _is_address(host[1:-1])
        return host.lower().rstrip(".") in self._allowed or (":" not in host and _is_address(host))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
