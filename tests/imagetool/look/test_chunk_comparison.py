"""`imagetool diff` and `explain` of two registry artifacts fetch what differs, and each chunk that both have once at most."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path

from imagetool.look import inspection
from imagetool.targets.copy import copy
from rootdisk.artifact.published import PublishedArtifact, open_artifact
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from tests.support.commands import run
from tests.support.faults import run_faults
from tests.support.layouts import write_layout
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.tars import END, directory, file

LARGE = 3 << 20


def build(place: Path, version: str, layers: list[bytes]) -> str:
    write_layout(place / f"source{version}", "t", layers)
    (place / "images.toml").write_text(
        f'[image.app]\nsource = "oci:source{version}:t"\nkernel = "none"\nsize = "64MiB"\npublish = "oci:out"\n'
        f'version = "{version}"\n'
    )
    done = run("imagetool", "doit", "build", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return f"oci:{place}/out:{version}"


def test_a_changed_file_of_the_same_size_is_seen(tmp_path: Path) -> None:
    """Also one that is large and differs in one byte."""
    data = bytearray(random.Random(2).randbytes(LARGE))
    names = []
    for version in ("1", "2"):
        names.append(build(tmp_path, version, [file(b"large", bytes(data)) + file(b"same", b"x" * 9000) + END]))
        data[LARGE // 2] ^= 1
    done = run("imagetool", "diff", *names, cwd=tmp_path)
    assert (done.returncode, done.stdout.count("\n")) == (1, 1)
    old, new = bytes(data[LARGE // 2 : LARGE // 2 + 8]), bytearray(data[LARGE // 2 : LARGE // 2 + 8])
    new[0] ^= 1
    assert done.stdout == f"~ /large: content {old.hex()} at byte {LARGE // 2} -> {new.hex()} at byte {LARGE // 2}\n"
    assert run("imagetool", "diff", names[0], names[0], cwd=tmp_path).returncode == 0


def data_chunks(artifact: PublishedArtifact) -> set[bytes]:
    """The sha256 of chunks with nothing but the content of files."""
    reader = inspection.InspectedDisk.of(artifact).reader
    blocks = {
        block
        for _, node in reader.walk()
        if stat.S_ISREG(node.mode)
        for extent in reader.extents(node)
        for block in range(extent.physical, extent.physical + extent.count)
    }
    return {
        chunk.sha256
        for chunk in artifact.index.chunks
        if all(block in blocks for block in range(chunk.offset // 4096, chunk.end // 4096))
    }


@needs_registry
def test_only_what_differs_is_fetched(tmp_path: Path, registry: RunningRegistry) -> None:
    """`diff` and `explain` fetch documents, metadata and the chunks that differ: counted by a proxy.

    One file is small, and one is large and differs in one byte.
    """
    noise = random.Random(1)
    base = directory(b"data") + b"".join(file(b"data/%d" % n, noise.randbytes(LARGE)) for n in range(4)) + END
    large = bytearray(noise.randbytes(LARGE))
    for version, text in (("1", b"one"), ("2", b"two")):
        layout = build(tmp_path, version, [base, file(b"changed", text) + file(b"large", bytes(large)) + END])
        large[LARGE // 2] ^= 1
        copy(layout, f"{registry.name}/a/b:{version}", registry.options)
    first, second = (parse_reference(f"{registry.name}/a/b:{version}") for version in ("1", "2"))
    documents = data = whole = 0
    options, host = registry.options, Platform.host()
    with open_artifact(first, host, options) as a, open_artifact(second, host, options) as b:
        common = {chunk.sha256 for chunk in a.index.chunks} & {chunk.sha256 for chunk in b.index.chunks}
        expected: set[bytes] = set()
        for one in (a, b):
            documents += len(one.raw) + one.roles.config.size + one.roles.chunks.size
            whole += one.roles.disk_bytes
            unneeded = (data_chunks(one) & common) | expected
            chunks = [chunk for chunk in one.index.chunks if not chunk.zero and chunk.sha256 not in unneeded]
            data += sum(chunk.blob_length for chunk in chunks)
            expected |= {chunk.sha256 for chunk in chunks}
    assert whole > 10 * (documents + data)  # who fetches everything is found out
    for command in ("diff", "explain"):
        with run_faults(registry.name) as proxy:
            done = run("imagetool", command, "--plain-http", *(f"{proxy.name}/a/b:{version}" for version in ("1", "2")))
            assert done.returncode == (command == "diff"), done.stderr
            assert ("~ /changed: sha256 " in done.stdout) == (command == "diff")
            assert (f" at byte {LARGE // 2}\n" in done.stdout) == (command == "diff")
            served = proxy.bytes_of("/")
            assert documents <= served <= 1.2 * (documents + data), f"{command}: {served} of {documents} + {data}"


@needs_registry
def test_images_toml_says_how_to_speak_to_the_registry(tmp_path: Path, registry: RunningRegistry) -> None:
    target = f"{registry.name}/look/app"
    write_layout(tmp_path / "layout", "t", [file(b"f", b"1") + END])
    for version in ("1", "2"):
        (tmp_path / "images.toml").write_text(
            f'[image.app]\nsource = "oci:layout:t"\nkernel = "none"\nsize = "64MiB"\nplain_http = true\npublish = "{target}"\n'
            f'version = "{version}"\n[image.app.env]\nA = "{version}"\n'
        )
        assert run("imagetool", "doit", "build", cwd=tmp_path).returncode == 0
    for command in (("explain", "--json"), ("diff", "--json")):
        done = run("imagetool", *command, f"{target}:1", "app", cwd=tmp_path)
        assert done.returncode == (0 if command[0] == "explain" else 1), done.stderr
        assert json.loads(done.stdout)
