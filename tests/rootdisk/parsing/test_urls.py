"""The parser of URLs: what it takes, every other parser reads in the same way; the rest is one error line."""

from __future__ import annotations

import contextlib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from urllib3.util import parse_url as urllib3_url

from rootdisk.errors import RegistryError, RootdiskError
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.parsing.urls import normal_host, parse_url, redact
from rootdisk.places import open_repository
from rootdisk.registry.challenges import parse_challenges
from tests.support.faults import ALWAYS, Fault, run_faults
from tests.support.registry import QuietHandler, be_nobody, docker_config, serve

SECRET = "very-secret-9"
QUICK = RegistryOptions(plain_http=True, give_up_s=3)

READ = {
    "https://registry.example": "https://registry.example/",
    "HTTPS://Registry.Example:443/v2/?a=b#c": "https://registry.example/v2/?a=b",
    "http://registry.example:80": "http://registry.example/",
    "https://registry.example:": "https://registry.example/",
    "https://127.0.0.1:5000/x": "https://127.0.0.1:5000/x",
    "https://registry.example:0005000/": "https://registry.example:5000/",
    "https://registry.example:00000000443/": "https://registry.example/",
    "http://[::1]:5000/v2": "http://[::1]:5000/v2",
    "http://[0:0:0:0:0:0:0:1]/": "http://[::1]/",
    "http://[::FFFF:127.0.0.1]/": "http://[::ffff:127.0.0.1]/",
    "https://a_b.c-d.xn--mnchen-3ya/": "https://a_b.c-d.xn--mnchen-3ya/",
    "https://h.example./p": "https://h.example./p",
    "https://h/a b|c?d=é ": "https://h/a%20b%7Cc?d=%E9%20",
    "https://h/a%20b%2fc": "https://h/a%20b%2fc",
}
REFUSED = {
    "": "no scheme",
    "h/p": "no scheme",
    "//h/p": "no scheme",
    "ftp://h/": "only http",
    "file:///etc/passwd": "only http",
    "https:///p": "host",
    "https://": "host",
    "https:/h": "only http",
    "http://evil\\@registry/": "backslash",
    "http://h/p\\q": "backslash",
    "http://user@h/": "user name",
    "http://user:pw@h/": "user name",
    "http://h:pw@evil/": "user name",
    "http://h@/": "user name",
    "http://h\r\nX: y/": "control",
    "http://h/\r\nHost: evil": "control",
    "http://h\t/": "control",
    "http://h\0/": "control",
    "http://h h/": "host",
    "http://h%2eexample/": "host",
    "http://h:0/": "65535",
    "http://h:65536/": "65535",
    "http://h:0000065536/": "65535",
    "http://h:99999999999999999999/": "65535",
    "http://h:-1/": "host or port",
    "http://h:80:80/": "host or port",
    "http://h:８０/": "host or port",
    "http://::1/": "host or port",
    "http://[::1/": "host or port",
    "http://[::1]x/": "host or port",
    "http://[fe80::1%25eth0]/": "host",
    "http://[fe80::1%eth0]/": "host",
    "http://[v1.x]/": "host",
    "http://[]/": "host",
    "http://127.1/": "host",
    "http://0x7f.0.0.1/": "host",
    "http://2130706433/": "host",
    "http://127.0.0.0x1/": "host",
    "http://017.0.0.1/": "host",
    "http://1.2.3.4.5/": "host",
    "http://münchen.example/": "host",
    "http://h。example/": "host",
    "http://.h/": "host",
    "http://h..x/": "host",
    "http://*.h/": "host",
    "http://-h/": "host",
    f"http://{'a' * 64}.x/": "host",
    f"http://{'a.' * 200}x/": "host",
    f"http://h/{'a' * 9000}": "8192",
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_read(text: str) -> None:
    url = parse_url(text)
    assert str(url) == READ[text]
    assert parse_url(str(url)) == url


@pytest.mark.parametrize("text", REFUSED)
def test_refused_in_one_line(text: str) -> None:
    with pytest.raises(RegistryError, match=REFUSED[text]) as refused:
        parse_url(text)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500
    assert "pw" not in str(refused.value).replace("h:pw@evil", "")


def test_join() -> None:
    base = parse_url("https://h:5000/v2/a/b/")
    for reference, place in {
        "manifests/v1": "https://h:5000/v2/a/b/manifests/v1",
        "blobs/sha256:00": "https://h:5000/v2/a/b/blobs/sha256:00",
        "/v2/x?y=1": "https://h:5000/v2/x?y=1",
        "?n=1": "https://h:5000/v2/a/b/?n=1",
        "../../../../x": "https://h:5000/x",
        " https://other/x\t": "https://other/x",
        "//other:81/x": "https://other:81/x",
        "/.//evil/x": "https://h:5000//evil/x",
    }.items():
        assert str(base.join(reference)) == place
    for reference in (
        "/\\evil/",
        "\\\\evil\\",
        "//a@h/",
        "https:evil",
        "javascript:x",
        "/a\nb",
        "//[",
        "http://h:1e3/",
    ):
        with pytest.raises(RegistryError):
            base.join(reference)
    assert str(base.join("x?a=1").with_query("digest=2")) == "https://h:5000/v2/a/b/x?a=1&digest=2"
    assert str(base.join("x?").with_query("digest=2")) == "https://h:5000/v2/a/b/x?digest=2"


pieces = st.sampled_from(["http", "https", ":", "/", "//", "\\", "@", "[", "]", "#", "?", "%", "%2f", "evil", "registry.example", "127.0.0.1",
                          "::1", ".", "..", ":80", ":x", " ", "\t", "\n", "é", "。", "&", ";", "0x7f", "-", "_", "\ud800", "\x80"])  # fmt: skip


@given(st.lists(pieces, max_size=12).map("".join))
@example("http://evil\\@registry.example/")
def test_all_parsers_read_what_is_taken_in_the_same_way(text: str) -> None:
    for given_text in (text, f"http://{text}", f"https://registry.example/{text}"):
        try:
            url = parse_url(given_text)
        except RegistryError:
            continue
        same(url)
    try:
        same(parse_url("https://registry.example:5000/v2/").join(text))
    except RegistryError:
        pass
    assert redact(text).isprintable()
    normal_host(text)


def same(url: object) -> None:
    text = str(url)
    mine = parse_url(text)
    theirs, split = urllib3_url(text), urlsplit(text)
    assert (theirs.scheme, str(theirs.host).strip("[]"), theirs.port or mine.port) == mine.origin
    assert (split.scheme, split.hostname, split.port or mine.port) == mine.origin
    assert theirs.auth is None
    assert split.username is None


@given(st.text(max_size=200))
def test_challenges_of_any_kind(text: str) -> None:
    for scheme, fields in parse_challenges(text).items():
        assert scheme == scheme.lower()
        assert all(isinstance(value, str) for value in fields.values())


class Trap(QuietHandler):
    """A server that must not be given credentials."""

    asked: list[dict[str, str]]

    def do_GET(self) -> None:  # noqa: N802
        self.asked.append(dict(self.headers))
        self.send(200, b'{"token": "x", "expires_in": 60}')


@pytest.fixture
def trap() -> type[Trap]:
    return type("Trap", (Trap,), {"asked": []})


def refused(name: str, options: RegistryOptions = QUICK) -> str:
    """What the error says, which is one line."""
    repository = open_repository(parse_reference(f"{name}/a/b:v1"), options)
    try:
        with pytest.raises(RegistryError) as failed:
            repository.resolve("v1")
    finally:
        repository.close()
    assert str(failed.value).isprintable()
    assert SECRET not in str(failed.value)
    return str(failed.value)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    be_nobody(monkeypatch, tmp_path)


def test_a_crafted_redirect_gets_no_token(tmp_path: Path, trap: type[Trap]) -> None:
    """Of `http://evil\\@registry/` one parser reads the host evil, another the host registry."""
    basic = {"WWW-Authenticate": 'Basic realm="x"'}
    with run_faults("127.0.0.1:1") as proxy, serve(trap) as url:
        evil = url.removeprefix("http://")
        docker_config(tmp_path / "docker", **{proxy.name: ("ann", SECRET)})
        for location in (
            f"http://{evil}\\@{proxy.name}/v2/",
            f"//{evil}\\@{proxy.name}/v2/",
            f"http://{evil}/\\@{proxy.name}/v2/",
            f"http://{proxy.name}@{evil}/v2/",
            f"http://{evil}#@{proxy.name}/v2/",
            f"http://{evil}?@{proxy.name}/v2/",
            f"\\\\{evil}\\v2",
            f"/\\{evil}/v2",
            f"http:\\\\{evil}\\@{proxy.name}/",
            url,
        ):
            proxy.faults.clear()
            proxy.add(Fault("status", "/manifests/", status=401, headers=basic))
            proxy.add(Fault("redirect", "/manifests/", ALWAYS, target=location))
            repository = open_repository(parse_reference(f"{proxy.name}/a/b:v1"), QUICK)
            with contextlib.suppress(RootdiskError):
                repository.resolve("v1")
            repository.close()
        assert not [headers for headers in trap.asked if "Authorization" in headers]
        assert any("Authorization" in headers for _, _, headers in proxy.seen)


MALFORMED = ["http://[", "http://[::1", "http://h:99999/", "http://h:x/", "http://é/", "http://" + "a" * 300, "http:///", "x:y", "http://a b/",
             "http://user:pw@h/", "http://[fe80::1%25lo]/", "http://127.1/", "//", "http://\x01/", "http://h/" + "a" * 9000]  # fmt: skip


@pytest.mark.parametrize("location", MALFORMED)
def test_a_malformed_redirect_is_one_line(location: str) -> None:
    with run_faults("127.0.0.1:1") as proxy:
        proxy.add(Fault("redirect", "/manifests/", ALWAYS, target=location))
        assert "redirect to" in refused(proxy.name)
        assert len(proxy.seen) == 1  # not tried again


@pytest.mark.parametrize("realm", ["", "x", *(text for text in MALFORMED if "\x01" not in text)])
def test_a_malformed_realm_is_one_line(realm: str) -> None:
    with run_faults("127.0.0.1:1") as proxy:
        header = {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}
        proxy.add(Fault("status", "/manifests/", ALWAYS, status=401, headers=header))
        assert "token service" in refused(proxy.name)


ANSWERS = [
    b'{"token": "x", "expires_in": 1' + b"0" * 400 + b"}",
    b'{"token": "x", "expires_in": 1' + b"0" * 5000 + b"}",
    b'{"token": "x", "expires_in": 1e400}',
    b'{"token": "x", "expires_in": NaN}',
    b'{"token": "x", "expires_in": -Infinity}',
    b'{"token": "x", "expires_in": {}}',
    b'{"token": "x", "expires_in": "soon"}',
    b'{"token": ["x"]}',
    b'{"token": "a\\r\\nX-Evil: 1"}',
    b'{"token": "\\ud800"}',
    b'{"token": 5}',
    b"[" * 100_000,
    b'{"token": {}}',
    b"[]",
    b"\xff\xfe",
    b"",
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: repr(answer[:40]))
def test_a_malformed_token_is_one_line(answer: bytes) -> None:
    """Or, if only its time is odd, a token that is used and refused."""

    class Tokens(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.send(200, answer)

    with run_faults("127.0.0.1:1") as proxy, serve(Tokens) as url:
        header = {"WWW-Authenticate": f'Bearer realm="{url}/token",service="s"'}
        proxy.add(Fault("status", "/manifests/", ALWAYS, status=401, headers=header))
        assert "token" in refused(proxy.name) or "401" in refused(proxy.name)
        assert not any("X-Evil" in headers for _, _, headers in proxy.seen)
