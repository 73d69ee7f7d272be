"""Secrets that a guest uses and never has: what the host of a secret gets, what others get, and what comes back."""

from __future__ import annotations

import base64
import json
import pickle
import ssl
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootdisk.errors import BadInput
from runner.network.echoes import Echoes, Hidden
from runner.network.exchange import Inserter
from runner.network.guards import Unusable
from runner.network.http import Requests
from runner.network.responses import Responses
from runner.network.secrets import Secrets, check_value, overlapping, parse_secret, placeholder
from tests.support.network import Guest
from tests.support.secrets import Program, TlsHost, guest_with, secret
from tests.support.waiting import until

VALUE, SHOWN = "s3cr3t/Value+of=27&chars<x>", "placeholder-abcdefghijklmno"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def echo(head: bytes) -> bytes:
    """The whole request as field and body of the answer."""
    line = head.replace(b"\r\n", b" ")
    return b"HTTP/1.1 200 OK\r\nX-Echo: %b\r\nContent-Length: %d\r\n\r\n%b" % (line, len(head) + 4, head) + b"\r\n\r\n"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[TlsHost]:
    host = TlsHost(tmp_path, echo)
    yield host
    host.close()


@pytest.fixture
def inside(host: TlsHost) -> Iterator[tuple[Guest, str]]:
    """A guest whose secret is for app.test on the host's port, and that may reach other.test too."""
    with guest_with([secret(VALUE, SHOWN, host.port)], [f"other.test:{host.port}"], host.ca_file) as inside:
        yield inside


def get(*fields: str, port: int, path: str = "/x", host: str = "app.test") -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", f"Host: {host}:{port}", *fields, "", "")).encode()


def test_a_secret_goes_to_its_host_and_does_not_come_back(inside: tuple[Guest, str], host: TlsHost) -> None:
    guest, trusted = inside
    program = Program(guest, host.port, trusted)
    assert program.tls.selected_alpn_protocol() is None
    user = base64.b64encode(f"me:{SHOWN}".encode()).decode()
    fields = (
        f"Authorization: Bearer {SHOWN}",
        f"X-Two: {SHOWN} {SHOWN}",
        f"B: Basic {user}",
        "Range: bytes=0-3",
        "Accept-Encoding: gzip",
    )
    answer = program.ask(get(*fields, port=host.port), b"\r\n\r\n")
    answer += program.until(b"\r\n\r\n") if answer.count(b"\r\n\r\n") < 2 else b""
    (seen,) = host.seen
    assert f"Authorization: Bearer {VALUE}".encode() in seen
    assert f"X-Two: {VALUE} {VALUE}".encode() in seen
    assert b"B: Basic " + base64.b64encode(f"me:{VALUE}".encode()) in seen
    assert b"Range" not in seen
    assert seen.endswith(b"Accept-Encoding: identity")
    assert VALUE.encode() not in answer
    assert answer.count(SHOWN.encode()) == 6
    assert base64.b64encode(VALUE.encode() + b"xx")[:30] not in answer
    assert user.encode() in answer
    # again on the same connection
    assert b"/again" in program.ask(get(port=host.port, path="/again"), b"identity\r\n\r\n")
    assert len(host.seen) == 2
    guest.end(program.number)
    until(lambda: bool(guest.lines))
    row = json.loads(guest.lines[-1])
    assert (row["verdict"], row["secrets"]) == ("allowed", ["TOKEN"])
    assert VALUE not in str(guest.lines)


def test_nobody_else_gets_it(inside: tuple[Guest, str], host: TlsHost, tmp_path: Path) -> None:
    """Another host that is allowed, on the same address: the keeper does not look into its TLS at all."""
    guest, _ = inside
    program = Program(guest, host.port, None, "other.test", "other.test")
    program.ask(get(f"A: {SHOWN}", port=host.port, host="app.test"), b"\r\n\r\n")
    assert SHOWN.encode() in host.seen[0]
    assert VALUE.encode() not in host.seen[0]


