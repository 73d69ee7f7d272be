"""Rules, hosts and the pure parts of the proxy: streams, names, TLS."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from rootdisk.errors import BadInput
from rootdisk.network.hosts import Refused, special
from rootdisk.network.rules import parse_file, parse_rule
from runner.channel import messages
from runner.channel.messages import WINDOW, Decoder, frame, frame_number
from runner.network.names import FIRST, FIRST_WILD, WILD_COUNT, Names, places
from runner.network.rules import Rules, own_hosts
from runner.network.streams import Streams


@pytest.mark.parametrize(
    ("text", "usual", "ports"),
    [
        ("Example.ORG", "example.org", (80, 443)),
        ("example.org.:8443", "example.org:8443", (8443,)),
        ("example.org:*", "example.org:*", ()),
        ("*.example.org", "*.example.org", (80, 443)),
        ("*", "*", (80, 443)),
        ("*:*", "*:*", ()),
        ("10.0.0.5:5432", "10.0.0.5:5432", (5432,)),
        ("10.0.0.0/8:*", "10.0.0.0/8:*", ()),
        ("[::1]:8000", "[::1]:8000", (8000,)),
        ("::1", "[::1]", (80, 443)),
        ("fd00::/8", "[fd00::/8]", (80, 443)),
        ("[FD00::/8]:22", "[fd00::/8]:22", (22,)),
        ("bücher.example", "xn--bcher-kva.example", (80, 443)),
        ("*.BÜCHER.example:22", "*.xn--bcher-kva.example:22", (22,)),
    ],
)
def test_rules_have_one_form(text: str, usual: str, ports: tuple[int, ...]) -> None:
    rule = parse_rule(text)
    assert (rule.text, rule.ports) == (usual, ports)
    assert parse_rule(usual) == rule


@pytest.mark.parametrize(
    "text",
    ["", ":80", "*.", "*.:443", "*.:*", "*..", "*. ", "\u202ea.example", "*.\u202ea.example", "ü..a", "a b", "http://example.org", "example.org:0", "example.org:65536", "example.org:x", "*.10.0.0.1", "a*.org",
     "*.*.org", "10.0.0.1/8", "127.1", "0x7f.1", "[::1", "[fe80::1%eth0]:80", "user@example.org", "example.org/path", "10.0.0.0/33"],
)  # fmt: skip
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(BadInput, match="--allow '"):
        parse_rule(text)


def test_a_file_of_rules() -> None:
    assert parse_file(b"a.test # why\n\n# nothing\n  *.b.test:22\r\n", "--allow-file x") == ["a.test", "*.b.test:22"]
    assert parse_file(b"\xef\xbb\xbf*.b.test", "--allow-file x") == ["*.b.test"]  # as editors of Windows write it
    assert parse_file(b"\xef\xbb\xbf# why\na.test", "--allow-file x") == ["a.test"]
    with pytest.raises(BadInput, match="UTF-8"):
        parse_file(b"\xff", "--allow-file x")


@pytest.mark.parametrize(
    ("rule", "other", "covers"),
    [
        ("a.test", "a.test:443", True),
        ("a.test:443", "a.test", False),
        ("a.test:*", "a.test", True),
        ("a.test", "a.test:*", False),
        ("*.a.test", "x.a.test", True),
        ("*.a.test", "a.test", False),
        ("*.a.test", "*.x.a.test", True),
        ("*.x.a.test", "*.a.test", False),
        ("a.test", "*.a.test", False),
        ("*", "a.test", True),
        ("*", "10.0.0.1", False),
        ("10.0.0.0/8", "10.1.0.0/16", True),
        ("10.1.0.0/16", "10.0.0.0/8", False),
        ("10.0.0.0/8", "[::1]", False),
        ("10.0.0.0/8", "a.test", False),
    ],
)
def test_what_a_rule_covers(rule: str, other: str, covers: bool) -> None:
    assert parse_rule(rule).covers(parse_rule(other)) is covers


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "10.1.2.3", "100.100.100.200", "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254", "172.16.0.1",
     "172.31.255.255", "192.0.0.192", "192.168.1.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "255.255.255.255",
     "::", "::1", "::127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1",
     "2002:7f00:1::", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::3", "ff02::1", "4000::1"],
)  # fmt: skip
def test_addresses_that_are_not_for_everybody(address: str) -> None:
    assert special(ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "172.32.0.1", "172.15.0.1", "100.128.0.1", "11.0.0.1", "2606:4700::1111", "2a00::1"]
)
def test_addresses_for_everybody(address: str) -> None:
    assert not special(ip_address(address))


def test_an_address_is_listed_with_its_port() -> None:
    rules = Rules([parse_rule("db.test:5432"), parse_rule("10.0.0.0/8:5432")])
    rules.check_address(ip_address("10.1.1.1"), 5432)
    rules.check_address(ip_address("1.1.1.1"), 1)
    with pytest.raises(Refused, match="a private address"):
        rules.check_address(ip_address("10.1.1.1"), 80)


def test_names_that_the_user_has_said() -> None:
    assert own_hosts([b"10.0.0.5\tDB.test", b"10.0.2.2\thost"]) == {
        "db.test": ip_address("10.0.0.5"),
        "host": ip_address("127.0.0.1"),
    }


def question(name: str, kind: int = 1, of_class: int = 1) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, of_class)


def test_answers_about_names() -> None:
    names = Names(Rules([parse_rule("a.test"), parse_rule("*.w.test:443"), parse_rule("10.0.0.1")]))

    def code(query: bytes) -> int | None:
        answer = names.answer(query)
        return None if answer is None else answer[3] & 15

    assert names.answer(question("A.TEST"))[-4:] == FIRST.packed  # type: ignore[index]
    assert names.answer(question("x.w.test"))[-4:] == FIRST_WILD.packed  # type: ignore[index]
    assert names.answer(question("a.test", 28))[6:8] == b"\0\0"  # type: ignore[index]
    assert [code(question(name)) for name in ("b.test", "w.test", "10.0.0.1", "1.18.198.in-addr.arpa")] == [3, 3, 3, 3]
    assert code(question("a.test", 1, 3)) == 5
    assert code(b"\0" * 11) is None
    assert code(bytes(4) + b"\0\1" + bytes(6)) == 1  # no question follows
    assert code(question("a.test")[:-1]) == 1
    assert code(bytes(4) + b"\0\1" + bytes(6) + b"\xc0\x0c\0\1\0\1") == 1  # a pointer to itself
    assert code(b"\0\7\x28\0" + question("a.test")[4:]) == 4  # an update
    assert names.answer(b"\0\7\x81\0" + question("a.test")[4:]) is None  # an answer
    assert names.name_at(FIRST) == "a.test"
    for number in range(2 * WILD_COUNT):
        names.address_of(f"n{number}.w.test")
    assert code(question("one-more.w.test")) == 3
    assert code(question("n1.w.test")) == 0


def test_where_a_guest_listens() -> None:
    rules = [parse_rule(text) for text in ("a.test", "*.w.test:8443", "b.test:*", "10.0.0.1:1", "a.test:22")]
    assert [(str(place.first), place.addresses, place.port) for place in places(rules)] == [
        ("198.18.0.1", 1, 80),
        ("198.18.0.1", 1, 443),
        ("198.18.1.0", WILD_COUNT, 8443),
        ("198.18.0.1", 1, 22),
    ]
    many = [parse_rule(f"n{number}.test:{port}") for number in range(300) for port in (1, 2, 3)]
    assert sum(place.addresses for place in places(many)) <= 512 - 2


def test_streams_keep_to_their_windows() -> None:
    streams, place = Streams(), struct.pack("<4sH", bytes((127, 0, 0, 1)), 3128)
    first = messages.ACCEPTED_FIRST
    streams.from_guest(messages.ACCEPTED, first, place)
    streams.from_guest(messages.ACCEPTED, first + messages.ACCEPTED_MAX, place)  # no such number
    streams.from_guest(messages.ACCEPTED, messages.CONNECTED_FIRST, place)  # ours to open
    [(stream, address, port)] = streams.take_accepted()
    assert (str(address), port) == ("127.0.0.1", 3128)
    for _ in range(8):
        streams.from_guest(messages.DATA_OUT, first, bytes(32 << 10))
    assert len(stream.incoming) == WINDOW
    streams.taken(stream, 100 << 10)
    assert bytes(streams.to_guest(1 << 20)) == frame_number(messages.CREDIT, 100 << 10, first)
    streams.from_guest(messages.DATA_OUT, first, bytes(100 << 10))
    assert len(streams) == 1
    streams.send(stream, bytes(300 << 10))
    sent = sum(len(payload) for _, _, payload in Decoder({messages.DATA_IN}).feed(bytes(streams.to_guest(1 << 20))))
    assert sent == WINDOW
    streams.from_guest(messages.CREDIT, first, b"\xff\xff\xff\xff")
    assert stream.credit == WINDOW
    streams.from_guest(messages.DATA_OUT, first, b"x")  # one byte more than it was granted
    assert len(streams) == 0
    assert streams.held == 0
    assert bytes(streams.to_guest(1 << 20)) == frame(messages.CLOSE, b"\1", first)


def test_closing_without_end_is_bounded() -> None:
    """A guest that opens and closes while it reads nothing."""
    streams, place = Streams(), struct.pack("<4sH", bytes((127, 0, 0, 1)), 3128)
    for _ in range(10_000):
        streams.from_guest(messages.ACCEPTED, messages.ACCEPTED_FIRST, place)
        streams.from_guest(messages.CLOSED, messages.ACCEPTED_FIRST, b"")
        streams.take_accepted()
    assert len(streams.to_guest(1 << 20)) < 20
    for _ in range(1000):
        streams.connect(1)
        streams.from_guest(messages.CLOSED, messages.CONNECTED_FIRST, b"")
    assert len(streams.to_guest(1 << 30)) < 1000 * 30
