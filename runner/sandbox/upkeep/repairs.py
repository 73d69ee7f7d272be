"""Repair what `verify` has found in the store, and say which sandboxes still use it."""

from __future__ import annotations

from collections.abc import Callable

from rootdisk.errors import RootdiskError
from rootdisk.text import one_line, printable
from runner.sandbox import lookup
from runner.store.store import Store
from runner.store.verify import Damage, repair


def repair_all(store: Store, damages: list[Damage], tell: Callable[[str], None]) -> list[Damage]:
    """Repair damaged files; return those that stay damaged. `tell` gets the reasons."""
    still_damaged, without_origin = [], damages
    while without_origin:
        results = {damage: _repair(store, damage, tell) for damage in without_origin}
        still_damaged += [damage for damage, repaired in results.items() if repaired is False]
        before = len(without_origin)
        without_origin = [damage for damage, repaired in results.items() if repaired is None]
        if len(without_origin) == before:
            break  # otherwise the manifest or config that leads to them may have been repaired: try again
    for damage in without_origin:
        tell(f"{printable(damage.path)}: the store does not know its origin: runner pull its artifact")
    return [damage for damage in damages if damage in still_damaged or damage in without_origin]


def _repair(store: Store, damage: Damage, tell: Callable[[str], None]) -> bool | None:
    """Repair a damaged file; return whether it worked, None if its origin is unknown. `tell` gets other reasons."""
    try:
        done = repair(store, damage)
    except (RootdiskError, OSError) as err:
        why = err.strerror if isinstance(err, OSError) else err
        tell(f"{printable(damage.path)}: not repaired: {one_line(str(why))}")
        return False
    if not done:
        return None
    running = [state.name for state in lookup.states(store) if state.running and damage.digest in state.uses]
    if running:
        names = ", ".join(running)
        tell(f"these run with the damaged one until they are started again: {printable(names)}")
    return True
