"""Options of `boot --from`: what a sandbox from a snapshot can have of its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rootdisk.errors import BadInput
from rootdisk.records import Record
from runner.options import network
from runner.options.arguments import boot_actions
from runner.options.values import hostname
from runner.sandbox import forks, snapshots
from runner.sandbox.prepare import PreparedSandbox
from runner.sandbox.snapshots import Snapshot
from runner.sandbox.state import Spec
from runner.store.store import Store

# The others say what a machine or its program starts with: in a snapshot both run already.
_WITH_MEMORY = frozenset(
    {"from_snapshot", "name", "label", "detach", "events", "keep", "rm", "timeout", "publish", "hostname", "quiet"}
    | {"interactive", "restart", "pull", "json", "debug", "help"}
)
# These say which disk it is, or who must have signed it: of a snapshot's, the policy of this host.
_NEVER = frozenset({"artifact", "platform", "policy", "clone", "disk_size", "verify", "record_reads"})


def create(store: Store, options: argparse.Namespace, spec: Spec, settings: Sequence[Record]) -> PreparedSandbox:
    """Create a sandbox from the snapshot that the command line names; `settings` are for one that boots.

    Raises:
        BadInput: The snapshot does not exist, or an option is for other sandboxes.
    """
    snapshot = snapshots.find(store, options.from_snapshot)
    is_cold = options.cold or snapshot.memory is None
    _check(options, snapshot, is_cold=is_cold)
    saved = snapshot.state.spec
    its_disk = (
        "reference",
        "artifact",
        "disk",
        "config",
        "kernel",
        "initramfs",
        "disk_size",
        "verity",
        "vmlinux",
        "clone",
    )
    if is_cold:
        spec = spec._replace(
            **{name: getattr(saved, name) for name in its_disk},
            memory_mib=spec.memory_mib or saved.memory_mib,
            cpus=spec.cpus or saved.cpus,
        )
        spec = network.of_artifact(spec, store.read_config(saved.config).allow, options)
        return forks.boot(store, snapshot, spec, settings)
    spec = saved._replace(
        name=spec.name,
        labels=spec.labels,
        keep=spec.keep,
        detached=spec.detached,
        interactive=spec.interactive,
        forwards=spec.forwards,
        timeout_s=spec.timeout_s,
        restart=spec.restart,
        backend="qemu",
        accelerator=str(snapshot.machine["accelerator"]),
        cold=False,
    )
    name = hostname(spec.name if options.hostname is None else options.hostname)
    return forks.go_on(store, snapshot, spec, name.encode())


def _check(options: argparse.Namespace, snapshot: Snapshot, *, is_cold: bool) -> None:
    """Refuse options that make no sense with the snapshot; BadInput names the first."""
    for action in boot_actions():
        if action.dest not in _NEVER and (is_cold or action.dest in _WITH_MEMORY):
            continue
        value = getattr(options, action.dest, None)
        if value in (None, action.default, "", []):
            continue
        name = action.option_strings[-1] if action.option_strings else "a command"
        if action.dest == "policy":
            raise BadInput(f"{name} and --from", "this host's policy.json is asked: put it there, or boot the artifact")
        if action.dest in _NEVER:
            raise BadInput(f"{name} and --from", "the disk is the snapshot's: omit it")
        raise BadInput(
            f"{name} and --from: the programs of snapshot {snapshot.name} run already",
            "runner exec NAME COMMAND, or boot its disk alone with --cold",
        )
    saved = snapshot.state.spec
    if not is_cold and options.interactive and not saved.interactive:
        raise BadInput("--interactive: the program of the snapshot has no standard input", "runner exec -it NAME sh")
    if not is_cold and options.publish and saved.network == "none":
        raise BadInput("--publish and --from: the snapshot has no network", "omit it")
