"""Check the ``Host`` of requests."""

from __future__ import annotations

import ipaddress
import re

from sharedvol_sidecar.config.listen import is_address


class HostRule:
    """Decides whether a request's ``Host`` is accepted. It prevents DNS rebinding.

    A page in a browser of this machine can let its own name resolve to 127.0.0.1 and then read what listens there. Such
    a request has that page's name as its ``Host``. So a server on a loopback address accepts only addresses,
    ``localhost`` and allowed names. A server on another address is meant for other hosts, which may use names that it
    does not know, so it accepts every name. Browsers always send a ``Host``; a request without one (HTTP/1.0) is
    accepted.

    Args:
        bound: the address that the server listens on.
        allowed: more names to accept.
    """

    def __init__(self, bound: str, allowed: tuple[str, ...] = ()) -> None:
        self._any = not is_loopback(bound)
        self._allowed = frozenset({"localhost", *(name.lower().rstrip(".") for name in allowed)})

    def accepts(self, header: str | None) -> bool:
        """Return whether to answer a request with this ``Host``, which may include a port."""
        if self._any or header is None:
            return True
        host = re.sub(r":[0-9]*\Z", "", header.strip()) if not header.endswith("]") else header.strip()
        if host.startswith("[") and host.endswith("]"):
            return ":" in host and is_address(host[1:-1])
        return host.lower().rstrip(".") in self._allowed or (":" not in host and is_address(host))


def is_loopback(host: str) -> bool:
    """Return whether only this host can reach an address: 127.0.0.0/8, ::1, or 127.0.0.0/8 mapped to IPv6."""
    if not is_address(host):
        return False
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
