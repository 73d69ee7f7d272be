"""Decisions about connections by the rules of a sandbox. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from rootdisk.network.hosts import Address, Host, Refused, host_text, special
from rootdisk.network.rules import Rule

_GATEWAY = "10.0.2.2"  # what --add-host NAME:host-gateway says


def own_hosts(lines: Sequence[bytes]) -> dict[str, Address]:
    """Return the addresses of names in lines of /etc/hosts; 10.0.2.2 stands for this host, as with a network card."""
    found = {}
    for line in lines:
        address, _, name = line.decode().partition("\t")
        found[name.lower().removesuffix(".")] = ip_address("127.0.0.1" if address == _GATEWAY else address)
    return found


class Rules:
    """The rules of a sandbox."""

    def __init__(self, rules: Sequence[Rule], own: dict[str, Address] | None = None) -> None:
        """`own` has names whose addresses the user has said: --add-host."""
        self.rules = tuple(rules)
        self.own = dict(own or {})

    def check(self, host: Host, port: int) -> None:
        """Check the host and port that a program asks for. An address must itself be listed.

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
