"""Images as registries and tools really have them: what container runtimes take is taken, the rest is named."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from imagetool.look.inspection import described
from imagetool.sources.image_config import ImageConfig
from imagetool.sources.open import SourceImage, open_source
from rootdisk.errors import BadInput, RootdiskError, Unsupported
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.repository import RegistryOptions
from tests.support.odd_images import AMD64, ARM64, Layout
from tests.support.tars import END, file, pax, symlink

X86, ARM = Platform("linux", "amd64"), Platform("linux", "arm64")


def opened(name: str, platform: Platform = X86) -> SourceImage:
    with open_source(name, platform) as image:
        return image


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json", "text/html", ""])
def test_types_of_configs_that_docker_lists(tmp_path: Path, kind: str) -> None:
    layout = Layout(tmp_path / "l")
    assert len(opened(layout.named(layout.image(file(b"f"), config_type=kind))).layers) == 1


@pytest.mark.parametrize(
    "kind", ["application/vnd.docker.plugin.v1+json", "application/vnd.cncf.helm.config.v1+json", "text/plain"]
)
def test_types_of_configs_that_are_no_image_s(tmp_path: Path, kind: str) -> None:
    layout = Layout(tmp_path / "l")
    with pytest.raises(BadInput, match="not an image but"):
        opened(layout.named(layout.image(file(b"f"), config_type=kind)))


def test_a_config_by_an_untrue_type_that_is_none(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    with pytest.raises(BadInput, match=r"no rootfs\.diff_ids: is this an image"):
        opened(layout.named(layout.image(file(b"f"), config_type="application/json", top={"rootfs": None})))


def test_an_index_without_platforms(tmp_path: Path) -> None:
    """The configs say it; documents that are no images are passed over, and indexes looked into."""
    layout = Layout(tmp_path / "l")
    arm, intel = layout.image(file(b"arm"), top=ARM64), layout.image(file(b"intel"))
    helm = layout.image(file(b"x"), config_type="application/vnd.cncf.helm.config.v1+json")
    broken = layout.image(file(b"y"), top={"rootfs": 5})
    blob = layout.blob(b"{}", "application/x-anything")
    attested = layout.image(file(b"z"), platform={"os": "unknown", "architecture": "unknown"})
    for entries in (
        (arm, intel),
        (helm, broken, blob, attested, arm, intel),
        ({**arm, "platform": {}}, {**intel, "platform": {}}),
        ({**arm, "platform": {"os": "linux"}}, {**intel, "platform": {"architecture": ""}}),
        (layout.index(arm), layout.index(intel)),
        (layout.image(file(b"s390x"), platform={"os": "linux", "architecture": "s390x"}), intel, arm),
    ):
        name = layout.named(layout.index(*entries))
        assert str(opened(name).manifest_digest) == intel["digest"]
        assert str(opened(name, ARM).manifest_digest) == arm["digest"]
        with pytest.raises(BadInput, match="no linux/riscv64 variant"):
            opened(name, Platform("linux", "riscv64"))
    with pytest.raises(BadInput, match=r"no linux/arm64 variant \(only linux/amd64\): use --platform linux/amd64"):
        opened(layout.named(layout.index(intel)), ARM)


def test_an_index_json_that_is_the_index_of_one_image(tmp_path: Path) -> None:
    """Libraries write the index of an image as index.json itself; others give one tag to each of its manifests."""
    layout = Layout(tmp_path / "l")
    arm, intel = layout.image(file(b"arm"), top=ARM64, platform=ARM64), layout.image(file(b"intel"), platform=AMD64)
    for tag in ("", "t"):
        named = {"annotations": {"org.opencontainers.image.ref.name": tag}} if tag else {}
        name = f"oci:{layout.path}:{tag}".rstrip(":")
        for entries in ((arm, intel), (intel, arm)):
            index = {"schemaVersion": 2, "manifests": [{**entry, **named} for entry in entries]}
            (layout.path / "index.json").write_text(json.dumps(index))
            assert str(opened(name).manifest_digest) == intel["digest"]
            assert str(opened(name, ARM).manifest_digest) == arm["digest"]
            with pytest.raises(BadInput, match=r"no linux/riscv64 variant \(only linux/amd64, linux/arm64\)"):
                opened(name, Platform("linux", "riscv64"))
        other = layout.image(file(b"other"), platform=AMD64)
        for more in (other, {key: value for key, value in arm.items() if key != "platform"}):
            index = {"schemaVersion": 2, "manifests": [{**entry, **named} for entry in (intel, more)]}
            (layout.path / "index.json").write_text(json.dumps(index))
            with pytest.raises(BadInput, match="several images"):
                opened(name)


def test_several_images_by_their_whole_names(tmp_path: Path) -> None:
    """As containerd exports them, and docker save since version 25: the tag alone may be that of several."""
    layout = Layout(tmp_path / "l")
    entries = []
    for name in ("x", "y"):
        image = layout.image(file(name.encode()))
        names = {"org.opencontainers.image.ref.name": "1", "io.containerd.image.name": f"docker.io/library/{name}:1"}
        entries.append({**image, "annotations": names})
    (layout.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    for entry, name in zip(entries, ("x", "y"), strict=True):
        assert str(opened(f"oci:{layout.path}:docker.io/library/{name}:1").manifest_digest) == entry["digest"]
    with pytest.raises(
        BadInput, match=r"tag '1' is several images: it has 1, docker\.io/library/x:1, docker\.io/library/y:1"
    ):
        opened(f"oci:{layout.path}:1")


def test_an_artifact_that_is_listed_beside_its_image(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    image = layout.image(file(b"f"), platform=AMD64)
    other = layout.image(file(b"g"), platform=AMD64, artifactType="application/vnd.amazon.soci.index.v2+json")
    assert str(opened(layout.named(layout.index(other, image))).manifest_digest) == image["digest"]


def test_platforms_in_any_case(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    top: dict[str, object] = {"os": "Linux", "architecture": "ARM64", "variant": "V8"}
    image = layout.image(file(b"f"), top=top)
    assert opened(layout.named(image), ARM).remarks == ()
    assert opened(layout.named(layout.index({**image, "platform": top})), ARM).remarks == ()


def test_an_index_without_platforms_is_inspected(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    name = layout.named(layout.index(layout.image(file(b"arm"), top=ARM64), layout.image(file(b"intel"))))
    assert described(name, X86, RegistryOptions())["platform"] == "linux/amd64"


def test_an_index_without_platforms_has_its_bounds(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    entries = [layout.image(file(b"%d" % n), top=ARM64) for n in range(101)]
    with pytest.raises(BadInput, match="more than 100 entries without a platform"):
        opened(layout.named(layout.index(*entries)))
    nest = layout.image(file(b"f"))
    for _ in range(8):
        nest = layout.index(nest)
    with pytest.raises(BadInput, match="no linux/amd64 variant"):
        opened(layout.named(nest))


def test_mandatory_features_of_an_index(tmp_path: Path) -> None:
    """os.features are never ours; a processor's are taken if nothing else is there."""
    layout = Layout(tmp_path / "l")
    plain = layout.image(file(b"plain"), platform=AMD64)
    special = layout.image(file(b"special"), platform={**AMD64, "os.features": ["erofs"]})
    fast = layout.image(file(b"fast"), platform={**AMD64, "features": ["sse4"]})
    assert str(opened(layout.named(layout.index(special, fast, plain))).manifest_digest) == plain["digest"]
    assert str(opened(layout.named(layout.index(special, fast))).manifest_digest) == fast["digest"]
    with pytest.raises(BadInput, match="no linux/amd64 variant \\(only linux/amd64 with erofs\\): guests are Linux"):
        opened(layout.named(layout.index(special)))


