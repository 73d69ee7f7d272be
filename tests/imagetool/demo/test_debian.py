"""The installation of Debian's packages: what is left of it if it is interrupted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagetool.demo.debian import install
from rootdisk.errors import RootdiskError


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a plain user's mmdebstrap has mounts of its own anyway")
def test_mounts_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it mounts goes with it; here it is killed before it can unmount."""
    (tmp_path / "programs").mkdir()
    (tmp_path / "there").mkdir()
    program = tmp_path / "programs/mmdebstrap"
    program.write_text("#!/bin/sh\nmount -t tmpfs tmpfs there && touch there/mounted && ls there >seen\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(RootdiskError, match="mmdebstrap ended with"):
        install(tmp_path, "amd64")
    assert (tmp_path / "seen").read_text() == "mounted\n"
    assert not os.path.ismount(tmp_path / "there")
