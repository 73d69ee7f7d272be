"""The proxy as a guest meets it, by HTTP, SOCKS and addresses: what it lets through, what it refuses, and what a server then sees."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from runner.channel import messages
from runner.channel.messages import WINDOW, frame
from runner.network import connection, proxy
from runner.network.streams import OUT_MAX
from tests.support.network import Guest, Server, guest, serving
from tests.support.ports import free_port
from tests.support.waiting import until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def hello(name: str | None) -> bytes:
    """The first message of TLS for a server's name."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(OK) as server:
        yield server


@pytest.fixture
def inside(server: Server) -> Iterator[Guest]:
    """A guest that may reach app.test, which is the server, on its port and on 443 and 80."""
    port = server.port
    allow = [f"app.test:{port}", "app.test:443", "app.test:80", "*.wild.test:443", "local.test", f"127.0.0.1:{port}"]
    hosts = {"app.test": "127.0.0.1"}
    with guest(allow, hosts) as inside:
        yield inside


def rows(inside: Guest) -> list[dict[str, object]]:
    return [json.loads(line) for line in inside.lines]


def test_an_absolute_request(inside: Guest, server: Server) -> None:
    request = f"GET http://APP.test.:{server.port}/x?a=b HTTP/1.1\r\nHost: app.test:{server.port}\r\nProxy-Connection: keep-alive\r\nA: b\r\n\r\n"
    assert inside.ask(request.encode()) == OK
    assert server.bytes_seen.split(b"\r\n") == [
        b"GET /x?a=b HTTP/1.1",
        f"Host: app.test:{server.port}".encode(),
        b"A: b",
        b"Connection: close",
        b"",
        b"",
    ]
    until(lambda: bool(inside.lines))
    row = rows(inside)[0]
    assert (row["host"], row["port"], row["verdict"], row["received"]) == ("app.test", server.port, "allowed", len(OK))
    assert row["sent"] == len(server.bytes_seen)
    assert abs(float(str(row["time"])) - time.time()) < 60


def test_connect_and_socks(inside: Guest, server: Server) -> None:
    number = inside.open()
    inside.say(number, f"CONNECT app.test:{server.port} HTTP/1.1\r\nHost: app.test:{server.port}\r\n\r\n".encode())
    inside.until(number, b"200 Connection established\r\n\r\n")
    inside.say(number, b"any bytes")
    assert inside.rest(number).endswith(OK)
    assert server.bytes_seen == b"any bytes"
    number = inside.open()
    inside.say(number, b"\x05\x01\x00")
    inside.until(number, b"\x05\x00")
    inside.say(number, b"\x05\x01\x00\x03\x08app.test" + struct.pack(">H", server.port))
    inside.until(number, b"\x05\x00\x05\x00\x00\x01" + bytes(6))
    inside.say(number, b"others")
    assert inside.rest(number).endswith(OK)
    assert server.bytes_seen == b"any bytesothers"


