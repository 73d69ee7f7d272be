"""What registries really do, and what files of credentials really hold: the tables of docs/registries.md."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from imagetool.targets.open import open_target
from imagetool.targets.registry import RegistryTarget
from rootdisk.errors import BadInput, RegistryError, RootdiskError
from rootdisk.oci.documents import OCI_MANIFEST, Descriptor, Digest
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions, read_blob
from rootdisk.places import open_repository
from rootdisk.registry import login
from rootdisk.registry.credentials import Credentials, find_credentials
from tests.support.blobs import BLOB, DATA, EMPTY, RAW, push
from tests.support.commands import ROOT
from tests.support.faults import ALWAYS, Fault, FaultProxy
from tests.support.registry import QuietHandler, needs_registry, run_registry, serve

pytestmark = [needs_registry, pytest.mark.usefixtures("nobody")]

PATIENT = RegistryOptions(plain_http=True)


def test_every_row_names_its_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests/rootdisk/registry").glob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/registries.md").read_text()))
    assert len(named) > 10
    assert not [name for name in named if f"def {name}(" not in tests]


@pytest.mark.parametrize("how", ["403 after a redirect", "401 after a redirect", "403", "405", "501"])
def test_head_of_a_blob(proxy: FaultProxy, how: str) -> None:
    class Signed(QuietHandler):
        """Storage whose URLs are signed for GET."""

        def do_HEAD(self) -> None:  # noqa: N802
            self.send(int(how[:3]), b"")

    absent = BLOB._replace(digest=Digest.of(b"absent"))
    empty = Descriptor("application/octet-stream", Digest.of(b""), 0)
    with serve(Signed) as url:
        if "redirect" in how:
            fault = Fault("redirect", "/blobs/sha256", ALWAYS, method="HEAD", target=f"{url}/signed")
        else:
            fault = Fault("status", "/blobs/sha256", ALWAYS, method="HEAD", status=int(how[:3]), body=b"")
        proxy.add(fault)
        target = open_target(parse_reference(f"{proxy.name}/a/b"), PATIENT)
        assert target.has_blob(BLOB)
        assert not target.has_blob(absent)
        target.push_blob(empty, lambda: iter([]))
        assert target.has_blob(empty)
        with pytest.raises(RootdiskError, match="bytes, not"):
            target.has_blob(BLOB._replace(size=BLOB.size + 1))
        before = len(proxy.seen)
        target.push_blob(BLOB, lambda: iter([DATA]))
        assert not [method for method, _, _ in proxy.seen[before:] if method in ("POST", "PUT")]
        target.close()


@pytest.mark.parametrize("status", [200, 201, 202])
def test_put_of_a_manifest(proxy: FaultProxy, status: int) -> None:
    proxy.add(Fault("as", "/manifests/", method="PUT", status=status))
    if status == 202:  # not there at once
        proxy.add(Fault("status", "/manifests/", 2, status=404))
    target = open_target(parse_reference(f"{proxy.name}/a/b"), PATIENT)
    assert target.push_manifest(RAW, OCI_MANIFEST, (f"as-{status}",)) == Digest.of(RAW)
    assert open_repository(parse_reference(f"{proxy.name}/a/b"), PATIENT).resolve(f"as-{status}").digest == Digest.of(
        RAW
    )
    target.close()


def test_a_manifest_that_never_comes(proxy: FaultProxy) -> None:
    """A registry that says yes, and has something else or nothing, is not believed."""
    target = open_target(parse_reference(f"{proxy.name}/a/b"), PATIENT._replace(give_up_s=2))
    proxy.add(Fault("as", "/manifests/", method="PUT", status=200))
    proxy.add(Fault("status", "/manifests/", ALWAYS, status=404))
    with pytest.raises(RegistryError, match="404"):
        target.push_manifest(RAW, OCI_MANIFEST, ("lost",))
    proxy.faults.clear()
    proxy.add(Fault("as", "/manifests/", method="PUT", status=200))
    proxy.add(Fault("status", "/manifests/", ALWAYS, status=200, body=b"{}"))
    with pytest.raises(RootdiskError):
        target.push_manifest(RAW, OCI_MANIFEST, ("other",))
    target.close()


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_put_of_a_blob(proxy: FaultProxy, status: int) -> None:
    data = os.urandom(200_000)
    blob = Descriptor("application/octet-stream", Digest.of(data), len(data))
    proxy.add(Fault("as", "/uploads/", method="PUT", status=status))
    target = open_target(parse_reference(f"{proxy.name}/a/b"), PATIENT)
    target.push_blob(blob, lambda: iter([data]))
    target.close()
    assert read_blob(open_repository(parse_reference(f"{proxy.name}/a/b"), PATIENT), blob, 1 << 20) == data


WORDS = [
    b'{"errors": [{"code": "DENIED", "message": "\\u001b[2J\\u202e no\\r\\nX: y"}]}',
    b'{"errors": [{"code": "' + b"x" * 9000 + b'"}]}',
    b'{"errors": {}}',
    b'{"errors": [1, 2]}',
    b'{"errors": null}',
    b"<html>\x1b]0;title\x07</html>",
    b"[" * 9000,
    b"\xff" * 100_000,
    b"",
]


@pytest.mark.parametrize("body", WORDS, ids=lambda body: repr(body[:30]))
def test_words_of_a_registry(proxy: FaultProxy, body: bytes) -> None:
    proxy.add(Fault("status", "/manifests/", status=403, body=body))
    with pytest.raises(RegistryError) as failed:
        open_repository(parse_reference(f"{proxy.name}/a/b"), PATIENT).resolve("v1")
    assert str(failed.value).isprintable()
    assert len(str(failed.value)) < 700
    if b"DENIED" in body:
        assert "DENIED: \\x1b[2J\\u202e no\\r\\nX: y" in str(failed.value)


HEADERS: list[dict[str, str]] = [
    {"Content-Length": "-1"}, {"Retry-After": "9" * 400}, {"Retry-After": "Fri, 99 Foo 99999 99:99:99 GMT"}, {"Retry-After": "nan"},
    {"Docker-Content-Digest": "sha256:\x1b[2J"}, {"Docker-Content-Digest": "x" * 5000}, {"Content-Type": "é; \x07"},
    {"Content-Range": "bytes 0-0/" + "9" * 400}, {"Transfer-Encoding": "x"},
]  # fmt: skip


@pytest.mark.parametrize("headers", HEADERS, ids=repr)
@pytest.mark.parametrize("status", [200, 206, 429])
def test_odd_headers_are_one_line(proxy: FaultProxy, headers: dict[str, str], status: int) -> None:
    proxy.add(Fault("status", "/", ALWAYS, status=status, headers=headers, body=b"{}"))
    repository = open_repository(parse_reference(f"{proxy.name}/a/b"), PATIENT._replace(give_up_s=0.3))
    with contextlib.suppress(RootdiskError):
        repository.resolve("v1")  # {} is a document
    for ask in (lambda: repository.manifest(BLOB.digest), lambda: read_blob(repository, BLOB, 1 << 30)):
        with pytest.raises(RootdiskError) as failed:
            ask()  # type: ignore[no-untyped-call]
        assert str(failed.value).isprintable()
        assert len(str(failed.value)) < 700


def test_tags_in_pages(proxy: FaultProxy) -> None:
    target = open_target(parse_reference(f"{proxy.name}/a/b"), PATIENT)
    assert isinstance(target, RegistryTarget)
    for tag in ("p1", "p2", "p3"):
        target.push_manifest(RAW, OCI_MANIFEST, (tag,))
    one = json.dumps({"name": "a/b", "tags": ["v1", "p1"]}).encode()
    for link in (
        "</v2/a/b/tags/list?last=p1>",
        f"<http://{proxy.name}/v2/a/b/tags/list?last=p1>",
        "<tags/list?last=p1>",
        "<?last=p1>",
        '</v2/a/b/tags/list>; rel="first", </v2/a/b/tags/list?last=p1>; title="a, b"',
    ):
        proxy.add(Fault("status", "/tags/list?n=", headers={"Link": f'{link}; rel="next"'}, status=200, body=one))
        assert {"v1", "p1", "p2", "p3"} <= target.tags().keys()
    for wrong in (["a\x1b"], ["../../x"], ["a?b"], [1], "x", {"a": 1}, ["x" * 200], [None]):
        body = json.dumps({"tags": wrong}).encode()
        proxy.add(Fault("status", "/tags/list?n=", status=200, body=body))
        with pytest.raises(BadInput) as failed:
            target.tags()
        assert str(failed.value).isprintable()
    proxy.add(Fault("status", "/tags/list?n=", headers={"Link": "<http://[>; rel=next"}, status=200, body=one))
    with pytest.raises(RegistryError):
        target.tags()
    target.close()


def test_an_ipv6_address(tmp_path: Path) -> None:
    with run_registry(tmp_path / "r", host="[::1]") as registry:
        name = f"{registry.name}/a/b:v1"
        push(name, registry.options)
        assert open_repository(parse_reference(name), registry.options).resolve("v1").digest == Digest.of(RAW)
    assert str(parse_reference("[::1]:5000/a/b")) == "[::1]:5000/a/b:latest"
    for wrong in ("[::1%25lo]:5000/a", "[fe80::1%lo]/a", "[::1/a", "[::g]/a", "[::1]:0/a", "[::1]:65536/a", "h:0/a", "h:99999/a",
                  "[:::]/a", "[1.2.3.4]/a", "[]/a"):  # fmt: skip
        with pytest.raises(BadInput) as failed:
            parse_reference(wrong)
        assert str(failed.value).isprintable()


def written(folder: Path, config: object) -> None:
    (folder / "docker").mkdir(exist_ok=True)
    (folder / "docker/config.json").write_text(json.dumps(config))


def auth(user: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:pw".encode()).decode()}


def test_files_that_would_wait_or_lead_in_a_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, {})
    path = tmp_path / "docker/config.json"
    for make in (os.mkfifo, lambda at: at.symlink_to(at)):
        path.unlink()
        make(path)
        monkeypatch.delenv("DOCKER_CONFIG", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        with contextlib.suppress(FileExistsError):
            (tmp_path / ".docker").symlink_to("docker")
        assert find_credentials("r.io", "a/b") is None  # as without the file
        monkeypatch.setenv("DOCKER_CONFIG", str(path.parent))
        with pytest.raises(BadInput, match=r"config\.json"):
            find_credentials("r.io", "a/b")
        with pytest.raises(BadInput, match=r"config\.json"):
            login.save("r.io", Credentials("ann", "pw"))


def test_a_pipe_that_the_user_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `<(…)` of a shell."""
    read, write = os.pipe()
    os.write(write, json.dumps({"auths": {"r.io": auth("ann")}}).encode())
    os.close(write)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", f"/dev/fd/{read}")
    assert find_credentials("r.io", "a/b") is not None
    os.close(read)


