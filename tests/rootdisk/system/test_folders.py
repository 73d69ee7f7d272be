"""Where the user's files are, by what the environment says or leaves out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rootdisk.system.folders import home, user_folder
from tests.support.commands import ROOT
from tests.support.disks import needs_root


def test_the_environment_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert user_folder("XDG_DATA_HOME", ".local/share", "ROOTDISK_STORE") == tmp_path / ".local/share"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert user_folder("XDG_DATA_HOME", ".local/share", "ROOTDISK_STORE") == Path("/data")
    monkeypatch.setenv("HOME", "")
    assert home() == Path(os.path.expanduser(f"~{_user()}"))


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


@pytest.mark.parametrize("tool", ["runner", "imagetool"])
def test_nothing_is_relative(tmp_path: Path, tool: str) -> None:
    """Else what it means would change with the working directory. A relative XDG_… is as if it were not set."""
    command = {"runner": ["ps"], "imagetool": ["verify", "oci:none:1"]}[tool]
    variables = {"XDG_CACHE_HOME": "./~", "XDG_DATA_HOME": "./~"}
    for place, said in (
        ("./~", f"{tool}: no home directory: ./~ is not an absolute path: set HOME or ROOTDISK_"),
        (f"{tmp_path}/h", ""),
    ):
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": place, **variables}
        done = subprocess.run(
            [sys.executable, "-m", tool, *command], env=env, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stderr.startswith(said)
        assert done.stderr.count("\n") <= 1
        assert {path.name for path in tmp_path.iterdir()} <= {"h"}


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("given", [{}, {"HOME": ""}])
def test_a_user_without_an_entry(tmp_path: Path, given: dict[str, str]) -> None:
    """As in a container that runs as any number."""
    code = "import os, pwd; from runner.store.store import Store; os.setuid(54321); Store.open()"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **given}
    tmp_path.chmod(0o777)
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    # The modules are another user's, so that it is no command.
    assert done.stderr.splitlines()[-1] == (
        "rootdisk.errors.BadInput: no home directory: HOME is not set, and /etc/passwd has none for user 54321: "
        "set HOME or ROOTDISK_STORE"
    )
    assert not list(tmp_path.iterdir())


def test_no_home_is_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    from rootdisk.registry import credentials

    for name in ("HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(credentials, "home", lambda: None)
    assert credentials.find_credentials("registry.example", "a/b") is None
