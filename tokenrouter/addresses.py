"""Addresses of those who ask, as attempts and refusals are counted for them."""

import ipaddress
import re

NO_ADDRESS = "unknown"
ADDRESS_WITH_PORT = re.compile(r"(?:(?P<v4>[0-9.]+)|\[(?P<v6>[^\]]*)\])(?::[0-9]+)?")


def counted(address: str) -> str:
    """Return for whom something is counted: a network of IPv6, within which one sender has addresses without end.

    What is no address, for a proxy may be believed that passes on any text, is counted as one.
    """
    if with_port := ADDRESS_WITH_PORT.fullmatch(address):  # as some proxies tell it: each try has another
        address = with_port["v4"] or with_port["v6"]
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return NO_ADDRESS
    if isinstance(parsed, ipaddress.IPv4Address) or parsed.ipv4_mapped:
        return str(getattr(parsed, "ipv4_mapped", parsed))
    return str(ipaddress.ip_network((parsed.packed, 64), strict=False))
