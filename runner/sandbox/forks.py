"""Create a sandbox from a snapshot: with its own copy of the disk, and names of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rootdisk import records
from rootdisk.artifact.format import SLOT_MAX_BYTES
from rootdisk.durable import advice, atomic_write, copy_sparse, read_file
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.records import Record
from runner.disk.clone import duplicate, existing
from runner.sandbox import guest_records, machines, snapshots
from runner.sandbox.directory import Sandbox
from runner.sandbox.prepare import PreparedSandbox, of_records, read_secrets, rewrite_slot
from runner.sandbox.snapshots import Snapshot
from runner.sandbox.state import Spec
from runner.store.pull import StoredArtifact
from runner.store.store import Store

_CHECKED_MAX_BYTES = 64 << 20  # data of the disk: a larger one is read by `runner verify` only
_OF_ONE = ("machine-id", "mac", "hostname", "first")  # records that are not for another sandbox


def go_on(store: Store, snapshot: Snapshot, spec: Spec, hostname: bytes) -> PreparedSandbox:
    """Create a sandbox whose programs go on from `snapshot`, which has memory.

    Raises:
        BadInput: It cannot go on here.
        RootdiskError: It cannot be created; nothing is left of it.
    """
    with _held(store, snapshot, spec) as artifact:
        machines.check(snapshot, store, artifact.config.platform)
        kept = [record for record in _records_of(snapshot) if record[0] not in _OF_ONE]
        settings = [*kept, *guest_records.identity(), ("hostname", hostname)]
        sandbox = _create(store, snapshot, spec, settings, lambda _: None)
    return _prepared(sandbox, artifact, spec, settings, "")._replace(snapshot=snapshot, settings=tuple(settings))


def boot(store: Store, snapshot: Snapshot, spec: Spec, settings: Sequence[Record]) -> PreparedSandbox:
    """Create a sandbox that boots from the disk of `snapshot`; `settings` are records for its slot. Errors as of `go_on`."""
    secrets = read_secrets(spec, settings)
    digests: list[str] = []

    def write_slot(sandbox: Sandbox) -> None:
        """Write the slot of the copied disk again."""
        digests.append(rewrite_slot(sandbox.folder, artifact, guest_records.complete(kept, spec, secrets))[1])

    with _held(store, snapshot, spec) as artifact:
        if artifact.verity is not None and guest_records.is_read_only(settings):
            raise BadInput(
                "--read-only and --from: dm-verity checks the disk as it was built", "boot the artifact, or omit it"
            )
        kept = [*settings, *guest_records.identity(), ("first", b"1")]
        sandbox = _create(store, snapshot, spec, kept, write_slot)
    return _prepared(sandbox, artifact, spec, kept, digests[0])._replace(secrets=secrets)


@contextlib.contextmanager
def _held(store: Store, snapshot: Snapshot, spec: Spec) -> Iterator[StoredArtifact]:
    """Hold what the snapshot needs; after an error it is released. RootdiskError if it is not in the store, or not completely."""
    with snapshots.unless_removed(snapshot):
        artifact = StoredArtifact.kept(store, spec, f"snapshot {snapshot.name}")
        try:
            if artifact.source is not None:  # it was removed, and is being fetched again
                remedy = f"runner pull {spec.reference}"
                raise RootdiskError(f"snapshot {snapshot.name}: its disk is not complete", remedy)
            yield artifact
        except BaseException:
            artifact.release()
            raise


def _create(
    store: Store, snapshot: Snapshot, spec: Spec, kept: Sequence[Record], finish: Callable[[Sandbox], None]
) -> Sandbox:
    """Create the sandbox with a copy of the disk. Nothing is left of it after an error."""
    sandbox = Sandbox.create(store, spec)
    try:
        if why := snapshots.damage_of_disk(snapshot, _CHECKED_MAX_BYTES):
            raise RootdiskError(
                f"snapshot {snapshot.name} is damaged: {why}", f"to delete it: runner rm --snapshot {snapshot.name}"
            )
        try:
            duplicate(snapshot.clone.path, sandbox.folder)
            copy_sparse(snapshot.folder / "slot.json", sandbox.folder / "slot.json")
            atomic_write(sandbox.folder / "records", records.pack(kept), 0o600, durable=spec.keep)
        except OSError as err:
            hint = advice(err, snapshot.disk[0], sandbox.folder)
            raise RootdiskError(f"cannot copy the disk of snapshot {snapshot.name}: {err.strerror}", hint) from err
        finish(sandbox)
        sandbox.take_name()
    except BaseException:
        sandbox.remove()
        sandbox.release()
        raise
    return sandbox


def _prepared(
    sandbox: Sandbox, artifact: StoredArtifact, spec: Spec, settings: Sequence[Record], slot_digest: str
) -> PreparedSandbox:
    slot_records = guest_records.complete(settings, spec)
    return of_records(sandbox, artifact, existing(sandbox.folder), slot_digest, spec, settings, slot_records)


def _records_of(snapshot: Snapshot) -> list[Record]:
    try:
        return records.unpack(read_file(snapshot.folder / "records", SLOT_MAX_BYTES))
    except (OSError, ValueError) as err:
        why = err.strerror if isinstance(err, OSError) else err
        raise RootdiskError(f"snapshot {snapshot.name}: its file `records`: {why}", "runner verify") from err
