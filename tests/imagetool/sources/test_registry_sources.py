"""Source images in real registries: every way to say who one is, own certificates, Docker's media types, platforms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagetool.sources.open import open_source
from imagetool.targets.open import open_target
from rootdisk.errors import BadInput, RegistryError
from rootdisk.oci.documents import (
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    Descriptor,
    Digest,
    Index,
    Manifest,
    Platform,
    canonical_json,
)
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from tests.support.images import AMD64, check_content, write_image
from tests.support.registry import docker_config, needs_registry, run_registry

pytestmark = [needs_registry, pytest.mark.usefixtures("nobody")]
USER = ("ann", "very-secret-7")
HELPER = """#!/bin/sh
# docker-credential-helpers' protocol: the registry on standard input
read -r server
[ "$1" = get ] && [ "$server" = "$KNOWN" ] && echo '{"ServerURL":"'"$server"'","Username":"ann","Secret":"very-secret-7"}' && exit
echo "credentials not found in native keychain"
exit 1
"""


def push_layout(layout: Path, name: str, options: RegistryOptions, *, docker: bool = False) -> Digest:
    """The image `v1` of the layout, with Docker's media types where asked; its manifest's digest."""
    index = Index.parse((layout / "index.json").read_bytes())
    blobs = layout / "blobs/sha256"
    manifest = Manifest.parse((blobs / index.manifests[0].digest.hex).read_bytes())
    target = open_target(parse_reference(name), options)
    for blob in {d.digest: d for d in (manifest.config, *manifest.layers)}.values():
        target.push_blob(blob, lambda blob=blob: iter([(blobs / blob.digest.hex).read_bytes()]))  # type: ignore[misc]
    media_type = manifest.media_type
    if docker:
        media_type = DOCKER_MANIFEST
        layer_type = "application/vnd.docker.image.rootfs.diff.tar.gzip"  # Docker knows no other, whatever is in it
        manifest = manifest._replace(
            media_type=media_type,
            config=manifest.config._replace(media_type=DOCKER_CONFIG),
            layers=tuple(layer._replace(media_type=layer_type) for layer in manifest.layers),
        )
    raw = canonical_json(manifest.to_json())
    digest = target.push_manifest(raw, media_type, ("v1",))
    target.close()
    return digest


@pytest.mark.parametrize("way", ["credHelpers", "credsStore", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "HOME"])
def test_who_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A registry with a password, and the same one saved in each of the places where tools save it."""
    write_image(tmp_path / "l", "v1", zstd=False)
    with run_registry(tmp_path / "r", password=USER) as registry:
        name = f"{registry.name}/some/image:v1"
        docker_config(tmp_path / "docker", **{registry.name: USER})
        wanted = push_layout(tmp_path / "l", name, registry.options)
        saved = (tmp_path / "docker/config.json").rename(tmp_path / "saved.json")
        with pytest.raises(RegistryError, match="requires a login"):
            open_source(name, AMD64, registry.options).__enter__()
        if way in ("credHelpers", "credsStore"):
            (tmp_path / "bin").mkdir()
            helper = tmp_path / "bin/docker-credential-test"
            helper.write_text(HELPER)
            helper.chmod(0o755)
            monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
            monkeypatch.setenv("KNOWN", registry.name)
            value = {registry.name: "test"} if way == "credHelpers" else "test"
            (tmp_path / "docker/config.json").write_text(json.dumps({way: value}))
        elif way == "REGISTRY_AUTH_FILE":
            monkeypatch.setenv(way, str(saved))
        elif way == "XDG_RUNTIME_DIR":
            (tmp_path / "run/containers").mkdir(parents=True)
            saved.rename(tmp_path / "run/containers/auth.json")
            monkeypatch.setenv(way, str(tmp_path / "run"))
        else:
            monkeypatch.delenv("DOCKER_CONFIG")
            (tmp_path / ".docker").mkdir()
            saved.rename(tmp_path / ".docker/config.json")
        with open_source(name, AMD64, registry.options) as image:
            assert image.manifest_digest == wanted
            check_content(image)


