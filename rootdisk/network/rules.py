"""The rules of --allow, and of `network` in images.toml: hosts that a sandbox may reach. Pure."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

from rootdisk.errors import BadInput
from rootdisk.network.hosts import Address, Refused, parse_host, parse_name, parse_port
from rootdisk.text import printable

DEFAULT_PORTS = (80, 443)
THIS_HOST = "host.docker.internal"  # a name for 127.0.0.1 of the runner's host, for rules with that very name
# Linux takes a connection to "no address" for one to loopback; and IPv4 addresses inside IPv6 ones.
_LOOPBACK = tuple(map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "::/127", "::ffff:0:0/96")))
HINT = "write HOST, HOST:PORT, *.example.org, ADDRESS:PORT or NETWORK/BITS:PORT; HOST:* for every port"


class Rule(NamedTuple):
    """Names or addresses, and ports."""

    text: str  # in its usual form
    name: str = ""  # of a rule for names
    is_wild: bool = False  # every name below `name`; with "" every name
    network: IPv4Network | IPv6Network | None = None
    ports: tuple[int, ...] = ()  # () is every port

    def has_name(self, name: str) -> bool:
        """Return whether the rule is for `name`. Rules with * are for every name but that of the runner's host."""
        if self.network is not None:
            return False
        if not self.is_wild:
            return name == self.name
        return name != THIS_HOST and (not self.name or name.endswith(f".{self.name}"))

    def has_address(self, address: Address) -> bool:
        """Return whether the rule is for `address`."""
        return self.network is not None and address.version == self.network.version and address in self.network

    @property
    def is_for_this_host(self) -> bool:
        """Return whether the rule lists the loopback of the runner's host, by name or address."""
        if self.network is not None:
            return any(mine.version == self.network.version and mine.overlaps(self.network) for mine in _LOOPBACK)
        return self.has_name(THIS_HOST)

    def has_port(self, port: int) -> bool:
        """Return whether the rule is for `port`."""
        return not self.ports or port in self.ports

    def covers(self, other: Rule) -> bool:
        """Return whether everything that `other` allows is allowed by this rule too."""
        if self.ports and not (other.ports and set(other.ports) <= set(self.ports)):
            return False
        if self.network is not None or other.network is not None:
            mine, its = self.network, other.network
            if isinstance(mine, IPv4Network):
                return isinstance(its, IPv4Network) and its.subnet_of(mine)
            return isinstance(mine, IPv6Network) and isinstance(its, IPv6Network) and its.subnet_of(mine)
        if other.is_wild:
            return self.is_wild and (not self.name or other.name == self.name or other.name.endswith(f".{self.name}"))
        return self.has_name(other.name)


def parse_rule(text: str, option: str = "--allow") -> Rule:
    """Parse HOST[:PORT]; BadInput names `option`."""
    shown = f"{option} '{printable(text, 120)}'"
    try:
        return _parse(text.strip())
    except (Refused, ValueError) as err:
        raise BadInput(f"{shown}: {err}", HINT) from None


def _parse(text: str) -> Rule:
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port or "/" in port or (":" in host and not host.startswith("[")):
        host, colon, port = text, "", ""
    if colon and not host:
        raise Refused("no host")
    number = parse_port(port) if colon and port != "*" else 0
    ports: tuple[int, ...] = DEFAULT_PORTS if not colon else (number,) if number else ()
    end = "" if not colon else f":{number or '*'}"
    bare = host.removeprefix("[").removesuffix("]")
    if "/" in host:
        network = ip_network(bare)
    elif ":" in host:
        network = ip_network(parse_host(f"[{bare}]"))
    elif host == "*" or host.startswith("*."):
        # "*." alone, as of a variable that is not set, would be every name.
        name = "" if host == "*" else parse_name(host.removeprefix("*."))
        if not isinstance(name, str):
            raise Refused("* stands before a name, not before an address")
        return Rule(f"*.{name}{end}" if name else f"*{end}", name, True, None, ports)
    else:
        address = parse_name(host)
        if isinstance(address, str):
            return Rule(f"{address}{end}", address, False, None, ports)
        network = ip_network(address)
    address_text = str(network) if "/" in host else str(network.network_address)
    return Rule(f"[{address_text}]{end}" if network.version == 6 else f"{address_text}{end}", "", False, network, ports)


def parse_file(data: bytes, option: str) -> list[str]:
    """Return the rules of a file: one on each line, with comments after # and empty lines."""
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as err:
        raise BadInput(f"{option}: the file is not UTF-8", HINT) from err
    return [rule for line in lines if (rule := line.partition("#")[0].strip())]
