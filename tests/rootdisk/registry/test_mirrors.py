"""Mirrors by registries.conf: asked first, passed over when dead, found out when they lie, and told nothing that is not theirs."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from imagetool.sources.open import open_source
from imagetool.targets.copy import copy
from rootdisk.errors import DigestMismatch, RegistryError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions, Repository, checked_blob, read_blob
from rootdisk.places import open_mirrored
from rootdisk.registry import mirrors
from rootdisk.system import notices
from runner.store.pull import pull
from runner.store.store import Store
from tests.support.artifacts import Sample, noise, publish, sample
from tests.support.faults import ALWAYS, Fault, FaultProxy, run_faults
from tests.support.layouts import write_layout
from tests.support.ports import free_port
from tests.support.registry import (
    QuietHandler,
    RunningRegistry,
    docker_config,
    needs_registry,
    run_registry,
    serve,
)
from tests.support.tars import file

pytestmark = [needs_registry, pytest.mark.usefixtures("nobody")]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(notices, "_show", lines.append)
    monkeypatch.setattr(mirrors, "_silent", {})
    return lines


SMALL = sample(noise(40, 128 << 10))  # without a hole: each byte counts


class World:
    """An origin that counts what it is asked, and a configuration."""

    def __init__(self, origin: FaultProxy, home: Path) -> None:
        self.origin = origin
        self.name = f"{origin.name}/mirrored/app"
        self._conf = home / ".config/containers/registries.conf"
        self._conf.parent.mkdir(parents=True)

    def mirrored_by(
        self, *mirrors: str, more: str = "insecure = true", of_origin: str = "insecure = true", origin: str = ""
    ) -> None:
        rows = "".join(f'[[registry.mirror]]\nlocation = "{mirror}"\n{more}\n' for mirror in mirrors)
        self._conf.write_text(f'[[registry]]\nlocation = "{origin or self.origin.name}"\n{of_origin}\n{rows}')

    def open(self) -> Repository:
        return open_mirrored(parse_reference(f"{self.name}:1"))

    @property
    def asked(self) -> list[str]:
        return [path for _, path, _ in self.origin.seen if path != "/v2/"]


@pytest.fixture
def world(registry: RunningRegistry, tmp_path: Path, told: list[str]) -> Iterator[World]:
    publish(SMALL, f"{registry.name}/mirrored/app:1", registry.options)
    with run_faults(registry.name) as origin:
        yield World(origin, tmp_path)


def stored(world: World, tmp_path: Path, name: str = "store") -> Sample:
    """Pull the artifact as the runner does; it is whole."""
    store = Store.open(tmp_path / name)
    artifact = pull(store, parse_reference(f"{world.name}:1"), RegistryOptions(), Platform.host())
    assert artifact.disk.read_bytes() == SMALL.disk
    artifact.release()
    return SMALL


def test_the_origin_is_not_asked_for_what_a_mirror_has(world: World, proxy: FaultProxy, tmp_path: Path) -> None:
    world.mirrored_by(proxy.name)
    stored(world, tmp_path)
    assert world.asked == []
    asked = [path for _, path, _ in proxy.seen if not path.startswith("/v2/?") and path != "/v2/"]
    assert asked
    assert all(parse_qs(urlsplit(path).query)["ns"] == [world.origin.name] for path in asked)


def test_dead_mirrors_are_passed_over_once(
    world: World, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One refuses, one takes connections and says nothing, the third works."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        world.mirrored_by(f"127.0.0.1:{free_port()}", f"127.0.0.1:{silent.getsockname()[1]}", proxy.name)
        stored(world, tmp_path)
        assert len(mirrors._silent) == 2
        silent.settimeout(0.01)
        with contextlib.suppress(TimeoutError):
            while True:
                silent.accept()[0].close()
        stored(world, tmp_path, "other")
        with pytest.raises(TimeoutError):
            silent.accept()  # it was not asked again
    assert world.asked == []
    world.mirrored_by(f"127.0.0.1:{free_port()}", "no-such-host.invalid")
    stored(world, tmp_path, "third")
    assert world.asked


@pytest.mark.parametrize("status", [403, 404, 429, 500])
def test_what_a_mirror_does_not_have_comes_from_the_origin(
    world: World, proxy: FaultProxy, tmp_path: Path, status: int
) -> None:
    world.mirrored_by(proxy.name)
    proxy.add(Fault("status", path=SMALL.path, times=ALWAYS, status=status))
    stored(world, tmp_path)
    assert {path.split("?")[0].rpartition("/")[2] for path in world.asked} == {str(SMALL.blob.digest)}
    proxy.faults.clear()
    proxy.add(Fault("status", path="/manifests/", times=ALWAYS, status=status))
    stored(world, tmp_path, "other")


def test_a_liar_is_named_and_not_asked_again(world: World, proxy: FaultProxy, tmp_path: Path, told: list[str]) -> None:
    world.mirrored_by(proxy.name)
    proxy.add(Fault("wrong", path=SMALL.path, times=ALWAYS))
    stored(world, tmp_path)
    assert (
        len([line for line in told if line.startswith(f"mirror {proxy.name} has sent something else than sha256:")])
        == 1
    )
    before = len([path for _, path, _ in proxy.seen if SMALL.path in path])
    repository = world.open()
    with contextlib.closing(repository):
        assert Digest.of(read_blob(repository, SMALL.blob, 1 << 30)) == SMALL.blob.digest
        assert Digest.of(b"".join(checked_blob(repository, SMALL.blob))) == SMALL.blob.digest
    # Another process of the same kind asks it once more, and this one no more after that.
    assert len([path for _, path, _ in proxy.seen if SMALL.path in path]) == before + 1


def test_a_liar_about_manifests(world: World, proxy: FaultProxy, told: list[str]) -> None:
    world.mirrored_by(proxy.name)
    with contextlib.closing(world.open()) as repository:
        digest = repository.resolve("1").digest
    proxy.add(Fault("wrong", path="/manifests/", times=ALWAYS))
    with contextlib.closing(world.open()) as repository:
        assert Digest.of(repository.manifest(digest)) == digest
    assert any(proxy.name in line for line in told)
    world.origin.add(Fault("wrong", path="/manifests/", times=ALWAYS))
    with contextlib.closing(world.open()) as repository, pytest.raises(DigestMismatch):
        repository.manifest(digest)


def test_a_broken_transfer_goes_on_elsewhere(world: World, proxy: FaultProxy) -> None:
    world.mirrored_by(proxy.name)
    proxy.add(Fault("reset", path=SMALL.path, times=ALWAYS, after=1 << 20))
    with contextlib.closing(world.open()) as repository:
        assert Digest.of(b"".join(repository.blob(SMALL.blob))) == SMALL.blob.digest
    (path,) = world.asked
    assert SMALL.path in path
    assert [start for at, start, _ in world.origin.served if SMALL.path in at] != [0]


@pytest.mark.parametrize("kind", ["stall", "drip"])
@pytest.mark.parametrize("path", ["/blobs/", "/manifests/"])
def test_a_mirror_that_stalls_is_named_and_left(
    world: World,
    proxy: FaultProxy,
    tmp_path: Path,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    path: str,
) -> None:
    monkeypatch.setattr(mirrors, "STALL_S", 0.5)
    world.mirrored_by(proxy.name)
    proxy.add(Fault(kind, path=path, times=ALWAYS, after=0, seconds=600 if kind == "stall" else 0.05))
    started = time.monotonic()
    stored(world, tmp_path)
    # Each of four connections may wait once, side by side.
    assert time.monotonic() - started < 30
    (line,) = told
    assert line.startswith(f"mirror {proxy.name} is not asked for 5 minutes: ")
    before = len(proxy.seen)
    stored(world, tmp_path, "other")
    assert len(proxy.seen) == before


@pytest.mark.parametrize("kind", ["manifests", "blobs", "redirects", "head", "garbage", "first"])
def test_a_mirror_without_an_end(
    world: World, registry: RunningRegistry, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(mirrors, "STALL_S", 1.0)
    sent = 0

    class Handler(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            nonlocal sent
            path = urlsplit(self.path).path
            if kind == "first" or (kind == "garbage" and path != "/v2/"):
                self.close_connection = True
                self.wfile.write(b"SSH-2.0-server\r\n")
                return None
            if path == "/v2/":
                return self.send(200, b"{}")
            if kind == "redirects":
                return self.send(307, b"", Location=f"{path}x"[-3000:])
            if kind == "blobs" and "/manifests/" in path:
                return self.send(404, b"{}")
            self.send_response(200)
            self.send_header("Connection", "close")
            with contextlib.suppress(ConnectionError):
                while kind == "head":
                    self.wfile.write(b"X-More: more\r\n")
                self.end_headers()
                while True:
                    sent += self.wfile.write(bytes(65536))

        do_HEAD = do_GET  # noqa: N815

    with serve(Handler) as url:
        world.mirrored_by(url.removeprefix("http://"))
        stored(world, tmp_path)
    assert sent < 100 << 20
    assert told
    assert all(line.startswith(f"mirror {url.removeprefix('http://')} ") for line in told)


def test_each_registry_hears_its_own_password_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mirror asks for credentials in the origin's name, and redirects to the origin and to somebody else."""
    logs: dict[str, list[str | None]] = {name: [] for name in ("mirror", "origin", "other")}

    def place(name: str, answer: Callable[[QuietHandler], None]) -> type[QuietHandler]:
        class Handler(QuietHandler):
            def do_GET(self) -> None:  # noqa: N802
                logs[name].append(self.headers.get("Authorization"))
                answer(self)

            do_HEAD = do_GET  # noqa: N815

        return Handler

    def of_mirror(handler: QuietHandler) -> None:
        if "Authorization" not in handler.headers:
            return handler.send(401, b"{}", WWW_Authenticate=f'Basic realm="{origin}"')
        target = origin if len(logs["mirror"]) % 2 else other
        return handler.send(307, b"", Location=f"{target}/v2/stolen")

    def of_origin(handler: QuietHandler) -> None:
        if "Authorization" not in handler.headers:
            return handler.send(401, b"{}", WWW_Authenticate='Basic realm="origin"')
        return handler.send(404, b"{}")

    with contextlib.ExitStack() as stack:
        other = stack.enter_context(serve(place("other", lambda handler: handler.send(404, b"{}"))))
        origin = stack.enter_context(serve(place("origin", of_origin)))
        mirror = stack.enter_context(serve(place("mirror", of_mirror)))
        hosts = [url.removeprefix("http://") for url in (mirror, origin)]
        auths = {hosts[0]: ("ann", "of-mirror"), hosts[1]: ("bob", "of-origin")}
        monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", **auths)))
        world.mirrored_by(hosts[0], origin=hosts[1])
        for name in ("one", "two"):
            with (
                contextlib.closing(open_mirrored(parse_reference(f"{hosts[1]}/app:{name}"))) as repository,
                pytest.raises(RegistryError),
            ):
                repository.resolve(name)

    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    assert set(logs["mirror"]) == {None, basic("ann:of-mirror")}
    assert set(logs["origin"]) == {None, basic("bob:of-origin")}
    assert set(logs["other"]) <= {None}
    assert logs["other"]


