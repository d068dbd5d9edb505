"""The addresses for which attempts and refusals are counted."""

import ipaddress
import re

NO_ADDRESS = "unknown"
ADDRESS_WITH_PORT = re.compile(r"(?:(?P<v4>[0-9.]+)|\[(?P<v6>[^\]]*)\])(?::[0-9]+)?")


def counted(address: str) -> str:
    """Return the address to count for: of IPv6 its /64 network, in which one sender has any number of addresses.

    Texts that are no address, which a trusted proxy may pass on, all count as NO_ADDRESS.
    """
    if with_port := ADDRESS_WITH_PORT.fullmatch(address):  # some proxies add the port, which differs with each try
        address = with_port["v4"] or with_port["v6"]
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return NO_ADDRESS
    if isinstance(parsed, ipaddress.IPv4Address) or parsed.ipv4_mapped:
        return str(getattr(parsed, "ipv4_mapped", parsed))
    return str(ipaddress.ip_network((parsed.packed, 64), strict=False))
