"""Sandboxes with --allow: what they reach, what they do not, and what their user is told."""

from __future__ import annotations

import ast
import json
import socket
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.answers import answering
from tests.support.commands import ROOT, Runner
from tests.support.ports import free_port
from tests.support.waiting import until

GUEST = ROOT / "tests/end_to_end/guest"


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with answering() as server:
        yield server


@pytest.mark.vm
def test_only_where_it_may_go(runner: Runner, demo: str, server: ThreadingHTTPServer, tmp_path: Path) -> None:
    port = server.server_address[1]
    rules = tmp_path / "rules"
    rules.write_text(f"# the server\napp.test:{port}\n")
    allow = ("--allow-file", str(rules), "--allow", "*.wild.test")
    options = ("--add-host", "app.test:127.0.0.1", "-e", "no_proxy=mine", "-v", f"{GUEST}:/guest:ro")
    boot = ("-d", "--name", "egress", *allow, *options, "--entrypoint", "/bin/sleep")
    done = runner("boot", *boot, demo, "1000")
    assert done.returncode == 0, done.stderr
    done = runner("exec", "egress", "python3", "/guest/network.py", str(port), "200")
    assert done.returncode == 0, done.stderr
    found = ast.literal_eval(done.stdout)
    assert found["interfaces"] == ["lo"]
    assert found["environment"] == {
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:3128"),
        **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:3128"),
        "no_proxy": "mine",
    }
    assert found["resolv.conf"] == "nameserver 127.0.0.1\n"
    assert found["absolute"].endswith("\r\n\r\npath /a")
    assert found["tunnel"].endswith("\r\n\r\npath /b")
    assert found["transparent"].endswith("\r\n\r\npath /c")
    assert found["other host"].endswith("rootdisk: refused: evil.test:443: no --allow is for evil.test\n")
    assert f"port 22 is not allowed by --allow app.test:{port}" in found["other port"]
    assert "no --allow lists the address 127.0.0.1" in found["loopback"]
    assert found["gateway"].startswith("OSError")
    assert found["public"].startswith("OSError")
    assert (found["by name"], found["wild"], found["nobody"]) == ("198.18.0.1", "198.18.1.0", "gaierror")
    assert found["large"] > 3_000_000  # with its head
    assert found["upload"] == "took 3000000"
    assert found["many"] == ["HTTP/1.1 200 Connection established"] * 200
    assert set(server.seen) == {"/a", "/b", "/c", "/large/3000000", "/upload"}  # type: ignore[attr-defined]

    def told() -> list[dict[str, Any]]:
        """What is said of the connections, when that of the largest answer is among it: each is told at its end."""
        rows: list[dict[str, Any]] = json.loads(runner("logs", "--network", "--json", "egress").stdout)
        return rows if any(row["received"] > 3_000_000 for row in rows if row["verdict"] == "allowed") else []

    rows = until(told)
    refused = {(row["host"], row["port"]) for row in rows if row["verdict"] == "refused"}
    assert refused == {("evil.test", 443), ("app.test", 22), ("127.0.0.1", port)}
    lines = runner("logs", "--network", "--tail", "1", "egress").stdout.splitlines()
    assert len(lines) == 1
    state = json.loads(runner("inspect", "egress").stdout)
    assert (state["network"], state["allow"]) == ("none", ["*.wild.test", f"app.test:{port}"])
    # again, with the same rules
    assert runner("restart", "-t", "0", "egress").returncode == 0
    code = f"import socket; print(socket.create_connection(('app.test', {port}), 20).getpeername()[0])"
    assert runner("exec", "egress", "python3", "-c", code).stdout == "198.18.0.1\n"
    runner("rm", "-f", "egress")


@pytest.mark.vm
def test_published_ports(runner: Runner, demo: str) -> None:
    """They go through the keeper too; a program may listen on the guest's loopback."""
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 8000))\n"
        "while True: c, _ = s.accept(); c.sendall(b'hello ' + c.recv(100)); c.close()"
    )
    port = free_port()
    options = ("-d", "--name", "published", "--allow", "x.test", "-p", f"{port}:8000", "--entrypoint", "python3")
    done = runner("boot", *options, demo, "-c", code)
    assert done.returncode == 0, done.stderr

    def answer() -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", port), 20) as sock:
                sock.sendall(b"you")
                return sock.recv(100)
        except OSError:
            return b""

    until(lambda: answer() == b"hello you")
    runner("rm", "-f", "published")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--allow", "http://a.test"), "--allow 'http://a.test'"),
        (("--allow", "a.test", "--network", "user"), "--allow and --network user"),
        (("--allow", "a.test", "-p", "53:53/udp"), "--publish with /udp and --allow"),
        (("--allow", "a.test", "--dns", "1.1.1.1"), "--allow and --dns"),
        (("--allow-file", "/dev/null"), "no rule is in it"),
        (("--allow-file", "/nowhere"), "cannot read /nowhere"),
    ],
)
def test_options_that_are_refused(empty_runner: Runner, options: tuple[str, ...], message: str) -> None:
    done = empty_runner("boot", *options, "oci:/nowhere:1")
    assert done.returncode == 125
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
