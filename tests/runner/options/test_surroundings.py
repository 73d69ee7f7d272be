"""Options that say what a guest finds, and the guest's name servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from rootdisk.errors import BadInput
from rootdisk.records import Record
from runner.machine.resolver import Resolver, records
from runner.options import surroundings
from runner.parser import parser
from runner.sandbox import guest_records
from runner.sandbox.state import Spec


def said(*words: str) -> list[Record]:
    return surroundings.records(parser("boot").parse_args(["boot", *words, "oci:a:1"]))


GOOD = {
    ("--tmpfs", "/tmp"): ("tmpfs", b"/tmp\t"),
    ("--tmpfs", "//a/./b/:size=64m,mode=1777,exec"): ("tmpfs", b"/a/b\tsize=67108864,mode=1777,exec"),
    ("--tmpfs", "/run:size=50%,uid=4294967294"): ("tmpfs", b"/run\tsize=50%,uid=4294967294"),
    ("--shm-size", "1g"): ("shm-size", b"1073741824"),
    ("--ulimit", "nofile=1024"): ("ulimit", b"nofile\t1024\t1024"),
    ("--ulimit", "core=0:-1"): ("ulimit", b"core\t0\t18446744073709551615"),
    ("--add-host", "db:10.0.0.5"): ("host", b"10.0.0.5\tdb"),
    ("--add-host", "db=2001:db8::5"): ("host", b"2001:db8::5\tdb"),
    ("--add-host", "db:[2001:db8::5]"): ("host", b"2001:db8::5\tdb"),
    ("--add-host", "host.docker.internal:host-gateway"): ("host", b"10.0.2.2\thost.docker.internal"),
    ("--dns", "192.0.2.1"): ("dns", b"192.0.2.1"),
    ("--dns-search", "."): ("dns-search", b"."),
    ("--dns-option", "ndots:2"): ("dns-option", b"ndots:2"),
    ("--pid1",): ("pid1", b"1"),
    ("--init",): ("pid1", b"0"),
}


@pytest.mark.parametrize(("words", "record"), GOOD.items(), ids=map(" ".join, GOOD))
def test_what_the_guest_is_told(words: tuple[str, ...], record: Record) -> None:
    assert said(*words) == [record]
    assert guest_records.needed(said(*words)).startswith("--")


BAD = [
    ("--tmpfs", "tmp"), ("--tmpfs", "/"), ("--tmpfs", "/proc/x"), ("--tmpfs", "/dev/shm"), ("--tmpfs", "/run/rootdisk"),
    ("--tmpfs", "/a/../b"), ("--tmpfs", "/a:size=0"), ("--tmpfs", "/a:size=0%"), ("--tmpfs", "/a:size=101%"), ("--tmpfs", "/a:mode=8"),
    ("--tmpfs", "/a:mode=17777"), ("--tmpfs", "/a:uid=4294967295"), ("--tmpfs", "/a:bind"), ("--tmpfs", "/a\tro:rw"),
    ("--tmpfs", "/a:size=99999999999g"), ("--shm-size", "0"), ("--shm-size", "much"), ("--shm-size", "-1"),
    ("--ulimit", "nofile"), ("--ulimit", "nofile=-2"), ("--ulimit", "nofile=2:1"), ("--ulimit", "nofile=1048577"),
    ("--ulimit", "nofile=-1"), ("--ulimit", "as=1"), ("--ulimit", "core=18446744073709551616"), ("--ulimit", "core=\u0663"),
    ("--add-host", "db"), ("--add-host", "db:"), ("--add-host", "db:1.2.3"), ("--add-host", "db:010.0.0.1"), ("--add-host", "d b:1.2.3.4"),
    ("--add-host", "a\nb:1.2.3.4"), ("--dns", "localhost"), ("--dns", "1.2.3.4.5"), ("--dns", "::g"), ("--dns-search", "a b"),
    ("--dns-search", "a\nnameserver 1.2.3.4"), ("--dns-option", "a b"),
]  # fmt: skip


@pytest.mark.parametrize("words", BAD, ids=lambda words: ascii(words[1]))
def test_what_is_refused(words: tuple[str, str]) -> None:
    with pytest.raises(BadInput) as found:
        said(*words)
    assert words[0] in str(found.value)
    assert str(found.value).isprintable()


def test_what_does_not_go_together() -> None:
    for words in (["--pid1", "--init"], ["--tmpfs", "/a", "--tmpfs", "/a/"]):
        with pytest.raises(BadInput):
            said(*words)
    with pytest.raises(BadInput, match="both at /data"):
        guest_records.in_order([("tmpfs", b"/data\t"), ("mount", b"volume0\t/data\trw")])


def test_a_place_comes_after_those_above_it() -> None:
    slot: list[Record] = [
        ("tmpfs", b"/a/b/c\t"),
        ("env", b"A=1"),
        ("mount", b"volume0\t/a\trw"),
        ("tmpfs", b"/a/b\tro"),
    ]
    assert [record[1] for record in guest_records.in_order(slot)] == [
        b"A=1",
        b"volume0\t/a\trw",
        b"/a/b\tro",
        b"/a/b/c\t",
    ]


HOSTS = {
    "nameserver 192.0.2.1\n": "nameserver 10.0.2.3\n",
    "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch a.example b.example\n": (
        "nameserver 10.0.2.3\nsearch a.example b.example\noptions edns0 trust-ad\n"
    ),
    "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 127.0.0.1\nnameserver 2001:db8::1\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n": (
        "nameserver 10.0.2.3\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n"
    ),
    "nameserver 2001:db8::1\nnameserver ::1\nnameserver 2001:db8::2\n": "nameserver fec0::3\nnameserver 2001:db8::2\n",
    "nameserver fe80::1%eth0\n": "nameserver fec0::3\n",
    "nameserver ::1\n": "nameserver fec0::3\n",
    "domain old.example\nsearch a.example\n": "nameserver 10.0.2.3\nsearch a.example\n",
    "# nothing\nnameserver\nnameserver none\n; x\n\n": "nameserver 10.0.2.3\n",
    "": "nameserver 10.0.2.3\n",
}


@pytest.mark.parametrize(("text", "seen"), HOSTS.items())
def test_the_guest_has_the_host_s_name_servers(text: str, seen: str) -> None:
    found = dict(records("user", [], Resolver.parse(text)))
    assert found["resolv"].decode() == seen
    assert ("ipv6" in found) == ("fec0::3" in seen)
    assert dict(records("none", [], Resolver.parse(text))) == {"resolv": b""}


def test_options_replace_the_host_s() -> None:
    host = Resolver.parse("nameserver 192.0.2.1\nsearch a.example\noptions edns0\n")
    given = said("--dns", "192.0.2.9", "--dns", "2001:db8::9", "--dns-search", ".", "--dns-option", "ndots:3")
    found = dict(records("user", given, host))
    assert found["resolv"] == b"nameserver 192.0.2.9\nnameserver 2001:db8::9\noptions ndots:3\n"
    assert found["ipv6"]


def test_the_host_s_file(tmp_path: Path) -> None:
    assert Resolver.of_host(tmp_path / "none") == Resolver()
    (tmp_path / "large").write_bytes(b"#" * (65 << 10))
    with pytest.raises(BadInput, match="larger than 64 KiB"):
        Resolver.of_host(tmp_path / "large")
    (tmp_path / "odd").write_bytes(b"search \xff\x1b[31m.example a\nnameserver 192.0.2.1\n")
    assert "nameserver 10.0.2.3" in Resolver.of_host(tmp_path / "odd").as_guest_sees().text()


def test_a_balloon_if_it_is_never_from_a_template() -> None:
    spec = Spec("a", "oci:a:1", "sha256:0", "0", "0", None, None, 1 << 30, 64, 1)
    assert "balloon" not in dict(guest_records.complete([], spec))
    assert not guest_records.has_balloon(spec)
    assert not guest_records.has_balloon(spec._replace(allow=("a.example",)))
    for other in (spec._replace(cold=True), spec._replace(volumes=(("/a", "/b", False),))):
        assert dict(guest_records.complete([], other))["balloon"] == b"1"