def test_line_ends_in_a_saved_password_do_not_count(tmp_path: Path) -> None:
    """As `base64` of a shell leaves them; docker and podman read over them."""
    text = base64.encodebytes(b"ann:" + b"long:password" * 10).decode()
    assert text.count("\n") > 1
    written(tmp_path, {"auths": {"r.io": {"auth": text.replace("\n", "\r\n")}}})
    found = find_credentials("r.io", "a/b")
    assert found is not None
    assert (found.username, found.password) == ("ann", "long:password" * 10)


@pytest.mark.parametrize(
    ("key", "registry", "repository", "matches"),
    [
        ("r.io", "r.io", "a/b", True),
        ("r.io/", "r.io", "a/b", True),
        ("https://r.io", "r.io", "a/b", True),
        ("http://r.io/", "r.io", "a/b", True),
        ("https://r.io/v1/", "r.io", "a/b", True),
        ("HTTPS://R.IO/v2", "r.io", "a/b", True),
        ("r.io/v1/", "r.io", "a/b", True),
        ("r.io/v2/", "r.io", "a/b", True),
        ("R.io", "r.io", "a/b", True),
        ("r.io", "R.io", "a/b", True),
        ("r.io:5000", "r.io:5000", "a/b", True),
        ("https://r.io:5000/v2/", "r.io:5000", "a/b", True),
        ("[::1]:5000", "[::1]:5000", "a/b", True),
        ("r.io/a", "r.io", "a/b", True),
        ("r.io/a/", "r.io", "a/b", True),
        ("r.io/a/b", "r.io", "a/b", True),
        ("https://index.docker.io/v1/", "docker.io", "library/a", True),
        ("index.docker.io", "docker.io", "library/a", True),
        ("registry-1.docker.io", "docker.io", "library/a", True),
        ("r.io:5000", "r.io", "a/b", False),
        ("r.io", "r.io:5000", "a/b", False),
        ("r.io/ab", "r.io", "a/b", False),
        ("r.io/b", "r.io", "a/b", False),
        ("r.io/a/b/c", "r.io", "a/b", False),
        ("xr.io", "r.io", "a/b", False),
        ("r.io.evil", "r.io", "a/b", False),
        ("https://evil/r.io", "r.io", "a/b", False),
        ("user@r.io", "r.io", "a/b", False),
        ("", "r.io", "a/b", False),
    ],
)
def test_keys_of_auths(tmp_path: Path, key: str, registry: str, repository: str, matches: bool) -> None:
    written(tmp_path, {"auths": {key: auth("ann")}})
    assert bool(find_credentials(registry, repository)) == matches
    if matches and "docker.io" not in registry:
        written(
            tmp_path,
            {"auths": {"https://r.io:1/": auth("bob"), key: auth("ann"), f"{registry.lower()}/a/b/c": auth("eve")}},
        )
        found = find_credentials(registry, repository)
        assert found is not None
        assert found.username == "ann"


