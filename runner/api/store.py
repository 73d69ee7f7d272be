"""Functions on the store: pull, prune, verify."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict, Unpack

from rootdisk.errors import BadInput
from runner.api.options import pull_options
from runner.api.results import Damage, Pruned, Pulled, Verified
from runner.options import values
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
    return Store.open(None if place is None else Path(place).absolute())


def pull(artifact: str, *, store: Place | None = None, **options: Unpack[PullOptions]) -> Pulled:
    """Fetch an artifact into the store, verified, and return what it is there.

    Raises:
        RootdiskError: It cannot be fetched, or the policy of this host refuses it.
    """
    stored = values.artifact(open_store(store), pull_options(artifact, options), repair=True)
    stored.release()
    return Pulled(str(stored.digest), stored.disk, stored.fetched, stored.reused, stored.holes)


def prune(
    *, older_than_days: float = 0, max_size: str | int | None = None, dry_run: bool = False, store: Place | None = None
) -> list[Pruned]:
    """Remove what no sandbox uses from the store, and return the files that are gone, or with `dry_run` would be.

    Args:
        older_than_days: Keep what was used in the last days.
        max_size: Remove only until the store is no larger: the longest unused files first. Text such as "20g", or bytes.
        dry_run: Remove nothing.
        store: The store's directory.
    """
    from runner.sandbox.prune import prune as prune_store

    if not 0 <= older_than_days < 1e9:
        raise BadInput(f"older_than_days={older_than_days}", "a number of days")
    limit = values.size_bytes(str(max_size), "max_size", 0) if max_size is not None else None
    removed = prune_store(open_store(store), older_than_days * 86400, limit, dry_run=dry_run)
    return [Pruned(path, size) for path, size in removed]


def verify(*, repair: bool = False, store: Place | None = None) -> Verified:
    """Read everything in the store and compare it with its digests. Damaged files are marked, so nothing boots from them.

    With `repair`, fetch what is damaged again.
    """
    from runner.sandbox.repairs import repair_all
    from runner.store.verify import verify as verify_store

    opened = open_store(store)
    report = verify_store(opened)
    reasons: list[str] = []
    left = repair_all(opened, report.damages, reasons.append) if repair else report.damages
    damages = (Damage(damage.path, damage.what, damage not in left) for damage in report.damages)
    return Verified(report.checked, tuple(damages))
