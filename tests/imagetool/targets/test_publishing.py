"""Copies that keep digests, indexes over platforms, mounts, and what pruning leaves: with docker-registry and skopeo."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from imagetool import cli
from imagetool.build.cached_artifact import prune
from imagetool.sources.content import pieces
from imagetool.sources.open import open_source
from imagetool.targets.attach import attach
from imagetool.targets.copy import copy
from imagetool.targets.index import make_index
from imagetool.targets.open import open_target
from imagetool.targets.prune import outdated
from imagetool.targets.registry import RegistryTarget
from imagetool.targets.target import UPLOADS
from imagetool.targets.upload import Body
from rootdisk.errors import BadInput, DigestMismatch, RegistryError, Unsupported
from rootdisk.oci.documents import (
    OCI_EMPTY,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Index,
    Manifest,
    Platform,
    canonical_json,
)
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions, read_blob
from rootdisk.places import open_repository
from tests.support.commands import ROOT
from tests.support.faults import ALWAYS, Fault, run_faults
from tests.support.images import AMD64, ARM64, check_content, needs_skopeo, skopeo, write_image, write_index
from tests.support.processes import peak_bytes
from tests.support.registry import QuietHandler, RunningRegistry, needs_registry, run_registry, serve

LARGE_GIB = 2


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RunningRegistry]:
    """Of the test's own: pruning looks at everything."""
    with run_registry(tmp_path / "registry") as running:
        yield running


@needs_skopeo
def test_copies_to_an_archive(tmp_path: Path) -> None:
    """By us to an archive, by skopeo out of it, and back by us: one digest, and the same archive twice."""
    wanted = write_index(tmp_path / "l", "multi", zstd=False)
    for name in ("a.tar", "b.tar"):
        assert copy(f"oci:{tmp_path}/l:multi", f"oci-archive:{tmp_path}/{name}:v1") == wanted
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    skopeo("copy", "--all", "--preserve-digests", f"oci-archive:{tmp_path}/a.tar:v1", f"oci:{tmp_path}/by-skopeo:x")
    assert Digest.of(skopeo("inspect", "--raw", f"oci:{tmp_path}/by-skopeo:x")) == wanted
    assert copy(f"oci-archive:{tmp_path}/a.tar:v1", f"oci:{tmp_path}/back:x") == wanted
    with open_source(f"oci-archive:{tmp_path}/a.tar:v1", ARM64) as image:
        check_content(image)
    with pytest.raises(BadInput, match="exists already"):
        copy(f"oci:{tmp_path}/l:multi", f"oci-archive:{tmp_path}/a.tar:v1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar", "back", "by-skopeo", "l"]


@needs_registry
@needs_skopeo
def test_an_index_over_platforms(tmp_path: Path, registry: RunningRegistry) -> None:
    """Two images of one repository and a third of a layout become one name; skopeo and we choose from it alike."""
    arm = Platform("linux", "arm", "v7")
    for platform in (AMD64, ARM64, arm):
        write_image(tmp_path / "l", str(platform).replace("/", "-"), platform, zstd=False)
    place = f"{registry.name}/some/image"
    for name in ("linux-amd64", "linux-arm64"):
        copy(f"oci:{tmp_path}/l:{name}", f"{place}:{name}", registry.options)
    names = [f"{place}:linux-amd64", f"{place}:linux-arm64", f"oci:{tmp_path}/l:linux-arm-v7"]
    digest = make_index(f"{place}:1", names, registry.options)
    for platform in (AMD64, ARM64, arm):
        with open_source(f"{place}:1", platform, registry.options) as image:
            assert image.config.platform == platform
            check_content(image)
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{place}:1")
    assert Digest.of(raw) == digest
    assert [str(item.platform) for item in Index.parse(raw).manifests] == ["linux/amd64", "linux/arm/v7", "linux/arm64"]
    # an index of an index is flat, in any order the same, and one platform is named once
    assert make_index(f"{place}:2", [names[2], f"{place}:linux-arm64", names[0]], registry.options) == digest
    with pytest.raises(BadInput, match="a second image for linux/amd64"):
        make_index(f"{place}:3", [f"{place}:1", names[0]], registry.options)
    with pytest.raises(BadInput, match="needs a tag"):
        make_index(f"oci:{tmp_path}/l", names, registry.options)


