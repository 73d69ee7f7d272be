"""Start the machine of a prepared sandbox: from a template if there is one, else by booting its kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from rootdisk.errors import RootdiskError
from rootdisk.system import process
from rootdisk.system.debug import debug, is_shown
from runner.channel.messages import LANES
from runner.machine import tsc
from runner.machine.model import Forward, Machine, Vm
from runner.sandbox import guest_records
from runner.store.store import Store

if TYPE_CHECKING:
    from runner.machine.cgroup import Cgroup
    from runner.sandbox.keeper.feed import Feed
    from runner.sandbox.prepare import PreparedSandbox
    from runner.sandbox.snapshots import Snapshot


def start_machine(
    prepared: PreparedSandbox,
    store: Store,
    accelerator_name: str,
    counter: tsc.Counter,
    user: process.User | None,
    feed: Feed | None = None,
    cgroup: Cgroup | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[Vm, Callable[[], None] | None]:
    """Start the machine with the requested back end, in `cgroup`, from a template if there is one.

    Also return what is to be done when the program has started: to make a template for the next start. If the disk is not
    complete, QEMU connects to its server by `feed`. `meanwhile` is called while a saved machine is read.
    """
    spec, artifact, folder = prepared.spec, prepared.artifact, prepared.sandbox.folder
    machine = _machine(prepared, accelerator_name, feed, cgroup)
    if cgroup is not None:
        cgroup.limit(machine)
    if spec.backend == "krun":
        from runner.machine import krun

        return krun.start(_told(machine, counter), user), None
    from runner.machine import qemu
    from runner.template import saved

    machine = machine._replace(kind=qemu.kind(artifact.config.platform, store.root / "qemu.json"))
    if prepared.snapshot is not None:
        return _from_snapshot(prepared, prepared.snapshot, store, machine, user, meanwhile), None
    if feed is not None:
        from runner.sandbox.keeper.feed import HANDED_OVER

        feed.wait_s = qemu.RECONNECT_S
        feed.orders = qemu.hand_over(machine, HANDED_OVER)
    key = None if spec.cold or saved.is_off() else saved.key(machine, artifact.config)
    vm = None if key is None else _from_template(prepared, key, store, machine, user, feed, meanwhile)
    if vm is None:
        vm = qemu.start(_told(machine, counter), folder, user)
    return vm, _maker(store, machine, counter, key)


def _machine(prepared: PreparedSandbox, accelerator_name: str, feed: Feed | None, cgroup: Cgroup | None) -> Machine:
    """Return the configuration of a sandbox's machine."""
    spec, artifact, config = prepared.spec, prepared.artifact, prepared.artifact.config
    verity = config.verity if artifact.verity and prepared.is_read_only else None
    slot = config.slot()
    base = feed.path if feed is not None else artifact.disk if prepared.disk.overlay else None
    return Machine(
        platform=config.platform,
        accelerator=accelerator_name,
        memory_mib=spec.memory_mib,
        cpus=spec.cpus,
        kernel=artifact.booted_kernel,
        initramfs=artifact.initramfs,
        cmdline=config.cmdline,
        slot_digest=prepared.slot_digest,
        disk=prepared.disk.path,
        disk_format=prepared.disk.form,
        disk_size=spec.disk_size,
        base=base,
        is_base_served=feed is not None,
        durable=spec.keep,
        network=spec.network,
        forwards=() if spec.allow else tuple(Forward(*forward) for forward in spec.forwards),
        shares=guest_records.shares(spec),
        ipv6=prepared.ipv6,
        lanes=LANES if spec.allow else 0,
        verity=artifact.verity if verity is not None else None,
        verity_words=verity.words(slot.offset, slot.length) if verity is not None else "",
        has_balloon=guest_records.has_balloon(spec),
        cgroup=cgroup.folder if cgroup is not None else None,
    )


def _from_template(
    prepared: PreparedSandbox,
    key: str,
    store: Store,
    machine: Machine,
    user: process.User | None,
    feed: Feed | None,
    meanwhile: Callable[[], None],
) -> Vm | None:
    """Start the machine from the template with this key. Return None if there is none, or if it does not start."""
    from runner.template import saved

    template = saved.find(store, key)
    if template is None:
        return None
    from runner.template.restore import NotRestored, restore

    try:
        vm = restore(store, template, machine, prepared.sandbox.folder, user, feed, meanwhile=meanwhile)
    except NotRestored as err:
        debug(f"template {key[:12]}: {err}; booting cold")
        if not err.is_lack:
            saved.note_failure(store, key, f"nothing could start from it: {err}")
        if not err.is_late and not err.is_lack:
            saved.remove(template.folder)
        return None
    prepared.sandbox.in_use = {**prepared.sandbox.in_use, "start": "template"}
    return vm


def _from_snapshot(
    prepared: PreparedSandbox,
    snapshot: Snapshot,
    store: Store,
    machine: Machine,
    user: process.User | None,
    meanwhile: Callable[[], None],
) -> Vm:
    """Start the machine from a snapshot.

    Raises:
        RootdiskError: It cannot, and nothing is running.
    """
    from runner.sandbox import machines, snapshots
    from runner.snapshot.restore import restore

    assert snapshot.memory is not None
    machine = machines.like_saved(snapshot, machine)
    with snapshots.unless_removed(snapshot):
        try:
            settings = guest_records.complete(prepared.settings, prepared.spec)
            vm = restore(store, snapshot.memory, machine, prepared.sandbox.folder, user, settings, meanwhile)
        except RootdiskError as err:
            raise RootdiskError(f"snapshot {snapshot.name} does not start: {err.message}", "runner verify") from err
    prepared.sandbox.in_use = {**prepared.sandbox.in_use, "start": "snapshot"}
    return vm


def _told(machine: Machine, counter: tsc.Counter) -> Machine:
    """Return a machine whose kernel command line has what a cold boot needs, in addition to the artifact's."""
    words = [machine.cmdline, f"rootdisk.slot={machine.slot_digest}", *_tsc(machine, counter)]
    if machine.verity_words:
        words.append(f"rootdisk.verity={machine.verity_words}")
    if is_shown():
        words.append("rootdisk.debug=1")
    return machine._replace(cmdline=" ".join(words))


def _tsc(machine: Machine, counter: tsc.Counter) -> list[str]:
    """Return what a kernel has to know of the counter that it takes its time from.

    It must not compare it with its ticks: a guest that is emulated misses some while the host is busy. It would then take its time
    from these, and in a template so would all sandboxes from it: in steps of 4 ms, and slower than the host's.
    """
    if machine.accelerator == "tcg" and machine.platform.architecture == "amd64" and (khz := counter.khz()):
        return [f"tsc_early_khz={khz}", "tsc=reliable"]
    return []


def _maker(store: Store, machine: Machine, counter: tsc.Counter, key: str | None) -> Callable[[], None] | None:
    """Return a function that has the template with this key made; None if none is wanted."""
    from runner.template import saved

    if key is None or not saved.is_wanted(store, key):
        return None

    def begin() -> None:
        """Start the process that makes it."""
        from runner.template.make import make_beside

        with contextlib.suppress(OSError):  # no process can be started: a boot as without templates
            make_beside(store, machine, key, _tsc(machine, counter))

    return begin