@pytest.mark.parametrize(
    ("request_text", "why"),
    [
        ("GET / HTTP/1.1\r\nHost: other.test\r\nA: S\r\n\r\n", "Host field says other.test"),
        ("GET http://other.test/ HTTP/1.1\r\nHost: app.test:PORT\r\nA: S\r\n\r\n", "a request for other.test"),
        ("GET / HTTP/1.1\r\nA: S\r\n\r\n", "without a Host"),
        ("GET / HTTP/1.1\r\nHost: app.test:PORT\r\nHost: other.test\r\nA: S\r\n\r\n", "two Host"),
        ("GET / HTTP/1.1\r\nHost: app.test:PORT\r\n A: S\r\n\r\n", "broken field"),
        ("GET / HTTP/1.1\r\nHost: app.test:PORT\r\nA: S\r\n folded\r\n\r\n", "broken field"),
        ("GET / HTTP/1.1\r\nHost: app.test:PORT\r\nA : S\r\n\r\n", "broken field"),
        ("GET / HTTP/1.1\r\nHost: app.test:PORT\r\nA: S\nB: c\r\n\r\n", "broken field"),
        ("POST / HTTP/1.1\r\nHost: app.test:PORT\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\nA: S\r\n\r\n0\r\n\r\n", "length and chunks"),
        ("POST / HTTP/1.1\r\nHost: app.test:PORT\r\nTransfer-Encoding: chunked, x\r\nA: S\r\n\r\n", "unknown Transfer"),
        ("CONNECT other.test:443 HTTP/1.1\r\nHost: app.test:PORT\r\nA: S\r\n\r\n", "names no http"),
        ("GET / HTTP/2.0\r\nHost: app.test:PORT\r\nA: S\r\n\r\n", "HTTP/1.1 or 1.0"),
        ("GET / HTTP/1.1\r\nHost: app.test:PORT\r\n" + "A: S\r\n" * 300 + "\r\n", "more than 200 fields"),
        ("GET / HTTP/1.1\r\nHost: app.test:PORT\r\nA: " + "S" * 3000 + "\r\n\r\n", "longer than 64 KiB"),
    ],
)  # fmt: skip
def test_requests_that_no_server_sees(request_text: str, why: str, inside: tuple[Guest, str], host: TlsHost) -> None:
    guest, trusted = inside
    program = Program(guest, host.port, trusted)
    program.say(request_text.replace("PORT", str(host.port)).replace("S", SHOWN).encode())
    answer = program.rest()
    assert b"403 Forbidden" in answer
    assert why.encode() in answer
    assert host.seen == []


def test_pipelining_keeps_answers_in_order(inside: tuple[Guest, str], host: TlsHost) -> None:
    guest, trusted = inside
    program = Program(guest, host.port, trusted)
    program.say(b"".join(get(f"A: {SHOWN}", port=host.port, path=f"/{n}") for n in range(100)))
    got = b""
    while got.count(b"GET /") < 200:
        got += program.until(b"\r\n\r\n")
    assert VALUE.encode() not in got
    assert [head.split(b" ")[1] for head in host.seen] == [f"/{n}".encode() for n in range(100)]
    assert all(VALUE.encode() in head for head in host.seen)


def test_a_host_whose_certificate_is_another(host: TlsHost) -> None:
    """Nothing of a request is sent; the program is told why."""
    with guest_with([secret(VALUE, SHOWN, host.port)], [], None) as (guest, trusted):
        program = Program(guest, host.port, trusted)
        program.say(get(f"A: {SHOWN}", port=host.port))
        answer = program.rest()
        assert b"502 Bad Gateway" in answer
        assert b"TLS with the host failed: unable to get local issuer certificate" in answer
        assert host.seen == []
        assert json.loads(guest.lines[-1])["verdict"] == "failed"


def test_a_host_with_another_name(tmp_path: Path) -> None:
    host = TlsHost(tmp_path, echo, names=["evil.test"])
    with guest_with([secret(VALUE, SHOWN, host.port)], [], host.ca_file) as (guest, trusted):
        program = Program(guest, host.port, trusted)
        program.say(get(f"A: {SHOWN}", port=host.port))
        assert b"hostname mismatch" in program.rest()
    assert host.seen == []
    host.close()


def test_another_server_name_and_no_tls(inside: tuple[Guest, str], host: TlsHost) -> None:
    guest, _ = inside
    with pytest.raises((ssl.SSLError, AssertionError)):
        Program(guest, host.port, None, "other.test")
    number = guest.open()
    guest.say(number, f"CONNECT app.test:{host.port} HTTP/1.1\r\n\r\n".encode() + get(f"A: {SHOWN}", port=host.port))
    assert guest.rest(number).endswith(b"\x15\x03\x03\x00\x02\x02\x31")
    assert host.seen == []


