"""Options of a boot: check them, fetch the artifact, and create the sandbox."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
from pathlib import Path
from typing import NamedTuple

from rootdisk.artifact.format import CPUS_MAX, MEMORY_MAX_MIB, MEMORY_MIN_MIB
from rootdisk.cli.sizes import size_text
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.records import Record
from rootdisk.text import printable
from runner.machine import backend
from runner.options import arguments, network, surroundings
from runner.options import values as option_values
from runner.sandbox import prepare
from runner.sandbox.keeper.restart import Policy
from runner.sandbox.prepare import PreparedSandbox
from runner.sandbox.state import Spec
from runner.store import limits
from runner.store.events import Events
from runner.store.pull import StoredArtifact
from runner.store.store import Store

DISK_UNIT = 4096


class Request(NamedTuple):
    """The checked options of a boot. Fields of `spec` that come from the artifact are still empty."""

    spec: Spec
    records: list[Record]  # for the slot


def request(options: argparse.Namespace) -> Request:
    """Check the options of `boot` and return what they ask for.

    Raises:
        BadInput: An option is wrong; the message names it.
    """
    name = option_values.sandbox_name(options.name or f"sandbox-{os.urandom(4).hex()}", "--name")
    if options.keep and options.rm:
        raise BadInput("--keep and --rm", "use one of them")
    if options.detach and options.interactive:
        raise BadInput("--detach and --interactive", "boot it with -d, then: runner exec -it NAME sh")
    if options.from_snapshot is not None and options.artifact:  # there is none: this is the command
        options.program, options.artifact = [options.artifact, *options.program], ""
    if Policy.parse(options.restart).kind != "no":
        if not options.detach or options.rm:
            raise BadInput(f"--restart {options.restart}", "use it with --detach, and without --rm")
        if options.timeout is not None:
            raise BadInput("--restart and --timeout", "use one of them")
    options.program = option_values.program(options.program, _flags(options), "ARTIFACT")
    records = option_values.boot_records(options, name) + surroundings.records(options)
    spec = _spec(options, name)
    if spec.secrets:
        from runner.network.secrets import parse_secret
        from runner.sandbox.secrets import check_settings

        for text in spec.secrets:
            check_settings(parse_secret(text), records)
    return Request(spec, records)


def create(store: Store, options: argparse.Namespace, wanted: Request) -> PreparedSandbox:
    """Fetch the artifact as the options say, and create the sandbox.

    Raises:
        RootdiskError: It cannot be fetched or created; nothing is left of the sandbox.
    """
    limits.check(store.root, is_sandbox=True)
    events = Events(store.root, wanted.spec.name, _events_fd(options))
    if options.from_snapshot is not None:
        from runner.options import snapshot

        prepared = snapshot.create(store, options, wanted.spec, wanted.records)
        told = {"artifact": prepared.spec.reference, "digest": str(prepared.artifact.digest)}
        events.tell("resolved", **told, snapshot=options.from_snapshot)
        return prepared._replace(events=events)
    try:
        with _asking_qemu(store, wanted.spec, options):
            artifact = option_values.artifact(store, options)
    except RootdiskError as err:
        from rootdisk.trust.judgement import Refused  # much to load, and only for an error

        if isinstance(err, Refused):
            events.tell("refused", artifact=wanted.spec.reference, error=str(err))
        raise
    digest = str(artifact.digest)
    events.tell("resolved", artifact=wanted.spec.reference, digest=digest)
    if artifact.fetched or artifact.reused:
        events.tell("fetched", digest=digest, bytes=artifact.fetched, reused=artifact.reused)
    elif artifact.source is None:
        events.tell("hit", digest=digest)
    try:
        _check_whole(artifact, options)
        if options.verify:
            _verify(store, artifact, options)
        record = None if options.record_reads is None else _new_file(options.record_reads)
        prepared = prepare.create(store, artifact, _with_defaults(wanted.spec, artifact, options), wanted.records)
        if prepared.served is not None and record is not None:
            prepared.served.record_reads(record)
        return prepared._replace(events=events)
    except BaseException:
        artifact.release()
        raise


def _asking_qemu(store: Store, spec: Spec, options: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    if spec.backend == "krun":
        return contextlib.nullcontext()
    from runner.machine import qemu

    return qemu.asked_early(option_values.platform(options), store.root / "qemu.json")


def _new_file(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as err:
        raise BadInput(f"--record-reads: cannot write {printable(path)}: {err.strerror}") from err


def _check_whole(artifact: StoredArtifact, options: argparse.Namespace) -> None:
    """Refuse options that need a complete disk, or an incomplete one.

    Raises:
        BadInput: The disk is, or is not.
    """
    if options.verify and artifact.source is not None:
        raise BadInput("--verify: the disk is not complete yet", "each chunk is verified as it is read; omit --verify")
    if options.record_reads is not None and artifact.source is None:
        raise BadInput(
            "--record-reads: the disk is complete, so nobody sees its reads",
            "use --pull lazy, with ROOTDISK_STORE set to an empty directory",
        )


def _events_fd(options: argparse.Namespace) -> int | None:
    """Return the descriptor of --events; BadInput if nothing is open there for writing."""
    fd: int | None = options.events
    if fd is None:
        return None
    try:
        is_writable = fd > 2 and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except (OSError, OverflowError):
        is_writable = False
    if not is_writable:
        raise BadInput(
            f"--events {fd}: no open file to write to", "for example: runner boot --events 3 … 3> events.json"
        )
    return fd


def _verify(store: Store, artifact: StoredArtifact, options: argparse.Namespace) -> None:
    """Hash the artifact's files in the store before anything boots from them, and the templates that may be used instead."""
    from rootdisk.cli.progress import shown_progress
    from rootdisk.system.notices import notice
    from runner.store.verify import check
    from runner.template import saved

    with shown_progress(f"verifying {printable(options.artifact)}", quiet=options.quiet) as progress:
        check(store, artifact, progress)
    if not (options.cold or saved.is_off()):
        saved.remove_damaged(store, notice)


