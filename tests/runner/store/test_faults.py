"""Pulls from a registry that misbehaves: the right disk, or one clear error; never a wrong byte, never a hang."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

from rootdisk.artifact.format import CHUNKS_TYPE
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.store import chunks
from runner.store.chunks import CONNECTIONS
from runner.store.pull import StoredArtifact, pull
from runner.store.store import Store
from tests.support.artifacts import Sample, noise, publish, sample
from tests.support.fault_cases import Case, disk_cases
from tests.support.faults import ALWAYS, Fault, FaultProxy, run_faults
from tests.support.registry import (
    QuietHandler,
    RunningRegistry,
    docker_config,
    needs_registry,
    run_registry,
    serve,
)

pytestmark = [needs_registry, pytest.mark.usefixtures("nobody", "store")]

SECRET = "very-secret-8"
QUICK = RegistryOptions(plain_http=True, connect_timeout_s=2, read_timeout_s=0.5, give_up_s=3)
PATIENT = RegistryOptions(plain_http=True)
STEADY = PATIENT._replace(
    give_up_s=QUICK.give_up_s
)  # asks nothing twice because this machine is slow: a fault would be over
DEADLINE_S = 100  # what give_up_s bounds, on a busy machine
CHUNK = 256 << 10

MADE = sample([*noise(40, CHUNK), bytes(1 << 20), *noise(40, CHUNK, seed=1), bytes(5000)])
OTHER = sample(noise(2, CHUNK, seed=2))
DISK = MADE.path
INDEX = next(str(b.descriptor.digest) for b in MADE.artifact.blobs if b.descriptor.media_type == CHUNKS_TYPE)


@pytest.fixture(scope="module")
def registry(registry: RunningRegistry) -> RunningRegistry:
    publish(MADE, f"{registry.name}/faults/a:v1", registry.options)
    publish(OTHER, f"{registry.name}/faults/a:other", registry.options)
    return registry


def pulled(proxy: FaultProxy, name: str = "v1", options: RegistryOptions = STEADY) -> StoredArtifact:
    separator = "@" if name.startswith("sha256:") else ":"
    return pull(Store.open(), parse_reference(f"{proxy.name}/faults/a{separator}{name}"), options, Platform.host())


def check(local: StoredArtifact, made: Sample = MADE) -> None:
    assert local.disk.read_bytes() == made.disk
    assert local.digest == Digest.of(made.artifact.manifest)


CASES = [
    *disk_cases(DISK),
    Case("wrong bytes of the index", lambda: [Fault("wrong", INDEX, ALWAYS)], "expected"),
    Case("wrong bytes of the manifest", lambda: [Fault("wrong", "/manifests/", ALWAYS)], "the registry claims"),
    Case("longer index", lambda: [Fault("long", INDEX, ALWAYS)], "bytes, not"),
    Case(
        "slow drip of the manifest",
        lambda: [Fault("drip", "/manifests/", ALWAYS, seconds=0.05)],
        "bytes in|no answer in time",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_right_disk_or_one_clear_error(proxy: FaultProxy, tmp_path: Path, case: Case) -> None:
    faults = case.faults()
    proxy.add(*faults)
    options = QUICK if any(fault.kind in ("stall", "drip", "drip-head") for fault in faults) else STEADY
    started = time.monotonic()
    if case.error:
        with pytest.raises(RootdiskError) as failed:
            pulled(proxy, options=options)
        assert re.search(case.error, failed.value.message)
        assert not list((tmp_path / "store/disks").glob("*.raw"))
    else:
        check(pulled(proxy, options=options))
    assert time.monotonic() - started < DEADLINE_S
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]
    proxy.faults.clear()
    check(pulled(proxy, options=PATIENT))  # nothing of a failure is remembered


def test_parts_are_asked_for_at_once_over_few_connections(proxy: FaultProxy) -> None:
    proxy.pause_s = 0.002
    check(pulled(proxy, options=PATIENT))
    spans = sorted((start, count) for path, start, count in proxy.served if path.endswith(DISK))
    assert len(spans) > 2
    assert sum(count for _, count in spans) <= MADE.blob.size
    assert 2 <= proxy.most_giving <= CONNECTIONS
    assert len(proxy.peers) <= CONNECTIONS < len(proxy.seen)  # connections are used again


def test_a_registry_without_ranges_is_asked_for_the_whole_once(proxy: FaultProxy) -> None:
    proxy.add(Fault("whole", "/blobs/", ALWAYS))
    check(pulled(proxy, options=PATIENT))
    assert len([path for _, path, _ in proxy.seen if path.endswith(DISK)]) == 2  # the first part, and all the rest


def test_credentials_stay_with_the_registry(proxy: FaultProxy, tmp_path: Path) -> None:
    """A token that ran out is renewed, and so is a presigned URL at another port, which sees no credentials."""
    elsewhere: list[dict[str, str]] = []
    blob = b""

    class Elsewhere(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            elsewhere.append(dict(self.headers))
            if "gone" in self.path:
                self.send(403, b"expired")
                return
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            part = blob[int(first) : int(last) + 1]
            self.send(206, part, Content_Range=f"bytes {first}-{last}/{len(blob)}")

    for piece in MADE.artifact.blobs:
        if piece.descriptor == MADE.blob:
            assert isinstance(piece.data, bytes)
            blob = piece.data
    docker_config(tmp_path / "docker", **{proxy.name: ("ann", SECRET)})
    unauthorized = {"WWW-Authenticate": 'Basic realm="x"'}
    proxy.add(Fault("status", "/manifests/", status=401, headers=unauthorized))
    proxy.add(Fault("status", DISK, skip=1, status=401, headers=unauthorized))
    with serve(Elsewhere) as url:
        for number in range(8):
            where = "gone" if number in (0, 3) else "here"
            proxy.add(Fault("redirect", DISK, target=f"{url}/{where}?X-Signature={SECRET}"))
        check(pulled(proxy, options=PATIENT))
        assert any("Authorization" in headers for _, path, headers in proxy.seen if path.endswith(DISK))
        assert len(elsewhere) >= 4
        assert not any("Authorization" in headers or "Cookie" in headers for headers in elsewhere)


def test_tokens_that_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry takes each token for a second or two, says nothing of that, and the fetch takes longer."""
    monkeypatch.setattr(chunks, "PART_BYTES", 1 << 20)
    # Past its end by 58 s, as docker-registry adds a minute.
    with run_registry(tmp_path / "registry", token_lifetime_s=-58, password=("ann", SECRET)) as registry:
        assert registry.tokens is not None
        docker_config(tmp_path / "docker", **{registry.name: ("ann", SECRET)})
        publish(MADE, f"{registry.name}/faults/a:v1", registry.options)
        registry.tokens.asked.clear()
        with run_faults(registry.name) as proxy:
            docker_config(tmp_path / "docker", **{proxy.name: ("ann", SECRET)})
            proxy.pause_s = 0.02
            check(pulled(proxy, options=PATIENT))
            assert len(registry.tokens.asked) > 1
            assert {asked["who"] for asked in registry.tokens.asked} == {"ann"}
            used = {headers["Authorization"] for _, _, headers in proxy.seen if "Authorization" in headers}
            assert len(used) == len(registry.tokens.asked)
            assert not any(value.startswith("Basic") for value in used)


