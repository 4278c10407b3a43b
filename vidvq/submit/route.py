"""The way from this machine to where a job meets: `python -m vidvq.submit.route HOST:PORT`.

Prints this machine's network interface on that way. A name that resolves to the loopback, or a second network, mislead
those who guess by the machine's name.
"""

import platform
import socket
import struct
import sys

_SIOCGIFADDR = 0x8915


def main(head: str) -> int:
    """The command; exit code 2 where the name cannot be resolved."""
    host, _, port = head.rpartition(":")
    try:
        there = socket.gethostbyname(host)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Sends nothing: it asks for the route.
            probe.connect((there, int(port)))
            address = probe.getsockname()[0]
    except (OSError, ValueError) as error:
        print(f"{head} is no place to meet, as seen from {socket.gethostname()}: {error}", file=sys.stderr)
        return 2
    print(interface_of(address))
    return 0


def interface_of(address: str) -> str:
    """The network interface that has an address; empty where that cannot be told."""
    if platform.system() == "Linux":
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                try:
                    got = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
                except OSError:
                    # An interface without an address.
                    continue
                if socket.inet_ntoa(got[20:24]) == address:
                    return name
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