def test_tags_and_digests(world: World, proxy: FaultProxy) -> None:
    world.mirrored_by(proxy.name, more='insecure = true\npull-from-mirror = "digest-only"')
    with contextlib.closing(world.open()) as repository:
        descriptor = repository.resolve("1")
        assert repository.current("1") == descriptor.digest
        assert len(world.asked) == 2
        read_blob(repository, SMALL.blob, 1 << 30)
        assert repository.current("none") is None
    assert not any("/manifests/1" in path for _, path, _ in proxy.seen)
    assert any(SMALL.path in path for _, path, _ in proxy.seen)


def test_a_server_that_asks_for_ns(world: World, registry: RunningRegistry, tmp_path: Path) -> None:
    """A mirror of many registries, as Spegel and Dragonfly are: it knows by `ns` alone which one is meant."""
    asked = []

    class Handler(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            url = urlsplit(self.path)
            if url.path == "/v2/":
                return self.send(200, b"{}")
            asked.append(url.path)
            if parse_qs(url.query).get("ns") != [world.origin.name]:
                return self.send(404, b"{}")
            connection = http.client.HTTPConnection(registry.name)
            connection.request(
                "GET", url.path, headers={k: v for k, v in self.headers.items() if k in ("Accept", "Range")}
            )
            answer = connection.getresponse()
            kept = {k.replace("-", "_"): v for k, v in answer.headers.items() if k in ("Content-Type", "Content-Range")}
            return self.send(answer.status, answer.read(), **kept)

        do_HEAD = do_GET  # noqa: N815

    with serve(Handler) as url:
        world.mirrored_by(url.removeprefix("http://"))
        stored(world, tmp_path)
    assert asked
    assert world.asked == []


def test_credentials_go_to_whom_they_are_for(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_registry(tmp_path / "mirror", password=("ann", "of-mirror"), tls=True) as mirror:
        auths = {mirror.name: ("ann", "of-mirror"), world.origin.name: ("bob", "of-origin")}
        monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "with", **auths)))
        publish(SMALL, f"{mirror.name}/mirrored/app:1", mirror.options)
        with run_faults(mirror.name) as _:
            world.mirrored_by(mirror.name)  # nobody vouches for its certificate
            stored(world, tmp_path)
            assert world.asked == []
            monkeypatch.setattr(mirrors, "_silent", {})
            world.mirrored_by(mirror.name, more="insecure = false")
            stored(world, tmp_path, "other")
            assert world.asked
    assert not any("authorization" in {name.lower() for name in headers} for _, _, headers in world.origin.seen)


