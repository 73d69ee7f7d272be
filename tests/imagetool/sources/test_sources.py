"""Every kind of source, made by skopeo from one layout of our own writing; and what must be refused."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import shutil
import socketserver
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from imagetool.sources.open import open_source
from imagetool.targets.copy import copy
from imagetool.tree.inflate import inflate
from rootdisk.errors import BadInput, DigestMismatch, RegistryError, RootdiskError
from rootdisk.oci.documents import (
    OCI_CONFIG,
    Descriptor,
    Digest,
    Manifest,
    Platform,
    canonical_json,
)
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import verified
from rootdisk.places import open_repository
from rootdisk.system.crew import Crew
from tests.support.images import (
    AMD64,
    ARM64,
    TARS,
    check_content,
    needs_skopeo,
    skopeo,
    write_image,
    write_index,
)
from tests.support.registry import QuietHandler, needs_registry, run_registry
from tests.support.tars import END, file, padded, pax

# What docker load takes.
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "bzip2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": zstandard.compress,
}


def test_layout_by_tag_digest_and_alone(tmp_path: Path) -> None:
    wanted = write_image(tmp_path / "l", "v1").digest
    for name in (f"oci:{tmp_path}/l:v1", f"oci:{tmp_path}/l@{wanted}", f"oci:{tmp_path}/l"):
        with open_source(name, AMD64) as image:
            assert image.manifest_digest == wanted
            check_content(image)
    with pytest.raises(BadInput, match="it has v1"), open_source(f"oci:{tmp_path}/l:v2", AMD64):
        pass


def test_platform_is_exact(tmp_path: Path) -> None:
    write_index(tmp_path / "l", "multi")
    with open_source(f"oci:{tmp_path}/l:multi", ARM64) as image:
        assert image.config.platform == ARM64
    with pytest.raises(
        BadInput, match=r"no linux/s390x variant \(only linux/amd64, linux/arm64\): use --platform linux/amd64"
    ):
        open_source(f"oci:{tmp_path}/l:multi", Platform("linux", "s390x")).__enter__()
    write_image(tmp_path / "l", "single")
    with pytest.raises(BadInput, match=r"no linux/arm64 variant \(only linux/amd64\): use --platform linux/amd64"):
        open_source(f"oci:{tmp_path}/l:single", ARM64).__enter__()


def test_a_foreign_layer_that_is_there(tmp_path: Path) -> None:
    """Its type says only that it may be missing; then the error says so."""
    write_image(tmp_path / "l", "v1", layer_type="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    with open_source(f"oci:{tmp_path}/l:v1", AMD64) as image:
        layer = image.layers[0]
        assert len(b"".join(layer.open())) == layer.descriptor.size
        (tmp_path / "l/blobs/sha256" / layer.descriptor.digest.hex).unlink()
        with pytest.raises(BadInput, match=r"layers of type .*foreign.* need not be where the image is"):
            list(layer.open())


@needs_skopeo
@pytest.mark.parametrize("packed", COMPRESSIONS)
def test_oci_archive(tmp_path: Path, packed: str) -> None:
    wanted = write_image(tmp_path / "l", "v1").digest
    skopeo("copy", "--preserve-digests", f"oci:{tmp_path}/l:v1", f"oci-archive:{tmp_path}/a.tar:v1")
    path = tmp_path / "a.tar"
    path.write_bytes(COMPRESSIONS[packed](path.read_bytes()))
    for tag in ("", ":v1"):
        with open_source(f"oci-archive:{path}{tag}", AMD64) as image:
            assert image.manifest_digest == wanted
            check_content(image)


def docker_archive(tmp_path: Path) -> Path:
    write_image(tmp_path / "l", "v1", zstd=False)  # which docker archives cannot hold
    skopeo("copy", f"oci:{tmp_path}/l:v1", f"docker-archive:{tmp_path}/d.tar:some/name:v1")
    return tmp_path / "d.tar"


@needs_skopeo
def test_docker_archive(tmp_path: Path) -> None:
    path = docker_archive(tmp_path)
    digests = set()
    for tag in ("", ":some/name:v1", ":docker.io/some/name:v1"):
        with open_source(f"docker-archive:{path}{tag}", AMD64) as image:
            digests.add(image.manifest_digest)
            check_content(image)
    assert len(digests) == 1
    with pytest.raises(BadInput, match=r"no image 'other:v1' in it.*some/name:v1"):
        open_source(f"docker-archive:{path}:other:v1", AMD64).__enter__()


def test_docker_archive_old_form_with_links(tmp_path: Path) -> None:
    config = canonical_json(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(t)) for t in TARS]},
         "config": {"Env": ["A=1"], "WorkingDir": "/w", "User": "5"}}
    )  # fmt: skip
    listed = [{"Config": "c.json", "RepoTags": ["x:latest"], "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]}]
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        for name, data in (("c.json", config), ("a/layer.tar", TARS[0]), ("b/layer.tar", TARS[1]),
                           ("manifest.json", json.dumps(listed).encode())):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("c/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../a/layer.tar"
        tar.addfile(link)
        outside = tarfile.TarInfo("out")
        outside.type, outside.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(outside)
    with open_source(f"docker-archive:{tmp_path}/d.tar:x", AMD64) as image:
        check_content(image)


def test_docker_archive_new_form(tmp_path: Path) -> None:
    """Docker 25 and newer save an OCI layout with a manifest.json beside: both ways of naming it give the layers."""
    described = write_image(tmp_path / "l", "v1", zstd=False)
    blobs = tmp_path / "l/blobs/sha256"
    manifest = Manifest.parse((blobs / described.digest.hex).read_bytes())
    layers = [f"blobs/sha256/{layer.digest.hex}" for layer in manifest.layers]
    listed = [{"Config": f"blobs/sha256/{manifest.config.digest.hex}", "RepoTags": ["x:latest"], "Layers": layers}]
    (tmp_path / "l/manifest.json").write_text(json.dumps(listed))
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        tar.add(tmp_path / "l", ".")
    for name in (f"docker-archive:{tmp_path}/d.tar:x", f"oci-archive:{tmp_path}/d.tar:v1"):
        with open_source(name, AMD64) as image:
            check_content(image)


@pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed")
def test_a_layout_by_umoci(tmp_path: Path) -> None:
    """Made from nothing by another tool: its layers, its config, its names."""
    (tmp_path / "file").write_text("content")
    image = f"{tmp_path}/l:made"
    for argv in (
        ["init", "--layout", f"{tmp_path}/l"],
        ["new", "--image", image],
        ["insert", "--image", image, str(tmp_path / "file"), "/d/file"],
        ["config", "--image", image, "--config.entrypoint", "/d/file", "--config.env", "A=b", "--architecture", "arm",
         "--platform.variant", "v7"],
    ):  # fmt: skip
        done = subprocess.run(["umoci", *argv], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if "flag provided but not defined" in done.stderr:  # umoci 0.4 knows no variants
            done = subprocess.run(["umoci", *argv[:-2]], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
    with open_source(f"oci:{tmp_path}/l:made", Platform.parse("linux/arm/v7")) as image_:
        assert (image_.config.entrypoint, image_.config.env[-1]) == (("/d/file",), "A=b")
        assert len(image_.layers) == 1
    with pytest.raises(BadInput, match="use --platform linux/arm/v7"):
        open_source(f"oci:{tmp_path}/l:made", Platform.parse("linux/arm/v6")).__enter__()


@needs_skopeo
def test_docker_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = docker_archive(tmp_path).read_bytes()
    asked = []
    how = "whole"

    class Handler(QuietHandler):
        def address_string(self) -> str:
            return "unix"

        def do_GET(self) -> None:  # noqa: N802
            asked.append(self.path)
            if self.path == "/images/docker.io/some/name:v1/get":
                if how == "whole":
                    self.send(200, archive)
                    return
                self.send_response(200)
                if how == "cut":
                    self.send_header("Content-Length", str(len(archive)))
                else:  # as the daemon itself
                    self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for start in range(0, len(archive), 50_000):
                    piece = archive[start : start + 50_000]
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if how != "cut" else piece)
                    if how != "chunked" and start:
                        break
                else:
                    self.wfile.write(b"0\r\n\r\n")
                self.close_connection = True
            else:
                self.send(404, b'{"message":"No such image"}')

    class Daemon(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    with Daemon(str(tmp_path / "docker.sock"), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
        with open_source("docker-daemon:some/name:v1", AMD64) as image:
            check_content(image)
        with pytest.raises(BadInput, match="answers 404"):
            open_source("docker-daemon:absent", AMD64).__enter__()
        how = "chunked"
        with open_source("docker-daemon:some/name:v1", AMD64) as image:
            check_content(image)
        for how in ("cut", "chunked and cut"):  # noqa: B007  the handler looks at it
            with pytest.raises(RegistryError, match="Docker daemon"):
                open_source("docker-daemon:some/name:v1", AMD64).__enter__()
        server.shutdown()
    assert asked[1] == "/images/docker.io/library/absent:latest/get"


@pytest.mark.parametrize("packed", COMPRESSIONS)
def test_bare_tar(tmp_path: Path, packed: str) -> None:
    data = COMPRESSIONS[packed](TARS[0])
    (tmp_path / "root.tar").write_bytes(data)
    with open_source(f"tar:{tmp_path}/root.tar", AMD64) as image:
        (layer,) = image.layers
        assert b"".join(verified(layer.open(), layer.descriptor)) == data
        assert layer.diff_id == (None if packed != "plain" else Digest.of(data))


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("packed", [name for name in COMPRESSIONS if name != "plain"])
def test_damaged_archives_are_one_line(tmp_path: Path, kind: str, packed: str) -> None:
    """Half a stream, and a stream with other data behind it."""
    data = COMPRESSIONS[packed](TARS[0])
    for damaged in (data[: len(data) // 2], data + b"garbage!"):
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(BadInput, match=f"cannot be inflated: .*{packed} stream"):
            open_source(f"{kind}:{tmp_path}/a.tar", AMD64).__enter__()


@pytest.mark.parametrize("cut", [0, 100, 512, 3000])
def test_cut_archives_are_bad_input(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.tar").write_bytes(TARS[0][:cut])
    for kind in ("oci-archive", "docker-archive"):
        with pytest.raises(RootdiskError):
            open_source(f"{kind}:{tmp_path}/a.tar", AMD64).__enter__()


@needs_skopeo
@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_a_changed_byte_anywhere_in_an_archive(tmp_path: Path, kind: str) -> None:
    """In a layer, the config or the manifest: found before or while it is read, never taken."""
    path = docker_archive(tmp_path)
    if kind == "oci-archive":
        path = tmp_path / "a.tar"
        skopeo("copy", "--preserve-digests", f"oci:{tmp_path}/l:v1", f"oci-archive:{path}:v1")
    with tarfile.open(path) as tar:
        members = [m for m in tar if m.isreg() and m.size and m.name not in ("repositories", "oci-layout")]
    whole = path.read_bytes()
    named = {"manifest.json", "index.json"}  # what no digest covers: a change there may only rename the image
    checked = 0
    for member in members:
        if member.name in named or member.name.endswith(("/json", "/VERSION")):
            continue
        damaged = bytearray(whole)
        damaged[member.offset_data + member.size // 2] ^= 1
        path.write_bytes(damaged)
        if kind == "docker-archive" and member.name.endswith(
            ".json"
        ):  # docker loads it whatever it is called, with us it is said
            with contextlib.suppress(BadInput), open_source(f"{kind}:{path}", AMD64) as image:
                assert "has another digest than its name says" in image.remarks[0].text
            checked += 1
            continue
        with pytest.raises(DigestMismatch), open_source(f"{kind}:{path}", AMD64) as image:  # noqa: PT012
            for number, layer in enumerate(image.layers):
                with (tmp_path / "out").open("wb") as out:
                    expected, diff_id = layer.descriptor, layer.diff_id
                    inflate(layer.open(), out.fileno(), Crew(1), expected=expected, diff_id=diff_id, name=str(number))
        checked += 1
    assert checked >= 3  # two layers, of which docker-archive keeps one copy each, the config, the manifest


HOSTILE_ARCHIVES = {
    "headers in a row": lambda: pax([(b"comment", b"c")]) * 3000 + file(b"x"),
    "large headers": lambda: b"".join(pax([(b"comment", b"c" * 1_000_000)]) + file(b"x%d" % n) for n in range(300)),
    "sparse map": lambda: (
        pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")])
        + file(b"x", padded(b"20000000\n" + b"0\n0\n" * 20_000_000))
    ),
}


@pytest.mark.parametrize("case", HOSTILE_ARCHIVES)
def test_hostile_archives_are_bounded(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.tar").write_bytes(HOSTILE_ARCHIVES[case]() + END)
    code = (
        "import sys; from imagetool.cli import main; status = main(sys.argv[1:]);"
        "print(status, open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    )
    argv = [sys.executable, "-c", code, "inspect", f"docker-archive:{tmp_path}/a.tar"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    status, peak_kib = map(int, done.stdout.split())
    assert status == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert peak_kib < 100 << 10


def test_hostile_layout_leads_to_no_host_file(tmp_path: Path) -> None:
    secret = b"a secret of the host"
    (tmp_path / "secret").write_bytes(secret)
    described = Descriptor(OCI_CONFIG, Digest.of(secret), len(secret))
    write_image(tmp_path / "l", "v1")
    repository = open_repository(parse_reference(f"oci:{tmp_path}/l"))
    link = tmp_path / "l/blobs/sha256" / described.digest.hex
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput):
        list(repository.blob(described))
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(BadInput, match="not a regular file"):
        list(repository.blob(described))
    (tmp_path / "l/index.json").unlink()
    (tmp_path / "l/index.json").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput):
        repository.resolve("v1")


@needs_registry
@needs_skopeo
def test_copy_keeps_digests_both_ways(tmp_path: Path) -> None:
    wanted = write_index(tmp_path / "l", "multi", zstd=False)  # skopeo 1.15 and newer mark zstd images in an index
    with run_registry(tmp_path / "r") as registry:
        name = f"{registry.name}/some/image:multi"
        assert copy(f"oci:{tmp_path}/l:multi", name, registry.options) == wanted
        skopeo(
            "copy",
            "--all",
            "--preserve-digests",
            "--src-tls-verify=false",
            f"docker://{name}",
            f"oci:{tmp_path}/by-skopeo:multi",
        )
        assert copy(name, f"oci:{tmp_path}/back:multi", registry.options) == wanted
        with open_source(name, ARM64, registry.options) as image:
            check_content(image)
        for layout in ("l", "back", "by-skopeo"):
            raw = skopeo("inspect", "--raw", f"oci:{tmp_path}/{layout}:multi")
            assert Digest.of(raw) == wanted
    skopeo("copy", "--all", "--preserve-digests", f"oci:{tmp_path}/back:multi", f"oci:{tmp_path}/again:x")
