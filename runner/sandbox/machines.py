"""Requirements of a saved machine where it goes on: the same QEMU, machine type, processor and network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Platform
from runner.machine import qemu
from runner.machine.model import Machine
from runner.sandbox import guest_records
from runner.sandbox.snapshots import Snapshot
from runner.sandbox.state import State
from runner.store.pull import StoredArtifact
from runner.store.store import Store

_PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU part")


def saved_machine(store: Store, state: State, artifact: StoredArtifact) -> tuple[Machine, dict[str, Any]]:
    """Return the machine of a running sandbox without its disk and network, and what has to be the same elsewhere."""
    spec, config = state.spec, artifact.config
    records = guest_records.records_of(state)
    machine = Machine(
        config.platform,
        state.in_use.get("accelerator", "tcg"),
        spec.memory_mib,
        spec.cpus,
        artifact.booted_kernel,
        artifact.initramfs,
        config.cmdline,
        "",
        Path(),
        "raw",
        0,
        None,
        False,
        spec.network,
        kind=qemu.kind(config.platform, store.root / "qemu.json"),
        verity=artifact.verity if config.verity is not None and guest_records.is_read_only(records) else None,
        has_balloon=guest_records.has_balloon(spec),
        is_own_network=spec.network == "user" and not _has_passt(guest_records.complete(records, spec)),
    )
    return machine, identity(machine)


def identity(machine: Machine) -> dict[str, Any]:
    """Return what has to be the same where a saved machine goes on."""
    program = qemu.program(machine.platform)
    info = os.stat(program)
    return {
        "qemu": [os.path.realpath(program), info.st_size, info.st_mtime_ns],
        "kind": machine.kind,
        "accelerator": machine.accelerator,
        "processor": _processor() if machine.accelerator == "kvm" else "",
        "balloon": machine.has_balloon,
        "network": "qemu" if machine.is_own_network else "passt" if machine.network == "user" else "none",
    }


def check(snapshot: Snapshot, store: Store, platform: Platform) -> None:
    """Refuse a snapshot whose memory cannot go on here; BadInput says what differs."""
    wanted = snapshot.machine
    accelerator = str(wanted.get("accelerator"))
    machine = Machine(
        platform, accelerator, 0, 0, None, None, "", "", Path(), "raw", 0, None, False, snapshot.state.spec.network,
        kind=qemu.kind(platform, store.root / "qemu.json"),
        is_own_network=wanted.get("network") == "qemu",
    )  # fmt: skip
    here = identity(machine)
    names = {"qemu": "QEMU", "kind": "machine type", "processor": "processor", "network": "network"}
    for key, what in names.items():
        if wanted.get(key) != here[key]:
            raise BadInput(f"snapshot {snapshot.name} was taken with another {what}", _hint(snapshot))
    if accelerator == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise BadInput(f"snapshot {snapshot.name} was taken with KVM, which this host does not have", _hint(snapshot))
    if wanted.get("network") == "passt":
        from runner.machine import passt

        if not passt.is_usable():
            raise RootdiskError(f"snapshot {snapshot.name} was taken with passt, which is not installed", "install it")


def like_saved(snapshot: Snapshot, machine: Machine) -> Machine:
    """Return `machine` with what it has to have to go on from the snapshot."""
    value: Mapping[str, Any] = snapshot.machine
    return machine._replace(
        kind=str(value["kind"]),
        is_own_network=value["network"] == "qemu",
        has_balloon=value.get("balloon") is True,
    )


def _hint(snapshot: Snapshot) -> str:
    return f"take it again here; its disk alone: runner boot --from {snapshot.name} --cold"


def _has_passt(records: list[tuple[str, bytes]]) -> bool:
    from runner.machine import passt

    return passt.is_usable() and (not guest_records.has_ipv6(records) or passt.has_ipv6())


def _processor() -> str:
    """Return a digest of the host's processor, which a guest with KVM has too."""
    lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0].splitlines()
    shown = [line for line in lines if line.partition(":")[0].strip() in _PROCESSOR]
    return hashlib.sha256("\n".join(shown).encode()).hexdigest()
