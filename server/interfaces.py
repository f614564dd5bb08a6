"""This machine's own addresses, for `samehost` and `samenet` in host-based rules.

Linux only (SIOCGIFADDR, /proc/net/if_inet6). Elsewhere the loopback addresses are all that is known, so that these two
words never match more than they should.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
import sys
from pathlib import Path
from typing import Final

from server.hba import IpInterface

_SIOCGIFADDR: Final = 0x8915
_SIOCGIFNETMASK: Final = 0x891B
_IF_INET6: Final = Path("/proc/net/if_inet6")


def local_interfaces() -> list[IpInterface]:
    """Addresses with their networks."""
    if not sys.platform.startswith("linux"):
        return [ipaddress.ip_interface("127.0.0.1/8"), ipaddress.ip_interface("::1/128")]
    return [*_ipv4(), *_ipv6()]


def _ipv4() -> list[IpInterface]:
    found: list[IpInterface] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                address = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24]
                mask = fcntl.ioctl(probe.fileno(), _SIOCGIFNETMASK, request)[20:24]
            except OSError:
                continue  # no IPv4 address on it
            found.append(ipaddress.ip_interface(f"{socket.inet_ntoa(address)}/{socket.inet_ntoa(mask)}"))
    return found


def _ipv6() -> list[IpInterface]:
    try:
        lines = _IF_INET6.read_text().splitlines()
    except OSError:
        return []  # no IPv6 in this kernel
    fields = (line.split() for line in lines)
    return [ipaddress.ip_interface((int(field[0], 16), int(field[2], 16))) for field in fields if len(field) >= 3]