@pytest.mark.parametrize(("offered", "chosen"), [(("h2", "http/1.1"), "http/1.1"), (("h2",), None)])
def test_no_http_2(offered: tuple[str, ...], chosen: str | None, inside: tuple[Guest, str], host: TlsHost) -> None:
    """A program that knows HTTP/1.1 too gets it. One that speaks HTTP/2 anyway is refused, and no byte of it is passed on."""
    guest, trusted = inside
    program = Program(guest, host.port, trusted, protocols=offered)
    assert program.tls.selected_alpn_protocol() == chosen
    if chosen:
        assert SHOWN.encode() in program.ask(get(f"A: {SHOWN}", port=host.port), b"identity\r\n\r\n")
        return
    program.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert b"not a request of HTTP/1.1 or 1.0" in program.rest()
    assert host.seen == []


def test_a_secret_twice_in_cookies_and_in_basic() -> None:
    """In each place of a field's value, and inside base64 of user and password; in no field's name."""
    put = Inserter([secret(VALUE, SHOWN, 443)]).value
    assert put(f"a={SHOWN}; b={SHOWN}".encode()) == f"a={VALUE}; b={VALUE}".encode()
    basic = base64.b64encode(f"{SHOWN}:{SHOWN}".encode())
    assert put(b"Basic " + basic) == b"Basic " + base64.b64encode(f"{VALUE}:{VALUE}".encode())
    assert put(b"Bearer " + basic) == b"Bearer " + basic


def test_the_authority_is_for_its_hosts_alone(inside: tuple[Guest, str], host: TlsHost) -> None:
    from cryptography import x509

    _, trusted = inside
    constraints = x509.load_pem_x509_certificate(trusted.encode()).extensions.get_extension_for_class(
        x509.NameConstraints
    )
    assert constraints.critical
    assert constraints.value.permitted_subtrees == [x509.DNSName("app.test")]


@pytest.mark.parametrize("way", ["absolute", "tunnel"])
def test_http_without_tls_only_if_said_so(way: str, tmp_path: Path) -> None:
    host = TlsHost(tmp_path, echo, is_tls=False)
    for is_plain in (True, False):
        secrets = [secret(VALUE, SHOWN, host.port, is_tls=not is_plain)] if is_plain else [secret(VALUE, SHOWN, 443)]
        with guest_with(secrets, [f"app.test:{host.port}"], None) as (guest, _):
            request = get(f"A: {SHOWN}", "Connection: close", port=host.port)
            if way == "absolute":
                answer = guest.ask(request.replace(b"GET /x", f"GET http://app.test:{host.port}/x".encode()))
            else:
                number = guest.open()
                guest.say(number, f"CONNECT app.test:{host.port} HTTP/1.1\r\n\r\n".encode() + request)
                answer = guest.until(number, b"close\r\n\r\n" if not is_plain else b"identity\r\n")
        assert VALUE.encode() not in answer
        assert SHOWN.encode() in answer
        assert (VALUE.encode() in host.seen[-1]) is is_plain
    host.close()


def test_a_redirect_does_not_carry_it(tmp_path: Path) -> None:
    """The host sends the program to another one, with the secret in the address: the guest has the placeholder only."""
    to = f"https://other.test/?token={VALUE}#"
    host = TlsHost(tmp_path, lambda _: f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())
    with guest_with([secret(VALUE, SHOWN, host.port)], [], host.ca_file) as (guest, trusted):
        answer = Program(guest, host.port, trusted).ask(get(f"A: {SHOWN}", port=host.port), b"\r\n\r\n")
    assert VALUE.encode() in host.seen[0]
    assert f"Location: https://other.test/?token={SHOWN}#\r\n".encode() in answer
    host.close()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n",
            "",
        ),  # an idle connection ends; nobody waits for an answer
        ("", "its answer is compressed"),
    ],
)
def test_who_waits_is_told(more: str, said: str, tmp_path: Path) -> None:
    first = OK if more else b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nok"
    host = TlsHost(tmp_path, lambda _: first + b"|" + more.encode())
    with guest_with([secret(VALUE, SHOWN, host.port)], [], host.ca_file) as (guest, trusted):
        program = Program(guest, host.port, trusted)
        program.say(get(port=host.port))
        answer = program.rest()
        assert answer == OK if not said else b"502 Bad Gateway" in answer and said.encode() in answer
        assert json.loads(guest.lines[-1])["verdict"] == "failed"
    host.close()


