"""The units of docs/howto/systemd.md are valid for systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import ROOT

ANALYZE = shutil.which("systemd-analyze")
_UNIT = re.compile(r"`/etc/systemd/system/([\w@-]+)\.service`:\n\n```ini\n(.*?)```", re.DOTALL)


def remarks(folder: Path, name: str, text: str) -> str:
    """Return what systemd says about a unit; the runner need not be installed for that."""
    (folder / f"{name}.service").write_text(text.replace("/usr/local/bin/runner", "/bin/true"))
    asked = folder / f"{name}{'alice' if name.endswith('@') else ''}.service"
    done = subprocess.run([str(ANALYZE), "verify", "--man=no", asked], capture_output=True, text=True, timeout=30)
    return done.stdout + done.stderr


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
def test_units(tmp_path: Path) -> None:
    units = _UNIT.findall((ROOT / "docs/howto/systemd.md").read_text())
    assert [name for name, _ in units] == ["web-sandbox", "rootdisk@"]
    for name, text in units:
        assert remarks(tmp_path, name, text) == ""
        assert "Unknown key" in remarks(tmp_path, name, text.replace("Delegate=", "Delegates="))
