"""What `pip install` gives: wheel and sdist in empty environments, without a compiler, from image to exit status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from imagetool.guest import prebuilt
from imagetool.guest.boot_files import make_init
from imagetool.guest.programs import InitReceipt
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest, Platform
from tests.support.commands import ROOT
from tests.support.copies import copy_sources

AMD64 = Platform("linux", "amd64")
# All that is called from PATH: no compiler is among it.
TOOLS = ("sh", "env", "apt-get", "apt-cache", "dpkg", "dpkg-deb", "tar", "xz", "gzip")


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for inits as a wheel has it, with some bytes in place of programs."""
    monkeypatch.setattr(prebuilt, "BUILT", tmp_path / "built")
    (tmp_path / "built").mkdir()
    digests = {}
    for architecture in ("amd64", "arm64"):
        (tmp_path / "built" / architecture).write_bytes(architecture.encode())
        digests[architecture] = str(Digest.of(architecture.encode()))
    receipt = {"sources": prebuilt.sources(), "compiler": prebuilt.COMPILER, "digests": digests}
    (tmp_path / "built" / prebuilt.RECEIPT).write_text(json.dumps(receipt))
    return tmp_path / "built"


def test_the_init_that_came_along_is_used(built: Path, tmp_path: Path) -> None:
    assert prebuilt.are_built()
    for architecture in ("amd64", "arm64"):
        made = make_init(Platform("linux", architecture), tmp_path / "init")
        assert (tmp_path / "init").read_bytes() == architecture.encode()
        assert made == InitReceipt(Digest.of(architecture.encode()))


def test_one_of_other_sources_is_not(built: Path, tmp_path: Path) -> None:
    receipt = json.loads((built / prebuilt.RECEIPT).read_bytes())
    (built / prebuilt.RECEIPT).write_text(json.dumps({**receipt, "sources": "0" * 64}))
    assert not prebuilt.are_built()
    make_init(Platform.host(), tmp_path / "init")
    assert (tmp_path / "init").read_bytes()[:4] == b"\x7fELF"


def test_a_damaged_one_is_found_out(built: Path) -> None:
    (built / "amd64").write_bytes(b"amd46")
    with pytest.raises(RootdiskError, match="amd64 is damaged: install rootdisk again"):
        prebuilt.read_init(AMD64)


def run(argv: list[str], cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("distributions")
    run([sys.executable, "-m", "build", "--outdir", str(place / "dist"), "."], copy_sources(place / "project"))
    return place / "dist"


def inits(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist() if "/built/" in name}


@pytest.mark.nightly
def test_the_inits_are_the_same_again(distributions: Path, tmp_path: Path) -> None:
    """Made in another directory, by a compiler that has been installed and has cached nothing before."""
    (wheel,) = distributions.glob("*.whl")
    first = inits(wheel)
    assert first.keys() == {f"imagetool/guest/built/{name}" for name in ("amd64", "arm64", "inits.json")}
    project = copy_sources(tmp_path / "another place")
    again = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": str(tmp_path)}
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), "."], project, again)
    (second,) = tmp_path.glob("*.whl")
    assert inits(second) == first
    with zipfile.ZipFile(wheel) as packed:
        assert {"imagetool/py.typed", "runner/py.typed", "imagetool/config/images.schema.json"} <= set(
            packed.namelist()
        )
        assert not [name for name in packed.namelist() if name.startswith(("tests/", "bench/", "backend/"))]


@pytest.mark.nightly
@pytest.mark.vm
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_installed_without_a_compiler(distributions: Path, kind: str, demo: str, tmp_path: Path) -> None:
    """The plain install boots what the one for builders has made."""
    (file,) = distributions.glob(kind)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in TOOLS:
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    env = {"PATH": str(tools), "HOME": str(tmp_path), "ROOTDISK_CACHE": str(tmp_path / "cache")}
    env["ROOTDISK_STORE"] = str(tmp_path / "store")
    plain, builder = tmp_path / "plain", tmp_path / "builder"
    for place, extras in ((plain, ""), (builder, "[build]")):
        venv.create(place, with_pip=True)
        pip = [str(place / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        run([*pip, f"{file}{extras}"], tmp_path, {**os.environ, "PATH": str(tools)})
    assert {path.name for path in (plain / "share/man/man1").iterdir()} >= {"runner.1", "imagetool.1"}
    run([str(plain / "bin/runner"), "--help"], tmp_path, env)
    run([str(plain / "bin/imagetool"), "build", "--help"], tmp_path, env)
    done = subprocess.run([plain / "bin/imagetool", "build", "a", "b"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install 'rootdisk[build]'" in done.stderr
    source = f"oci:{ROOT}/cache/demo/source:latest"
    run([str(builder / "bin/imagetool"), "build", "--size", "1GiB", source, "oci:out:1"], tmp_path, env)
    boot = [str(plain / "bin/runner"), "boot", "--entrypoint", "/bin/echo", "oci:out:1", "--", "booted"]
    # QEMU runs as another user, who cannot come through this directory.
    assert run(boot, tmp_path, env | {"PATH": os.environ["PATH"]}) == "booted\n"
