"""README's way from nothing to a booted disk, literally, by pip, pipx and uv: a user without rights on a minimal Debian."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.copies import build_wheel
from tests.support.images import needs_skopeo
from tests.support.mounts import needs_root

README = (ROOT / "README.md").read_text("utf-8")
INSTALLERS = {"pip": "python3 -m venv", "pipx": "pipx install", "uv": "uv tool install"}
TIMEOUT_S = 2400


def commands(heading: str) -> list[str]:
    """The lines of the code blocks below a heading, without comments."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = "".join(re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)).splitlines()
    return [line.split(" #")[0].rstrip() for line in lines]


def test_the_blocks_are_what_is_tried() -> None:
    system, *installing = commands("Install")
    assert system.startswith("apt-get install -y ")
    assert [line.startswith(start) for line, start in zip(installing, INSTALLERS.values(), strict=True)] == [True] * 3
    assert [line.split()[0] for line in commands("From your image to a booted disk")] == [
        *("runner", "mkdir", "imagetool", "imagetool", "imagetool", "runner"),
    ]


def on_machine(machine: Path, script: str) -> str:
    """Run a script as root there; return what it says."""
    argv = [str(ROOT / "tests/support/fresh.sh"), "bookworm", "bash", "-euc", script]
    done = subprocess.run(
        argv,
        env={**os.environ, "FRESH": str(machine), "CLONE": "keep" if (machine / "root/project").exists() else ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture
def machine(tmp_path: Path, demo: str) -> Iterator[Path]:
    place = tmp_path / "machine"
    try:
        on_machine(place, "true")
        wheel = build_wheel(tmp_path / "wheel")
        shutil.copy(wheel, place / "srv")
        archive = f"docker-archive:{place}/srv/web.tar:team/web:2"
        subprocess.run(["skopeo", "copy", "-q", f"oci:{ROOT}/cache/demo/source:latest", archive], check=True)
        system = commands("Install")[0]
        on_machine(
            place,
            f"apt-get update -qq; export DEBIAN_FRONTEND=noninteractive; {system} -qq pipx >/dev/null; "
            "python3 -m venv /opt/uv; /opt/uv/bin/pip install -q uv",
        )
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.nightly
@pytest.mark.root
@pytest.mark.vm
@needs_root
@needs_skopeo
@pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed")
def test_by_each_installer(machine: Path) -> None:
    """Each gives commands that run the graph. Minutes and commands are printed, for a report."""
    for installer, line in zip(INSTALLERS, commands("Install")[1:], strict=True):
        # pipx and uv have told the user to put this into the PATH.
        lines = [
            line.replace("rootdisk-0.1.0", next((machine / "srv").glob("*.whl")).name.removesuffix("-py3-none-any.whl"))
        ]
        lines += commands("From your image to a booted disk")
        script = "\n".join(['export PATH="$HOME/.local/bin:$PATH:/opt/uv/bin"', "set -ex", "cp /srv/* ~; cd", *lines])
        user = f"user{installer}"
        passed = '$(env | grep -E "^(PIP_|SSL_|REQUESTS_)")'
        said = on_machine(
            machine,
            f"useradd -m {user}; SECONDS=0; setpriv --reuid={user} --regid={user} --clear-groups --no-new-privs "
            f"env -i HOME=/home/{user} PATH=/usr/bin:/bin LANG=C.UTF-8 {passed} bash -c {shlex.quote(script)}; "
            f'echo "{installer}: {len(lines)} commands, $SECONDS s"',
        )
        assert "web: published oci:" in said
        assert "a boot found nothing wrong" in said
        print(said.splitlines()[-1])
