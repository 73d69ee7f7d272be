"""`imagetool sbom`: what package databases say, as documents that others' validators accept, the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from imagetool.cli import main
from rootdisk.oci.reference import parse_reference
from rootdisk.places import open_repository
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


def image(folder: Path, files: dict[bytes, bytes]) -> Path:
    """A raw disk with `files`."""
    parents = sorted(
        {b"/".join(name.split(b"/")[:count]) for name in files for count in range(1, name.count(b"/") + 1)}
    )
    layer = b"".join(map(directory, parents)) + b"".join(file(name, data) for name, data in files.items()) + END
    write_layout(folder / "layout", "t", [layer])
    assert main(["disk", "-q", "--plain", "--size", "64m", f"oci:{folder}/layout:t", str(folder / "disk")]) == 0
    return folder / "disk"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROOTDISK_CACHE", str(tmp_path / "cache"))
    return image(tmp_path, FILES)


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