def test_source_images_come_from_mirrors_too(
    world: World, proxy: FaultProxy, registry: RunningRegistry, tmp_path: Path
) -> None:
    write_layout(tmp_path / "layout", "1", [file(b"a", bytes(100_000)) + bytes(1024), file(b"b") + bytes(1024)])
    copy(f"oci:{tmp_path}/layout:1", f"{registry.name}/mirrored/source:1", registry.options)
    world.mirrored_by(proxy.name)
    proxy.add(Fault("wrong", path="/blobs/", times=ALWAYS))
    with open_source(f"{world.origin.name}/mirrored/source:1", Platform("linux", "amd64")) as image:
        for layer in image.layers:
            assert Digest.of(b"".join(layer.open())) == layer.descriptor.digest


def test_the_origin_s_error_is_told(world: World, proxy: FaultProxy) -> None:
    world.mirrored_by(proxy.name)
    before = threading.active_count()
    with contextlib.closing(world.open()) as repository, pytest.raises(RegistryError, match=r"app:none: 404"):
        repository.resolve("none")
    assert threading.active_count() < before + 50


def test_a_slow_origin_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it uses TLS is found out, however long that takes."""
    monkeypatch.setattr(mirrors, "ANSWER_S", 0.0)
    world.mirrored_by()
    world.origin.add(Fault("drip-head", path="/v2/", seconds=0.0002))
    with contextlib.closing(world.open()) as repository:
        repository.resolve("1")
