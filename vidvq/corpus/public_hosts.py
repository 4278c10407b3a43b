"""Connections to public addresses alone: a list of URLs must not reach into the network that the job runs in.

The address is checked where the socket is made, so after the name is resolved, and again for each redirect.
"""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

PRIVATE = "is a private address; lists.allow_private=true allows those"


def is_public(address: str) -> bool:
    """Whether an IP address is reachable from everywhere: not private, loopback, link-local, multicast or reserved."""
    found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or found.sixtofour or found
    return found.is_global and not found.is_multicast


async def public_client(**options: Any) -> Any:
    """An HTTP client of aiohttp that connects to public addresses alone, as fsspec's ``get_client``."""
    import aiohttp

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=_public_socket), **options)


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise ConnectionRefusedError(f"{address[0]} {PRIVATE}")
    return socket.socket(family, kind, protocol)