def without_place(found: Credentials | None) -> Credentials | None:
    """The credentials alone, without the file that has them."""
    return found and found._replace(where="")


def test_the_exact_key_counts_first(tmp_path: Path) -> None:
    written(tmp_path, {"auths": {"https://r.io/v1/": auth("old"), "r.io": auth("new"), "r.io/a": auth("team")}})
    assert without_place(find_credentials("r.io", "b/c")) == Credentials("new", "pw")
    assert without_place(find_credentials("r.io", "a/c")) == Credentials("team", "pw")


def test_entries_of_auths(tmp_path: Path) -> None:
    for entry, found in (
        ({"username": "ann", "password": "pw"}, Credentials("ann", "pw")),
        (auth("ann"), Credentials("ann", "pw")),
        ({"identitytoken": "t"}, Credentials("", "", "t")),
        ({**auth("ann"), "identitytoken": "t"}, Credentials("ann", "pw", "t")),
        ({"registrytoken": "t"}, Credentials("", "", "", "t")),
        ({}, None),
        ({"auth": ""}, None),
        ({"auth": None}, None),
        (None, None),
    ):
        written(tmp_path, {"auths": {"r.io": entry}})
        assert without_place(find_credentials("r.io", "a")) == found
    wrong: list[Any] = [
        {"auth": "%%"},
        {"auth": 1},
        {"auth": ["x"]},
        {"username": 1},
        {"identitytoken": {}},
        {"registrytoken": "a\nb"},
    ]
    for entry in wrong:
        written(tmp_path, {"auths": {"r.io\x1b": {}, "r.io": entry}})
        with pytest.raises(BadInput) as failed:
            find_credentials("r.io", "a")
        assert str(failed.value).isprintable()
    configs: tuple[object, ...] = (
        {"auths": []},
        {"credHelpers": "x"},
        {"credsStore": 1},
        {"credHelpers": {"r.io": 1}},
        [],
        "x",
    )
    for config in configs:
        written(tmp_path, config)
        with pytest.raises(BadInput):
            find_credentials("r.io", "a")


