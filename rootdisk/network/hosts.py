"""Host names and addresses as programs write them: one form for each, and nothing that two readers read differently. Pure."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Host = str | Address  # a name in lower case without the last dot, or an address

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
NAME_MAX = 253

# Where no guest may go unless that very address is listed; the registries of IANA for special-purpose addresses.
_SPECIAL4 = {
    "0.0.0.0/8": "an address of this host",
    "10.0.0.0/8": "a private address",
    "100.64.0.0/10": "an address of a provider's own network",
    "127.0.0.0/8": "a loopback address",
    "168.63.129.16/32": "a metadata address",
    "169.254.0.0/16": "a link-local or metadata address",
    "172.16.0.0/12": "a private address",
    "192.0.0.0/24": "a reserved address",
    "192.0.2.0/24": "a reserved address",
    "192.88.99.0/24": "a reserved address",
    "192.168.0.0/16": "a private address",
    "198.18.0.0/15": "a reserved address",
    "198.51.100.0/24": "a reserved address",
    "203.0.113.0/24": "a reserved address",
    "224.0.0.0/4": "a multicast address",
    "240.0.0.0/4": "a reserved address",
}
# Of IPv6 only 2000::/3 is in use for everybody. What carries an IPv4 address does not lead around its rules.
_GLOBAL6 = IPv6Network("2000::/3")
_SPECIAL6 = {
    "2001::/23": "a reserved address",  # Teredo too
    "2001:db8::/32": "a reserved address",
    "2002::/16": "an IPv4 address inside an IPv6 one",  # 6to4
    "3fff::/20": "a reserved address",
}
_LOCAL6 = {
    "::1/128": "a loopback address",
    "::/128": "an address of this host",
    "::ffff:0:0/96": "an IPv4 address inside an IPv6 one",
    "64:ff9b::/96": "an IPv4 address inside an IPv6 one",
    "64:ff9b:1::/48": "an IPv4 address inside an IPv6 one",
    "fc00::/7": "a private address",
    "fe80::/10": "a link-local address",
    "ff00::/8": "a multicast address",
}
_KINDS4 = [(IPv4Network(text), what) for text, what in _SPECIAL4.items()]
_KINDS6 = [(IPv6Network(text), what) for text, what in {**_SPECIAL6, **_LOCAL6}.items()]


class Refused(Exception):
    """A connection that may not be; the text says by which rule, on one line."""


def parse_host(text: str) -> Host:
    """Return a host in its one form.

    Raises:
        Refused: It is neither a name nor an address in its usual form.
    """
    if not text.isascii() or len(text) > NAME_MAX + 2:
        raise Refused("not a host name")
    if text.startswith("["):
        try:
            if "%" in text or not text.endswith("]"):
                raise AddressValueError
            return IPv6Address(text[1:-1])
        except AddressValueError:
            raise Refused("not an IPv6 address") from None
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > NAME_MAX or not all(map(_LABEL.fullmatch, labels)):
        raise Refused("not a host name")
    if _NUMBER.fullmatch(labels[-1]):  # inet_aton(3) reads 0x7f.1, 017700000001 and 2130706433 as 127.0.0.1
        try:
            return IPv4Address(name)  # which refuses zeros in front
        except AddressValueError:
            raise Refused("an address in an unusual form") from None
    return name


def parse_name(text: str) -> Host:
    """Return a host that a user writes, in its one form: a name may have letters of any script (RFC 3490).

    Raises:
        Refused: As `parse_host`.
    """
    try:
        return parse_host(text if text.isascii() else text.encode("idna").decode("ascii"))
    except UnicodeError:
        raise Refused("not a host name") from None


def parse_port(text: str) -> int:
    """Return a port, 1 to 65535.

    Raises:
        Refused: It is something else.
    """
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 1 << 16:
        raise Refused("not a port")
    return int(text)


def parse_authority(text: str, default_port: int | None = None) -> tuple[Host, int]:
    """Return host and port of HOST:PORT. Without a port it is `default_port`, if there is one.

    Raises:
        Refused: It is something else, for example with a user's name.
    """
    if "@" in text:
        raise Refused("a user's name before the host")
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = text, "" if default_port is None else str(default_port)
    return parse_host(host), parse_port(port)


def special(address: Address) -> str:
    """Say why an address is not one for everybody; "" if it is."""
    if isinstance(address, IPv4Address):
        return next((what for network, what in _KINDS4 if address in network), "")
    kind = next((what for network, what in _KINDS6 if address in network), "")
    return kind or ("" if address in _GLOBAL6 else "a reserved address")


def host_text(host: Host) -> str:
    """Return a host as it stands in a URL."""
    return f"[{host}]" if isinstance(host, IPv6Address) else str(host)
