"""Images that are unlike others, by the command line: remarks, counts, --strict, tar: sources, and files that are not there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from imagetool.cli import main
from imagetool.ext4.reader import Reader
from imagetool.packing.manifest import Blob, assemble
from imagetool.tree.tar import scan
from rootdisk.artifact.format import ArtifactConfig
from rootdisk.errors import BadInput
from rootdisk.oci.documents import canonical_json
from rootdisk.oci.reference import parse_reference
from tests.support.artifacts import example_config
from tests.support.commands import without_progress
from tests.support.disks import complaints, needs_e2fsck
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file, header, padded, pax

ODD = pax([(b"SCHILY.xattr.com.apple.x", b"1"), (b"mtime", b"99999999999999")]) + file(b"etc/odd", b"1")
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.setenv("ROOTDISK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(output: Output, *words: str) -> tuple[int, str, str]:
    status = main(words)
    said = output.readouterr()
    return status, said.out, without_progress(said.err)


PLAIN = ("disk", "--plain", "--size", "64MiB", "--platform", "linux/amd64")


@needs_e2fsck
def test_remarks_counts_and_strict(tmp_path: Path, capsys: Output) -> None:
    write_layout(tmp_path / "l", "t", [ODD + END])
    status, out, err = run(capsys, *PLAIN, "--json", "oci:l:t", "disk")
    assert status == 0
    assert err.splitlines() == [
        "imagetool: /etc/odd (layer 1 of 1): the time 99999999999999 s: ext4 holds -2147483648 to 15032385535, so the nearest is taken",
        "imagetool: /etc/odd (layer 1 of 1): extended attribute com.apple.x: Linux has no such namespace: left out",
    ]
    assert json.loads(out)[0]["left_out"] == {"time": 1, "xattr": 1}
    assert complaints(tmp_path / "disk") == []
    assert run(capsys, *PLAIN, "-q", "oci:l:t", "disk")[2] == ""
    status, _, err = run(capsys, *PLAIN, "--strict", "oci:l:t", "strict")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("imagetool: strict: /etc/odd (layer 1 of 1): ")
    assert not (tmp_path / "strict").exists()


def test_what_plain_ignores_is_said(tmp_path: Path, capsys: Output) -> None:
    write_layout(tmp_path / "l", "t", [file(b"f") + END])
    _, _, err = run(capsys, *PLAIN, "-e", "A=1", "--owner", "/f=1", "--cmd", "x", "oci:l:t", "disk")
    assert err == "imagetool: --plain adds nothing to the image: -e, --owner, --cmd do nothing\n"
    assert run(capsys, *PLAIN, "oci:l:t", "disk")[2] == ""


@pytest.mark.parametrize(
    "name",
    ["rootfs.tar", "web.TAR.GZ", "./web", "../web", "/no/web", "disk.ext4", "builds/rootfs.tgz", "~/x.tar", "web/"],
)
def test_a_missing_file_is_never_asked_for_at_a_registry(name: str, capsys: Output) -> None:
    """There is no network here: asking would be another error, after a while."""
    for words in ((*PLAIN, name, "disk"), ("inspect", name), ("ls", name, "/"), ("build", name, "oci:l:1")):
        status, _, err = run(capsys, *words)
        assert (status, err.count("\n")) == (2, 1)
        assert "is a path, and that file does not exist" in err or "is a file or directory" in err


def test_a_file_or_layout_here_is_not_asked_for_at_docker_hub(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name alone does not say which of our kinds it is: the error does. Other directories do not count."""
    monkeypatch.chdir(tmp_path)
    write_layout(tmp_path / "layout", "t", [file(b"f") + END])
    write_layout(tmp_path / "images/web", "t", [file(b"f") + END])
    (tmp_path / "rootfs").write_bytes(file(b"f") + END)
    (tmp_path / "nginx").mkdir()
    for name in ("layout", "layout:t", "images/web", "images/web:t", "rootfs"):
        status, _, err = run(capsys, *PLAIN, name, "disk")
        assert (status, err.count("\n")) == (2, 1)
        assert f"reference '{name}' is a file or directory" in err
        assert f"write oci:{name} for an OCI layout" in err
    for name in ("nginx", "nginx:1", "docker.io/library/rootfs", "registry.example/layout", "localhost:5000/layout"):
        assert parse_reference(name).kind == "registry"
    assert parse_reference("rootfs", foreign=True).repository == "library/rootfs"


def test_names_that_look_a_little_like_files_are_images_still() -> None:
    for name in (
        "tar",
        "library/img",
        "docker.io/library/web.tar",
        "localhost/rootfs.tar",
        "x.y/disk.ext4:1",
        "a/b:1.tar.gz0",
    ):
        assert parse_reference(name).kind == "registry"
    with pytest.raises(BadInput, match=r"name its registry: docker.io/library/web.tar"):
        parse_reference("web.tar")


