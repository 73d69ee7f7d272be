"""A runner from before signatures, SBOMs and dm-verity with an artifact that has them all, and with a store of today's runner.

Its code comes from the project's own history, so the test needs a clone that has it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Runner, run
from tests.support.signing import make_keys

pytestmark = [pytest.mark.vm, pytest.mark.nightly]
BEFORE_SIGNATURES = "5f3b7e49e88f92e3b15514450617e9ad37e80ebb"  # reads artifact format 1, and knows channel version 3
Older = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def older(tmp_path: Path) -> Older:
    """The command of the older runner, with its own store unless another is named."""
    packed = subprocess.run(["git", "archive", BEFORE_SIGNATURES], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        pytest.skip("this is not a clone with the project's history")
    folder = tmp_path / "older"
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as tar:
        tar.extractall(folder, filter="data")

    def command(*words: str, store: Path = tmp_path / "older-store") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "runner", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), "ROOTDISK_STORE": str(store)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    assert "--policy" not in command("boot", "--help").stdout
    return command


def test_it_boots_what_is_signed_and_has_a_tree(source: str, older: Older, tmp_path: Path) -> None:
    artifact, keys = f"oci:{tmp_path}/disks:1", make_keys(tmp_path / "keys")
    for words in (
        ("build", "-q", "--size", "512MiB", "--verity", source, artifact),
        ("sbom", "--attach", artifact),
        ("sign", "-q", "--key", str(keys.private), artifact),
    ):
        done = run("imagetool", *words, timeout=600)
        assert done.returncode == 0, done.stderr
    script = ("--entrypoint", "/bin/sh", artifact, "--", "-c", "echo up; ls /dev/dm-*")
    for options in ((), ("--read-only",)):  # the tree is ignored: nothing is checked, and nothing fails
        done = older("boot", "--network", "none", *options, *script)
        assert done.stdout == "up\n", done.stderr
    assert older("verify").returncode == 0

    # Both use one store in turn.
    both = Runner(tmp_path / "store")
    done = both.boot(artifact, "ls /dev/dm-*", "--network", "none", "--read-only")
    assert done.stdout.split() == ["/dev/dm-0", "/dev/dm-1"], done.stderr
    done = older("boot", "--network", "none", "--pull", "never", *script, store=both.store)
    assert done.stdout == "up\n", done.stderr
    assert older("prune", store=both.store).returncode == 0
    done = both.boot(artifact, "ls /dev/dm-*", "--network", "none", "--read-only")
    assert done.stdout.split() == ["/dev/dm-0", "/dev/dm-1"], done.stderr
    assert both("verify").returncode == 0