def test_by_an_address_that_stands_for_a_name(inside: Guest, server: Server) -> None:
    question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03APP\x04test\x00\x00\x01\x00\x01"
    sender = struct.pack("<4sH", bytes((127, 0, 0, 1)), 4000)
    inside.send(frame(messages.DATA_OUT, sender + question, messages.DATAGRAMS))
    inside.inbox[messages.DATAGRAMS] = bytearray()
    answer = inside.until(messages.DATAGRAMS, bytes((198, 18, 0, 1)))
    assert answer.startswith(sender + b"\x12\x34\x81\x80\x00\x01\x00\x01")
    assert inside.ask(b"plain", "198.18.0.1", server.port) == OK
    assert server.bytes_seen == b"plain"
    assert inside.ask(b"nobody", "198.18.0.200", server.port) == b""
    number = inside.open(port=53)
    inside.say(number, len(question).to_bytes(2, "big") + question)
    inside.until(number, bytes((198, 18, 0, 1)))


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("evil.test:80", "no --allow is for evil.test"),
        ("app.test.evil.test:443", "no --allow is for app.test.evil.test"),
        ("evilapp.test:443", "no --allow is for evilapp.test"),
        ("wild.test:443", "no --allow is for wild.test"),
        ("x.wild.test:22", "port 22 is not allowed by --allow *.wild.test:443"),
        ("app.test:22", "port 22 is not allowed"),
        ("app.test:0", "not a port"),
        ("app.test:65536", "not a port"),
        ("app.test:+443", "not a port"),
        ("app.test:443:443", "not a host name"),
        ("app.test", "not a port"),
        ("127.0.0.1:1", "port 1 is not allowed"),
        ("10.0.0.1:443", "no --allow lists the address 10.0.0.1"),
        ("8.8.8.8:443", "no --allow lists the address 8.8.8.8"),
        ("169.254.169.254:80", "no --allow lists the address 169.254.169.254"),
        ("2130706433:PORT", "an address in an unusual form"),
        ("0x7f000001:PORT", "an address in an unusual form"),
        ("0x7f.1:PORT", "an address in an unusual form"),
        ("0177.0.0.1:PORT", "an address in an unusual form"),
        ("127.1:PORT", "an address in an unusual form"),
        ("127.0.0.01:PORT", "an address in an unusual form"),
        ("[::1]:PORT", "no --allow lists the address [::1]"),
        ("[::ffff:127.0.0.1]:PORT", "no --allow lists the address [::ffff:7f00:1]"),
        ("[::ffff:7f00:1]:PORT", "no --allow lists"),
        ("[64:ff9b::7f00:1]:PORT", "no --allow lists"),
        ("[2002:7f00:1::]:PORT", "no --allow lists"),
        ("[fe80::1%25eth0]:PORT", "not an IPv6 address"),
        ("[fe80::1%eth0]:PORT", "not an IPv6 address"),
        ("::1:PORT", "not a host name"),
        ("localhost:PORT", "no --allow is for localhost"),
        ("local.test:80", "cannot be looked up"),
        ("user@app.test:PORT", "a user's name before the host"),
        ("app.test@evil.test:80", "a user's name before the host"),
        ("app.test\\@evil.test:80", "a user's name before the host"),
        ("app.test#:443", "not a host name"),
        ("app.test%00:443", "not a host name"),
        ("-app.test:443", "not a host name"),
        ("app..test:443", "not a host name"),
        ("app.test..:443", "not a host name"),
        (".:443", "not a host name"),
        (":443", "not a host name"),
        ("xn--pp-.test:443", "not a host name"),
        ("*.wild.test:443", "not a host name"),
        (f"{'a' * 64}.test:443", "not a host name"),
        (f"{'a.' * 130}test:443", "not a host name"),
    ],
)
def test_what_connect_refuses(inside: Guest, server: Server, target: str, rule: str) -> None:
    target = target.replace("PORT", str(server.port))
    answer = inside.ask(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
    status, _, body = answer.partition(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 502" if "looked up" in rule else b"HTTP/1.1 403 Forbidden"), answer
    assert rule in body.decode()
    assert body.count(b"\n") == 1
    assert not server.seen
    assert [row["verdict"] for row in rows(inside)] == ["failed" if "looked up" in rule else "refused"]
    assert rule in str(rows(inside)[0]["why"])


@pytest.mark.parametrize(
    ("request_", "rule"),
    [
        (b"GET http://evil.test/ HTTP/1.1\r\nHost: app.test:PORT\r\n\r\n", "the Host field says app.test"),
        (b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", "no --allow is for evil.test"),
        (b"GET http://app.test:PORT/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", "the Host field says evil.test:80"),
        (b"GET http://app.test:PORT/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "two Host fields"),
        (b"GET http://app.test:PORT@evil.test/ HTTP/1.1\r\n\r\n", "a user's name before the host"),
        (b"GET http://app.test:PORT\\@evil.test/ HTTP/1.1\r\n\r\n", "backslash"),
        (b"GET https://app.test:PORT/ HTTP/1.1\r\n\r\n", "a request for https://"),
        (b"GET ftp://app.test:PORT/ HTTP/1.1\r\n\r\n", "a request for ftp://"),
        (b"GET /path HTTP/1.1\r\nHost: app.test:PORT\r\n\r\n", "names no http:// host"),
        (b"GET //app.test:PORT/ HTTP/1.1\r\n\r\n", "names no http:// host"),
        (b"GET http:app.test:PORT HTTP/1.1\r\n\r\n", "names no http:// host"),
        (b"GET http://app.test:PORT/a b HTTP/1.1\r\n\r\n", "not an HTTP request"),
        (b"GET http://app.test:PORT/\rX HTTP/1.1\r\n\r\n", "not an HTTP request"),
        (b"GET http://app.test:PORT/\xc3\xa9 HTTP/1.1\r\n\r\n", "not an HTTP request"),
        (b"GET\thttp://app.test:PORT/ HTTP/1.1\r\n\r\n", "not an HTTP request"),
        (b"GET http://app.test:PORT/ HTTP/2.0\r\n\r\n", "HTTP/1.1 or 1.0"),
        (b"GET http://app.test:PORT/ HTTP/1.1\nHost: x\n\n", "HTTP/1.1 or 1.0"),
        (b"GET http://app.test:PORT/ HTTP/1.1\r\nA: b\n c\r\n\r\n", "broken field"),
        (b"GET http://app.test:PORT/ HTTP/1.1\r\nA : b\r\n\r\n", "broken field"),
        (b"GET http://app.test:PORT/ HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", "broken field"),
        (b"GET http://app.test:PORT/ HTTP/1.1\r\nA: b\rHost: evil\r\n\r\n", "broken field"),
        (b"GET http://app.test:PORT/ HTTP/1.1\r\nA: \0\r\n\r\n", "broken field"),
        (b"POST http://app.test:PORT/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "length and chunks"),
        (b"POST http://app.test:PORT/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "broken length"),
        (b"POST http://app.test:PORT/ HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", "broken length"),
        (b"POST http://app.test:PORT/ HTTP/1.1\r\nContent-Length: +1\r\n\r\n", "broken length"),
        (b"POST http://app.test:PORT/ HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "broken length"),
        (b"POST http://app.test:PORT/ HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "unknown Transfer-Encoding"),
        (b"POST http://app.test:PORT/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n", "unknown"),
        (b"POST http://app.test:PORT/ HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", "unknown Transfer-Encoding"),
        (b"POST http://app.test:PORT/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "unknown Transfer-Encoding"),
        (b"CONNECT app.test:PORT HTTP/1.1\r\nHost: evil.test\r\n\r\n", "another host than CONNECT"),
        (b"GET http://app.test:PORT/ HTTP/1.1\r\n" + b"A: b\r\n" * 201 + b"\r\n", "more than 200 fields"),
        (b"GET http://app.test:PORT/ HTTP/1.1\r\nA: " + b"b" * (70 << 10), "longer than 64 KiB"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "not an HTTP request"),
        (b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", "SOCKS 4"),
    ],
)  # fmt: skip
def test_what_http_refuses(inside: Guest, server: Server, request_: bytes, rule: str) -> None:
    answer = inside.ask(request_.replace(b"PORT", str(server.port).encode()))
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n"), answer
    assert rule in answer.decode()
    assert not server.bytes_seen
    assert rule in str(rows(inside)[0]["why"])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (b"\x05\x01\x00\x03\x09evil.test\x00\x50", 2),
        (b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50", 2),
        (b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x00\x50", 2),
        (b"\x05\x01\x00\x03\x0a127.0.0.01\x00\x50", 2),
        (b"\x05\x01\x00\x03\x09app\0.test\x00\x50", 2),
        (b"\x05\x01\x00\x03\x08app.test\x00\x00", 2),
        (b"\x05\x02\x00\x03\x08app.test\x00\x50", 2),  # BIND
        (b"\x05\x03\x00\x03\x08app.test\x00\x50", 2),  # UDP
        (b"\x05\x01\x00\x02\x08app.test\x00\x50", 2),
    ],
)
def test_what_socks_refuses(inside: Guest, server: Server, words: bytes, code: int) -> None:
    answer = inside.ask(b"\x05\x02\x00\x01" + words)
    assert answer == b"\x05\x00" + bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0])
    assert not server.seen
    assert rows(inside)[0]["verdict"] == "refused"


def test_socks_that_wants_a_password(inside: Guest) -> None:
    assert inside.ask(b"\x05\x01\x02") == b"\x05\xff"


def test_names_that_lead_near(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a name leads to in the end counts, over whatever aliases (CNAME), and each spelling of loopback is one."""
    near = ["127.0.0.1", "::1", "0.0.0.0", "::", "169.254.169.254", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::1%lo"]

    def look_up(name: str, port: int, **_: object) -> list[tuple[object, ...]]:
        address = near[int(name.partition(".")[0])]
        return [(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with guest(["*:*"]) as inside:
        for number, address in enumerate(near):
            answer = inside.ask(f"GET http://{number}.test:{server.port}/ HTTP/1.1\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 403"), address
            assert b"that no --allow lists with this port" in answer
    assert not server.seen


def test_a_name_that_leads_to_this_host() -> None:
    """localhost is looked up; the address has to be listed itself, with the port."""
    with serving(OK) as server:
        with guest([f"localhost:{server.port}", "127.0.0.1:1"]) as inside:
            answer = inside.ask(f"GET http://localhost:{server.port}/ HTTP/1.1\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 403")
            assert b"a loopback address" in answer
            assert not server.seen
        with guest([f"localhost:{server.port}", f"127.0.0.0/8:{server.port}"]) as inside:
            assert inside.ask(f"GET http://localhost:{server.port}/ HTTP/1.1\r\n\r\n".encode()) == OK
        with guest(["*:*", "*.internal:*", "*.docker.internal:*"]) as inside:
            for name in ("host.docker.internal", "Host.Docker.Internal."):
                answer = inside.ask(f"GET http://{name}:{server.port}/ HTTP/1.1\r\n\r\n".encode())
                assert b"no --allow is for host.docker.internal" in answer
            assert len(server.seen) == 1
        with guest([f"host.docker.internal:{server.port}"]) as inside:
            assert inside.ask(f"GET http://host.docker.internal:{server.port}/ HTTP/1.1\r\n\r\n".encode()) == OK


@pytest.mark.parametrize(
    ("first", "rule"),
    [
        (hello("evil.test"), "the TLS server name is evil.test"),
        (hello(None), "TLS without a server name"),
        (hello("app-test").replace(b"app-test", b"app\0test"), "not a host name"),
        (hello("127.0.0.1x").replace(b"127.0.0.1x", b"0x7f.00001"), "an address in an unusual form"),
        (b"".join(b"\x16\x03\x01\x00\x01%c" % byte for byte in b"\1\0\xff" + bytes(70)), "in too many records"),
        (b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n", "not TLS"),
        (b"SSH-2.0-x\r\n", "not TLS"),
        (b"\x16\x03\x01\x00\x00", "not TLS"),
        (b"\x16\x03\x01\xff\xff\x01", "not TLS"),
        (b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", "not TLS"),
        (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "too long"),
        (b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03", "broken first message"),
    ],
)  # fmt: skip
def test_tls_on_443(monkeypatch: pytest.MonkeyPatch, first: bytes, rule: str) -> None:
    """What is not TLS with the right name gets no byte to the server, in whatever pieces it comes."""
    with serving(OK) as server:
        monkeypatch.setattr("runner.network.guards.TLS_PORT", server.port)
        with guest([f"app.test:{server.port}"], {"app.test": "127.0.0.1"}) as inside:
            number = inside.open()
            inside.say(number, f"CONNECT app.test:{server.port} HTTP/1.1\r\n\r\n".encode())
            inside.until(number, b"established")
            for byte in first:
                inside.say(number, bytes([byte]))
            assert inside.rest(number).endswith(b"\x15\x03\x03\x00\x02\x02\x31")
            assert not server.bytes_seen
            assert rule in str(rows(inside)[0]["why"])


def test_tls_with_the_right_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(b"from the server", keeps=True) as server:
        monkeypatch.setattr("runner.network.guards.TLS_PORT", server.port)
        with guest([f"app.test:{server.port}"], {"app.test": "127.0.0.1"}) as inside:
            number = inside.open()
            inside.say(number, f"CONNECT app.test:{server.port} HTTP/1.1\r\n\r\n".encode())
            first = hello("APP.test")
            record = bytearray()  # the same message in records of 50 bytes
            for at in range(5, len(first), 50):
                piece = first[at : at + 50]
                record += b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece
            inside.say(number, bytes(record) + b"more")
            inside.until(number, b"from the server")
            until(lambda: server.bytes_seen == bytes(record) + b"more")


@pytest.mark.parametrize(
    ("second", "rule"),
    [
        (b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n", "the Host field says evil.test"),
        (b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", "the Host field says evil.test"),
        (b"GET http://evil.test/ HTTP/1.1\r\nHost: app.test:PORT\r\n\r\n", "a request for evil.test:80"),
        (b"CONNECT evil.test:443 HTTP/1.1\r\nHost: app.test:PORT\r\n\r\n", "names no http:// host"),
        (b"GET / HTTP/1.1\r\n\r\n", "without a Host field"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 or 1.0"),
    ],
)
def test_requests_on_80(monkeypatch: pytest.MonkeyPatch, second: bytes, rule: str) -> None:
    """On the port of HTTP each request is checked, also the second of a connection."""
    with serving(OK, keeps=True) as server:
        monkeypatch.setattr("runner.network.guards.HTTP_PORT", server.port)
        port = str(server.port).encode()
        with guest([f"app.test:{server.port}"], {"app.test": "127.0.0.1"}) as inside:
            number = inside.open("198.18.0.1", server.port)
            body = b"2;ext=1\r\nab\r\n0\r\nTrailer: x\r\n\r\n"
            first = (
                b"POST /1 HTTP/1.1\r\nHost: app.test:"
                + port
                + b"\r\nTransfer-Encoding: chunked\r\nUpgrade: h2c\r\n\r\n"
                + body
            )
            inside.say(number, first)
            inside.until(number, OK)
            inside.say(number, second.replace(b"PORT", port))
            inside.rest(number)
            assert server.bytes_seen == (
                b"POST /1 HTTP/1.1\r\nHost: app.test:"
                + port
                + b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
            )
            assert rule in str(rows(inside)[0]["why"])


def test_what_follows_an_absolute_request() -> None:
    """A second request on a proxy's connection could be for another host: it is dropped."""
    with serving(OK, keeps=True) as server, guest([f"app.test:{server.port}"], {"app.test": "127.0.0.1"}) as inside:
        one = f"POST http://app.test:{server.port}/1 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc".encode()
        number = inside.open()
        inside.say(number, one + b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n")
        assert inside.until(number, OK) == OK
        until(lambda: server.bytes_seen.endswith(b"Connection: close\r\n\r\nabc"))
        inside.say(number, one)
        inside.hear(0.3)
        assert server.bytes_seen.count(b"POST") == 1
        assert b"evil" not in server.bytes_seen


def test_a_server_that_is_not_there(inside: Guest) -> None:
    port = free_port()
    with guest([f"app.test:{port}"], {"app.test": "127.0.0.1"}) as other:
        answer = other.ask(f"CONNECT app.test:{port} HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 502 Bad Gateway")
        assert b"Connection refused" in answer
        assert other.ask(b"\x05\x01\x00\x05\x01\x00\x03\x08app.test" + port.to_bytes(2, "big"))[3] == 5


def test_published_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, guest(["x.test"], published=[(listener, 8080)]) as inside:
        with socket.create_connection(listener.getsockname(), 10) as sock:
            until(lambda: inside.hear() or bool(inside.opened))
            number, port = inside.opened[0]
            assert port == 8080
            sock.sendall(b"ping")
            inside.until(number, b"ping")
            inside.say(number, b"pong")
            assert sock.recv(10) == b"pong"
            inside.end(number)
            assert sock.recv(10) == b""
        assert inside.rest(number) == b"ping"


def test_many_at_once_and_a_limit() -> None:
    """256 connections; the next is refused, not left to wait, and there is room when one ends."""
    with serving(b"", keeps=True) as server, guest([f"app.test:{server.port}"], {"app.test": "127.0.0.1"}) as inside:
        request = f"CONNECT app.test:{server.port} HTTP/1.1\r\n\r\n".encode()
        numbers = []
        for _ in range(proxy.CONNECTIONS_MAX):
            numbers.append(inside.open())
            inside.say(numbers[-1], request)
        for number in numbers:
            inside.until(number, b"established")
        answer = inside.ask(request)
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"256 connections are open" in answer
        inside.end(numbers[0])
        inside.send(frame(messages.CLOSED, b"", numbers[1]))
        until(lambda: not inside.proxy.is_full())
        number = inside.open()
        inside.say(number, request)
        inside.until(number, b"established")


def test_look_ups_that_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer, and a program that leaves at once: what waits is bounded all the same."""
    answers = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.wait(60) and [])
    with guest(["*.slow.test:443"]) as inside:
        waiting = 0
        while not inside.proxy.is_full():
            number = inside.open()
            inside.say(number, f"CONNECT {number}.slow.test:443 HTTP/1.1\r\n\r\n".encode())
            waiting += 1
            until(lambda: inside.proxy.lookups.waiting == waiting, every_s=0.001)  # noqa: B023 - called at once
            inside.send(frame(messages.CLOSED, b"", number))
        assert waiting == proxy.CONNECTIONS_MAX
        assert b"256 connections are open" in inside.ask(b"CONNECT x.slow.test:443 HTTP/1.1\r\n\r\n")
        answers.set()
        until(lambda: not inside.proxy.is_full())
        assert b"cannot be looked up" in inside.ask(b"CONNECT x.slow.test:443 HTTP/1.1\r\n\r\n")


def test_an_answer_with_forbidden_addresses_among_others(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what was checked is connected to: the others are left out, whatever their place."""
    places = [("10.0.0.1", 4), ("127.0.0.2", 4), ("::1", 6), ("::ffff:127.0.0.1", 6), ("127.0.0.1", 4)]
    families = {4: socket.AF_INET, 6: socket.AF_INET6}
    found = [(families[kind], socket.SOCK_STREAM, 6, "", (address, server.port)) for address, kind in places]
    tried: list[tuple[str, int]] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    connect = socket.socket.connect_ex

    class Watched(socket.socket):
        def connect_ex(self, place: Any) -> int:
            tried.append(place)
            return connect(self, place)

    monkeypatch.setattr(socket, "socket", Watched)
    request = f"GET http://mixed.test:{server.port}/ HTTP/1.1\r\n\r\n".encode()
    with guest([f"mixed.test:{server.port}", f"127.0.0.1:{server.port}"]) as inside:
        assert inside.ask(request) == OK
        assert tried == [("127.0.0.1", server.port)]
    with guest([f"mixed.test:{server.port}"]) as inside:
        assert b"a private address" in inside.ask(request)
        assert len(tried) == 1


def test_requests_in_single_bytes_are_read_once_a_turn(server: Server) -> None:
    """A head that is long already, and then a frame for each byte: it is not read again for each."""
    with guest([f"app.test:{server.port}"], {"app.test": "127.0.0.1"}) as inside:
        number = inside.open()
        inside.say(number, f"GET http://app.test:{server.port}/{'x' * 32_000} HTTP/1.1\r\n".encode())
        start = time.process_time()
        fields = b"A: b\r\n" * 2000
        inside.send(b"".join(frame(messages.DATA_OUT, fields[at : at + 1], number) for at in range(len(fields))))
        inside.say(number, b"\r\n")
        assert b"more than 200 fields" in inside.rest(number)
        assert time.process_time() - start < 0.5  # it took 70 us each time


def test_messages_of_dns_that_are_no_questions() -> None:
    """The first ends the connection; nothing of the others is read."""
    with guest(["app.test"]) as inside:
        number = inside.open(port=proxy.DNS_PORT)
        inside.say(number, bytes(100_000))
        until(lambda: inside.hear() or number in inside.closed)
        assert inside.inbox[number] == b""
        assert number in inside.closed


def test_10_000_streams_and_floods() -> None:
    """What a guest opens, floods or breaks is bounded; the others go on."""
    with serving(OK) as server, guest([f"app.test:{server.port}"], {"app.test": "127.0.0.1"}) as inside:
        for number in range(10_000):
            payload = struct.pack("<4sH", bytes((127, 0, 0, 1)), proxy.PORT)
            inside.send(frame(messages.ACCEPTED, payload, messages.ACCEPTED_FIRST + number % 20_000))
        inside.send(frame(messages.DATA_OUT, b"x", messages.DATAGRAMS) + frame(99, b"", 7))
        inside.last_number = messages.ACCEPTED_FIRST + 9
        assert len(inside.proxy.streams) <= messages.ACCEPTED_MAX
        for number in range(messages.ACCEPTED_FIRST, messages.ACCEPTED_FIRST + 20):
            inside.send(frame(messages.CLOSED, b"", number))
        while inside.hear(0.2):
            pass
        inside.closed.clear()
        assert inside.ask(f"GET http://app.test:{server.port}/ HTTP/1.1\r\n\r\n".encode()) == OK
        inside.send(b"\xff" * 5000)  # nothing is understood any more, and nothing held
        for _ in range(100):
            inside.send(frame(messages.DATA_OUT, bytes(64 << 10), messages.ACCEPTED_FIRST))
        assert inside.proxy.streams.held <= messages.ACCEPTED_MAX * (WINDOW + 2 * OUT_MAX)


def test_a_guest_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast server beside a program that reads nothing: no more than the window and a bit is held."""
    monkeypatch.setattr(Guest, "_take", lambda *_: None)
    with (
        serving(bytes(8 << 20), keeps=True) as server,
        guest([f"app.test:{server.port}"], {"app.test": "127.0.0.1"}) as inside,
    ):
        number = inside.open("198.18.0.1", server.port)
        inside.say(number, b"go")
        for _ in range(100):
            inside.hear(0.01)
        assert inside.received <= WINDOW + (64 << 10)
        assert inside.proxy.streams.held <= 2 * OUT_MAX


def test_what_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ASK_S", 0.1)
    with guest(["x.test"]) as inside:
        number = inside.open()
        inside.say(number, b"GET http://x.te")
        until(lambda: inside.hear() or number in inside.closed)
