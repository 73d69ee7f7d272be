"""Where a registry may lead, and which proxy is asked: by table, and in a network of the test's own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootdisk.errors import BadInput, RegistryError
from rootdisk.oci.repository import RegistryOptions
from rootdisk.parsing.urls import parse_url
from rootdisk.registry.addresses import (
    LINK_LOCAL,
    LOOPBACK,
    METADATA,
    PRIVATE,
    PUBLIC,
    SPECIAL,
    Reach,
    parse_address,
    scope_of,
)
from rootdisk.registry.proxies import is_listed, proxy_for
from rootdisk.registry.repository import RegistryRepository
from tests.support.commands import ROOT
from tests.support.faults import ALWAYS, Fault, run_faults
from tests.support.registry import QuietHandler, be_nobody, serve

SCOPES = {
    PUBLIC: ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808"],
    PRIVATE: ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fc00::1", "fd12::1", "::ffff:10.0.0.1", "2002:a00:1::", "198.18.0.1",
              "64:ff9b::a00:1", "fec0::1"],
    LOOPBACK: ["127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::7f00:1"],
    LINK_LOCAL: ["169.254.1.1", "fe80::1", "::ffff:169.254.1.1"],
    METADATA: ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "::ffff:169.254.169.254",
               "64:ff9b::a9fe:a9fe"],
    SPECIAL: ["224.0.0.1", "255.255.255.255", "240.0.0.1", "ff02::1"],
}  # fmt: skip


@pytest.mark.parametrize(("scope", "text"), [(scope, text) for scope, texts in SCOPES.items() for text in texts])
def test_scopes(scope: str, text: str) -> None:
    address = parse_address(text)
    assert address is not None
    assert scope_of(address) == scope


@pytest.mark.parametrize(
    ("home", "allowed"),
    [
        ("8.8.8.8", {PUBLIC}),
        ("10.0.0.1", {PUBLIC, PRIVATE}),
        ("127.0.0.1", {PUBLIC, PRIVATE, LOOPBACK}),
        ("169.254.1.9", {PUBLIC, LINK_LOCAL}),
        ("", {PUBLIC}),
    ],
)
def test_a_registry_leads_no_nearer_than_it_is(home: str, allowed: set[str]) -> None:
    reach = Reach()
    if home:
        reach.arrived(home)
    for scope, texts in SCOPES.items():
        for text in texts:
            if scope in allowed:
                assert reach.choose("x.example", 443, [text], home=False) == [text]
                reach.check_host(text, 443)
            else:
                for ask in (lambda text=text: reach.choose("x.example", 443, [text], home=False),
                            lambda text=text: reach.check_host(text, 443)):  # fmt: skip
                    with pytest.raises(RegistryError, match="address in another network"):
                        ask()
    if home:
        assert reach.choose("x.example", 443, [home], home=False) == [home]
    if allowed == {PUBLIC}:
        with pytest.raises(RegistryError):
            reach.check_host("localhost", 443)
    reach.check_host("x.example", 443)


def test_a_name_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry's own name, too: what it resolved to first says where it is."""
    reach = Reach()
    assert reach.choose("r.example", 443, ["8.8.8.8", "127.0.0.1"], home=True) == ["8.8.8.8", "127.0.0.1"]
    reach.arrived("8.8.8.8")
    reach.arrived("127.0.0.1")
    assert reach.choose("r.example", 443, ["127.0.0.1", "8.8.4.4"], home=True) == ["8.8.4.4"]
    with pytest.raises(RegistryError):
        reach.choose("r.example", 443, ["127.0.0.1"], home=True)
    monkeypatch.setenv("ROOTDISK_PRIVATE_HOSTS", "blobs.example, .inside.example:9000")
    assert reach.choose("blobs.example", 443, ["10.0.0.1"], home=False) == ["10.0.0.1"]
    assert reach.choose("a.inside.example", 9000, ["10.0.0.1"], home=False) == ["10.0.0.1"]
    for host, port in (("inside.example", 9000), ("a.inside.example", 443), ("other.example", 443)):
        with pytest.raises(RegistryError):
            reach.choose(host, port, ["10.0.0.1"], home=False)


