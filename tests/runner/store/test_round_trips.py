"""A pull waits for few answers: what is needed next is asked for at once. A barrier at the registry proves it, not a clock."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest
import trustme

from rootdisk.artifact.format import CHUNKS_TYPE, INITRAMFS_TYPE, KERNEL_TYPE
from rootdisk.errors import RegistryError
from rootdisk.oci.documents import Descriptor, Digest, Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions, read_blob
from rootdisk.registry.pool import SPARE
from rootdisk.registry.repository import RegistryRepository
from runner.store.pull import pull
from runner.store.store import Store
from tests.support.artifacts import noise, publish, sample, with_boot
from tests.support.faults import Fault, FaultProxy
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.wire import Wire, run_wire

PLAIN = RegistryOptions(plain_http=True, read_timeout_s=30, give_up_s=0.01)
PARTS = 4


@needs_registry
def test_documents_beside_kernel_and_all_parts_at_once(
    nobody: None, store: Store, registry: RunningRegistry, proxy: FaultProxy
) -> None:
    """And nothing is asked for twice, over as many connections as there are requests at once."""
    made = with_boot(sample(noise(3 * PARTS, 2_600_000)))
    publish(made, f"{registry.name}/round/trips:1", registry.options)
    index = next(blob.descriptor for blob in made.artifact.blobs if blob.descriptor.media_type == CHUNKS_TYPE)
    config = next(blob.descriptor for blob in made.artifact.blobs if blob.descriptor.media_type.endswith("json"))
    kernel = next(blob.descriptor for blob in made.artifact.blobs if blob.descriptor.media_type == KERNEL_TYPE)
    initramfs = next(blob.descriptor for blob in made.artifact.blobs if blob.descriptor.media_type == INITRAMFS_TYPE)
    documents = threading.Barrier(3)
    proxy.together = {
        str(index.digest): documents,
        str(config.digest): documents,
        str(kernel.digest): documents,
        made.path: threading.Barrier(PARTS),
    }
    for _ in range(2):
        local = pull(store, parse_reference(f"{proxy.name}/round/trips:1"), PLAIN, Platform.host())
        local.release()
        assert local.disk.read_bytes() == made.disk
    asked = [path.rpartition("/")[2] for _, path, _ in proxy.seen]
    disk = made.path.rpartition("/")[2]
    assert asked[0] == asked[-1] == "1"
    assert set(asked[1:4]) == {str(blob.digest) for blob in (config, index, kernel)}
    assert sorted(asked[4:-1]) == sorted([disk] * PARTS + [str(initramfs.digest)])
    # Of the second pull, which finds everything, one. Of the first one at most as many as requests at once.
    assert PARTS + 1 <= len(proxy.peers) <= PARTS + 2


@needs_registry
def test_what_is_known_of_ranges(nobody: None, registry: RunningRegistry, proxy: FaultProxy) -> None:
    made = sample(noise(1, 10_000))
    publish(made, f"{registry.name}/round/ranges:1", registry.options)

    def opened() -> RegistryRepository:
        return RegistryRepository(proxy.name, "round/ranges", PLAIN)

    with contextlib.closing(opened()) as repository:
        assert repository.serves_ranges is None
        read_blob(repository, made.blob, 1 << 20)  # offers ranges
        assert repository.serves_ranges
        proxy.add(Fault("whole", made.path))  # but does not keep to it
        assert len(b"".join(repository.blob(made.blob, 10, 20))) == 10
        assert repository.serves_ranges is False
        list(repository.blob(made.blob, 10, 20))
        assert repository.serves_ranges is False
    with contextlib.closing(opened()) as repository:
        list(repository.blob(made.blob, 10, 20))
        assert repository.serves_ranges


DOCUMENT = b'{"schemaVersion": 2, "config": {}, "layers": []}'


@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "tls"])
def test_a_spare_connection_is_opened_with_the_first_and_used(tmp_path: Path, *, is_tls: bool) -> None:
    """Also over TLS, where the server says something after the handshake, its session tickets."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    opened = threading.Barrier(2)
    connections: list[list[bytes]] = []

    def speak(wire: Wire) -> None:
        asked: list[bytes] = []
        connections.append(asked)
        opened.wait(20)
        while head := wire.head():
            asked.append(head)
            wire.answer("200 OK", DOCUMENT)

    options = PLAIN._replace(plain_http=not is_tls, ca_file=tmp_path / "ca.pem" if is_tls else None)
    with run_wire(speak, authority if is_tls else None) as name:
        repository = RegistryRepository(name, "a/b", options._replace(spare_connections=1))
        digest = repository.resolve("1").digest
        assert digest == Digest.of(DOCUMENT)
        first = repository.blob(Descriptor("x/y", digest, len(DOCUMENT)))
        next(first)
        assert repository.resolve("2").digest == digest
        assert list(first) == []
        repository.close()
    assert sorted(len(asked) for asked in connections) == [1, 2]


def test_a_spare_connection_that_fails_is_nobodys_error() -> None:
    """The request that would use it opens one itself, and tells why that fails."""
    count = iter(range(99))

    def speak(wire: Wire) -> None:
        if next(count):
            return
        wire.head()
        wire.answer("200 OK", DOCUMENT)

    with run_wire(speak) as name:
        repository = RegistryRepository(name, "a/b", PLAIN._replace(spare_connections=1))
        errors = []
        for tag in "123":  # one of the connections answers once
            try:
                repository.resolve(tag)
            except RegistryError as err:
                errors.append(err.message)
        repository.close()
    assert len(errors) == 2
    assert all("the connection was closed" in message for message in errors)


def test_no_connection_is_opened_when_a_repository_is_closed() -> None:
    """A thread in OpenSSL would crash when the program ends."""
    opened, is_over = threading.Barrier(3), threading.Event()

    def speak(wire: Wire) -> None:
        opened.wait(20)
        is_over.wait(20)

    def ask() -> None:
        with contextlib.suppress(RegistryError):
            repository.resolve("1")

    with run_wire(speak) as name:
        repository = RegistryRepository(name, "a/b", RegistryOptions(spare_connections=1, give_up_s=0.01))
        asking = threading.Thread(target=ask)
        asking.start()
        opened.wait(20)
        assert SPARE in {thread.name for thread in threading.enumerate()}
        repository.close()
        assert SPARE not in {thread.name for thread in threading.enumerate()}
        asking.join()
        is_over.set()
