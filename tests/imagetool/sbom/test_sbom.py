"""`imagetool sbom`: what package databases say, as documents that others' validators accept, the same each time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from imagetool.build.artifact import publish_artifact
from imagetool.build.disk import open_image
from imagetool.cli import main
from imagetool.config import images
from imagetool.config.images import Image
from imagetool.guest.boot_files import boot_files
from imagetool.guest.programs import BootFiles
from imagetool.sbom.formats import FORMATS
from imagetool.sbom.golang import Module, modules
from rootdisk.oci.documents import Digest, Manifest
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import read_blob
from rootdisk.places import open_repository
from tests.fuzz.targets.packages import a_go_program
from tests.support.commands import Runner
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file

DPKG = b"""Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc (2.41-1)
Version: 2.41-1+b2
Description: GNU C Library
 more

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: base-files
Status: install ok installed
Architecture: all
Version: 1:13
"""
APK = (
    b"C:Q1x=\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\no:musl\nF:lib\nR:ld-musl.so\nZ:Q1y=\n\n"
    b"P:busybox\nV:1.37-r1\nA:x86_64\nL:GPL-2.0-only\n\n"
)
FILES = {
    b"etc/os-release": b'NAME=Test\nID="debian"\nVERSION_ID=13\n',
    b"var/lib/dpkg/status": DPKG,
    b"var/lib/dpkg/info/libc6:amd64.list": b"/lib\n",
    b"var/lib/dpkg/status.d/tzdata": b"Package: tzdata\nVersion: 2025a\nArchitecture: all\n",
    b"var/lib/dpkg/status.d/tzdata.md5sums": b"0  x\n",
    b"lib/apk/db/installed": APK,
    b"usr/lib/python3/dist-packages/Foo_Bar-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: Foo_Bar\nVersion: 1.0\n\ntext",
    b"usr/lib/node_modules/@a/b/package.json": b'{"name": "@a/b", "version": "2.0.0", "license": "ISC"}',
    b"usr/lib/node_modules/@a/b/test/package.json": b'{"name": "inner", "version": "9"}',
    b"usr/lib/node_modules/c/package.json": b"{not json",
}
WANTED = {
    "pkg:apk/debian/busybox@1.37-r1?arch=x86_64",
    "pkg:apk/debian/musl@1.2.5-r0?arch=x86_64",
    "pkg:deb/debian/base-files@1%3A13?arch=all",
    "pkg:deb/debian/libc6@2.41-1%2Bb2?arch=amd64",
    "pkg:deb/debian/tzdata@2025a?arch=all",
    "pkg:npm/%40a/b@2.0.0",
    "pkg:pypi/foo-bar@1.0",
}


def layer(files: Mapping[bytes, bytes], mode: int = 0o644) -> bytes:
    parents = sorted(
        {b"/".join(name.split(b"/")[:count]) for name in files for count in range(1, name.count(b"/") + 1)}
    )
    return (
        b"".join(map(directory, parents)) + b"".join(file(name, data, mode=mode) for name, data in files.items()) + END
    )


def image(folder: Path, files: Mapping[bytes, bytes], mode: int = 0o644) -> Path:
    """A raw disk with `files`."""
    write_layout(folder / "layout", "t", [layer(files, mode)])
    assert main(["disk", "-q", "--plain", "--size", "64m", f"oci:{folder}/layout:t", str(folder / "disk")]) == 0
    return folder / "disk"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROOTDISK_CACHE", str(tmp_path / "cache"))
    return image(tmp_path, FILES)


def rpm(folder: Path, *argv: str) -> str:
    return subprocess.run(argv, cwd=folder, check=True, capture_output=True, text=True).stdout


def reading(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: data[offset : offset + length]


def built_of(image: Image, folder: Path) -> tuple[Digest, BootFiles, Path]:
    with open_image(image) as source:
        return source.manifest_digest, boot_files(image, folder / "cache"), folder / "cache"


def locators(value: dict[str, Any]) -> set[str]:
    return {ref["referenceLocator"] for package in value["packages"] for ref in package.get("externalRefs", ())}


def test_spdx(disk: Path, tmp_path: Path) -> None:
    for name in ("a.spdx.json", "b.spdx.json"):
        assert main(["sbom", str(disk), "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.spdx.json").read_bytes() == (tmp_path / "b.spdx.json").read_bytes()
    value = json.loads((tmp_path / "a.spdx.json").read_bytes())
    assert locators(value) == WANTED
    assert validate_full_spdx_document(parse_file(str(tmp_path / "a.spdx.json"))) == []


def test_cyclonedx(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["sbom", "--format", "cyclonedx", str(disk)]) == 0
    text = capsys.readouterr().out
    assert {component["purl"] for component in json.loads(text)["components"]} == WANTED
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"version":1', '"version":0')) is not None


@pytest.mark.parametrize(
    ("path", "data"),
    [(b"var/lib/dpkg/status", b"Package: a\n\x1b[31m\n"), (b"lib/apk/db/installed", b"P:a\nsomething else\n")],
)
def test_a_database_that_is_not_one(
    path: bytes, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROOTDISK_CACHE", str(tmp_path / "cache"))
    made = image(tmp_path, {path: data})
    capsys.readouterr()
    assert main(["sbom", str(made)]) == 2
    said = capsys.readouterr().err
    assert path.decode() in said
    assert "\x1b" not in said
    assert said.count("\n") == 1


def test_a_source_image_is_looked_through_without_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It lists what the disk of the image lists, and names the same layers."""
    monkeypatch.setenv("ROOTDISK_CACHE", str(tmp_path / "cache"))
    second = {b"usr/lib/node_modules/z/package.json": b'{"name": "z", "version": "1.0.0"}'}
    write_layout(tmp_path / "layout", "t", [layer(FILES), layer(second)])
    assert main(["sbom", f"oci:{tmp_path}/layout:t"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert locators(value) == {*WANTED, "pkg:npm/z@1.0.0"}
    layers = {package["name"]: package["comment"] for package in value["packages"] if "comment" in package}
    assert layers["z"] != layers["libc6"] == layers["base-files"]
    assert layers["z"].startswith("layer sha256:")


def test_what_is_published_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attached once, however often it is published; the same as of the published artifact; and pruned with it."""
    monkeypatch.chdir(tmp_path)
    write_layout(tmp_path / "layout", "t", [layer(FILES)])
    text = '[image.a]\nsource = "oci:layout:t"\npublish = "oci:out"\nkernel = "none"\nsize = "64m"\nsbom = {}\n'
    for value, media_type in (("true", "application/spdx+json"), ('"cyclonedx"', "application/vnd.cyclonedx+json")):
        (image_,) = images.parse(text.format(value), tmp_path / "images.toml")
        for _ in range(2):
            publish_artifact(image_, *built_of(image_, tmp_path), image_.publish, "1", force=True)
        repository = open_repository(parse_reference("oci:out:1"))
        digest = repository.resolve("1").digest
        (attached,) = repository.referrers(digest, media_type)
        (blob,) = Manifest.parse(repository.manifest(attached)).layers
        form = FORMATS[image_.sbom or ""]
        assert main(["sbom", "--format", form, "oci:out:1", "-o", "own.json"]) == 0
        assert read_blob(repository, blob, 1 << 20) == Path("own.json").read_bytes()
        repository.close()

    # An artifact that a target has already gets it too, in every target.
    shutil.rmtree(tmp_path / "cache/disks")
    text = text.replace('"oci:out"', '["oci:out", "oci:two", "oci:three"]')
    (image_,) = images.parse(text.format("true"), tmp_path / "images.toml")
    made = publish_artifact(image_, *built_of(image_, tmp_path), image_.publish, "1", force=True)
    assert made.found
    for place in ("two", "three"):
        repository = open_repository(parse_reference(f"oci:{place}:1"))
        assert len(repository.referrers(made.digest, "application/spdx+json")) == 1
        repository.close()


needs_rpm = pytest.mark.skipif(not shutil.which("rpmbuild"), reason="needs rpmbuild")
SPEC = """
Name: {name}
Epoch: 2
Version: 1.0
Release: 3
Summary: x
License: MIT AND Apache-2.0
BuildArch: noarch
%description
x
%install
mkdir -p %{{buildroot}}/usr/share/{name}
echo {name} >%{{buildroot}}/usr/share/{name}/file
%files
/usr/share/{name}/file
"""


@needs_rpm
def test_rpm_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The database of rpm itself, and one whose rows are in the write-ahead log still."""
    monkeypatch.setenv("ROOTDISK_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        (tmp_path / f"{name}.spec").write_text(SPEC.format(name=name))
        rpm(tmp_path, "rpmbuild", "--define", f"_topdir {tmp_path}/top", "-bb", f"{name}.spec")
    place = (
        "rpm",
        "--root",
        str(tmp_path / "root"),
        "--dbpath",
        "/usr/lib/sysimage/rpm",
        "--define",
        "_db_backend sqlite",
    )
    (tmp_path / "root").mkdir()
    rpm(tmp_path, *place, "-i", "--nodeps", *map(str, (tmp_path / "top").rglob("*.noarch.rpm")))
    query = "%{NAME} %{EPOCH}:%{VERSION}-%{RELEASE} %{ARCH} %{LICENSE}\n"
    told = sorted(rpm(tmp_path, *place, "-qa", "--qf", query).splitlines())
    assert len(told) == 2
    folder = tmp_path / "root/usr/lib/sysimage/rpm"
    database = (folder / "rpmdb.sqlite").read_bytes()
    with contextlib.closing(sqlite3.connect(folder / "rpmdb.sqlite")) as connection:
        (blob,) = connection.execute("SELECT blob FROM Packages LIMIT 1").fetchone()
        changed = blob.replace(b"one\0", b"six\0").replace(b"two\0", b"six\0")
        connection.execute("INSERT INTO Packages (blob) VALUES (?)", (changed,))
        connection.commit()
        journal = (folder / "rpmdb.sqlite-wal").read_bytes()
    assert journal
    files = {b"etc/os-release": b"ID=fedora\n", b"usr/share/one/file": b"one\n"}
    names = {0: {b"usr/lib/sysimage/rpm/rpmdb.sqlite": database}, 1: {b"var/lib/rpm/rpmdb.sqlite": database}}
    names[1][b"var/lib/rpm/rpmdb.sqlite-wal"] = journal
    for number, more in names.items():
        (tmp_path / str(number)).mkdir()
        disk = image(tmp_path / str(number), files | more)
        capsys.readouterr()
        assert main(["sbom", str(disk)]) == 0
        packages = json.loads(capsys.readouterr().out)["packages"][1:]
        found = sorted(
            f"{package['name']} {package['versionInfo']} noarch {package['licenseComments'].removeprefix('declared as ')}"
            for package in packages
        )
        assert [line for line in found if not line.startswith("six")] == told
        assert len(found) == 2 + number
        assert "pkg:rpm/fedora/one@1.0-3?arch=noarch&epoch=2" in locators({"packages": packages})


@pytest.mark.parametrize("kind", ["text", "no table", "a view", "not a header", "a long header", "a bomb"])
def test_a_hostile_rpm_database(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROOTDISK_CACHE", str(tmp_path / "cache"))
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x AS hnum, x AS blob FROM c"
    table = "CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)"
    statements = {
        "no table": ["CREATE TABLE a (b)"],
        "a view": [f"CREATE VIEW Packages AS {endless}"],
        "not a header": [table, "INSERT INTO Packages (blob) VALUES (zeroblob(100))"],
        "a long header": [table, "INSERT INTO Packages (blob) VALUES (x'0000ffff0fffffff0000')"],
        "a bomb": [table, "INSERT INTO Packages (blob) VALUES (zeroblob(200000000))"],
    }
    path = tmp_path / "db"
    if kind == "text":
        path.write_bytes(b"\x1b[31mno database" * 100)
    else:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            for statement in statements[kind]:
                connection.execute(statement)
            connection.commit()
    data = path.read_bytes()
    layer_ = (
        b"".join(map(directory, (b"var", b"var/lib", b"var/lib/rpm"))) + file(b"var/lib/rpm/rpmdb.sqlite", data) + END
    )
    write_layout(tmp_path / "layout", "t", [layer_])
    capsys.readouterr()
    assert main(["sbom", f"oci:{tmp_path}/layout:t"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("imagetool: /var/lib/rpm/rpmdb.sqlite")
    assert said.count("\n") == 1
    assert "\x1b" not in said


def test_a_database_that_is_not_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROOTDISK_CACHE", str(tmp_path / "cache"))
    disk = image(tmp_path, {b"var/lib/rpm/Packages": b"Berkeley DB"})
    capsys.readouterr()
    assert main(["sbom", "--format", "cyclonedx", str(disk)]) == 0
    out, err = capsys.readouterr()
    assert "/var/lib/rpm/Packages: this kind of database is not read" in err
    assert json.loads(out)["compositions"] == [{"aggregate": "incomplete", "assemblies": ["disk"]}]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(out) is None
    assert main(["sbom", str(disk), "-o", str(tmp_path / "a.spdx.json")]) == 0
    assert validate_full_spdx_document(parse_file(str(tmp_path / "a.spdx.json"))) == []


GO = shutil.which("go")


@pytest.mark.nightly
@pytest.mark.skipif(not GO, reason="needs Go")
def test_a_go_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What Go's own tool says of a program that it has built; without the flags of the build."""
    monkeypatch.setenv("ROOTDISK_CACHE", str(tmp_path / "cache"))
    for folder, text in (
        ("", 'package main\nimport "c.d/lib"\nfunc main() { println(lib.A) }\n'),
        ("lib", "package lib\nvar A = 1\n"),
    ):
        (tmp_path / "go" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "go" / folder / "file.go").write_text(text)
    (tmp_path / "go/lib/go.mod").write_text("module c.d/lib\ngo 1.18\n")
    requires = "require c.d/lib v1.2.3\nreplace c.d/lib => ./lib\n"
    (tmp_path / "go/go.mod").write_text(f"module a.b/main\ngo 1.18\n{requires}")
    environment = {"HOME": str(tmp_path / "home"), "GOPROXY": "off", "CGO_ENABLED": "0", "PATH": os.environ["PATH"]}
    build = [str(GO), "build", "-ldflags=-s -w -X main.x=s3cret", "-o", "program"]
    subprocess.run(build, cwd=tmp_path / "go", env=environment, check=True, capture_output=True)
    disk = image(tmp_path, {b"usr/bin/program": (tmp_path / "go/program").read_bytes()}, mode=0o755)
    capsys.readouterr()
    assert main(["sbom", str(disk)]) == 0
    text = capsys.readouterr().out
    assert "s3cret" not in text
    done = subprocess.run(
        [str(GO), "version", "-m", "program"],
        cwd=tmp_path / "go",
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    told = {(words[2], words[3]) for words in lines if words[1:2] in (["mod"], ["dep"])}
    assert {name for name, _ in told} == {"a.b/main", "c.d/lib"}
    told.add(("stdlib", lines[0][0].partition(": go")[2]))
    assert {(package["name"], package["versionInfo"]) for package in json.loads(text)["packages"][1:]} == told


def test_a_damaged_go_program() -> None:
    """Cut, or with any byte changed, it is read or refused, and never a traceback."""
    data = a_go_program()
    found = list(modules(reading(data)))
    assert found == [Module("stdlib", "1.22.1"), Module("a.b/c", "(devel)"), Module("g.h/i", "v2.0.0")]
    for at in range(len(data)):
        for changed in (data[:at], data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]):
            with contextlib.suppress(ValueError):
                list(modules(reading(changed)))


@pytest.mark.vm
def test_it_is_what_the_guest_says(
    demo: str, runner: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a Debian image: no package missing, none too many; and a layer for each."""
    assert main(["sbom", demo]) == 0
    value = json.loads(capsys.readouterr().out)
    packages = [package for package in value["packages"] if "pkg:deb/" in json.dumps(package)]
    done = runner.boot(demo, "dpkg-query -W -f '${db:Status-Status} ${Package} ${Version}\\n'", "--network", "none")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    told = {(name, version) for status, name, version in lines if status == "installed"}
    assert told
    assert {(package["name"], package["versionInfo"]) for package in packages} == told
    assert all(package["comment"].startswith("layer sha256:") for package in packages)
    copy = f"oci:{tmp_path}/copy:1"
    assert main(["copy", "-q", demo, copy]) == 0
    capsys.readouterr()
    assert main(["sbom", "--attach", copy]) == 0
    repository = open_repository(parse_reference(copy))
    (attached,) = repository.referrers(repository.resolve("1").digest, "application/spdx+json")
    repository.close()
    assert str(attached.digest) == capsys.readouterr().out.strip()