def test_a_program_gives_them_to_its_companion() -> None:
    """Which starts keepers for the Python interface: what it is sent is what it gets."""
    given = Secrets((secret(VALUE, SHOWN, 443),), "certificate", b"key", ("VARIABLE",))
    assert pickle.loads(pickle.dumps(given)) == given
    assert VALUE not in repr(given)
    assert "key" not in repr(given).replace("certificate", "")


# What comes back, without sockets


def responses(*methods: bytes) -> Responses:
    return Responses(deque(methods or (b"GET",)), Echoes([(VALUE, SHOWN)]))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_an_echo_in_pieces(step: int) -> None:
    """In a head, and in chunks that end inside the secret; at every cut of the connection's bytes."""
    body = b"x" + VALUE.encode() + b"y" + VALUE.encode()[:20]
    chunks = b"".join(
        b"%x;ext=1\r\n%b\r\n" % (len(body[at : at + 5]), body[at : at + 5]) for at in range(0, len(body), 5)
    )
    answer = b"HTTP/1.1 200 %b\r\nA: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % (VALUE.encode(), VALUE.encode())
    answer += chunks + b"0\r\nTrailer: x\r\n\r\n" + OK
    reader, out = responses(b"GET", b"GET"), b""
    for at in range(0, len(answer), step):
        out += reader.feed(answer[at : at + step])
    head, _, rest = out.partition(b"\r\n\r\n")
    assert head == b"HTTP/1.1 200 %b\r\nA: %b\r\nTransfer-Encoding: chunked" % (SHOWN.encode(), SHOWN.encode())
    data = bytearray(rest)
    made = b""
    while size := int(data[: data.index(b"\r\n")], 16):
        start = data.index(b"\r\n") + 2
        made += data[start : start + size]
        del data[: start + size + 2]
    assert made == b"x" + SHOWN.encode() + b"y" + SHOWN.encode()[:20]
    assert data == b"0\r\n\r\n" + OK


def test_tiny_chunks_are_searched_together() -> None:
    """A host that sends a chunk for each byte costs one search for what came at once, not one for each."""
    searches = []

    class Counting(Echoes):
        def split(self, data: bytes) -> tuple[bytes, bytes]:
            searches.append(len(data))
            return super().split(data)

    reader = Responses(deque([b"GET"]), Counting([(VALUE, SHOWN)]))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in b"ab" + VALUE.encode() + b"!" * 2000)
    out = reader.feed(head + body)
    assert searches == [len(VALUE) + 2002]
    assert out == head + b"%x\r\nab%b%b\r\n" % (len(VALUE) + 2002, SHOWN.encode(), b"!" * 2000)
    assert reader.feed(b"1\r\nd\r\n0\r\n\r\n") == b"1\r\nd\r\n0\r\n\r\n"
    assert reader.is_between


