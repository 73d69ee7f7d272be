"""Commands on the store: pull, inspect, rmi, prune, verify."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from rootdisk.cli.rows import write_rows, write_value
from rootdisk.errors import BadInput, RegistryError
from rootdisk.text import one_line, printable
from runner.options import values as option_values
from runner.store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from rootdisk.artifact.published import PublishedArtifact
    from rootdisk.oci.reference import Reference
    from runner.store.verify import Damage


def pull_command(options: argparse.Namespace) -> int:
    """Fetch an artifact into the store."""
    artifact = option_values.artifact(Store.open(), options, repair=True)
    counts = {"fetched": artifact.fetched, "reused": artifact.reused, "holes": artifact.holes}
    if options.json:
        write_rows([{"digest": str(artifact.digest), "disk": str(artifact.disk), **counts}])
        return 0
    print(artifact.digest)
    if not options.quiet:
        words = ", ".join(f"{value / 1e6:.1f} MB {name}" for name, value in counts.items())
        print(words if any(counts.values()) else "already in the store", file=sys.stderr)
    return 0


def inspect_command(options: argparse.Namespace) -> int:
    """Show what an artifact is, or a sandbox or snapshot by its name."""
    from runner.commands.listing import fill_field, fill_of
    from runner.sandbox import lookup, snapshots
    from runner.sandbox.usage import sandbox_document

    if not set(options.artifact) & set("/:@"):  # every reference of an artifact contains one of these
        store = Store.open()
        snapshot = snapshots.find_any(store, options.artifact)
        if snapshot is not None and not os.path.lexists(store.sandboxes / options.artifact):
            document = snapshot.to_json()
        else:
            fill = fill_of(store, lookup.find_any(store, options.artifact))
            document = sandbox_document(store, options.artifact) | fill_field(fill)
    else:
        document = _artifact(options)
    if options.format:
        from rootdisk.cli.table import formatted
        from runner.words.hints import answer_field

        for line in formatted(options.format, [document], answer_field):
            print(line)
    elif options.json:
        write_rows([document])
    else:
        write_value(document)
    return 0


def rmi_command(options: argparse.Namespace) -> int:
    """Remove artifacts from the store by name or digest."""
    from runner.sandbox.upkeep import removal
    from runner.store.images import images

    platform = str(option_values.platform(options)) if options.platform else None
    store = Store.open()
    known = images(store)
    chosen = [image for text in options.artifact for image in removal.find(known, text, platform)]
    actions, freed = removal.remove(store, list(dict.fromkeys(chosen)), force=options.force)
    if options.json:
        write_rows([{"done": line} for line in actions])
    else:
        for line in actions:
            print(line)
        print(f"freed {freed / 1e6:.1f} MB", file=sys.stderr)
    return 0


def _artifact(options: argparse.Namespace) -> dict[str, Any]:
    from rootdisk.artifact.published import open_artifact
    from rootdisk.oci.reference import parse_reference
    from runner.store.names import absolute

    reference = parse_reference(options.artifact)
    try:
        with open_artifact(reference, option_values.platform(options), option_values.registry(options)) as artifact:
            config = artifact.config.to_json()
            signed = _signed(artifact, absolute(reference), options)
    except RegistryError as err:
        stored = _stored(absolute(reference), options) if not err.status else None  # there was no answer
        if stored is None:
            raise
        print(f"runner: {one_line(err.message)}: this is what the store has", file=sys.stderr)
        return stored
    return {"digest": str(artifact.descriptor.digest), "compressed": artifact.roles.disk_bytes, **signed, **config}


def _stored(reference: Reference, options: argparse.Namespace) -> dict[str, Any] | None:
    """Return an artifact of the store, without signatures, which only its registry knows; None if it is not there."""
    from rootdisk.artifact.format import ArtifactManifest
    from rootdisk.oci.documents import Digest
    from runner.store.names import asked_for, known

    store, platform = Store.open(), option_values.platform(options)
    if (raw := known(store, reference, platform) or asked_for(store, reference, platform)) is None:
        return None
    roles = ArtifactManifest.parse(raw)
    config = store.read_config(roles.config.digest.hex).to_json()
    return {"digest": str(Digest.of(raw)), "compressed": roles.disk_bytes, **config}


def _signed(artifact: PublishedArtifact, reference: Reference, options: argparse.Namespace) -> dict[str, Any]:
    """Return the signatures of an artifact, whose keys of the policy made them, and whether the policy accepts it."""
    from rootdisk.artifact.policies import load, rule_for
    from rootdisk.artifact.signatures import signatures_of
    from rootdisk.trust.judgement import Refused, who_signed

    digests = (artifact.descriptor.digest, *artifact.indexes)
    signatures = [signature for digest in digests for signature in signatures_of(artifact.repository, digest)]
    rule = rule_for(reference, options.policy)
    keys = [key for condition in rule.conditions for key in condition.keys] if rule is not None else []
    result: dict[str, Any] = {"signatures": list(who_signed(signatures, keys))}
    if load(options.policy) is not None:
        result["policy"] = "accepted"
        try:
            if rule is not None:
                rule.judge(signatures, digests)
        except Refused as err:
            result["policy"] = f"refused: {err}"
    return result


def prune_command(options: argparse.Namespace) -> int:
    """Remove what no sandbox uses from the store."""
    from runner.sandbox import lookup, snapshots
    from runner.sandbox.state import Unreadable
    from runner.sandbox.upkeep.prune import prune

    if not 0 <= options.older_than < 1e9:  # rejects NaN too
        raise BadInput(f"--older-than {options.older_than:g}", "0 or more days")
    limit = option_values.size_bytes(options.max_size, "--max-size", 0) if options.max_size is not None else None
    store = Store.open()
    removed = prune(store, options.older_than * 86400, limit, dry_run=options.dry_run)
    for snapshot in snapshots.all_of(store):
        if isinstance(snapshot, snapshots.Unreadable):
            name = printable(snapshot.name)
            why = f"cannot be read, so what it may need stays: {snapshot.reason}: runner rm --snapshot {name}"
            print(f"runner: snapshot {name} {one_line(why)}", file=sys.stderr)
    for sandbox in lookup.all_of(store):
        if isinstance(sandbox, Unreadable):
            name = printable(sandbox.name)
            warning = f"sandbox {name} cannot be read, so what it may need stays: {sandbox.reason}: {sandbox.remedy}"
            print(f"runner: {one_line(warning)}", file=sys.stderr)
    if options.json:
        write_rows([{"path": str(path), "bytes": size} for path, size in removed])
    else:
        verb = "would free" if options.dry_run else "freed"
        print(f"{verb} {sum(size for _, size in removed) / 1e6:.1f} MB in {len(removed)} files")
    return 0


def verify_command(options: argparse.Namespace) -> int:
    """Read everything in the store and compare it with its digests."""
    from runner.store.verify import verify
    from runner.template import saved

    store = Store.open()
    checked, damages, other_versions = verify(store)
    checked += saved.remove_damaged(store, lambda line: print(f"runner: {one_line(line)}", file=sys.stderr))
    good_snapshots, bad_snapshots = _verify_snapshots(store)
    checked += good_snapshots
    for path in other_versions:
        text = "not checked: fetched by another version of rootdisk"
        print(f"runner: {printable(path)}: {text}", file=sys.stderr)
    for damage in damages:
        print(f"runner: {printable(damage.path)}: {one_line(damage.what)}", file=sys.stderr)
    still_damaged = _repair(store, damages) if options.repair else damages
    if options.json:
        rows = [{"path": str(d.path), "what": d.what, "repaired": d not in still_damaged} for d in damages]
        rows += [{"path": str(path), "what": what, "repaired": False} for path, what in bad_snapshots]
        write_rows([{"checked": checked, "damaged": rows}])
    else:
        repaired = f", {len(damages) - len(still_damaged)} repaired" if options.repair else ""
        print(f"{checked} files, {len(damages) + len(bad_snapshots)} damaged{repaired}")
        if still_damaged and not options.repair:
            print("runner verify --repair fetches them again", file=sys.stderr)
    return 1 if still_damaged or bad_snapshots else 0


def _verify_snapshots(store: Store) -> tuple[int, list[tuple[Path, str]]]:
    """Read all snapshots. Return how many are good, and where the others are and why. They stay: nobody can make them again."""
    from runner.sandbox import snapshots

    good, bad = 0, []
    for snapshot in snapshots.all_of(store):
        why = snapshot.reason if isinstance(snapshot, snapshots.Unreadable) else snapshots.damage(snapshot)
        if why:
            bad.append((snapshot.folder, why))
            name = printable(snapshot.name)
            print(f"runner: {one_line(f'snapshot {name}: {why}: runner rm --snapshot {name}')}", file=sys.stderr)
        good += not why
    return good, bad


def _repair(store: Store, damages: list[Damage]) -> list[Damage]:
    from runner.sandbox.upkeep.repairs import repair_all

    return repair_all(store, damages, lambda text: print(f"runner: {one_line(text)}", file=sys.stderr))