@needs_registry
def test_blobs_are_mounted(tmp_path: Path, registry: RunningRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a registry nothing is read or sent again."""
    wanted = write_image(tmp_path / "l", "v1").digest
    copy(f"oci:{tmp_path}/l:v1", f"{registry.name}/first/image:v1", registry.options)
    read: list[object] = []
    from rootdisk.registry.repository import RegistryRepository

    monkeypatch.setattr(RegistryRepository, "blob", lambda *arguments: read.append(arguments))
    assert copy(f"{registry.name}/first/image:v1", f"{registry.name}/second/image:v1", registry.options) == wanted
    assert read == []


@needs_registry
@pytest.mark.nightly
def test_a_large_blob_in_little_memory(tmp_path: Path, registry: RunningRegistry) -> None:
    """Of gigabytes a process holds some pieces; by hand it was tried with ten."""
    size = LARGE_GIB << 30
    blobs = tmp_path / "l/blobs/sha256"
    write_image(tmp_path / "l", "v1")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    with (tmp_path / "large").open("rb") as file:
        digest = Digest("sha256", hashlib.file_digest(file, "sha256").hexdigest())
    (tmp_path / "large").rename(blobs / digest.hex)
    with contextlib.closing(open_target(parse_reference(f"oci:{tmp_path}/l"))) as target:
        config = Descriptor(OCI_EMPTY, Digest.of(b"{}"), 2)
        target.push_blob(config, lambda: iter([b"{}"]))
        layer = Descriptor("application/octet-stream", digest, size)
        manifest = Manifest(OCI_MANIFEST, "application/x-large", config, (layer,), {})
        target.push_manifest(canonical_json(manifest.to_json()), OCI_MANIFEST, ("large",))
    command = [sys.executable, "-m", "imagetool", "copy", "--plain-http", f"oci:{tmp_path}/l:large"]
    with subprocess.Popen([*command, f"{registry.name}/some/large:1"], stdout=subprocess.DEVNULL) as process:
        peak = peak_bytes(process)
    assert process.returncode == 0
    assert registry.blob_file(digest).stat().st_size == size
    assert peak < 100 << 20


D = [Digest.of(bytes([n])) for n in range(9)]
KEYS = [f"key-{n:032x}" for n in range(9)]


@pytest.mark.parametrize(
    ("tags", "keep", "gone"),
    [
        ({"1": D[1], KEYS[1]: D[1], KEYS[2]: D[2]}, None, [KEYS[2]]),
        ({"1.9": D[1], "1.10": D[2], "1.2": D[3], KEYS[3]: D[3]}, 2, ["1.2", KEYS[3]]),
        ({"1": D[1], "2": D[1], KEYS[1]: D[1]}, 1, []),  # the same artifact under a name that stays
        ({"latest": D[1], "1": D[1], "2": D[2], KEYS[1]: D[1]}, 1, []),
        ({"1": D[8], KEYS[1]: D[1], KEYS[2]: D[2], KEYS[3]: D[3]}, None, [KEYS[3]]),  # 8 is an index of 1 and 2
        ({"v1": D[1], "v2": D[2], "main": D[3]}, 1, ["v1"]),  # nobody knows how old main is
        ({"9f8e7d6": D[1], "a1b2c3d": D[2], "0b1c2d3": D[3], KEYS[1]: D[1]}, 1, []),  # commits
        ({"1.4-9f8e7d6": D[1], "1.4-a1b2c3d": D[2], "1.3-fffffff": D[3]}, 1, ["1.3-fffffff"]),  # of one number
        ({"1.10-rc1": D[1], "1.10": D[2], "1.9": D[3], "V1.8": D[4]}, 1, ["1.10-rc1", "1.9", "V1.8"]),
        ({"key-short": D[1], "key-" + "g" * 32: D[2]}, None, []),  # not ours
        ({}, 3, []),
    ],
)
def test_what_is_outdated(tags: dict[str, Digest], keep: int | None, gone: list[str]) -> None:
    assert outdated(tags, lambda digest: [D[1], D[2]] if digest == D[8] else [], keep) == gone


def test_times_count_before_numbers() -> None:
    tags = {"9f8e7d6": D[1], "2.0": D[2], "1.0": D[3], "main": D[4]}
    assert outdated(tags, lambda _: [], 1, {"9f8e7d6": 3.0, "2.0": 2.0, "1.0": 1.0}) == ["1.0", "2.0"]
    assert outdated(tags, lambda _: [], 2, {"2.0": 2.0, "1.0": 3.0}) == []


@needs_registry
def test_pruning_a_registry(tmp_path: Path, registry: RunningRegistry) -> None:
    place = f"{registry.name}/some/image"
    for number, variant in enumerate(("v5", "v6", "v7")):
        write_image(tmp_path / "l", str(number), Platform("linux", "arm", variant), variant=True)
        copy(f"oci:{tmp_path}/l:{number}", f"{place}:1.{number}", registry.options)
        copy(f"oci:{tmp_path}/l:{number}", f"{place}:{KEYS[number]}", registry.options)
    make_index(f"{place}:2.0", [f"{place}:1.0"], registry.options)
    reference = parse_reference(place)
    target = open_target(reference, registry.options)
    before = target.tags()
    assert len(before) == 7
    wanted = ["1.1", KEYS[1]]  # 1.0 is in the index of 2.0
    assert [tag for tag, _ in prune(reference, registry.options, 2, delete=False).tags] == wanted
    assert target.tags() == before
    assert [tag for tag, _ in prune(reference, registry.options, 2, delete=True).tags] == wanted
    assert target.tags() == {tag: digest for tag, digest in before.items() if tag not in wanted}
    for name, platform in (("2.0", "v5"), ("1.2", "v7")):
        with open_source(f"{place}:{name}", Platform("linux", "arm", platform), registry.options) as image:
            check_content(image)
    target.close()


@needs_registry
def test_a_registry_that_says_when(
    tmp_path: Path, registry: RunningRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its times count; without them a version that nobody can order stays, and is named."""
    for number, tag in enumerate(("9f8e7d6", "a1b2c3d", "0.9")):
        write_image(tmp_path / "l", tag, Platform("linux", "arm", f"v{number + 5}"), variant=True)
        copy(f"oci:{tmp_path}/l:{tag}", f"{registry.name}/some/image:{tag}", registry.options)
    command = ["prune", "--plain-http", "--keep", "1"]
    assert cli.main([*command, f"{registry.name}/some/image"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "ordered by number, as no times are recorded; kept, as their age is not known: 9f8e7d6, a1b2c3d" in said.err
    with run_faults(registry.name) as proxy:
        for second, tag in enumerate(("9f8e7d6", "a1b2c3d", "0.9")):
            headers = {"Last-Modified": f"Sun, 29 Nov 2026 12:00:0{5 - second} GMT"}
            proxy.add(Fault("as", f"/manifests/{tag}", ALWAYS, method="HEAD", status=200, headers=headers))
        assert cli.main([*command, f"{proxy.name}/some/image"]) == 0
        said = capsys.readouterr()
        assert [line.split()[0] for line in said.out.splitlines()] == ["0.9", "a1b2c3d"]
        assert said.err.startswith(
            "versions were ordered by the time they were published\nimagetool: nothing was removed"
        )


@needs_registry
@pytest.mark.parametrize("kind", ["registry", "layout"])
def test_attached_files_go_with_what_they_are_attached_to(tmp_path: Path, registry: RunningRegistry, kind: str) -> None:
    """Two files on one version, one on another; what prune removes takes its own along, and nothing else."""
    place = f"{registry.name}/some/image" if kind == "registry" else f"oci:{tmp_path}/place"
    options = registry.options
    subjects = {}
    for number, variant in enumerate(("v6", "v7"), 1):
        write_image(tmp_path / "l", str(number), Platform("linux", "arm", variant), variant=True)
        subjects[number] = copy(f"oci:{tmp_path}/l:{number}", f"{place}:{number}", options)
    (tmp_path / "sbom.json").write_text("{}")
    (tmp_path / "signature").write_bytes(b"signed")
    made = {
        (number, name): attach(f"{place}:{number}", tmp_path / name, f"application/x-{name.partition('.')[0]}", options)
        for number, name in ((1, "sbom.json"), (2, "sbom.json"), (2, "signature"))
    }
    assert attach(f"{place}:2", tmp_path / "signature", "application/x-signature", options) == made[2, "signature"]
    with contextlib.closing(open_repository(parse_reference(place), options)) as repository:
        for (number, name), digest in made.items():
            manifest = Manifest.parse(repository.manifest(digest))
            assert manifest.subject is not None
            assert manifest.subject.digest == subjects[number]
            assert (manifest.artifact_type, manifest.layers[0].title) == (
                f"application/x-{name[:9].partition('.')[0]}",
                name,
            )
            assert read_blob(repository, manifest.layers[0], 99) == (tmp_path / name).read_bytes()
    reference = parse_reference(place)
    with contextlib.closing(open_target(reference, options)) as target:
        lists = {f"sha256-{digest.hex}" for digest in subjects.values()} if kind == "registry" else set()
        assert set(target.tags()) == {"1", "2"} | lists
        assert prune(reference, options, 2, delete=True).tags == []
        gone = [tag for tag, _ in prune(reference, options, 1, delete=True).tags]
        assert gone == ["1"] + [f"sha256-{subjects[1].hex}"] * (kind == "registry")
        assert set(target.tags()) == {"2"} | lists - set(gone)
    if kind == "registry":
        with contextlib.closing(open_repository(reference, options)) as repository:
            listed = Index.parse(repository.manifest(repository.resolve(f"sha256-{subjects[2].hex}"))).manifests
            assert {item.digest for item in listed} == {made[2, "sbom.json"], made[2, "signature"]}
            with pytest.raises(RegistryError, match="404"):
                repository.manifest(made[1, "sbom.json"])
    else:
        left = json.loads((tmp_path / "place/index.json").read_bytes())["manifests"]
        assert {Digest.parse(item["digest"]) for item in left} == {
            subjects[2],
            made[2, "sbom.json"],
            made[2, "signature"],
        }


@needs_registry
def test_a_registry_that_knows_referrers_gets_no_tag(tmp_path: Path, registry: RunningRegistry) -> None:
    digest = write_image(tmp_path / "l", "v1").digest
    (tmp_path / "sbom.json").write_text("{}")
    with run_faults(registry.name) as proxy:
        copy(f"oci:{tmp_path}/l:v1", f"{proxy.name}/some/image:v1", registry.options)
        proxy.add(Fault("status", "/manifests/", method="PUT", status=201, headers={"OCI-Subject": str(digest)}))
        options = registry.options._replace(give_up_s=1)
        with pytest.raises(RegistryError, match="404"):  # as the answer was ours, nothing is there to be read back
            attach(f"{proxy.name}/some/image:v1", tmp_path / "sbom.json", "application/x-sbom", options)
        assert not [path for method, path, _ in proxy.seen if method == "PUT" and "/manifests/sha256-" in path]
    with pytest.raises(BadInput, match="not a media type"):
        attach(f"{registry.name}/some/image:v1", tmp_path / "sbom.json", "sbom", registry.options)


@needs_registry
@pytest.mark.parametrize("status", [405, 404])
def test_a_registry_that_does_not_delete(tmp_path: Path, registry: RunningRegistry, status: int) -> None:
    """Said as it is, also where the answer is that there is no such thing."""
    write_image(tmp_path / "l", "v1")
    with run_faults(registry.name) as proxy:
        place = f"{proxy.name}/some/image"
        digest = copy(f"oci:{tmp_path}/l:v1", f"{place}:v1", registry.options)
        proxy.add(Fault("status", "/manifests/", method="DELETE", status=status))
        target = open_target(parse_reference(place), registry.options)
        with pytest.raises(Unsupported, match="does not delete"):
            target.remove(digest)
        target.remove(digest)
        assert target.tags() == {}
        target.remove(digest)  # what is gone is gone
        target.close()


def test_pruning_a_layout(tmp_path: Path) -> None:
    for number, platform in enumerate((AMD64, ARM64)):
        write_image(tmp_path / "l", str(number), platform)
    reference = parse_reference(f"oci:{tmp_path}/l")
    assert [tag for tag, _ in prune(reference, None, 1, delete=True).tags] == ["0"]  # type: ignore[arg-type]
    with open_source(f"oci:{tmp_path}/l:1", ARM64) as image:
        check_content(image)
    assert json.loads((tmp_path / "l/index.json").read_bytes())["mediaType"] == OCI_INDEX
    assert set(open_target(reference).tags()) == {"1"}
    done = subprocess.run(["ls", tmp_path / "l/blobs/sha256"], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) >= 4
    open_repository(reference).close()


@needs_registry
def test_publishing_loads_little(tmp_path: Path, registry: RunningRegistry) -> None:
    """A copy to a registry needs nothing but the standard library, and little of that."""
    write_image(tmp_path / "l", "v1")
    code = "import sys; from imagetool.cli import main; status = main(sys.argv[1:]);"
    code += "print(*sys.modules, file=sys.stderr); sys.exit(status)"
    place = f"{registry.name}/some/image:v1"
    argv = [sys.executable, "-c", code, "copy", f"oci:{tmp_path}/l:v1", place, "--plain-http"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}
    assert (
        not {"requests", "urllib3", "oras", "jsonschema", "rich", "zstandard", "isal", "doit", "cryptography"} & loaded
    )
    assert not {"asyncio", "concurrent", "ctypes", "logging", "multiprocessing", "subprocess"} & loaded
    # Of plain HTTP without failures and passwords.
    assert (
        not {"ssl", "http", "email", "random", "tempfile", "datetime", "base64", "binascii", "shlex", "locale"} & loaded
    )


@needs_registry
def test_a_push_asks_three_times_for_a_blob_and_once_if_it_is_there(tmp_path: Path, registry: RunningRegistry) -> None:
    """Over no more connections than there are uploads at once, and for nothing else but the manifest."""
    write_image(tmp_path / "l", "v1")
    blobs = len(list((tmp_path / "l/blobs/sha256").iterdir())) - 1
    with run_faults(registry.name) as proxy:
        for methods in (["HEAD", "POST", "PUT"] * blobs, ["HEAD"] * blobs):
            copy(f"oci:{tmp_path}/l:v1", f"{proxy.name}/some/image:v1", registry.options)
            assert sorted(method for method, _, _ in proxy.seen) == sorted([*methods, "PUT"])
            assert len(proxy.peers) <= min(blobs, UPLOADS) + 1
            proxy.seen.clear()
            proxy.peers.clear()


@pytest.mark.parametrize("start", [0, 1, 4, 5, 9, 10])
def test_the_rest_of_a_blob_is_held_back_from_its_last_piece_on(start: int) -> None:
    """Wherever a resumed upload begins, and also if a source yields nothing for a while."""
    blob = b"0123456789"
    splits = [[blob], [b"0123", b"", b"456789"], [b"01234", b"56789", b""], [blob[at : at + 1] for at in range(10)]]
    for split in splits:
        good, bad = (
            Body(Descriptor("x/y", Digest.of(content), len(blob)), partial(iter, split), start)
            for content in (blob, b"another")
        )
        assert b"".join(good) == blob[start:]
        sent: list[bytes] = []
        with pytest.raises(DigestMismatch):
            sent.extend(bad)
        assert blob[start:].startswith(b"".join(sent))
        assert b"9" not in b"".join(sent)


@pytest.mark.parametrize("size", [1000, (1 << 20) + 1])
def test_a_damaged_blob_is_never_sent_to_its_end(tmp_path: Path, size: int) -> None:
    """It is hashed while it is sent, so a registry that checks no digest does not get it either."""
    blob = random.Random(size).randbytes(size)
    descriptor = Descriptor("x/y", Digest.of(blob), size)
    arrived: list[int] = []

    class Trusting(QuietHandler):
        """Keeps whatever comes, if all of it comes."""

        def do_HEAD(self) -> None:  # noqa: N802
            self.send(404, b"")

        def do_POST(self) -> None:  # noqa: N802
            self.send(202, b"", Location="/v2/a/b/blobs/uploads/1")

        def do_PUT(self) -> None:  # noqa: N802
            arrived.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send(201, b"")

    for damaged in (blob[:-1] + bytes([blob[-1] ^ 1]), bytes([blob[0] ^ 1]) + blob[1:], blob):
        (tmp_path / "blob").write_bytes(damaged)
        reads = 0

        def content() -> Iterator[bytes]:
            nonlocal reads
            reads += 1
            yield from pieces(tmp_path / "blob")

        with serve(Trusting) as url:
            options = RegistryOptions(plain_http=True)
            target = RegistryTarget(urlsplit(url).netloc, "a/b", options)
            with contextlib.closing(target):
                if damaged is blob:
                    target.push_blob(descriptor, content)
                else:
                    with pytest.raises(DigestMismatch, match=str(descriptor.digest)):
                        target.push_blob(descriptor, content)
        assert reads == 1
    *others, last = arrived
    assert last == size
    assert len(others) == 2
    assert max(others) < size
