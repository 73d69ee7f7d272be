"""`imagetool diff` and `explain` of two registry artifacts fetch what differs, and each chunk that both have once at most."""

from __future__ import annotations

import json
import random
from pathlib import Path

from imagetool.look import inspection
from rootdisk.artifact.published import open_artifact
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import Joined, RegistryOptions
from tests.support.commands import run
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


def test_only_what_differs_is_fetched(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    read = 0
    plain = Joined.read

    def counting(self: Joined, start: int, end: int) -> object:
        nonlocal read
        read += end - start
        return plain(self, start, end)

    monkeypatch.setattr(Joined, "read", counting)
    noise = random.Random(1)
    base = directory(b"data") + b"".join(file(b"data/%d" % n, noise.randbytes(LARGE)) for n in range(4)) + END
    layers = {version: [base, file(b"changed", text) + END] for version, text in (("1", b"one"), ("2", b"two"))}
    first, second = (parse_reference(build(tmp_path, *pair)) for pair in layers.items())
    options = RegistryOptions()
    with open_artifact(first, Platform.host(), options) as a, open_artifact(second, Platform.host(), options) as b:
        changes = list(inspection.compared(inspection.InspectedDisk.of(a), inspection.InspectedDisk.of(b)))
        assert [(change.path, change.kind) for change in changes if "links" not in change.what] == [
            ("/changed", "changed")
        ]
        assert "sha256" in changes[-1].what or any("sha256" in change.what for change in changes)
        assert a.roles.disk_bytes > 4 * LARGE
        assert read < LARGE


def test_a_changed_file_of_the_same_size_is_seen(tmp_path: Path) -> None:
    """Also one that is large and differs in one byte."""
    data = bytearray(random.Random(2).randbytes(LARGE))
    names = []
    for version in ("1", "2"):
        names.append(build(tmp_path, version, [file(b"large", bytes(data)) + file(b"same", b"x" * 9000) + END]))
        data[LARGE // 2] ^= 1
    done = run("imagetool", "diff", *names, cwd=tmp_path)
    assert (done.returncode, done.stdout.count("\n")) == (1, 1)
    assert done.stdout.startswith("~ /large: sha256 ")
    assert run("imagetool", "diff", names[0], names[0], cwd=tmp_path).returncode == 0


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
