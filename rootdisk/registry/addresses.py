"""Decide where redirects and token services may lead: not into private networks that only we can reach.

A public registry that redirects to 127.0.0.1 or 169.254.169.254 attacks our own network. So each address is checked after
it is resolved, and the connection goes to exactly that address: DNS rebinding does not help an attacker. A proxy resolves
names itself, so with a proxy only addresses in URLs can be checked.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Iterable, Sequence

from rootdisk.errors import RegistryError
from rootdisk.registry.proxies import is_listed, is_local

ALLOWED_VARIABLE = "ROOTDISK_PRIVATE_HOSTS"  # allowed hosts, in the syntax of NO_PROXY

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PUBLIC, PRIVATE, LINK_LOCAL, LOOPBACK, SPECIAL = "public", "private", "link-local", "loopback", "special"
METADATA = "cloud metadata"
# A registry on this machine or network may have its storage there too, or at a public address.
_FROM: dict[str, frozenset[str]] = {
    PUBLIC: frozenset({PUBLIC}),
    PRIVATE: frozenset({PRIVATE, PUBLIC}),
    LINK_LOCAL: frozenset({LINK_LOCAL, PUBLIC}),
    LOOPBACK: frozenset({LOOPBACK, PRIVATE, PUBLIC}),
    SPECIAL: frozenset({PUBLIC}),
    METADATA: frozenset({PUBLIC}),
}
_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        # AWS and most others; AWS ECS; AWS, IPv6; Azure; Alibaba; Oracle
        ("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291: IPv4-compatible addresses, deprecated


def parse_address(text: str) -> Address | None:
    """Parse an address; None if `text` is a name. An IPv6 address that embeds an IPv4 address becomes that address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
    if inner is None and (address in _NAT64 or (address in _COMPATIBLE and int(address) > 0xFFFF)):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address


def scope_of(address: Address) -> str:
    """Return the scope of `address`, for example PUBLIC or PRIVATE."""
    if address in _METADATA:
        return METADATA
    if address.is_loopback or address.is_unspecified:  # 0.0.0.0 is this host too
        return LOOPBACK
    if address.is_link_local:
        return LINK_LOCAL
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:  # fec0::/10, which Python calls global
        return PRIVATE
    if address.is_multicast or address.is_reserved:
        return SPECIAL
    return PUBLIC if address.is_global else PRIVATE


class Reach:
    """Decides which addresses may be connected to. The home address is the one at which the registry has answered."""

    def __init__(self) -> None:
        self._home: Address | None = None
        self._lock = threading.Lock()

    def arrived(self, address: str) -> None:
        """Note that the registry has answered at `address`. Of several addresses, the most restricted one counts."""
        parsed = parse_address(address.partition("%")[0])
        with self._lock:
            if self._home is None or (parsed and len(_FROM[scope_of(parsed)]) < len(_FROM[scope_of(self._home)])):
                self._home = parsed

    def choose(self, host: str, port: int, addresses: Sequence[str], *, home: bool) -> list[str]:
        """Return the addresses that may be connected to; `home` tells whether `host` is the registry itself.

        Raises:
            RegistryError: None of them may be.
        """
        if home and self._home is None:
            return list(addresses)
        allowed = [text for text in addresses if self._is_allowed(text)]
        if addresses and not allowed and not _is_named(host, port):
            raise self._refused(host, addresses)
        return allowed or list(addresses)

    def check_host(self, host: str, port: int) -> None:
        """Check a host of a URL without resolving it, for connections through a proxy.

        Raises:
            RegistryError: It is an address that may not be connected to.
        """
        text = "127.0.0.1" if is_local(host) and parse_address(host) is None else host
        if parse_address(text) is not None and not self._is_allowed(text) and not _is_named(host, port):
            raise self._refused(host, [text])

    def _is_allowed(self, text: str) -> bool:
        address = parse_address(text.partition("%")[0])
        if address is None:
            return False
        # If a proxy was used, treat the registry as public.
        near = _FROM[scope_of(self._home)] if self._home is not None else _FROM[PUBLIC]
        return address == self._home or scope_of(address) in near

    def _refused(self, host: str, addresses: Iterable[str]) -> RegistryError:
        text = next(iter(addresses))
        address = parse_address(text.partition("%")[0])
        scope = scope_of(address) if address is not None else SPECIAL
        name = host if host == text else f"{host} ({text})"
        return RegistryError(
            f"the registry redirects to {name}, a {scope} address in another network",
            f"if this is correct, set {ALLOWED_VARIABLE}={host}",
        )


def _is_named(host: str, port: int) -> bool:
    return is_listed(host, port, os.environ.get(ALLOWED_VARIABLE, ""))