def test_a_registry_that_is_near_and_far() -> None:
    """A name that leads to this host first, and outside the next time, gives nobody outside a way in."""
    reach = Reach()
    reach.arrived("127.0.0.1")
    assert reach.choose("x.example", 80, ["127.0.0.2"], home=False) == ["127.0.0.2"]
    reach.arrived("8.8.8.8")
    for address in ("127.0.0.1", "10.0.0.1"):
        with pytest.raises(RegistryError):
            reach.choose("x.example", 80, [address], home=False)


def test_who_does_not_answer_is_not_the_registry() -> None:
    """Its name leads to a service on this host that says nothing: that does not make this host the registry's place."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        threading.Thread(target=lambda: silent.accept()[0].close(), daemon=True).start()
        options = RegistryOptions(plain_http=True, give_up_s=0.01)
        repository = RegistryRepository(f"localhost:{silent.getsockname()[1]}", "a/b", options)
        with pytest.raises(RegistryError, match="the connection was closed"):
            repository.resolve("v1")
        with pytest.raises(RegistryError, match="address in another network"):
            repository.client.session.reach.choose("x.example", 80, ["127.0.0.1"], home=False)
        repository.close()


PROGRAM = """
import json, sys
from rootdisk.errors import RootdiskError
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.places import open_repository
from tests.support.faults import ALWAYS, Fault, run_faults
from tests.support.registry import QuietHandler, QuietServer
import threading

seen = []

class Inside(QuietHandler):
    def do_GET(self):
        seen.append([self.server.server_address[0], self.path])
        self.send(200, json.dumps({"schemaVersion": 2, "config": {}, "layers": [], "token": "x"}).encode())

def server(address, handler):
    made = QuietServer((address, 0), handler)
    threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
    return f"{address}:{made.server_address[1]}"

class Front(QuietHandler):
    def do_GET(self):
        if "realm" in self.path:
            self.send(401, b"", WWW_Authenticate=f'Bearer realm="http://{target}/token"')
        else:
            self.send(307, b"", Location=f"http://{target}/inside")

said = {}
for home in ("93.184.216.34", "10.9.8.7", "127.0.0.1"):
    for near in ("93.184.216.34", "10.9.8.7", "127.0.0.1", "169.254.169.254", "localhost", "blobs.test"):
        for kind in ("redirect", "realm"):
            listener = server("127.0.0.1" if near == "localhost" else "10.9.8.7" if near == "blobs.test" else near, Inside)
            target = listener if near[0].isdigit() else f"{near}:{listener.rpartition(':')[2]}"
            front = server(home, Front)
            repository = open_repository(parse_reference(f"{front}/a/b:{kind}"), RegistryOptions(plain_http=True, give_up_s=1))
            before = len(seen)
            try:
                repository.resolve(kind)
                words = ""
            except RootdiskError as err:
                words = str(err)
            said[f"{home} {near} {kind}"] = [len(seen) - before, words]