def test_a_helper_without_a_name(tmp_path: Path) -> None:
    written(tmp_path, {"credHelpers": {"r.io": ""}, "credsStore": "absent", "auths": {"r.io": auth("ann")}})
    assert without_place(find_credentials("r.io", "a")) == Credentials("ann", "pw")
    written(tmp_path, {"credHelpers": {"r.io": ""}, "credsStore": "absent"})
    assert find_credentials("r.io", "a") is None
    with pytest.raises(BadInput, match="docker-credential-absent"):
        find_credentials("other.io", "a")
    written(tmp_path, {"credHelpers": {"https://r.io/": "absent"}})
    with pytest.raises(BadInput, match="docker-credential-absent"):
        find_credentials("r.io", "a")


def test_a_registrytoken(proxy: FaultProxy, tmp_path: Path) -> None:
    asked: list[str] = []

    class Tokens(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            asked.append(self.path)
            self.send(500, b"")

    written(tmp_path, {"auths": {proxy.name: {"registrytoken": "own-token"}}})
    with serve(Tokens) as url:
        challenge = {"WWW-Authenticate": f'Bearer realm="{url}/token",service="s"'}
        proxy.add(Fault("status", "/manifests/", status=401, headers=challenge))
        assert open_repository(parse_reference(f"{proxy.name}/a/b"), PATIENT).resolve("v1").digest == Digest.of(RAW)
        assert proxy.seen[-1][2]["Authorization"] == "Bearer own-token"
        proxy.add(Fault("status", "/manifests/", ALWAYS, status=401, headers=challenge))
        with pytest.raises(RegistryError) as failed:
            open_repository(parse_reference(f"{proxy.name}/a/b"), PATIENT).resolve("v1")
        assert failed.value.status == 401
        assert "own-token" not in str(failed.value)
    assert not asked


def test_what_is_published_is_there(proxy: FaultProxy) -> None:
    target = open_target(parse_reference(f"{proxy.name}/a/b"), PATIENT)
    assert target.has_blob(BLOB)
    assert target.has_blob(EMPTY)
    target.close()
