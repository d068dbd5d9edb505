"""Which addresses a webhook may be sent to: none of this machine, of its link, or of a cloud's metadata."""

import ipaddress
import socket
from collections.abc import Callable

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Check = Callable[[IPAddress], bool]

DISCARD_PORT = 9
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")  # Linux takes it for the machine itself
METADATA = {  # of clouds, beside 169.254.169.254, which is link-local
    ipaddress.ip_address(address)
    for address in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
}


class AddressRefused(OSError):
    """A name leads to an address that webhooks are not sent to."""


def is_allowed(address: IPAddress) -> bool:
    """Tell whether a webhook may be sent to an address; one in a private network may get it.

    Of an address of IPv6 that stands for one of IPv4, that one is looked at too.
    """
    inner = _embedded(address)
    if inner is not None:
        return is_allowed(inner)
    is_own = address.is_loopback or address.is_link_local or address.is_unspecified
    is_no_host = address.is_multicast or address.is_reserved or address in THIS_NETWORK
    return not (is_own or is_no_host or address in METADATA or is_of_this_machine(address))


def is_of_this_machine(address: IPAddress) -> bool:
    """Tell whether an address is one of this machine's: what it would send there would come from there too.

    Nothing is sent to find that out.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), DISCARD_PORT))
            return ipaddress.ip_address(probe.getsockname()[0]) == address
    except OSError:
        return False  # there is no way there, or no IPv6 here


def _embedded(address: IPAddress) -> ipaddress.IPv4Address | None:
    """Return the address of IPv4 to which a gateway, or the system itself, would send on."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    bits = int(address)
    is_compatible = bits >> 32 == 0 and bits > 1  # `::127.0.0.1`
    return ipaddress.IPv4Address(bits & 0xFFFFFFFF) if address in NAT64 or is_compatible else None


def resolve(host: str, port: int, check: Check) -> list[str]:
    """Return the addresses of a host, to which one has to connect as they stand here: a name may change meanwhile.

    Raises AddressRefused if one of them is not allowed, and an OSError if there is none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for text in addresses:
        if not check(ipaddress.ip_address(text.partition("%")[0])):
            raise AddressRefused(f"its address {text} is refused: webhooks go to no loopback, link-local or metadata")
    return addresses
