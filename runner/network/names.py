"""Addresses for allowed names, and the name server that tells a guest of them. Pure.

A program that asks for a name and connects to the address, without a proxy, gets through as well: each name has an address of
198.18.0.0/15 (RFC 2544, for tests of networks), at which the guest's init listens on the ports of the name's rules. The names of
rules are at 198.18.0.1 and above, those that a rule with * covers at 198.18.1.0 and above, as they are asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

from rootdisk.network.hosts import Refused, parse_host
from rootdisk.network.rules import Rule
from runner.network.rules import Rules

FIRST = IPv4Address("198.18.0.1")
FIRST_WILD = IPv4Address("198.18.1.0")
EXACT_MAX, WILD_COUNT = 254, 64
LISTENERS_MAX = 480  # of the guest's 512
TTL_S = 60
_A, _AAAA, _IN, _OPT = 1, 28, 1, 41
_FORMAT_ERROR, _NO_NAME, _NOT_IMPLEMENTED, _REFUSED = 1, 3, 4, 5


class Place(NamedTuple):
    """Addresses at which a guest listens, on one port."""

    first: IPv4Address
    addresses: int  # how many from there on
    port: int


def exact_names(rules: Sequence[Rule]) -> list[str]:
    """Return the names that have an address of their own, in the order of their rules."""
    names = dict.fromkeys(rule.name for rule in rules if rule.network is None and not rule.is_wild)
    return list(names)[:EXACT_MAX]


def places(rules: Sequence[Rule]) -> list[Place]:
    """Return where the guest has to listen for names. Rules for every port are left out: those need a proxy's client."""
    names = exact_names(rules)
    listed: dict[Place, None] = {}
    for rule in rules:
        for port in rule.ports:
            if rule.is_wild:
                listed[Place(FIRST_WILD, WILD_COUNT, port)] = None
            elif rule.name in names:
                listed[Place(FIRST + names.index(rule.name), 1, port)] = None
    kept, count = [], 0
    for place in listed:
        if count + place.addresses <= LISTENERS_MAX:
            kept.append(place)
            count += place.addresses
    return kept


class Names:
    """The addresses of names, and answers to questions about them."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._address_of = {name: FIRST + number for number, name in enumerate(exact_names(rules.rules))}
        self._name_of = {address: name for name, address in self._address_of.items()}
        self._wild = 0  # names that rules with * cover and that have an address

    def name_at(self, address: IPv4Address) -> str | None:
        """Return the name whose address it is."""
        return self._name_of.get(address)

    def address_of(self, name: str) -> IPv4Address | None:
        """Return the address of an allowed name, a new one if it was not asked for before."""
        if name not in self._address_of and self._wild < WILD_COUNT and self._rules.knows(name):
            address = FIRST_WILD + self._wild
            self._wild += 1
            self._address_of[name], self._name_of[address] = address, name
        return self._address_of.get(name)

    def answer(self, query: bytes) -> bytes | None:
        """Return the answer to a message of DNS, RFC 1035; None if it is not a question at all."""
        if len(query) < 12:
            return None
        number, flags, questions, answers, authorities, _ = struct.unpack_from(">6H", query)
        if flags & 0x8000:
            return None
        opcode = flags >> 11 & 15
        if opcode or questions != 1 or answers or authorities:
            return _message(number, flags, _NOT_IMPLEMENTED if opcode else _FORMAT_ERROR, b"")
        try:
            name, end = _read_name(query, 12)
            kind, of_class = struct.unpack_from(">2H", query, end)
        except (ValueError, struct.error):
            return _message(number, flags, _FORMAT_ERROR, b"")
        question = query[12 : end + 4]
        try:
            host = parse_host(name)
        except Refused:
            return _message(number, flags, _NO_NAME, question)
        if of_class != _IN:
            return _message(number, flags, _REFUSED, question)
        address = self.address_of(host) if isinstance(host, str) else None
        if address is None:
            return _message(number, flags, _NO_NAME, question)
        record = struct.pack(">3HIH", 0xC00C, _A, _IN, TTL_S, 4) + address.packed if kind == _A else b""
        return _message(number, flags, 0, question, record)


def _message(number: int, flags: int, code: int, question: bytes, record: bytes = b"") -> bytes:
    head = 0x8080 | (flags & 0x0100) | code  # a response; recursion is available, and desired as asked
    return struct.pack(">6H", number, head, bool(question), bool(record), 0, 0) + question + record


def _read_name(data: bytes, at: int) -> tuple[str, int]:
    """Return the name at `at`, and where it ends. A question has no pointers."""
    labels: list[str] = []
    while True:
        if at >= len(data) or data[at] > 63:
            raise ValueError
        length = data[at]
        label = data[at + 1 : at + 1 + length]
        at += 1 + length
        if not length:
            break
        if len(label) != length or b"." in label or len(labels) > 127:
            raise ValueError
        labels.append(label.decode("ascii", "replace"))
    return ".".join(labels), at
