"""Find the owner of a connection's other end, on Linux, in its tables of sockets."""

import ipaddress
import socket
import sys
from pathlib import Path

TABLES = Path("/proc/net/tcp"), Path("/proc/net/tcp6")
ESTABLISHED = "01"  # of a socket that its owner has closed, the table tells another owner

Address = tuple[str, int]


def tells_owners() -> bool:
    """Tell whether the system says who owns a socket."""
    return TABLES[0].exists()


def peer_owner(connection: socket.socket) -> int | None:
    """Return the user id of whoever holds the other end, which is on this machine; None if it is not found.

    Source: the kernel's Documentation/networking/proc_net_tcp.rst.
    """
    theirs, ours = _address(connection.getpeername()), _address(connection.getsockname())
    for table in TABLES:
        if table.exists():
            for line in table.read_text().splitlines()[1:]:
                _, local, remote, state, _, _, _, uid, *_ = line.split()
                if state == ESTABLISHED and (_parsed(local), _parsed(remote)) == (theirs, ours):
                    return int(uid)
    return None


def _parsed(text: str) -> Address:
    """Read `0100007F:1F90`: 32 bits at a time in the machine's order, and the port."""
    address, port = text.split(":")
    packed = bytes.fromhex(address)
    if sys.byteorder == "little":
        packed = b"".join(packed[at : at + 4][::-1] for at in range(0, len(packed), 4))
    return _plain(str(ipaddress.ip_address(packed))), int(port, 16)


def _address(name: tuple[str, int]) -> Address:
    return _plain(name[0]), name[1]


def _plain(address: str) -> str:
    """Write an address in one way, IPv4's in IPv6 too."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
