"""`runner serve`: other runners pull from a store as from a registry, and the origin sends each blob once."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rootdisk.oci.referrers import referrers_tag, signatures_tag
from runner.serve import blobs, server
from runner.serve.catalog import Catalog
from runner.store.store import Store
from tests.support.artifacts import noise, publish, sample
from tests.support.commands import Runner, run
from tests.support.faults import FaultProxy
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.serving import blob_bytes, mirrored, serving
from tests.support.waiting import until

TOKEN = "0123456789abcdef0123456789abcdef"
MADE = sample([*noise(6, 100_000), bytes(1 << 20), b"text " * 20_000, *noise(4, 90_000, seed=1)], blobs=3)


@needs_registry
def test_three_runners_and_one_origin(registry: RunningRegistry, proxy: FaultProxy, tmp_path: Path) -> None:
    publish(MADE, f"{registry.name}/team/served:1", registry.options)
    total = sum(blob.descriptor.size for blob in MADE.artifact.blobs)
    reference = f"{proxy.name}/team/served:1"
    first, second, third = (Runner(tmp_path / name) for name in ("first", "second", "third"))
    assert first("pull", "--plain-http", reference).returncode == 0
    assert 0.99 * total <= blob_bytes(proxy) <= total  # the seek table is for others
    with serving(first.store) as address:  # which has checked nothing yet
        mirrored(second, tmp_path, proxy.name, address)
        assert second("pull", "--plain-http", reference).returncode == 0
        with serving(second.store) as other:
            mirrored(third, tmp_path, proxy.name, other)
            done = third("pull", "--plain-http", reference)
            assert done.returncode == 0, done.stderr
    assert blob_bytes(proxy) <= 1.05 * total
    for runner in (second, third):
        (disk,) = (runner.store / "disks").glob("*.raw")
        assert disk.read_bytes() == MADE.disk


@pytest.mark.nightly
@needs_registry
@pytest.mark.parametrize("count", [1, 3, 10])
def test_many_runners_at_once(
    demo: str, registry: RunningRegistry, proxy: FaultProxy, tmp_path: Path, count: int
) -> None:
    """All but the first ask the first at the same time."""
    reference = f"{proxy.name}/team/demo:{count}"
    copied = run("imagetool", "copy", "-q", demo, f"{registry.name}/team/demo:{count}", "--plain-http")
    assert copied.returncode == 0, copied.stderr
    first, *others = (Runner(tmp_path / f"store-{number}") for number in range(count))
    assert first("pull", "--plain-http", reference).returncode == 0
    once = blob_bytes(proxy)
    with serving(first.store) as address, ThreadPoolExecutor(10) as pool:
        mirrored(first, tmp_path, proxy.name, address)
        pulls = [pool.submit(runner, "pull", "--plain-http", reference) for runner in others]
        done = [pull.result() for pull in pulls]
    assert [pull.returncode for pull in done] == [0] * len(others)
    print(f"\n{count} runners: {blob_bytes(proxy):,} bytes of blobs from the origin, {once:,} for the first")
    assert blob_bytes(proxy) <= 1.05 * once, [pull.stderr for pull in done]
    assert len({str(runner.digests()) for runner in (first, *others)}) == 1


@pytest.fixture
def served(registry: RunningRegistry, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server with a token, and its store."""
    publish(MADE, f"{registry.name}/team/served:1", registry.options)
    runner = Runner(tmp_path / "store")
    assert runner("pull", "--plain-http", f"{registry.name}/team/served:1").returncode == 0
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    with serving(runner.store, "--token-file", str(token)) as address:
        yield address, runner.store


def get(address: str, path: str, **headers: str) -> tuple[int, bytes]:
    every = {"Authorization": f"Bearer {TOKEN}", **headers}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{address}{path}", headers=every)) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as err:
        return err.code, err.read()


def wait_for_checks(address: str) -> None:
    """Wait until the server has compared every blob with its digest."""

    def are_there() -> bool:
        digests = [blob.descriptor.digest for blob in MADE.artifact.blobs]
        return all(get(address, f"/v2/team/served/blobs/{digest}")[0] == 200 for digest in digests)

    until(are_there, 60)


