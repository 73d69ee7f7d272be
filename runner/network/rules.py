"""The rules of --allow: hosts that a sandbox may reach. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from rootdisk.errors import BadInput
from rootdisk.text import printable
from runner.network.hosts import Address, Host, Refused, host_text, parse_host, parse_port, special

DEFAULT_PORTS = (80, 443)
RULES_MAX = 1000
_GATEWAY = "10.0.2.2"  # what --add-host NAME:host-gateway says
THIS_HOST = "host.docker.internal"  # a name for 127.0.0.1 of the runner's host, if it is listed itself
HINT = "write HOST, HOST:PORT, *.example.org, ADDRESS:PORT or NETWORK/BITS:PORT; HOST:* for every port"


class Rule(NamedTuple):
    """Names or addresses, and ports."""

    text: str  # in its usual form
    name: str = ""  # of a rule for names
    is_wild: bool = False  # every name below `name`; with "" every name
    network: IPv4Network | IPv6Network | None = None
    ports: tuple[int, ...] = ()  # () is every port

    def has_name(self, name: str) -> bool:
        """Return whether the rule is for `name`."""
        if self.network is not None:
            return False
        return name == self.name if not self.is_wild else not self.name or name.endswith(f".{self.name}")

    def has_address(self, address: Address) -> bool:
        """Return whether the rule is for `address`."""
        return self.network is not None and address.version == self.network.version and address in self.network

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
        name = host.removeprefix("*").removeprefix(".")
        if name and not isinstance(parse_host(name), str):
            raise Refused("* stands before a name, not before an address")
        name = str(parse_host(name)) if name else ""
        return Rule(f"*.{name}{end}" if name else f"*{end}", name, True, None, ports)
    else:
        address = parse_host(host if host.isascii() else host.encode("idna").decode("ascii"))
        if isinstance(address, str):
            return Rule(f"{address}{end}", address, False, None, ports)
        network = ip_network(address)
    address_text = str(network) if "/" in host else str(network.network_address)
    return Rule(f"[{address_text}]{end}" if network.version == 6 else f"{address_text}{end}", "", False, network, ports)


def parse_file(data: bytes, option: str) -> list[str]:
    """Return the rules of a file: one on each line, with comments after # and empty lines."""
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as err:
        raise BadInput(f"{option}: the file is not UTF-8", HINT) from err
    return [rule for line in lines if (rule := line.partition("#")[0].strip())]


def own_hosts(lines: Sequence[bytes]) -> dict[str, Address]:
    """Return the addresses of names in lines of /etc/hosts; 10.0.2.2 stands for this host, as with a network card."""
    found = {}
    for line in lines:
        address, _, name = line.decode().partition("\t")
        found[name.lower().removesuffix(".")] = ip_address("127.0.0.1" if address == _GATEWAY else address)
    return found


class Rules:
    """All rules of a sandbox."""

    def __init__(self, rules: Sequence[Rule], own: dict[str, Address] | None = None) -> None:
        """`own` has names whose addresses the user has said: --add-host."""
        self.rules = tuple(rules)
        self.own = dict(own or {})

    def check(self, host: Host, port: int) -> None:
        """Check what a program has asked for; an address has to be listed itself.

        Raises:
            Refused: No rule is for it.
        """
        if isinstance(host, str):
            matching = [rule for rule in self.rules if rule.has_name(host)]
        else:
            matching = [rule for rule in self.rules if rule.has_address(host)]
        if any(rule.has_port(port) for rule in matching):
            return
        if matching:
            raise Refused(f"port {port} is not allowed by --allow {matching[0].text}")
        if isinstance(host, str):
            raise Refused(f"no --allow is for {host}")
        raise Refused(f"no --allow lists the address {host_text(host)}")

    def check_address(self, address: Address, port: int) -> None:
        """Check an address that a name has led to.

        Raises:
            Refused: It is not one for everybody, and not listed.
        """
        what = special(address)
        if what and not self.lists(address, port):
            raise Refused(f"its name leads to {address}, {what} that no --allow lists with this port")

    def lists(self, address: Address, port: int) -> bool:
        """Return whether a rule lists `address` itself, with `port`."""
        return any(rule.has_address(address) and rule.has_port(port) for rule in self.rules)

    def knows(self, name: str) -> bool:
        """Return whether there is a rule for `name`, with whatever port."""
        return any(rule.has_name(name) for rule in self.rules)
