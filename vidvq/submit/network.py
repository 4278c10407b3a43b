"""Finds the network interface that leads to a job's rendezvous: `python -m vidvq.submit.network HOST:PORT`.

The routing table decides. A lookup of this machine's own name would be wrong if the name resolves to loopback or to
another network.
"""

import platform
import socket
import struct
import sys

_SIOCGIFADDR = 0x8915


def main(head: str) -> int:
    """Print the interface; returns the exit code, 2 if the host cannot be resolved.

    Args:
        head: ``HOST:PORT`` of the rendezvous.
    """
    host, _, port = head.rpartition(":")
    try:
        target = socket.gethostbyname(host)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Sends nothing: connecting a datagram socket only selects the route.
            probe.connect((target, int(port)))
            address = probe.getsockname()[0]
    except (OSError, ValueError) as error:
        print(f"{head} cannot be reached from {socket.gethostname()}: {error}; give HOST:PORT", file=sys.stderr)
        return 2
    print(interface_of(address))
    return 0


def interface_of(address: str) -> str:
    """Name of the network interface that holds an IPv4 address; empty if unknown."""
    if platform.system() == "Linux":
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                try:
                    reply = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
                except OSError:
                    # An interface without an address.
                    continue
                if socket.inet_ntoa(reply[20:24]) == address:
                    return name
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
