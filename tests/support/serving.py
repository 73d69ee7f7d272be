"""A server of a store, and runners that ask it before the origin."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.commands import ROOT, Runner
from tests.support.faults import FaultProxy


@contextlib.contextmanager
def serving(store: Path, *options: str) -> Iterator[str]:
    """The address of a server of `store`."""
    command = [sys.executable, "-m", "runner", "serve", "--listen", "127.0.0.1:0", *options]
    environment = {**os.environ, "ROOTDISK_STORE": str(store), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().rpartition(" ")[2].strip()
        finally:
            process.terminate()
            assert process.wait(20) == 0


def mirrored(runner: Runner, folder: Path, origin: str, mirror: str, *, insecure: bool = True) -> None:
    """Have the runner ask `mirror` before `origin`."""
    conf = folder / f"{runner.store.name}.conf"
    conf.write_text(
        f'[[registry]]\nlocation = "{origin}"\ninsecure = true\n'
        f'[[registry.mirror]]\nlocation = "{mirror}"\ninsecure = {str(insecure).lower()}\n'
    )
    os.environ["CONTAINERS_REGISTRIES_CONF"] = str(conf)


def blob_bytes(proxy: FaultProxy, since: int = 0) -> int:
    return sum(count for path, _, count in proxy.served[since:] if "/blobs/" in path)