@needs_registry
def test_what_is_served(served: tuple[str, Path], registry: RunningRegistry) -> None:
    address, store = served
    assert get(address, "/v2/", Authorization="Bearer wrong")[0] == 401
    assert get(address, "/v2/")[0] == 200
    manifest = MADE.artifact.descriptor.digest
    wait_for_checks(address)
    until(lambda: get(address, f"/v2/team/served/manifests/{manifest}")[0] == 200)
    assert get(address, f"/v2/team/served/manifests/{manifest}") == (200, MADE.artifact.manifest)
    for blob in MADE.artifact.blobs:
        path = f"/v2/team/served/blobs/{blob.descriptor.digest}"
        assert get(address, path) == (200, blob.data)
        assert isinstance(blob.data, bytes)
        for start, end in ((0, 1), (7, len(blob.data) - 3), (len(blob.data) // 2, len(blob.data))):
            assert get(address, path, Range=f"bytes={start}-{end - 1}") == (206, blob.data[start:end])
        assert get(address, path, Range=f"bytes={len(blob.data)}-")[0] == 416
        assert get(address, f"{path}?ns={registry.name}")[0] == 200
        assert get(address, f"/v2/{registry.name}/team/served/blobs/{blob.descriptor.digest}")[0] == 200
        # Not by another repository or registry, and no other file of the store.
        assert get(address, f"/v2/team/other/blobs/{blob.descriptor.digest}")[0] == 404
        assert get(address, f"{path}?ns=registry.test")[0] == 404
    assert get(address, "/v2/team/served/manifests/1")[0] == 404
    for path in ("/", "/v2/..%2f..%2fformat", "/v2/team/served/blobs/../../../format", "/v2/team/served/tags/list"):
        assert get(address, path)[0] == 404
    # Not an empty list: it does not know what is attached. Clients then ask for a tag, which it does not know either.
    for path in (
        f"referrers/{manifest}",
        f"manifests/{referrers_tag(manifest)}",
        f"manifests/{signatures_tag(manifest)}",
    ):
        assert get(address, f"/v2/team/served/{path}")[0] == 404
    other = hashlib.sha256((store / "format").read_bytes()).hexdigest()
    assert get(address, f"/v2/team/served/blobs/sha256:{other}")[0] == 404


@needs_registry
def test_a_disk_that_is_being_fetched_is_served_when_it_is_complete(registry: RunningRegistry, tmp_path: Path) -> None:
    publish(MADE, f"{registry.name}/team/served:1", registry.options)
    runner = Runner(tmp_path / "store")
    assert runner("pull", "--plain-http", f"{registry.name}/team/served:1").returncode == 0
    (disk,) = (runner.store / "disks").glob("*.raw")
    disk.rename(disk.with_suffix(".partial"))
    blob = next(blob.descriptor for blob in MADE.artifact.blobs if blob.descriptor.media_type.endswith("ext4+zstd"))
    with serving(runner.store) as address:
        until(lambda: get(address, f"/v2/team/served/manifests/{MADE.artifact.descriptor.digest}")[0] == 200)
        assert get(address, f"/v2/team/served/blobs/{blob.digest}")[0] == 404
        disk.with_suffix(".partial").rename(disk)
        until(lambda: get(address, f"/v2/team/served/blobs/{blob.digest}")[0] == 200)


@needs_registry
def test_what_is_asked_for_is_checked_at_once(
    served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has just started checks what it has; that does not hold up a neighbour."""
    monkeypatch.setenv("ROOTDISK_STORE", str(served[1]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = server.Server(Catalog(Store.open()), listener)
        with other._checking:  # as while a large disk is checked
            threading.Thread(target=other.run, daemon=True).start()
            for blob in reversed(MADE.artifact.blobs):
                path = f"/v2/team/served/blobs/{blob.descriptor.digest}"
                if blob.descriptor.digest not in other._checks:  # that one is being checked
                    assert get(f"127.0.0.1:{listener.getsockname()[1]}", path) == (200, blob.data)
        listener.shutdown(socket.SHUT_RDWR)


@needs_registry
def test_a_disk_that_has_changed_is_not_served(served: tuple[str, Path]) -> None:
    _, store = served
    (disk,) = (store / "disks").glob("*.raw")
    disk.chmod(0o644)
    with disk.open("r+b") as file:
        file.write(b"changed")
    with serving(store) as address:
        assert get(address, f"/v2/team/served/blobs/{MADE.blob.digest}")[0] == 404


@needs_registry
def test_hostile_clients(served: tuple[str, Path]) -> None:
    host, _, port = served[0].partition(":")
    place = (host, int(port))
    with socket.create_connection(place, 20) as sock:
        sock.sendall(b"\x16\x03\x01" * 50)  # of TLS
        assert sock.recv(4096).startswith(b"HTTP/1.1 400")  # at once: the client waits for it
    for data in (b"\x16\x03\x01" * 50 + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A" * (20 << 10), b"\r\n\r\n"):
        with socket.create_connection(place, 20) as sock:
            sock.sendall(data)
            with contextlib.suppress(ConnectionError):
                assert sock.recv(4096).startswith((b"HTTP/1.1 400", b""))
    assert get(served[0], "/v2/")[0] == 200


def test_no_thread_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host allows no more: that connection ends, and not the server."""
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = listener.getsockname()
        threading.Thread(target=server.Server(Catalog(Store.open()), listener).run, daemon=True).start()
        address = f"127.0.0.1:{place[1]}"
        until(lambda: get(address, "/v2/")[0] == 200)
        before = threading.stack_size(1 << 46)
        try:
            for _ in range(server.OF_ADDRESS_MAX + 1):
                with socket.create_connection(place, 20) as sock:
                    assert sock.recv(1) == b""
        finally:
            threading.stack_size(before)
        assert get(address, "/v2/")[0] == 200
        listener.shutdown(socket.SHUT_RDWR)


def test_what_is_compressed_is_compressed_once_for_all_who_ask(tmp_path: Path) -> None:
    """Also if they ask at the same time, as hosts do that start the same machine."""
    path = tmp_path / "vmlinux"
    path.write_bytes(b"".join(noise(20, 100_000, seed=2)))
    blob = blobs.CompressedBlob(path, MADE.artifact.descriptor, is_streamed=False)
    missed = blobs._compressed_once.cache_info().misses
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda at: b"".join(blob.read(at, at + 100)), range(0, 1600, 200)))
    assert b"".join(parts[:2]) == b"".join([*blob.read(0, 100), *blob.read(200, 300)])
    assert blobs._compressed_once.cache_info().misses == missed + 1


def test_slow_clients_and_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends a byte now and then is ended after HEAD_S, and one address has OF_ADDRESS_MAX connections."""
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path))
    monkeypatch.setattr(server, "HEAD_S", 2.0)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=server.OF_ADDRESS_MAX))
        place = listener.getsockname()
        threading.Thread(target=server.Server(Catalog(Store.open()), listener).run, daemon=True).start()
        stack.callback(listener.shutdown, socket.SHUT_RDWR)
        started = time.monotonic()
        slow, *_ = [stack.enter_context(socket.create_connection(place, 30)) for _ in range(server.OF_ADDRESS_MAX)]
        with socket.create_connection(place, 30) as one_more, contextlib.suppress(ConnectionError):
            assert one_more.recv(1) == b""

        def is_ended() -> bool:
            """Send one more byte."""
            with contextlib.suppress(ConnectionError):
                slow.sendall(b"G")
                return False
            return True

        until(is_ended, every_s=0.1)
        assert time.monotonic() - started > 1

        def answers() -> bool:
            """Ask, unless the others still have all connections."""
            with contextlib.suppress(OSError):
                return get(f"127.0.0.1:{place[1]}", "/v2/")[0] == 200
            return False

        until(answers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--listen", "0.0.0.0:0"), "is open to others"),
        (("--listen", "somewhere"), "write [ADDRESS:]PORT"),
        (("--listen", "127.0.0.1:99999"), "write [ADDRESS:]PORT"),
        (("--tls-cert", "x"), "--tls-key"),
        (("--token-file", "open"), "others can read it"),
        (("--token-file", "short"), "not one line"),
        *(
            ((option,), "the name of a file is empty")
            for option in ("--token-file=", "--tls-client-ca=", "--tls-cert=")
        ),
    ],
)
def test_options_that_are_refused(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    for name, mode in (("open", 0o644), ("short", 0o600)):
        (tmp_path / name).write_text(TOKEN if name == "open" else "short")
        (tmp_path / name).chmod(mode)
    words = [str(tmp_path / word) if (tmp_path / word).exists() else word for word in options]
    done = Runner(tmp_path / "store")("serve", *words)
    assert done.returncode == 125
    assert message in done.stderr