def test_requests_wait_for_answers() -> None:
    """A program that sends requests and a host that never answers: no more is remembered than a few requests."""
    sent = bytearray(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n" * 100)
    asking = Requests("app.test", 80, inserter=Inserter(()))
    assert asking.feed(sent, 1 << 20).count(b"GET") == 32
    assert asking.feed(sent, 1 << 20) == b""
    asking.methods.popleft()
    assert asking.feed(sent, 1 << 20).count(b"GET") == 1


def test_every_form_of_an_echo() -> None:
    echoes = Echoes([(VALUE, SHOWN)])
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in (b"", b"a", b"ab", b"abc"):
            encoded = encode(before + VALUE.encode() + b"z")
            shown = echoes.hide(encoded)
            assert len(shown) == len(encoded)
            assert VALUE[2:-2].encode() not in base64.b64decode(
                shown, altchars=b"-_" if b"-" in shown or b"_" in shown else None
            )
    for text in (
        VALUE.encode().hex(),
        "s3cr3t%2FValue%2Bof%3D27%26chars%3Cx%3E",
        "s3cr3t%2fValue%2bof%3d27%26chars%3cx%3e",
        json.dumps(VALUE).replace("/", "\\/"),
        "s3cr3t/Value+of=27&amp;chars&lt;x&gt;",
    ):
        shown = echoes.hide(text.encode())
        assert len(shown) == len(text)
        assert b"chars" not in shown
        assert b"placeholder" in shown or shown == SHOWN.encode().hex().encode()


LONG = f"x{VALUE}-and-more"
PAIRS = [(VALUE, SHOWN), (LONG, "?" * len(LONG)), (LONG[1:], "!" * len(LONG[1:]))]


@pytest.mark.parametrize("order", [PAIRS, PAIRS[::-1]])
def test_a_secret_that_is_a_part_of_another(order: list[tuple[str, str]]) -> None:
    """However an answer comes, it is hidden as if it came at once: nothing stays of the longer one."""
    body = f"a{LONG}b{VALUE}c{LONG[1:]}d{VALUE}-and{LONG}{VALUE}".encode()
    whole = Echoes(order).hide(body)
    assert b"more" not in whole
    for size in range(1, len(body) + 1):
        hidden = Hidden(Echoes(order))
        out = b"".join(hidden.take(body[at : at + size]) for at in range(0, len(body), size)) + hidden.end()
        assert out == whole, size


def test_a_piece_is_not_held_longer_than_needed() -> None:
    hidden = Hidden(Echoes([(VALUE, SHOWN)]))
    assert hidden.take(b"data: 1\n\n") == b"data: 1\n\n"
    assert hidden.take(b"abc" + VALUE[:5].encode()) == b"abc"
    assert hidden.take(b"!") == VALUE[:5].encode() + b"!"
    assert hidden.take(b"s") == b""
    assert hidden.end() == b"s"


def test_bodies_and_their_ends() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    assert responses(b"HEAD", b"GET").feed(head + OK) == head + OK
    assert responses().feed(b"HTTP/1.1 204 No\r\n\r\n") == b"HTTP/1.1 204 No\r\n\r\n"
    assert responses().feed(b"HTTP/1.1 100 Continue\r\n\r\n" + OK).endswith(OK)
    ended = responses()
    assert ended.feed(b"HTTP/1.0 200 OK\r\n\r\nabc" + VALUE[:12].encode()) == b"HTTP/1.0 200 OK\r\n\r\nabc"
    assert ended.finish() == SHOWN[:12].encode()
    assert not ended.is_between


@pytest.mark.parametrize(
    "answer",
    [
        OK + OK,
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 206 OK\r\nContent-Type: multipart/byteranges; boundary=x\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokk\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"A" * (64 << 10),
    ],
)
def test_answers_that_are_not_passed_on(answer: bytes) -> None:
    with pytest.raises(Unusable):
        responses().feed(answer)


# Options


def test_options() -> None:
    parsed = parse_secret("TOKEN=cmd:pass show a@b@API.example.org,http://in.example:8080")
    assert parsed.text == "TOKEN=cmd:pass show a@b@api.example.org:443,http://in.example:8080"
    assert (parsed.kind, parsed.source) == ("cmd", "pass show a@b")
    assert parsed.rules == ("api.example.org:443", "in.example:8080")
    for wrong in (
        "",
        "A",
        "A=env:B",
        "A=B@c.test",
        "A=env:@c.test",
        "1=env:B@c.test",
        "A=env:B@",
        "A=env:B@*.test",
        "A=env:B@10.0.0.1",
        "A=env:B@x@c.test:x",
    ):
        with pytest.raises(BadInput, match="--secret"):
            parse_secret(wrong)
    assert "twice" in overlapping([parsed, parsed])
    assert "with TLS and without" in overlapping(
        list(map(parse_secret, ("A=env:B@a.test", "C=env:D@http://a.test:443")))
    )


def test_values() -> None:
    assert check_value("A", b"12345678\r\n") == "12345678"
    for wrong in (b"", b"1234567", b"1234 5678", b"1234\n5678", b"\xff" * 9, b"a" * 8193):
        with pytest.raises(BadInput, match="--secret A: its value cannot be used"):
            check_value("A", wrong)
    for length in (8, 27, 28, 100):
        assert len(placeholder(length, bytes(range(length)))) == length
    inserter = Inserter([secret(VALUE, SHOWN, 443)])
    assert inserter.value(b"Basic !!!") == b"Basic !!!"
    assert inserter.value(SHOWN[:-1].encode()) == SHOWN[:-1].encode()
    assert inserter.used == ()
    assert VALUE not in repr(secret(VALUE, SHOWN, 443))