def _flags(options: argparse.Namespace) -> set[str]:
    """Return the option strings of boot, such as `--name`; empty if they are not needed."""
    if "--" not in options.program:
        return set()
    return {flag for action in arguments.boot_actions() for flag in action.option_strings}


def _spec(options: argparse.Namespace, name: str) -> Spec:
    """Return what the command line specifies; the fields that come from the artifact are still empty."""
    if options.cpus is not None and not 1 <= options.cpus <= CPUS_MAX:
        raise BadInput(f"--cpus {options.cpus}", f"1 to {CPUS_MAX}")
    memory = option_values.size_bytes(options.memory, "--memory") if options.memory is not None else 0
    if options.memory is not None and not MEMORY_MIN_MIB <= memory >> 20 <= MEMORY_MAX_MIB:
        limits = f"{size_text(MEMORY_MIN_MIB << 20)} to {size_text(MEMORY_MAX_MIB << 20)}"
        raise BadInput(f"--memory {options.memory!r:.40}", f"write {limits}, as 512m or 1.5g")
    forwards = option_values.forwards(options.publish)
    asked = network.network(options, forwards)
    if options.timeout is not None and options.timeout <= 0:
        raise BadInput(f"--timeout {options.timeout:g}", "more than 0 seconds; omit it for no limit")
    disk_size = option_values.size_bytes(options.disk_size, "--disk-size") if options.disk_size is not None else 0
    disk_size = -(-disk_size // DISK_UNIT) * DISK_UNIT  # 1.3g is not a whole number of blocks
    shares = option_values.volumes(options.volume)
    return Spec(
        name=name,
        reference=str(parse_reference(options.artifact)) if options.artifact else "",
        artifact="",
        disk="",
        config="",
        kernel=None,
        initramfs=None,
        disk_size=disk_size,
        memory_mib=memory >> 20,
        cpus=options.cpus or 0,
        network=asked.mode,
        allow=asked.allow,
        secrets=asked.secrets,
        ca_file=os.path.abspath(options.ca_file) if asked.secrets and options.ca_file is not None else None,
        forwards=forwards,
        volumes=tuple((str(share.path), share.guest, share.read_only) for share in shares),
        volume_rights=tuple(
            (share.guest, right) for share in shares for right in ("dev", "suid") if right in share.rights
        ),
        labels=option_values.labels(options.label),
        keep=(options.keep or options.detach) and not options.rm,
        detached=options.detach,
        interactive=options.interactive,
        terminal=options.tty,
        backend=backend.choose(options.backend, option_values.platform(options)),
        accelerator=options.accel,
        clone=options.clone,
        timeout_s=options.timeout,
        cold=options.cold,
        restart=options.restart,
    )


def _with_defaults(spec: Spec, artifact: StoredArtifact, options: argparse.Namespace) -> Spec:
    """Fill in the artifact's own values for what the command line does not specify."""
    registry = artifact.source.options if artifact.source is not None else RegistryOptions()
    return network.of_artifact(spec, artifact.config.allow, options)._replace(
        artifact=str(artifact.digest),
        disk=artifact.config.disk_digest.hex,
        config=artifact.config_digest.hex,
        kernel=artifact.kernel.name if artifact.kernel else None,
        initramfs=artifact.initramfs.name if artifact.initramfs else None,
        verity=artifact.verity.name if artifact.verity else None,
        vmlinux=artifact.vmlinux.name if artifact.vmlinux else None,
        disk_size=spec.disk_size or artifact.config.disk_size,
        memory_mib=spec.memory_mib or artifact.config.memory_mib,
        cpus=spec.cpus or artifact.config.cpus,
        plain_http=registry.plain_http,
        registry_ca_file=str(registry.ca_file.absolute()) if registry.ca_file is not None else None,
    )