@needs_e2fsck
def test_bare_tars_as_tar_makes_them(tmp_path: Path, capsys: Output) -> None:
    """A volume's label, a directory of an incremental backup, zeros after the gzip stream."""
    listing = b"Yf\0\0"
    tar = (
        header(b"label", b"V") + header(b"d/", b"D", mode=0o750, size=len(listing)) + padded(listing) + directory(b"e") + file(b"d/f", b"1")
    )  # fmt: skip
    (tmp_path / "r.tar").write_bytes(tar + END)
    (tmp_path / "r.tgz").write_bytes(gzip.compress(tar + END) + bytes(10_000))
    for name in ("r.tar", "r.tgz"):
        assert run(capsys, *PLAIN, f"tar:{name}", "disk") == (0, "disk\n", "")
        assert complaints(tmp_path / "disk") == []
        with Reader.open(tmp_path / "disk") as reader:
            names = {path.decode(): node.mode & 0o7777 for path, node in reader.walk()}
        assert {"/d", "/d/f", "/e"} <= names.keys()
        assert "/label" not in names
        assert names["/d"] == 0o750
    write_layout(tmp_path / "l", "t", [tar + END])  # the same as a layer, which was kept as a bare tar: nobody takes it
    status, _, err = run(capsys, *PLAIN, "oci:l:t", "disk")
    assert status == 2
    assert "unknown type 'V': container runtimes refuse it too" in err
    (tmp_path / "r.tgz").write_bytes(gzip.compress(tar + END) + bytes(600) + b"x")
    assert "something that is not gzip follows" in run(capsys, *PLAIN, "tar:r.tgz", "disk")[2]
    (tmp_path / "m.tar").write_bytes(header(b"f", b"M") + END)
    status, _, err = run(capsys, *PLAIN, "tar:m.tar", "disk")
    assert status == 2
    assert "unknown type 'M': make the tar again" in err


def test_a_label_of_any_size_is_bounded(tmp_path: Path) -> None:
    for kind in (b"V", b"D"):
        (tmp_path / "t").write_bytes(header(b"x", kind, size=1 << 40) + END)
        with (tmp_path / "t").open("rb") as tar, pytest.raises(BadInput, match="do not fit into the tar"):
            scan(tar.fileno(), 1536, "t", bare=True)


def test_a_bare_tar_without_a_command_is_taken_on_the_command_line(tmp_path: Path, capsys: Output) -> None:
    """images.toml asks for one; here the sandbox's own command may say what to run."""
    (tmp_path / "r.tar").write_bytes(file(b"f") + END)
    status, _, err = run(capsys, "disk", "--size", "64MiB", "--platform", "linux/amd64", "tar:r.tar", "disk")
    assert (status, err) == (0, "")


def test_a_command_line_that_no_shell_takes(capsys: Output) -> None:
    status, _, err = run(capsys, *PLAIN, "--cmd", "a 'b", "tar:x.tar", "disk")
    assert status == 2
    assert '--cmd "a \'b": No closing quotation' in err


def test_the_config_has_the_counts_and_only_if_there_are_any() -> None:
    config = example_config()
    assert "left_out" not in config.to_json()["disk"]
    with_counts = config._replace(left_out={"time": 1, "xattr": 2})
    assert ArtifactConfig.parse(canonical_json(with_counts.to_json())) == with_counts
    values: tuple[object, ...] = ([], {"time": -1}, {"time": "1"}, {str(n): 1 for n in range(17)}, {"time": True})
    for wrong in values:
        value = config.to_json()
        value["disk"]["left_out"] = wrong
        with pytest.raises(BadInput, match="left_out"):
            ArtifactConfig.parse(canonical_json(value))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"WorkingDir": "/x" * 3000}, "image config: process: workdir: 6000 characters are more than the 4096 allowed"),
        ({"Cmd": ["x" * 131_073]}, "image config: process: cmd: 131073 characters are more than the 131072 allowed"),
        ({"Volumes": {"/" + "v" * 4096: {}}}, "image config: process: volumes: 4097 characters"),
        ({"Labels": {"a": "x" * ((1 << 20) + 1)}}, "image config: labels: 1048577 characters"),
    ],
)
def test_what_the_runner_would_not_read_is_not_built(
    tmp_path: Path, capsys: Output, config: dict[str, object], words: str
) -> None:
    write_layout(tmp_path / "l", "t", [file(b"f") + END], config)
    status, _, err = run(capsys, "build", "-q", "--size", "64MiB", "--platform", "linux/amd64", "oci:l:t", "oci:a:1")
    assert (status, err.count("\n")) == (2, 1)
    assert words in err
    assert not (tmp_path / "a").exists()


def test_a_config_that_is_too_long_is_not_published() -> None:
    config = example_config()._replace(labels={str(n): "x" * (1 << 20) for n in range(4)})
    chunks = Blob.of_bytes("t", b"")
    with pytest.raises(BadInput, match=r"artifact config: [0-9]+ bytes are more than the 4194304 allowed"):
        assemble(config, [], chunks)
    assemble(config._replace(labels={}), [], chunks)
