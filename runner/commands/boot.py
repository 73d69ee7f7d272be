"""boot and start."""

from __future__ import annotations

import argparse
import contextlib
import os
import re

from rootdisk.artifact.format import CPUS_MAX, MEMORY_MAX_MIB, MEMORY_MIN_MIB
from rootdisk.cli.sizes import size_text
from rootdisk.errors import BadInput
from rootdisk.oci.reference import parse_reference
from rootdisk.system import process
from runner.commands import options as given
from runner.machine import backend
from runner.machine.tsc import Counter
from runner.sandbox import directory, launch
from runner.sandbox.directory import Spec
from runner.store.pull import StoredArtifact
from runner.store.store import Store

DISK_UNIT = 4096
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}\Z")


def boot_command(options: argparse.Namespace) -> int:
    counter = Counter()  # which measures while the rest is done
    process.forbid_core()
    name = options.name or f"sandbox-{os.urandom(4).hex()}"
    if not NAME.match(name):
        raise BadInput(f"--name {name!r:.80}", "lower-case letters, digits, - _ and . only")
    if options.keep and options.rm:
        raise BadInput("--keep and --rm", "one of them only")
    if options.detach and options.interactive:
        raise BadInput("--detach and --interactive", "nobody is there to write: runner exec -i")
    records = given.boot_records(options, name)
    spec = _spec(options, name)
    store = Store.open()
    local = given.local(store, options, ask=options.pull == "always")
    status = launch.launch(launch.create(store, local, _filled(spec, local), records), store, counter)
    if options.detach:
        given.write_json({"name": name}) if options.json else print(name)
    with contextlib.suppress(OSError):
        directory.sweep(store)
    return status


def start_command(options: argparse.Namespace) -> int:
    counter = Counter()
    process.forbid_core()
    store = Store.open()
    state = directory.find(store, options.name)
    if state.running:
        raise BadInput(f"sandbox {options.name} runs already", f"runner exec {options.name} -- COMMAND")
    state = state._replace(spec=state.spec._replace(detached=not options.attach))
    status = launch.launch(launch.reopen(store, state), store, counter)
    if not options.attach:
        given.write_json({"name": options.name}) if options.json else print(options.name)
    return status


def _spec(options: argparse.Namespace, name: str) -> Spec:
    """All that the command line says; the artifact's part is still empty."""
    if options.cpus is not None and not 1 <= options.cpus <= CPUS_MAX:
        raise BadInput(f"--cpus {options.cpus}", f"1 to {CPUS_MAX}")
    memory = given.size_bytes(options.memory, "--memory") if options.memory is not None else 0
    if options.memory is not None and not MEMORY_MIN_MIB <= memory >> 20 <= MEMORY_MAX_MIB:
        limits = f"{size_text(MEMORY_MIN_MIB << 20)} to {size_text(MEMORY_MAX_MIB << 20)}"
        raise BadInput(f"--memory {options.memory!r:.40}", f"write {limits}, as 512m or 1.5g")
    forwards = given.forwards(options.publish)
    if forwards and options.network == "none":
        raise BadInput("--publish and --network none", "without a network no port can be reached")
    if options.timeout is not None and options.timeout <= 0:
        raise BadInput(f"--timeout {options.timeout:g}", "more than 0 seconds; no limit: leave it away")
    disk_size = given.size_bytes(options.disk_size, "--disk-size") if options.disk_size is not None else 0
    disk_size = -(-disk_size // DISK_UNIT) * DISK_UNIT  # 1.3g is no whole number of blocks
    shares = given.volumes(options.volume)
    return Spec(
        name=name,
        reference=str(parse_reference(options.artifact)),
        artifact="",
        disk="",
        config="",
        kernel=None,
        initramfs=None,
        disk_size=disk_size,
        memory_mib=memory >> 20,
        cpus=options.cpus or 0,
        network=options.network,
        forwards=forwards,
        volumes=tuple((str(share.path), share.guest, share.read_only) for share in shares),
        volume_rights=tuple(
            (share.guest, right) for share in shares for right in ("dev", "suid") if right in share.rights
        ),
        labels=given.labels(options.label),
        keep=(options.keep or options.detach) and not options.rm,
        detached=options.detach,
        interactive=options.interactive,
        terminal=options.tty,
        backend=backend.choose(options.backend, given.platform(options)),
        accelerator=options.accel,
        clone=options.clone,
        timeout_s=options.timeout,
    )


def _filled(spec: Spec, local: StoredArtifact) -> Spec:
    """With what the artifact says where the command line does not."""
    return spec._replace(
        artifact=str(local.digest),
        disk=local.config.disk_digest.hex,
        config=local.config_digest.hex,
        kernel=local.kernel.name if local.kernel else None,
        initramfs=local.initramfs.name if local.initramfs else None,
        disk_size=spec.disk_size or local.config.disk_size,
        memory_mib=spec.memory_mib or local.config.memory_mib,
        cpus=spec.cpus or local.config.cpus,
    )
