"""The guest's /etc/resolv.conf: name servers of the host as the guest reaches them, search list and options.

QEMU's user network and passt forward one address of the guest's network to a name server of the host, for each IP version. It
may listen on the loopback interface of the host. Other name servers are reached like any other address.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rootdisk.errors import BadInput
from rootdisk.records import Record

FORWARDER, FORWARDER6 = "10.0.2.3", "fec0::3"
GUEST6 = "fec0::15"
HOST_FILE = Path("/etc/resolv.conf")
_FILE_MAX_BYTES = 64 << 10
_SERVERS_MAX = 3  # MAXNS of resolv.h


class Resolver(NamedTuple):
    """The content of a resolv.conf."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Resolver:
        """Parse resolv.conf(5). Unknown lines are ignored, as by the C library."""
        servers: list[str] = []
        search: tuple[str, ...] = ()
        options: list[str] = []
        for line in text.splitlines():
            key, *values = [word for word in line.split() if word.isascii() and word.isprintable()] or [""]
            if key == "nameserver" and values and _is_address(values[0]):
                servers.append(values[0])
            elif key in ("search", "domain") and values:
                search = tuple(values if key == "search" else values[:1])
            elif key == "options":
                options += values
        return cls(tuple(servers), search, tuple(options))

    @classmethod
    def of_host(cls, path: Path = HOST_FILE) -> Resolver:
        """Read the host's file; empty if there is none."""
        try:
            with path.open("rb") as file:
                data = file.read(_FILE_MAX_BYTES + 1)
        except OSError:
            return cls()
        if len(data) > _FILE_MAX_BYTES:
            raise BadInput(f"{path} is larger than 64 KiB", "give --dns and --dns-search, or fix the file")
        return cls.parse(data.decode("ascii", "replace").replace("\ufffd", ""))

    def is_ipv6_only(self) -> bool:
        """Return whether there are name servers, and all of them have IPv6 addresses."""
        return bool(self.servers) and all(":" in server for server in self.servers)

    def as_guest_sees(self) -> Resolver:
        """Return what a guest on the user network gets."""
        own = [server for server in self.servers if (":" in server) == self.is_ipv6_only()]
        others = [server for server in own[1:] if _is_reachable(server)]
        servers = (FORWARDER6 if self.is_ipv6_only() else FORWARDER, *dict.fromkeys(others))
        return self._replace(servers=servers[:_SERVERS_MAX])

    def changed(self, settings: Sequence[Record]) -> Resolver:
        """Return it with what --dns, --dns-search and --dns-option say."""
        changes = {
            key: tuple(value.decode() for own, value in settings if own == key)
            for key in ("dns", "dns-search", "dns-option")
        }
        search = changes["dns-search"] or self.search
        return Resolver(
            changes["dns"] or self.servers, () if search == (".",) else search, changes["dns-option"] or self.options
        )

    def text(self) -> str:
        """Return the file."""
        lines = [f"nameserver {server}" for server in self.servers]
        lines += [f"search {' '.join(self.search)}"] if self.search else []
        lines += [f"options {' '.join(self.options)}"] if self.options else []
        return "".join(f"{line}\n" for line in lines)


def records(network: str, settings: Sequence[Record], host: Resolver) -> list[Record]:
    """Return what the slot says of name servers."""
    if network != "user":
        return [("resolv", Resolver().changed(settings).text().encode())]
    seen = host.as_guest_sees().changed(settings)
    lines: list[Record] = [("resolv", seen.text().encode())]
    return [*lines, ("ipv6", GUEST6.encode())] if any(":" in server for server in seen.servers) else lines


def _is_address(text: str) -> bool:
    return bool(_packed(text))


def _packed(text: str) -> bytes:
    """Return an address's bytes, without its interface; b"" if it is not an address."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text.partition("%")[0])
    except (OSError, ValueError):
        return b""


def _is_reachable(text: str) -> bool:
    """Return whether an address means the same to a guest as to its host."""
    data = _packed(text)
    if len(data) == 4:
        return data[0] not in (0, 127)
    return "%" not in text and any(data[:15]) and data[:2] != b"\xfe\x80"
