"""Commands that make something of a source image: `build`, `disk`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from imagetool.commands import options as option_values
from imagetool.progress import reported
from imagetool.tree.remarks import counts, in_words, show
from rootdisk.cli.rows import write_rows
from rootdisk.durable import check_output
from rootdisk.oci.reference import parse_reference
from rootdisk.system.scratch import scratch


def build_command(options: argparse.Namespace) -> int:
    """Build the artifact of an image and publish it."""
    from imagetool.build.artifact import publish_artifact
    from imagetool.build.disk import open_image
    from imagetool.build.disk_cache import tidy
    from imagetool.guest.boot_files import boot_files

    target = parse_reference(options.artifact)
    image = option_values.image_of(options)
    started = time.monotonic()
    cache = option_values.user_cache()
    with reported(quiet=options.quiet) as report, open_image(image) as source:
        boot = boot_files(image, cache)  # the source is open: if it is missing, no kernel is fetched
        tag = target.tag or "latest"
        artifact = publish_artifact(image, source, boot, cache, (target,), tag, force=options.force, report=report)
    tidy(cache)
    if not options.quiet:
        show(artifact.remarks, "imagetool")
    chunks_new, chunks_reused = artifact.chunks
    summary = {
        "digest": str(artifact.digest),
        "found": str(artifact.found.place.place) if artifact.found else "",
        "disk_size": artifact.disk_size,
        "compressed": artifact.compressed,
        "chunks_new": chunks_new,
        "chunks_reused": chunks_reused,
        "left_out": dict(artifact.left_out),
        "seconds": round(time.monotonic() - started, 2),
    }
    if options.json:
        write_rows([summary])
    else:
        how = "found in the target" if artifact.found else f"{chunks_new} chunks new, {chunks_reused} reused"
        how += f", {in_words(artifact.left_out)}" if artifact.left_out else ""
        print(
            f"{artifact.digest} {artifact.disk_size >> 20} MiB disk, {artifact.compressed / 1e6:.1f} MB compressed, {how}, "
            f"{summary['seconds']} s"
        )
    return 0


def disk_command(options: argparse.Namespace) -> int:
    """Write the raw disk of an image to a file."""
    from imagetool.build import disk as build
    from imagetool.guest.boot_files import cached_init

    out = Path(options.file)
    image = option_values.image_of(options)
    if options.plain:
        _say_what_plain_ignores(options)
    check_output(out)
    cache = option_values.user_cache()
    with (
        reported(quiet=options.quiet) as report,
        build.open_image(image) as source,
        _new_file(out) as partial,
    ):
        init = None if options.plain else cached_init(image.platform, cache).read_bytes()
        remarks = build.make_raw(image, source, init, partial, cache, report)
    if not options.quiet:
        show(remarks, "imagetool")
    value = {"file": str(out), "size": out.stat().st_size, "left_out": counts(remarks)}
    print(json.dumps([value]) if options.json else out)
    return 0


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Yield the name for a new file, which becomes `path` at the end; errors name `path`."""
    try:
        with scratch(path.absolute().parent, ".disk-") as folder:
            yield folder / "disk"
            (folder / "disk").replace(path)
    except OSError as err:
        if Path(err.filename or "").is_relative_to(path.absolute().parent):
            err.filename, err.filename2 = str(path), None
        raise


def _say_what_plain_ignores(options: argparse.Namespace) -> None:
    names = ("env", "owner", "tls_ca", "allow_secret", "entrypoint", "cmd")
    ignored = ["-e" if name == "env" else "--" + name.replace("_", "-") for name in names if getattr(options, name)]
    if ignored:
        text = f"imagetool: --plain adds nothing to the image: {', '.join(ignored)} {'do' if ignored[1:] else 'does'} nothing"
        print(text, file=sys.stderr, flush=True)