@pytest.mark.parametrize("platform", [{**AMD64, "variant": "v2"}, {"os": "windows", "architecture": "amd64"}])
def test_what_to_type_for_another_platform(tmp_path: Path, platform: dict[str, str]) -> None:
    layout = Layout(tmp_path / "l")
    name = layout.named(layout.index(layout.image(file(b"f"), top=platform, platform=platform)))  # type: ignore[arg-type]
    hint = "guests are Linux" if platform["os"] == "windows" else "use --platform linux/amd64/v2"
    with pytest.raises(BadInput, match=hint):
        opened(name)
    if "variant" in platform:
        assert opened(name, Platform("linux", "amd64", "v2")).remarks == ()


def test_a_config_that_contradicts_its_index(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    wrong = layout.image(file(b"f"), top={"architecture": "386"}, platform=AMD64)
    image = opened(layout.named(layout.index(wrong)))
    assert [remark.text.partition(": ")[2] for remark in image.remarks] == [
        "its index says linux/amd64, its config linux/386: the index is believed"
    ]
    with pytest.raises(BadInput, match=r"no linux/amd64 variant \(only linux/386\): use --platform linux/386"):
        opened(f"oci:{layout.path}@{wrong['digest']}")
    nameless = opened(layout.named(layout.image(file(b"f"), top={"os": "", "architecture": ""})))
    assert "names no platform: linux/amd64 is believed" in nameless.remarks[0].text


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"}, "layer 1 is encrypted"),
        ({"mediaType": "application/vnd.oci.image.layer.v1.tar+encrypted"}, "layer 1 is encrypted"),
        ({"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted"}, "skopeo copy --decryption-key"),
        ({"annotations": {"org.opencontainers.image.enc.keys.jwe": "x"}}, "layer 1 is encrypted"),
        ({"mediaType": "application/vnd.erofs.layer.v1"}, "which is not a tar"),
        ({"mediaType": "application/vnd.in-toto+json"}, "which is not a tar"),
        ({"mediaType": "application/wasm"}, "which is not a tar"),
    ],
)
def test_layers_that_are_refused_by_name(tmp_path: Path, layer: dict[str, object], words: str) -> None:
    """Before a byte of them is read: here there is none."""
    layout = Layout(tmp_path / "l")
    top = layout.image(file(b"f"), layer={**layer, "digest": "sha256:" + "0" * 64})
    with pytest.raises(Unsupported, match=words):
        opened(layout.named(top))


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "application/x-gzip", "application/vnd.docker.image.rootfs.diff.tar"]
)
def test_layers_of_vague_types(tmp_path: Path, kind: str) -> None:
    layout = Layout(tmp_path / "l")
    assert len(opened(layout.named(layout.image(file(b"f"), layer={"mediaType": kind}))).layers) == 1