print(json.dumps(said))
"""
NETWORK = """
set -e
ip link set lo up
for address in 93.184.216.34 10.9.8.7 169.254.169.254; do ip addr add $address/32 dev lo; done
mount --bind "$1/hosts" /etc/hosts
shift
exec "$@"
"""


def test_redirects_in_a_network(tmp_path: Path) -> None:
    """Real servers at public, private, loopback and metadata addresses, and names that resolve to them."""
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n10.9.8.7 blobs.test\n")
    probe = subprocess.run(["unshare", "-rnm", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("no network namespaces here")
    env = {**os.environ, "HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path), "NO_PROXY": "*"}
    done = subprocess.run(
        ["unshare", "-rnm", "sh", "-c", NETWORK, "sh", tmp_path, sys.executable, "-c", PROGRAM],
        capture_output=True, text=True, env=env, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert not done.returncode, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert len(said) == 36
    order = {"93.184.216.34": 0, "10.9.8.7": 1, "blobs.test": 1, "127.0.0.1": 2, "localhost": 2, "169.254.169.254": 9}
    for case, (asked, words) in said.items():
        home, near, _ = case.split()
        if order[near] <= order[home]:
            assert asked, case
        else:
            assert not asked, case
            assert "address in another network" in words, case
            assert words.isprintable()


LISTED = {
    "example.com": (["example.com", "a.example.com", "EXAMPLE.COM".lower()], ["notexample.com", "example.com.evil"]),
    ".example.com": (["a.example.com"], ["example.com", "notexample.com"]),
    "*.example.com": (["a.example.com"], ["example.com"]),
    "*": (["anything", "10.0.0.1", "::1"], []),
    "10.0.0.0/8": (["10.1.2.3"], ["11.0.0.1", "x10.example"]),
    "fd00::/8": (["fd12::1"], ["fe80::1"]),
    "10.1.2.3": (["10.1.2.3"], ["10.1.2.30"]),
    "::2": (["::2"], ["::3"]),
    "[::2]:443": (["::2"], ["::3"]),
    "[::2]:80": ([], ["::2"]),
    "example.com:443": (["example.com"], []),
    "example.com:80": ([], ["example.com"]),
    "a.test, b.test c.test": (["a.test", "b.test", "c.test"], ["d.test"]),
    " , .,*.": ([], ["example.com"]),
    "10.0.0.0/99": ([], ["10.0.0.1"]),
    "%%%,[,]": ([], ["example.com"]),
}


@pytest.mark.parametrize("listed", LISTED)
def test_no_proxy(listed: str) -> None:
    inside, outside = LISTED[listed]
    assert all(is_listed(host, 443, listed) for host in inside)
    assert not any(is_listed(host, 443, listed) for host in outside)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_proxy_of_any_kind(host: str, listed: str) -> None:
    is_listed(host, 443, listed)


def _clear(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_which_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    _clear(monkeypatch)
    secure, plain = parse_url("https://r.example/v2/"), parse_url("http://r.example:5000/v2/")
    assert proxy_for(secure) is None
    monkeypatch.setenv("ALL_PROXY", "proxy.example:3128")
    assert proxy_for(secure) == proxy_for(plain) == "http://proxy.example:3128"
    monkeypatch.setenv("HTTPS_PROXY", "https://ann:pw%40@[fd00::1]:8443/")
    assert proxy_for(secure) == "https://ann:pw%40@[fd00::1]:8443"
    monkeypatch.setenv("https_proxy", "http://lower:1")
    assert proxy_for(secure) == "http://lower:1"
    monkeypatch.setenv("HTTP_PROXY", "http://upper:2")
    assert proxy_for(plain) == "http://upper:2"
    monkeypatch.setenv("REQUEST_METHOD", "GET")
    assert proxy_for(plain) == "http://proxy.example:3128"
    for host in ("localhost", "LOCALHOST:5000", "a.localhost", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"):
        assert proxy_for(parse_url(f"https://{host}/")) is None
    for wrong in ("socks5://h:1", "http://", "http://h:x", "http://[", "http://a b", "x\\y", "http://a\nb@h"):
        monkeypatch.setenv("https_proxy", wrong)
        with pytest.raises(BadInput, match="https_proxy") as failed:
            proxy_for(secure)
        assert str(failed.value).isprintable()


def test_localhost_and_no_proxy_reach_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rootdisk.oci.reference import parse_reference
    from rootdisk.oci.repository import RegistryOptions
    from rootdisk.places import open_repository

    asked: list[str] = []

    class Proxy(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            asked.append(self.path)
            self.send(404, b"{}")

    be_nobody(monkeypatch, tmp_path)
    _clear(monkeypatch)
    options = RegistryOptions(plain_http=True, connect_timeout_s=2, give_up_s=1)
    with serve(Proxy) as url, run_faults("127.0.0.1:1") as registry:
        registry.add(Fault("status", "/manifests/", ALWAYS, status=404))
        monkeypatch.setenv("HTTP_PROXY", url)
        monkeypatch.setenv("NO_PROXY", "skipped.invalid")
        port = registry.name.rpartition(":")[2]
        for name in (registry.name, f"localhost:{port}", "skipped.invalid", "far.invalid"):
            with pytest.raises(RegistryError):
                open_repository(parse_reference(f"{name}/a/b:v1"), options).resolve("v1")
    assert len(registry.seen) == 2
    assert asked == ["http://far.invalid/v2/a/b/manifests/v1"]