def test_own_certificates_on_the_command_line(tmp_path: Path) -> None:
    write_image(tmp_path / "l", "v1", zstd=False)
    with run_registry(tmp_path / "r", tls=True) as registry:
        name = f"{registry.name}/some/image:v1"
        push_layout(tmp_path / "l", name, registry.options)

        def imagetool(*more: str) -> subprocess.CompletedProcess[str]:
            argv = [
                sys.executable,
                "-m",
                "imagetool",
                "disk",
                "--plain",
                "--size",
                "64MiB",
                *more,
                name,
                f"{tmp_path}/d",
            ]
            environment = {**os.environ, "ROOTDISK_CACHE": f"{tmp_path}/cache"}
            return subprocess.run(argv, capture_output=True, text=True, env=environment)

        refused = imagetool()
        assert refused.returncode == 1
        assert "certificate is not trusted" in refused.stderr
        assert refused.stderr.count("\n") == 1
        done = imagetool("--ca-file", str(registry.options.ca_file))
        assert done.returncode == 0, done.stderr


def test_docker_media_types(tmp_path: Path) -> None:
    """A schema 2 manifest alone, and a list of two with variants: exactly the one asked for is taken."""
    v7, v6 = Platform("linux", "arm", "v7"), Platform("linux", "arm", "v6")
    with run_registry(tmp_path / "r") as registry:
        place = f"{registry.name}/some/image"
        listed = []
        for platform in (AMD64, v7, v6):
            layout = tmp_path / str(platform).replace("/", "-")
            write_image(layout, "v1", platform, zstd=False, variant=platform != v6)
            digest = push_layout(layout, f"{place}:v1", registry.options, docker=True)
            size = registry.blob_file(digest).stat().st_size
            listed.append(Descriptor(DOCKER_MANIFEST, digest, size, platform=platform))
            if platform == v6:  # its config names no variant, as old images' do: alone it is taken for the usual one
                with pytest.raises(BadInput, match="use --platform linux/arm/v7"):
                    open_source(f"{place}:v1", platform, registry.options).__enter__()
                continue
            with open_source(f"{place}:v1", platform, registry.options) as image:
                assert image.manifest.media_type == DOCKER_MANIFEST
                check_content(image)
        target = open_target(parse_reference(place), registry.options)
        for media_type in (DOCKER_LIST, OCI_INDEX):
            raw = canonical_json(Index(media_type, tuple(listed), {}).to_json())
            target.push_manifest(raw, media_type, ("many",))
            for described in listed:
                assert described.platform is not None
                with open_source(f"{place}:many", described.platform, registry.options) as image:
                    assert image.manifest_digest == described.digest
            for absent in (
                Platform("linux", "arm", "v5"),
                Platform("linux", "amd64", "v3"),
                Platform("linux", "arm64"),
            ):
                with pytest.raises(BadInput, match=r"only linux/amd64, linux/arm/v6, linux/arm/v7"):
                    open_source(f"{place}:many", absent, registry.options).__enter__()
        target.close()


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ],
)
def test_layers_that_may_be_missing(tmp_path: Path, media_type: str) -> None:
    """They are asked for all the same, and here they are there; the type of compression is seen in the bytes."""
    write_image(tmp_path / "l", "v1", zstd=False, layer_type=media_type)
    with run_registry(tmp_path / "r") as registry:
        name = f"{registry.name}/some/image:v1"
        push_layout(tmp_path / "l", name, registry.options)
        with open_source(name, AMD64, registry.options) as image:
            layer = image.layers[0]
            assert len(b"".join(layer.open())) == layer.descriptor.size
            registry.blob_file(layer.descriptor.digest).unlink()
            with pytest.raises(RegistryError, match="need not be where the image is"):
                list(layer.open())
