"""Put together what serves a machine. This is loaded while QEMU, or the guest, starts."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rootdisk.durable import open_file
from runner.machine.model import Vm
from runner.sandbox.keeper.loop import Keeper
from runner.sandbox.keeper.room import Room
from runner.sandbox.output.logs import Log
from runner.sandbox.prepare import PreparedSandbox
from runner.store.events import Events
from runner.store.limits import Limits
from runner.store.store import Store

if TYPE_CHECKING:
    from runner.network.proxy import Proxy
    from runner.sandbox.keeper.feed import Feed

MACHINE_LOG_BYTES = 1 << 20
_SILENT_S = 15.0  # how long an untried KVM may give no sign of a guest


def make_keeper(
    prepared: PreparedSandbox,
    store: Store,
    vm: Vm,
    listener: socket.socket,
    client: socket.socket,
    folder: Path,
    *,
    is_tried: bool,
    on_ready: Callable[[], None] | None,
    events: Events,
    rename: Callable[[str], Events],
    feed: Feed | None,
) -> Keeper:
    """Return the keeper of a machine that has been started; its logs are in `folder`.

    With `is_tried` guests are known to start with this accelerator. For the others see `Keeper`.
    """
    spec = prepared.spec
    return Keeper(
        vm,
        listener,
        client,
        Log(folder / "console.log"),
        Log(folder / "output.log") if spec.detached else None,
        timeout_s=spec.timeout_s,
        silent_s=None if is_tried or prepared.snapshot is not None else _SILENT_S,
        logs={out: Log(folder / name, MACHINE_LOG_BYTES) for name, out in vm.talk.items()},
        room=Room(prepared.sandbox.folder, spec.memory_mib << 20, Limits.of_environment()),
        needs=prepared.needs,
        is_tied=prepared.is_tied,
        on_ready=on_ready,
        events=events,
        rename=rename,
        proxy=_open_proxy(prepared, folder) if spec.allow else None,
        feed=feed,
        open_memory=partial(_open_memory, store),
    )


def _open_memory(store: Store, name: str) -> int:
    """Create the file for the memory of a snapshot in its new directory."""
    return open_file(store.root / "snapshots" / name / "stream", os.O_WRONLY | os.O_CREAT | os.O_EXCL)


def _open_proxy(prepared: PreparedSandbox, folder: Path) -> Proxy:
    from runner.sandbox.keeper.egress import open_proxy  # no other sandbox needs it

    return open_proxy(prepared.spec, folder, prepared.hosts, prepared.secrets)