def test_a_presigned_url_that_never_works(proxy: FaultProxy) -> None:
    class Gone(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.send(403, b"expired")

    with serve(Gone) as url:
        proxy.add(Fault("redirect", DISK, ALWAYS, target=f"{url}/gone?X-Signature={SECRET}"))
        with pytest.raises(RootdiskError, match="403, after a redirect") as failed:
            pulled(proxy)
        assert SECRET not in str(failed.value)


def test_a_tag_that_moves(proxy: FaultProxy) -> None:
    """What was read last counts, as a whole; a header of the one with bytes of the other does not."""
    old, new = Digest.of(MADE.artifact.manifest), Digest.of(OTHER.artifact.manifest)
    kind = "application/vnd.oci.image.manifest.v1+json"

    def moved(digest: Digest) -> Fault:
        headers = {"Content-Type": kind, "Docker-Content-Digest": str(digest)}
        return Fault("status", "/manifests/", status=200, headers=headers, body=OTHER.artifact.manifest)

    proxy.add(moved(old))
    with pytest.raises(RootdiskError, match="the registry claims"):
        pulled(proxy)
    proxy.add(moved(new))
    check(pulled(proxy, options=PATIENT), OTHER)
    proxy.add(moved(old))
    with pytest.raises(RootdiskError, match="manifest"):
        pulled(proxy, str(old))
    check(pulled(proxy, str(old), PATIENT))


def test_a_closed_port_after_the_index(proxy: FaultProxy) -> None:
    proxy.add(Fault("redirect", DISK, ALWAYS, target="http://127.0.0.1:1/"))
    started = time.monotonic()
    with pytest.raises(RootdiskError, match="connection refused"):
        pulled(proxy)
    assert time.monotonic() - started < DEADLINE_S
