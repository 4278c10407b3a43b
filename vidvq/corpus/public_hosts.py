"""Connections to public addresses alone: a list of URLs must not reach into the network that the job runs in.

The address is checked where the socket is made, so after the name is resolved, and again for each redirect.
"""

import socket
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

# Time to connect, and from one byte to the next (seconds).
_CONNECT_S, _SILENCE_S = 30.0, 60.0
PRIVATE = "is a private address; lists.allow_private=true allows those"


def is_public(address: str) -> bool:
    """Whether an IP address is reachable from everywhere: not private, loopback, link-local, multicast or reserved."""
    found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or found.sixtofour or found
    return found.is_global and not found.is_multicast


def http_options(allow_private: bool) -> dict[str, Any]:
    """Options of fsspec for HTTP: connections to public addresses alone, unless others are allowed; timeouts."""
    return {"get_client": partial(_client, allow_private)}


async def _client(allow_private: bool, **options: Any) -> Any:
    import aiohttp

    if not allow_private:
        options["connector"] = aiohttp.TCPConnector(socket_factory=_public_socket)
    # The default ends every request after five minutes; the time of a whole download is limited elsewhere.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
    return aiohttp.ClientSession(**options, timeout=timeout)


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise ConnectionRefusedError(f"{address[0]} {PRIVATE}")
    return socket.socket(family, kind, protocol)
