"""Commands on the store: pull, inspect, prune, verify."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from rootdisk.errors import BadInput, RootdiskError
from rootdisk.text import one_line, printable
from runner.commands import options as option_values
from runner.store.store import Store

if TYPE_CHECKING:
    from rootdisk.artifact.published import PublishedArtifact
    from rootdisk.oci.reference import Reference
    from runner.store.verify import Damage


def pull_command(options: argparse.Namespace) -> int:
    """Fetch an artifact into the store."""
    local = option_values.local(Store.open(), options, repair=True)
    counts = {"fetched": local.fetched, "reused": local.reused, "holes": local.holes}
    if options.json:
        option_values.write_json([{"digest": str(local.digest), "disk": str(local.disk), **counts}])
        return 0
    print(local.digest)
    if not options.quiet:
        words = ", ".join(f"{value / 1e6:.1f} MB {name}" for name, value in counts.items())
        print(words if any(counts.values()) else "already in the store", file=sys.stderr)
    return 0


def inspect_command(options: argparse.Namespace) -> int:
    """Show what an artifact is, or a sandbox by its name."""
    from runner.sandbox import directory

    if not set(options.artifact) & set("/:@"):  # no reference of an artifact is so short
        found = directory.find_any(Store.open(), options.artifact).to_json()
    else:
        found = _artifact(options)
    if options.format:
        from rootdisk.cli.table import formatted

        for line in formatted(options.format, [found]):
            print(line)
    elif options.json:
        option_values.write_json([found])
    else:
        option_values.write_value(found)
    return 0


def rmi_command(options: argparse.Namespace) -> int:
    """Remove artifacts from the store by name or digest."""
    from runner.sandbox import removal

    platform = str(option_values.platform(options)) if options.platform else None
    store = Store.open()
    chosen = [image for text in options.artifact for image in removal.find(store, text, platform)]
    done, freed = removal.remove(store, list(dict.fromkeys(chosen)), force=options.force)
    if options.json:
        option_values.write_json([{"done": line} for line in done])
    else:
        for line in done:
            print(line)
        print(f"freed {freed / 1e6:.1f} MB", file=sys.stderr)
    return 0


def _artifact(options: argparse.Namespace) -> dict[str, Any]:
    from rootdisk.artifact.published import open_artifact
    from rootdisk.oci.reference import parse_reference
    from runner.store.names import absolute

    reference = parse_reference(options.artifact)
    with open_artifact(reference, option_values.platform(options), option_values.registry(options)) as artifact:
        config = artifact.config.to_json()
        signed = _signed(artifact, absolute(reference), options)
    return {"digest": str(artifact.descriptor.digest), "compressed": artifact.roles.disk_bytes, **signed, **config}


def _signed(artifact: PublishedArtifact, reference: Reference, options: argparse.Namespace) -> dict[str, Any]:
    """Say what signatures an artifact has, whose they are by the keys of the policy, and what the policy says of them."""
    from rootdisk.artifact.policies import load, rule_for
    from rootdisk.artifact.signatures import signatures_of
    from rootdisk.trust.judgement import Refused, who_signed

    digests = (artifact.descriptor.digest, *artifact.indexes)
    found = [signature for digest in digests for signature in signatures_of(artifact.repository, digest)]
    rule = rule_for(reference, options.policy)
    keys = [key for condition in rule.conditions for key in condition.keys] if rule is not None else []
    said: dict[str, Any] = {"signatures": list(who_signed(found, keys))}
    if load(options.policy) is not None:
        said["policy"] = "accepted"
        try:
            if rule is not None:
                rule.judge(found, digests)
        except Refused as err:
            said["policy"] = f"refused: {err}"
    return said


def prune_command(options: argparse.Namespace) -> int:
    """Remove what no sandbox uses from the store."""
    from runner.sandbox import directory
    from runner.sandbox.prune import prune

    if not 0 <= options.older_than < 1e9:  # not NaN either
        raise BadInput(f"--older-than {options.older_than}", "a number of days")
    limit = option_values.size_bytes(options.max_size, "--max-size", 0) if options.max_size is not None else None
    store = Store.open()
    removed = prune(store, options.older_than * 86400, limit, dry_run=options.dry_run)
    for found in directory.all_of(store):
        if isinstance(found, directory.Unreadable):
            name = printable(found.name)
            what = f"sandbox {name} cannot be read, so what it may need stays: {found.reason}: {found.remedy}"
            print(f"runner: {one_line(what)}", file=sys.stderr)
    if options.json:
        option_values.write_json([{"path": str(path), "bytes": size} for path, size in removed])
    else:
        verb = "would free" if options.dry_run else "freed"
        print(f"{verb} {sum(size for _, size in removed) / 1e6:.1f} MB in {len(removed)} files")
    return 0


def verify_command(options: argparse.Namespace) -> int:
    """Read everything in the store and compare it with its digests."""
    from runner.store.verify import verify

    store = Store.open()
    checked, damages, other_versions = verify(store)
    for path in other_versions:
        text = "not checked: fetched by another version of rootdisk"
        print(f"runner: {printable(path)}: {text}", file=sys.stderr)
    for damage in damages:
        print(f"runner: {printable(damage.path)}: {one_line(damage.what)}", file=sys.stderr)
    left = _repaired(store, damages) if options.repair else damages
    if options.json:
        rows = [{"path": str(d.path), "what": d.what, "repaired": d not in left} for d in damages]
        option_values.write_json([{"checked": checked, "damaged": rows}])
    else:
        repaired = f", {len(damages) - len(left)} repaired" if options.repair else ""
        print(f"{checked} files, {len(damages)} damaged{repaired}")
        if left and not options.repair:
            print("runner verify --repair fetches them again", file=sys.stderr)
    return 1 if left else 0


def _repaired(store: Store, damages: list[Damage]) -> list[Damage]:
    """Make them whole again; those that are not. What stands against it is said."""
    left, unknown = [], damages
    while unknown:
        tried = {damage: _repair(store, damage) for damage in unknown}
        left += [damage for damage, done in tried.items() if done is False]
        before, unknown = len(unknown), [damage for damage, done in tried.items() if done is None]
        if len(unknown) == before:
            break  # else the manifest or config that leads to them may be whole by now
    for damage in unknown:
        print(
            f"runner: {printable(damage.path)}: the store does not know its origin: runner pull its artifact",
            file=sys.stderr,
        )
    return [damage for damage in damages if damage in left or damage in unknown]


def _repair(store: Store, damage: Damage) -> bool | None:
    """Whether it is whole again; None if the store does not know its origin. What else stands against it is said."""
    from runner.sandbox import directory
    from runner.store.verify import repair

    try:
        done = repair(store, damage)
    except (RootdiskError, OSError) as err:
        why = err.strerror if isinstance(err, OSError) else err
        print(f"runner: {printable(damage.path)}: not repaired: {one_line(str(why))}", file=sys.stderr)
        return False
    if not done:
        return None
    running = [state.name for state in directory.states(store) if state.running and damage.digest in state.uses]
    if running:
        names = ", ".join(running)
        print(
            f"runner: these run with the damaged one until they are started again: {printable(names)}", file=sys.stderr
        )
    return True
