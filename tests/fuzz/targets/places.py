"""OCI layouts, archives of images, and what docker has saved of passwords."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from unittest import mock

from imagetool.sources.archives import ArchiveRepository, DockerArchive, TarArchive
from imagetool.sources.image_config import ImageConfig
from imagetool.targets.layout import LayoutTarget
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import OCI_MANIFEST, Digest, Manifest
from rootdisk.oci.layout import LayoutRepository
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import read_blob, resolve_manifest
from rootdisk.registry.credentials import find_credentials
from tests.fuzz.target import Target, folder, in_file
from tests.fuzz.targets.documents import AMD64, IMAGE_CONFIG, INDEX, MANIFEST, WORDS
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file, pax, symlink

CUT = b"\n--\n"  # between a layout's files: oci-layout, index.json, then blobs
REFERENCE = parse_reference("oci:test:t")


def layout(data: bytes) -> None:
    place = _layout(data)
    with closing(LayoutRepository(place)) as repository:
        _, raw = resolve_manifest(repository, REFERENCE, AMD64)
        manifest = Manifest.parse(raw)
        ImageConfig.parse(read_blob(repository, manifest.config, 1 << 20))
        for layer in manifest.layers:
            read_blob(repository, layer, 1 << 20)


def layout_target(data: bytes) -> None:
    """A layout that is there already, and is written to."""
    place = _layout(data)
    with closing(LayoutTarget(place)) as target:
        target.tags()
        digest = target.push_manifest(json.dumps(MANIFEST).encode(), OCI_MANIFEST, ("new",))
        assert target.tags()["new"] == digest
        target.remove(digest)
        assert "new" not in target.tags()


def _layout(data: bytes) -> Path:
    place = folder() / "layout"
    shutil.rmtree(place, ignore_errors=True)
    (place / "blobs/sha256").mkdir(parents=True)
    version, index, *blobs = [*data.split(CUT), b"", b""]
    (place / "oci-layout").write_bytes(version)
    (place / "index.json").write_bytes(index)
    for blob in blobs[:8]:
        (place / "blobs/sha256" / Digest.of(blob).hex).write_bytes(blob)
    return place


@cache
def _parts() -> dict[str, bytes]:
    """A small image's files, by path in a layout."""
    place = folder() / "image"
    tar = directory(b"d/") + file(b"d/f", b"text") + END
    write_layout(place, "t", [tar], compression="plain")
    write_layout(place, "old", [tar], {"Cmd": ["x"]}, compression="gzip")
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def layouts() -> list[bytes]:
    parts = _parts()
    blobs = [data for name, data in parts.items() if name.startswith("blobs/")]
    whole = CUT.join([parts["oci-layout"], parts["index.json"], *blobs])
    return [whole, CUT.join([parts["oci-layout"], json.dumps(INDEX).encode(), json.dumps(INDEX).encode()])]


def docker_archive(data: bytes) -> None:
    with closing(TarArchive(os.fdopen(in_file(_summed(data)), "rb"), "test")) as archive:
        image = DockerArchive(archive, "")
        for layer in image.manifest.layers:
            for _ in image.layer(layer):
                pass
        with suppress(RootdiskError):
            DockerArchive(archive, "a:b")


def oci_archive(data: bytes) -> None:
    with closing(ArchiveRepository(TarArchive(os.fdopen(in_file(_summed(data)), "rb"), "test"))) as repository:
        _, raw = resolve_manifest(repository, REFERENCE, AMD64)
        manifest = Manifest.parse(raw)
        ImageConfig.parse(read_blob(repository, manifest.config, 1 << 20))
        for layer in manifest.layers:
            read_blob(repository, layer, 1 << 20)


def _summed(data: bytes) -> bytes:
    """`data` with right checksums in its headers: else damage gets no further."""
    found = bytearray(data)
    for block in range(0, len(found) - 511, 512):
        if found[block + 257 : block + 262] == b"ustar":
            total = sum(found[block : block + 148]) + sum(found[block + 156 : block + 512]) + 256
            found[block + 148 : block + 156] = b"%06o\0 " % total
    return bytes(found)


def docker_archives() -> list[bytes]:
    layer = file(b"f", b"text") + END
    config = json.dumps(
        {**IMAGE_CONFIG, "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer))] * 2}}
    ).encode()
    entry = {"Config": "c.json", "RepoTags": ["a:b"], "Layers": ["d/layer.tar", "e/layer.tar"]}
    found = file(b"manifest.json", json.dumps([entry]).encode()) + file(b"c.json", config) + file(b"d/layer.tar", layer)
    return [found + symlink(b"e/layer.tar", b"../d/layer.tar") + END]


def oci_archives() -> list[bytes]:
    return [b"".join(pax([(b"path", name.encode())]) + file(b"x", data) for name, data in _parts().items()) + END]


def credentials(data: bytes) -> None:
    """docker's config.json; the helpers that it may name are not there."""
    place = folder() / "docker"
    place.mkdir(exist_ok=True)
    (place / "config.json").write_bytes(data)
    _find(place)


def helper(data: bytes) -> None:
    """What a credential helper answers."""
    place = folder() / "helper"
    if not place.exists():
        place.mkdir()
        (place / "config.json").write_text('{"credsStore": "fuzz"}')
        (place / "docker-credential-fuzz").write_text(f'#!/bin/sh\nexec /bin/cat "{place}/answer"\n')
        (place / "docker-credential-fuzz").chmod(0o755)
    (place / "answer").write_bytes(data)
    _find(place)


def _find(place: Path) -> None:
    with mock.patch.dict(os.environ, {"DOCKER_CONFIG": str(place), "PATH": str(place)}, clear=True):
        found = [find_credentials(name, "team/app") for name in ("registry.example:5000", "docker.io")]
    for one in found:
        if one is not None:
            assert one.basic.isascii()
    if not any(found):
        raise BadInput("none found")


def configs() -> list[bytes]:
    return [
        json.dumps(value).encode()
        for value in (
            {"auths": {"registry.example:5000": {"auth": "dXNlcjpzZWNyZXQ="}, "https://index.docker.io/v1/": {"identitytoken": "t"}}},
            {"auths": {"https://registry.example:5000/v2/": {"username": "u", "password": "p"}}, "HttpHeaders": {"a": "b"}},
            {"credHelpers": {"registry.example:5000": "x"}, "auths": {}},
            {"credsStore": "x", "auths": {"registry.example:5000/team": {"registrytoken": "x"}}},
        )
    ]  # fmt: skip


_CONFIG_WORDS = (b'"auths"', b'"auth"', b'"credHelpers"', b'"credsStore"', b'"identitytoken"', b'"registrytoken"', b'"username"', b'"password"', b"https://", b"null", b"{}", b"[]", b'"\\ud800"', b"1e999", b"docker.io")  # fmt: skip
TARGETS = {
    "layout": Target(layout, layouts, WORDS, max_bytes=16384),
    "layout-target": Target(layout_target, layouts, WORDS, max_bytes=16384, few=100),
    "docker-archive": Target(docker_archive, docker_archives, WORDS, max_bytes=32768),
    "oci-archive": Target(oci_archive, oci_archives, WORDS, max_bytes=32768),
    "credentials": Target(credentials, configs, _CONFIG_WORDS),
    "helper": Target(
        helper,
        lambda: [b'{"ServerURL": "x", "Username": "u", "Secret": "s"}', b'{"Username": "<token>", "Secret": "t"}', b"no", b"[]"],
        (b'"Username"', b'"Secret"', b"null", b'"\\ud800"', b"<token>"),
        few=60,
    ),
}  # fmt: skip
