"""A real registry with passwords, tokens and TLS, and one that misbehaves."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagetool.targets.open import open_target
from rootdisk.errors import BadInput, DigestMismatch, RegistryError
from rootdisk.oci.documents import Descriptor, Digest
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions, Repository, read_blob
from rootdisk.places import open_repository
from rootdisk.registry import answers
from rootdisk.registry.challenges import parse_challenges
from rootdisk.registry.credentials import find_credentials
from tests.support.blobs import BLOB, DATA, RAW, push
from tests.support.faults import ALWAYS, Fault, FaultProxy
from tests.support.registry import (
    QuietHandler,
    RunningRegistry,
    docker_config,
    needs_registry,
    run_registry,
    serve,
)

SECRET = "very-secret-7"

pytestmark = [needs_registry, pytest.mark.usefixtures("nobody")]


def opened(name: str, options: RegistryOptions) -> Repository:
    return open_repository(parse_reference(name), options)


PATIENT = RegistryOptions(plain_http=True)


@pytest.mark.parametrize("tokens", [None, 60.0])
def test_password_over_tls(tmp_path: Path, tokens: float | None) -> None:
    with run_registry(tmp_path / "r", password=("ann", SECRET), tls=True, token_lifetime_s=tokens) as registry:
        name = f"{registry.name}/a/b:v1"
        started = time.monotonic()
        options = registry.options._replace(give_up_s=600)
        with pytest.raises(RegistryError) as denied:
            push(name, options)
        assert denied.value.status in (401, 403)
        docker_config(tmp_path / "docker", **{registry.name: ("ann", "wrong" + SECRET)})
        with pytest.raises(RegistryError) as wrong:
            push(name, options)
        assert wrong.value.status == 401
        assert SECRET not in str(wrong.value)
        assert time.monotonic() - started < 300  # not retried
        docker_config(tmp_path / "docker", **{registry.name: ("ann", SECRET)})
        push(name, registry.options)
        repository = opened(name, registry.options)
        assert repository.manifest(repository.resolve("v1")) == RAW
        assert read_blob(repository, BLOB, 1 << 30) == DATA
        with pytest.raises(RegistryError, match="certificate is not trusted"):
            opened(name, RegistryOptions()).resolve("v1")
        if registry.tokens:
            (tmp_path / "docker/config.json").write_text(
                json.dumps({"auths": {registry.name: {"identitytoken": f"refresh-{SECRET}"}}})
            )
            assert opened(name, registry.options).resolve("v1").digest == Digest.of(RAW)
            assert registry.tokens.asked[-1]["method"] == "POST"
            (tmp_path / "docker/config.json").unlink()
            assert opened(name, registry.options).resolve("v1").digest == Digest.of(RAW)  # anonymous pull


def test_plain_http_has_to_be_asked_for(registry: RunningRegistry) -> None:
    with pytest.raises(RegistryError, match="TLS"):
        opened(f"{registry.name}/a/b:v1", RegistryOptions(give_up_s=2)).resolve("v1")


def test_ranges(registry: RunningRegistry) -> None:
    repository = opened(f"{registry.name}/a/b", registry.options)
    for start, end in ((0, 10), (5, 5), (1000, 2_000_000), (len(DATA) - 1, len(DATA)), (7, None)):
        assert b"".join(repository.blob(BLOB, start, end)) == DATA[start:end]
    with pytest.raises(BadInput):
        next(repository.blob(BLOB, 0, len(DATA) + 1))


@pytest.mark.parametrize("kind", ["short", "reset", "stall"])
def test_broken_transfer_is_resumed(proxy: FaultProxy, kind: str) -> None:
    proxy.add(Fault(kind, "/blobs/", after=1_000_000, seconds=2))  # type: ignore[arg-type]
    assert read_blob(opened(f"{proxy.name}/a/b", PATIENT._replace(read_timeout_s=0.5)), BLOB, 1 << 30) == DATA
    ranges = [headers.get("Range", "") for _, path, headers in proxy.seen if "/blobs/" in path]
    assert ranges[0] == ""
    assert int(ranges[1].removeprefix("bytes=").partition("-")[0]) > 0


def test_wrong_bytes_are_found(proxy: FaultProxy) -> None:
    proxy.add(Fault("wrong", "/blobs/"))
    with pytest.raises(DigestMismatch):
        read_blob(opened(f"{proxy.name}/a/b", PATIENT), BLOB, 1 << 30)
    proxy.add(Fault("wrong", "/manifests/"))
    with pytest.raises((DigestMismatch, BadInput)):
        opened(f"{proxy.name}/a/b", PATIENT).manifest(Digest.of(RAW))


def test_whole_blob_in_place_of_a_range(proxy: FaultProxy) -> None:
    proxy.add(Fault("whole", "/blobs/"))
    assert b"".join(opened(f"{proxy.name}/a/b", PATIENT).blob(BLOB, 1000, 2000)) == DATA[1000:2000]


def test_temporary_failures_are_tried_again_and_others_not(proxy: FaultProxy) -> None:
    repository = opened(f"{proxy.name}/a/b", PATIENT)
    proxy.add(Fault("status", "/manifests/", 2, status=502))
    assert repository.resolve("v1").digest == Digest.of(RAW)
    started = time.monotonic()
    proxy.add(Fault("status", "/manifests/", status=429, headers={"Retry-After": "2"}))
    repository.resolve("v1")
    assert time.monotonic() - started >= 2
    proxy.add(Fault("status", "/manifests/", status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(RegistryError) as busy:
        repository.resolve("v1")
    assert busy.value.temporary
    before = len(proxy.seen)
    with pytest.raises(RegistryError) as absent:
        repository.resolve("absent")
    assert absent.value.status == 404
    assert len(proxy.seen) == before + 1


def test_upload_is_sent_again_after_a_failure(proxy: FaultProxy) -> None:
    target = open_target(parse_reference(f"{proxy.name}/c/d"), PATIENT)
    data = os.urandom(2_000_000)
    blob = Descriptor("application/octet-stream", Digest.of(data), len(data))
    proxy.add(Fault("status", "/uploads/", method="PUT", status=500))
    target.push_blob(blob, lambda: iter([data]))
    assert read_blob(opened(f"{proxy.name}/c/d", PATIENT), blob, 1 << 30) == data
    with pytest.raises(DigestMismatch):
        target.push_blob(blob._replace(digest=Digest.of(b"other")), lambda: iter([data]))


@pytest.mark.parametrize("cuts", [[3_000_000], [3_000_000, 2_000_000, 0, 1_500_000], [7_999_999], [0]], ids=str)
def test_a_broken_upload_goes_on(proxy: FaultProxy, cuts: list[int]) -> None:
    """Nothing that the registry has is sent again, however often the connection breaks."""
    proxy.uploads = {}
    target = open_target(parse_reference(f"{proxy.name}/c/d"), PATIENT)
    data = os.urandom(8_000_000)
    blob = Descriptor("application/octet-stream", Digest.of(data), len(data))
    for after in cuts:
        proxy.add(Fault("cut", "/uploads/", method="PUT", after=after))
    target.push_blob(blob, lambda: iter([data[:5_000_000], data[5_000_000:]]))
    assert read_blob(opened(f"{proxy.name}/c/d", PATIENT), blob, 1 << 30) == data
    assert sum(count for _, count in proxy.taken) == len(data)


@pytest.mark.parametrize("refused", ["docker-registry", "GET", "PUT"])
def test_a_broken_upload_starts_over(proxy: FaultProxy, refused: str) -> None:
    """Where the registry forgets it, does not say how far it is, or does not take the rest."""
    proxy.uploads = {} if refused != "docker-registry" else None
    target = open_target(parse_reference(f"{proxy.name}/c/d"), PATIENT)
    data = os.urandom(3_000_000)
    blob = Descriptor("application/octet-stream", Digest.of(data), len(data))
    proxy.add(Fault("cut", "/uploads/", method="PUT", after=2_000_000))
    proxy.add(Fault("status", "/uploads/", method=refused, status=416))
    target.push_blob(blob, lambda: iter([data]))
    assert read_blob(opened(f"{proxy.name}/c/d", PATIENT), blob, 1 << 30) == data
    assert len([path for method, path, _ in proxy.seen if method == "POST"]) == 2


def test_an_upload_that_always_breaks_is_given_up(proxy: FaultProxy) -> None:
    target = open_target(parse_reference(f"{proxy.name}/c/d"), PATIENT._replace(give_up_s=2))
    data = os.urandom(3_000_000)
    blob = Descriptor("application/octet-stream", Digest.of(data), len(data))
    proxy.add(Fault("cut", "/uploads/", ALWAYS, method="PUT", after=10))
    with pytest.raises(RegistryError, match="connection was closed"):
        target.push_blob(blob, lambda: iter([data]))


def test_redirects_carry_no_credentials(proxy: FaultProxy, tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []

    class Elsewhere(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            seen.append(dict(self.headers))
            if "gone" in self.path:
                self.send(403, b"expired")
            else:
                self.send(200, DATA)

    docker_config(tmp_path / "docker", **{proxy.name: ("ann", SECRET)})
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login ann password {SECRET}\ndefault login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    proxy.add(Fault("status", "/blobs/", status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}))
    with serve(Elsewhere) as url:
        proxy.add(Fault("redirect", "/blobs/", target=f"{url}/gone?X-Signature={SECRET}"))
        proxy.add(Fault("redirect", "/blobs/", target=f"{url}/here?X-Signature={SECRET}"))
        repository = opened(f"{proxy.name}/a/b", PATIENT)
        assert read_blob(repository, BLOB, 1 << 30) == DATA  # 401, expired redirect, asked again
        assert any("Authorization" in headers for _, _, headers in proxy.seen)
        assert len(seen) == 2
        assert not any("Authorization" in headers for headers in seen)
        proxy.add(Fault("redirect", "/blobs/", 20, target=f"{url}/gone?X-Signature={SECRET}"))
        repository = opened(f"{proxy.name}/a/b", PATIENT._replace(give_up_s=1))
        with pytest.raises(RegistryError) as gone:
            read_blob(repository, BLOB, 1 << 30)
        assert SECRET not in str(gone.value)


def test_closed_port_is_given_up_soon() -> None:
    started = time.monotonic()
    with pytest.raises(RegistryError, match="connection refused"):
        opened("127.0.0.1:1/a/b", PATIENT._replace(give_up_s=600)).resolve("v1")
    assert time.monotonic() - started < 300


def test_challenges() -> None:
    header = 'Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push", Basic realm="x\\"y"'
    assert parse_challenges(header) == {
        "bearer": {"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"},
        "basic": {"realm": 'x"y'},
    }


def test_credentials_are_scoped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def auth(user: str) -> dict[str, str]:
        return {"auth": base64.b64encode(f"{user}:p:w".encode()).decode()}

    helper = tmp_path / "docker-credential-test"
    helper.write_text('#!/bin/sh\nread s; [ "$s" = stored.io ] && echo \'{"Username":"<token>","Secret":"t"}\' && exit\n'
                      'echo "credentials not found in native keychain"; exit 1\n')  # fmt: skip
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text(
        json.dumps({
            "auths": {"https://index.docker.io/v1/": auth("hub"), "q.io": auth("q"), "q.io/a": auth("qa"), "x.io:5000": auth("x")},
            "credsStore": "test", "credHelpers": {"none.io": "absent"},
        })
    )  # fmt: skip

    def user(registry: str, repository: str = "a/b") -> str | None:
        found = find_credentials(registry, repository)
        return found and found.username

    assert user("docker.io") == "hub"
    assert user("q.io") == "qa"
    assert user("q.io", "b") == "q"
    assert user("x.io:5000") == "x"
    assert user("x.io") is None
    assert user("io") is None
    found = find_credentials("stored.io", "a")
    assert found is not None
    assert found.identity_token == "t"
    assert "t'" not in repr(found).replace("identity_token", "")
    with pytest.raises(BadInput, match="docker-credential-absent"):
        find_credentials("none.io", "a")


def test_importing_is_quick() -> None:
    """No oras, requests or TLS until a registry is asked."""
    code = (
        "import sys, rootdisk.oci.repository, rootdisk.oci.layout, rootdisk.registry.credentials; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"oras", "requests", "urllib3", "jsonschema", "ssl", "imagetool"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://a.test:5000/v2/team/web/manifests/1.0", "a.test:5000/team/web:1.0"),
        ("https://a.test/v2/web/manifests/sha256:ab?token=secret", "a.test/web@sha256:ab"),
        ("https://a.test/v2/team/web/blobs/sha256:ab", "a.test/team/web"),
        ("https://a.test/v2/team/web/blobs/uploads/7", "a.test/team/web"),
        ("https://registry-1.docker.io/v2/library/debian/tags/list", "docker.io/library/debian"),
        ("https://user:pw@cdn.test/data?sig=secret", "cdn.test"),
        ("https://a.test/v2/", "a.test"),
    ],
)
def test_an_error_begins_with_what_it_is_about(url: str, name: str) -> None:
    shown = answers.told("GET", url, "connection refused")
    assert shown.startswith(f"{name}: connection refused (GET ")
    assert "secret" not in shown