@pytest.mark.parametrize("name", ["config.json", "0" * 64 + ".json", "x/" + "1" * 64, "blobs/sha256/" + "2" * 64])
def test_a_docker_archive_whose_config_has_another_name(tmp_path: Path, name: str) -> None:
    tar = file(b"f", b"1") + END
    config = json.dumps({**AMD64, "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(tar))]}}).encode()
    listed = json.dumps([{"Config": name, "RepoTags": ["x:1"], "Layers": ["l.tar"]}]).encode()
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        for member_name, data in ((name, config), ("l.tar", tar), ("manifest.json", listed)):
            member = tarfile.TarInfo(member_name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    image = opened(f"docker-archive:{tmp_path}/d.tar")
    assert len(image.layers) == 1
    assert bool(image.remarks) == (name != "config.json")


LAYER = file(b"f", b"1") + END
CONFIG = json.dumps({**AMD64, "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(LAYER))]}}).encode()
LISTED: dict[str, object] = {"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["l/layer.tar"]}
MEMBERS = file(b"c.json", CONFIG) + file(b"l/layer.tar", LAYER)
ARCHIVES: dict[str, tuple[bytes, dict[str, object]]] = {
    "names with a dot": (MEMBERS, {"Config": "./c.json", "Layers": ["./l/layer.tar"]}),
    "absolute names": (MEMBERS, {"Config": "/c.json", "Layers": ["/l/layer.tar"]}),
    "names that leave it": (MEMBERS, {"Config": "../c.json", "Layers": ["l/../../l/layer.tar"]}),
    "members with a dot": (MEMBERS.replace(file(b"c.json", CONFIG), file(b"./c.json", CONFIG)), {}),
    "names of fields in lower case": (MEMBERS, {"config": "c.json", "layers": ["l/layer.tar"], "Layers": None, "Config": 5}),
    "links on the way": (
        file(b"z.json", CONFIG) + symlink(b"c.json", b"/z.json") + file(b"x/y/layer.tar", LAYER)
        + symlink(b"l", b"m/y") + symlink(b"m", b"../x"), {}
    ),
    "the last member of a name": (file(b"l/layer.tar", b"x") + MEMBERS, {}),
}  # fmt: skip


def docker_archive(path: Path, members: bytes, listed: dict[str, object]) -> str:
    entry = dict(sorted({**LISTED, **listed}.items()))  # capitals first
    (path / "d.tar").write_bytes(members + file(b"manifest.json", json.dumps([entry]).encode()) + END)
    return f"docker-archive:{path}/d.tar"


@pytest.mark.parametrize("case", ARCHIVES)
def test_docker_archives_as_docker_loads_them(tmp_path: Path, case: str) -> None:
    with open_source(docker_archive(tmp_path, *ARCHIVES[case]), X86) as image:
        assert [b"".join(layer.open()) for layer in image.layers] == [LAYER]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (MEMBERS + symlink(b"c.json", b"c.json"), "no file 'c.json' in it"),
        (MEMBERS + symlink(b"l", b"l") + symlink(b"l/layer.tar", b"l/layer.tar"), "no file 'l/layer.tar' in it"),
        (
            file(b"c.json", CONFIG) + pax([(b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"1,1")])
            + file(b"l/layer.tar", b"x"), "'l/layer.tar' is a sparse file: make the archive without --sparse"
        ),
    ],
)  # fmt: skip
def test_docker_archives_that_are_refused(tmp_path: Path, members: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        opened(docker_archive(tmp_path, members, {}))


def test_an_archive_of_an_old_docker(tmp_path: Path) -> None:
    (tmp_path / "d.tar").write_bytes(file(b"abc/layer.tar", LAYER) + file(b"repositories", b"{}") + END)
    with pytest.raises(Unsupported, match=r"an archive of Docker 1\.9 or older: docker load it, and docker save"):
        opened(f"docker-archive:{tmp_path}/d.tar")


def test_configs_as_docker_takes_them(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    config: dict[str, object] = {
        "Cmd": "sh", "Entrypoint": "", "Env": ["A=1", "B", "=c"], "StopSignal": "4294967305",
        "Labels": {"empty": None}, "Volumes": None,
    }  # fmt: skip
    image = opened(layout.named(layout.image(file(b"f"), config=config)))
    assert (image.config.cmd, image.config.entrypoint, image.config.env) == (("sh",), (), ("A=1",))
    assert (image.config.stop_signal, image.config.labels) == ("SIGTERM", {"empty": ""})
    assert [remark.text.partition(": ")[2][:20] for remark in image.remarks] == [
        "Env entry 'B' has no", "Env entry '' has no ", "StopSignal: '4294967",
    ]  # fmt: skip


def test_a_config_is_read_as_go_reads_it() -> None:
    """Names of fields in any case, null for an empty text, U+FFFD for what is not UTF-8."""
    head = b'{"OS":"linux","Architecture":"amd64","author":"J\xe9r\xf4me","rootfs":{"Diff_IDs":[]},"config":'
    for text, env in (
        (b'"A=\xe2\x82,\xff"', "A=\ufffd\ufffd,\ufffd"), (b'"A=\xed\xa0\x80"', "A=\ufffd\ufffd\ufffd"),
        ('"A=\u00e9"'.encode(), "A=\u00e9"), (rb'"A=\uD83D\uDE00"', "A=\U0001f600"),
    ):  # fmt: skip
        config = ImageConfig.parse(
            head + b'{"env":[' + text + b'],"CMD":["a",null],"cmd":["b",null],"workingdir":"/w"}}'
        )
        assert (config.env, config.cmd, config.workdir, config.platform) == ((env,), ("b", ""), "/w", X86)
    with pytest.raises(BadInput, match="Cmd is not a list of strings"):
        ImageConfig.parse(head + b'{"cmd":["a",1]}}')
    with pytest.raises(BadInput, match="Labels is not an object of strings"):
        ImageConfig.parse(head + b'{"labels":{"a":true}}}')


@pytest.mark.parametrize("entrypoint", [[""], [], None, ""])
def test_an_entrypoint_that_is_taken_back(tmp_path: Path, entrypoint: object) -> None:
    """ENTRYPOINT [""] of a Dockerfile: the command alone is run."""
    layout = Layout(tmp_path / "l")
    image = opened(layout.named(layout.image(file(b"f"), config={"Entrypoint": entrypoint, "Cmd": ["/bin/x", ""]})))
    assert (image.config.entrypoint, image.config.cmd) == ((), ("/bin/x", ""))


def test_blobs_that_are_links_are_called_so(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    name = layout.named(layout.image(file(b"f")))
    room = layout.path / "blobs/sha256"
    for number, path in enumerate(sorted(room.iterdir())):
        path.rename(layout.path / f"part-{number}")
        path.symlink_to(f"../../part-{number}")
    with pytest.raises(RootdiskError, match=r"is a symbolic link, and links in a layout are not followed: .*cp -rL"):
        opened(name)
