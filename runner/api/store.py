"""Functions on the store and on everything in it. What they return is what the command of that name prints with `--json`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict, Unpack

from rootdisk.errors import BadInput
from runner.api.results import Damage, Pruned, Pulled, Verified
from runner.api.texts import name_of, path_of, seconds_of, shown
from runner.store.store import Store

Place = str | os.PathLike[str]


class PullOptions(TypedDict, total=False):
    """Options of `pull`, as of the command."""

    pull: str
    platform: str
    policy: Place
    plain_http: bool
    ca_file: Place


def open_store(place: Place | None) -> Store:
    """Open the store at `place`, by default that of the user: ROOTDISK_STORE, or in the home directory."""
    return Store.open(None if place is None else Path(path_of(place, "store")).absolute())


def pull(artifact: str, *, store: Place | None = None, **options: Unpack[PullOptions]) -> Pulled:
    """Fetch an artifact into the store, verified, and return what it is there.

    Raises:
        RootdiskError: It cannot be fetched, or the policy of this host refuses it.
    """
    from runner.api.options import pull_options
    from runner.options import values

    stored = values.artifact(open_store(store), pull_options(artifact, options), repair=True)
    stored.release()
    return Pulled(str(stored.digest), stored.disk, stored.fetched, stored.reused, stored.holes)


def prune(
    *, older_than_days: float = 0, max_size: str | int | None = None, dry_run: bool = False, store: Place | None = None
) -> list[Pruned]:
    """Remove what no sandbox uses from the store, and return the files that are gone, or with `dry_run` would be.

    Args:
        older_than_days: Keep what was used in the last days.
        max_size: Stop when the store is that small; the longest unused files go first. Text such as "20g", or bytes.
        dry_run: Remove nothing.
        store: The store's directory.
    """
    from runner.options import values
    from runner.sandbox.upkeep.prune import prune as prune_store

    days = seconds_of(older_than_days, "older_than_days")
    if days is None or not 0 <= days < 1e9:
        raise BadInput(f"older_than_days={shown(older_than_days)}", "a number of days")
    if max_size is not None and (isinstance(max_size, bool) or not isinstance(max_size, str | int)):
        raise BadInput(f"max_size={shown(max_size)}", "a text such as 20g, or a number of bytes")
    bare_least = 0 if isinstance(max_size, int) else values.WITH_UNIT
    limit = values.size_bytes(str(max_size), "max_size", 0, bare_least=bare_least) if max_size is not None else None
    removed = prune_store(open_store(store), days * 86400, limit, dry_run=dry_run)
    return [Pruned(path, size) for path, size in removed]


def verify(*, repair: bool = False, store: Place | None = None) -> Verified:
    """Read everything in the store and compare it with its digests. Damaged files are marked, so nothing boots from them.

    With `repair`, fetch what is damaged again.
    """
    from runner.sandbox.upkeep.repairs import repair_all
    from runner.store.verify import verify as verify_store

    opened = open_store(store)
    report = verify_store(opened)
    reasons: list[str] = []
    left = repair_all(opened, report.damages, reasons.append) if repair else report.damages
    damages = (Damage(damage.path, damage.what, damage not in left) for damage in report.damages)
    return Verified(report.checked, tuple(damages))


def images(*, store: Place | None = None) -> list[dict[str, Any]]:
    """Return the artifacts in the store, as `runner images --json`."""
    from runner.store.images import images as images_of

    return [image.to_json() for image in images_of(open_store(store))]


def rmi(
    artifact: str, *, platform: str | None = None, force: bool = False, store: Place | None = None
) -> list[dict[str, Any]]:
    """Remove an artifact from the store by its name or digest, and return what was done, as `runner rmi --json`.

    Args:
        artifact: A name, or a digest or its beginning, as `images` has them.
        platform: Remove only the variant for this platform.
        force: Remove it even if a sandbox needs it, or it is being fetched.
        store: The store's directory.

    Raises:
        BadInput: It is not in the store.
        Busy: A sandbox needs it, or it is being fetched.
    """
    from rootdisk.oci.documents import Platform
    from runner.sandbox.upkeep import removal
    from runner.store.images import images as images_of

    opened = open_store(store)
    wanted = str(Platform.parse(name_of(platform, "platform"))) if platform is not None else None
    chosen = removal.find(images_of(opened), name_of(artifact, "artifact"), wanted)
    done, _ = removal.remove(opened, chosen, force=force)
    return [{"done": line} for line in done]


def snapshots(*, store: Place | None = None) -> list[dict[str, Any]]:
    """Return the snapshots in the store, as `runner snapshots --json`. `Sandbox.boot(from_snapshot=NAME)` boots from one."""
    from runner.sandbox import snapshots as taken

    return [row.to_json() for row in taken.all_of(open_store(store))]


def remove_snapshot(name: str, *, force: bool = False, store: Place | None = None) -> None:
    """Remove a snapshot, as `runner rm --snapshot`. Sandboxes that were booted from it go on.

    Args:
        name: Its name, as `snapshots` has it.
        force: Remove it even if it is of another version.
        store: The store's directory.

    Raises:
        BadInput: There is none, or it is of another version.
    """
    from runner.sandbox import snapshots as taken

    opened = open_store(store)
    taken.check_removable(opened, name_of(name, "name"), force=force)
    taken.remove(opened, name)


def events(
    *, since: float | None = None, until: float | None = None, store: Place | None = None
) -> Iterator[dict[str, Any]]:
    """Yield what happens to the sandboxes of a store, as `runner events --json`: from now on, and without end.

    Args:
        since: Begin with what has happened since this time, in Unix seconds, as far as the store still has it.
        until: End at this time. `time.time()` yields what is there, and does not wait.
        store: The store's directory.
    """
    from runner.sandbox.output.event_log import happened

    return happened(open_store(store), seconds_of(since, "since"), seconds_of(until, "until"))
