"""The command `export`: an artifact for other machines than the runner's."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from imagetool.commands import options as option_values
from rootdisk.cli.rows import write_rows
from rootdisk.errors import BadInput
from rootdisk.oci.reference import parse_reference
from rootdisk.text import printable

HINT = "write --to dir:PATH or --to containerdisk:REFERENCE"


def export_command(options: argparse.Namespace) -> int:
    """Export an artifact to a directory or as a container disk."""
    from rootdisk.artifact.published import open_artifact

    kind, _, place = options.to.partition(":")
    if kind not in ("dir", "containerdisk") or not place or "\0" in place:
        raise BadInput(f"--to {printable(options.to, 120)} is not a place for an export", HINT)
    if kind == "containerdisk" and options.disk_format:
        raise BadInput("--disk-format is for directories", "a container disk is always qcow2")
    platform, registry = option_values.looked_at(options)
    if kind == "dir":
        from imagetool.export.directory import check_directory, export_directory

        path = Path(place)
        check_directory(path, replace=options.force)  # before anything is fetched
        with open_artifact(parse_reference(options.what), platform, registry) as artifact:
            export_directory(artifact, path, options.disk_format or "raw", replace=options.force)
        if options.json:
            write_rows([{"target": options.to, "boot": str(path / "qemu.sh")}])
        elif not options.quiet:
            print("boot it:", printable(path / "qemu.sh"), file=sys.stderr)
        return 0
    from imagetool.export.containerdisk import export_containerdisk

    to = parse_reference(place)
    with open_artifact(parse_reference(options.what), platform, registry) as artifact:
        digest, instance = export_containerdisk(
            artifact, to, registry, option_values.user_cache(), replace=options.force
        )
    if options.json:
        write_rows([{"digest": str(digest), "target": options.to, "virtual_machine_instance": instance}])
        return 0
    print(instance, end="")
    if to.kind != "registry" and not options.quiet:
        print("push it to a registry, and name that in the VirtualMachineInstance", file=sys.stderr)
    return 0
