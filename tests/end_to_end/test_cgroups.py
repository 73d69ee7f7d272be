"""Limits of the host. Not every host of these tests has cgroups of version 2, so a guest is the host, with our programs in it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Runner
from tests.support.disks import needs_root
from tests.support.krun import FakeKrun, needs_compiler

SCRIPT = """
set -e
cd /host
mkdir proc sys dev tmp etc store
for name in bin lib lib64 sbin; do ln -s usr/$name $name; done
for place in proc sys dev; do mount --rbind /$place $place; done
mount -t tmpfs none tmp
echo root:x:0:0:root:/root:/bin/sh > etc/passwd
cp /in/libkrun.so.1 tmp
export ROOTDISK_STORE=/store ROOTDISK_LIBKRUN=/tmp/libkrun.so.1 PYTHONPATH={root} PYTHONDONTWRITEBYTECODE=1
exec chroot . {python} {root}/tests/end_to_end/guest/cgroups.py /tmp/libkrun.so.1 {demo}
"""


@pytest.mark.vm
@pytest.mark.root
@pytest.mark.nightly  # many programs of Python in an emulated machine
@needs_root
@needs_compiler
def test_a_machine_in_a_cgroup(demo: str, runner: Runner, tmp_path: Path) -> None:
    FakeKrun.build(tmp_path)
    folders = {Path("/usr"), ROOT, Path(sys.prefix), Path(sys.base_prefix)}
    outer = [folder for folder in folders if not folders & set(folder.parents)]
    done = runner.boot(
        demo,
        SCRIPT.format(root=ROOT, python=sys.executable, demo=demo),
        *("-u", "0", "-m", "1g", "--network", "none", "-v", f"{tmp_path}:/in:ro"),
        *(word for folder in outer for word in ("-v", f"{folder}:/host{folder}:ro")),
        timeout=460,
    )
    assert done.stdout == "done\n", done.stdout + done.stderr
