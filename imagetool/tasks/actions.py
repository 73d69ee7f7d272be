"""The actions of doit's tasks: receipts in, receipts out, and every expected failure as a single line."""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from doit.exceptions import TaskFailed

from imagetool.build.receipts import (
    ArtifactReceipt,
    BuiltReceipt,
    KernelReceipt,
    PublishedReceipt,
    SourceReceipt,
)
from imagetool.config.images import Image
from imagetool.guest.programs import BootFiles
from imagetool.progress import reported
from imagetool.receipts import HINT, load, save, write_receipt
from imagetool.tasks.places import Places, link
from imagetool.tree.remarks import in_words, show
from rootdisk.artifact.format import key_tag
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Platform
from rootdisk.text import describe_error, one_line, printable

if TYPE_CHECKING:
    from imagetool.build.artifact import MadeArtifact

P = ParamSpec("P")


def step(function: Callable[P, None]) -> Callable[P, TaskFailed | None]:
    """Make a function a doit action: expected errors become the task's one line of failure."""

    @functools.wraps(function)
    def action(*args: P.args, **kwargs: P.kwargs) -> TaskFailed | None:
        """Run the function."""
        try:
            function(*args, **kwargs)
        except RootdiskError as err:
            return TaskFailed(one_line(str(err)))
        except ModuleNotFoundError as err:  # an environment of an older rootdisk
            return TaskFailed(f"{one_line(str(err.name))} is not installed: pip install 'rootdisk[build]'")
        except OSError as err:
            return TaskFailed(one_line(f"{describe_error(err)}{_remedy(err, *args)}"))
        return None

    return action


def _remedy(err: OSError, places: object = None, *_: object) -> str:
    """The hint for an error, if something else is in the place of a file or directory of the cache."""
    in_the_way = isinstance(err, (FileExistsError, IsADirectoryError, NotADirectoryError))
    is_ours = isinstance(places, Places) and Path(os.fsdecode(err.filename or "")).is_relative_to(places.cache)
    return f": something else is in its place: {HINT}" if in_the_way and is_ours else ""


@step
def demo(layout: Path) -> None:
    """Make the demo's source image."""
    from imagetool.demo import image

    started = time.monotonic()
    print("demo: installing Debian's packages into a source image, about half a minute", flush=True)
    digest = image.make(layout)
    _say("demo", f"source image {digest.short}", started)


@step
def init(places: Places, platform: Platform) -> None:
    """Make the guest's init, for one platform."""
    from imagetool.guest.boot_files import make_init

    directory = places.init(platform)
    directory.mkdir(parents=True, exist_ok=True)
    save(directory / "init.json", make_init(platform, directory / "init"))


@step
def kernel(places: Places, image: Image) -> None:
    """Get kernel and initramfs of an image; both are null in the receipt if the artifact carries none."""
    from imagetool.guest.boot_files import make_kernel

    directory = places.of(image)
    directory.mkdir(parents=True, exist_ok=True)
    init = places.init(image.platform) / "init"
    save(places.receipt(image, "kernel"), make_kernel(image, init, directory, places.cache / "kernels"))


@step
def resolve(places: Places, image: Image) -> None:
    """Ask which digest the source has today."""
    from imagetool.build import disk

    with disk.open_image(image) as source:
        layers = tuple(str(layer.diff_id or layer.descriptor.digest) for layer in source.layers)
        receipt = SourceReceipt(str(image.source), source.manifest_digest, str(image.platform), layers)
    save(places.receipt(image, "source"), receipt)


@step
def disk(places: Places, image: Image) -> None:
    """Make the disk, or find it in the cache or in a target."""
    from imagetool.build.artifact import make_artifact

    started = time.monotonic()
    source = load(places.receipt(image, "source"), SourceReceipt)
    boot = boot_files(places, image)
    with reported() as report:
        made = make_artifact(image, source.digest, boot, places.cache, image.publish, report=report)
    if made.kept is not None:
        link(made.kept[0].folder, places.disk(image))
    else:
        places.disk(image).unlink(missing_ok=True)  # it would lead to another disk
    save(
        places.receipt(image, "disk"),
        BuiltReceipt(
            made.key,
            made.inputs,
            source.layers,
            made.digest,
            made.compressed,
            made.disk_size,
            *made.chunks,
            str(made.found.place.place) if made.found else "",
        ),
    )
    show(made.remarks, image.name)
    if made.found is not None:
        what = f"disk {made.key[:12]} has been built before: {made.found.place.place}@{made.digest}"
    elif made.made_now:
        what = f"disk {made.key[:12]}, {made.compressed / 1e6:.1f} MB compressed, {made.chunks[1]} chunks reused"
        what += f", {in_words(made.left_out)}" if made.left_out else ""
    else:
        what = f"disk {made.key[:12]} unchanged"
    _say(image.name, what, started)


@step
def pack(places: Places, image: Image) -> None:
    """Write the receipt of the artifact made from the disk."""
    built = load(places.receipt(image, "disk"), BuiltReceipt)
    receipt = ArtifactReceipt(built.artifact, key_tag(built.key), built.compressed)
    save(places.receipt(image, "artifact"), receipt)


@step
def publish(places: Places, image: Image, force: bool = False) -> None:
    """Publish the artifact in every target."""
    from imagetool.build.artifact import publish_artifact
    from imagetool.build.disk_cache import tidy

    started = time.monotonic()
    source = load(places.receipt(image, "source"), SourceReceipt)
    boot = boot_files(places, image)

    def gate(artifact: MadeArtifact) -> None:
        """Check the artifact, if the image says so."""
        if image.check:
            from imagetool.tasks.check import check_before

            words = check_before(image, artifact, _check_place(places, image))
            print(one_line(f"{image.name}: before it is published: {words}"), flush=True)

    with reported() as report:
        made = publish_artifact(
            image, source.digest, boot, places.cache, image.publish, image.version, gate, force=force, report=report
        )
    tidy(places.cache)
    name = f"@{made.digest}" if image.group else f":{image.version}"
    targets = tuple(f"{target.place}{name}" for target in image.publish)
    save(places.receipt(image, "published"), PublishedReceipt(made.digest, targets))
    for target in targets:
        _say(image.name, f"published {target}", started)


@step
def index(places: Places, images: Sequence[Image], force: bool = False) -> None:
    """Publish the index over one image's platforms, in every target."""
    from imagetool.build.publish import publish_index

    started = time.monotonic()
    digests = [load(places.receipt(image, "published"), PublishedReceipt).digest for image in images]
    index_digest = publish_index(images, digests, force=force)
    first = images[0]
    targets = tuple(f"{target.place}:{first.version}" for target in first.publish)
    save(places.index(first), PublishedReceipt(index_digest, targets))
    for target in targets:
        _say(first.group, f"published {target} for {', '.join(str(image.platform) for image in images)}", started)


@step
def check(places: Places, image: Image) -> None:
    """Check what was published, in every target: e2fsck, our own reader, what the image runs, and a boot or its probe."""
    from imagetool.tasks.check import check_artifact

    published = load(places.receipt(image, "published"), PublishedReceipt)
    words = check_artifact(image, image.publish, published.digest, _check_place(places, image))
    print(one_line(f"{image.name}: {words}"), flush=True)


@step
def trace(places: Places, image: Image, out: Path) -> None:
    """Record which files a boot of what was published reads, and write them to the file `out`."""
    from imagetool.tasks.check import traced

    published = load(places.receipt(image, "published"), PublishedReceipt)
    count = traced(image, image.publish[0]._replace(tag="", digest=published.digest), places.of(image) / "trace", out)
    print(one_line(f"{image.name}: {count} paths in {out.name}"), flush=True)


@step
def reproduce(places: Places, image: Image, described: Path) -> None:
    """Build twice from nothing, in environments as different as possible, and compare with the last build's artifact."""
    from imagetool.prove.reproduction import reproduce

    digest = load(places.receipt(image, "artifact"), ArtifactReceipt).digest
    for line in reproduce(image, described, digest, places.of(image) / "reproduce", places.cache / "kernels"):
        print(one_line(f"{image.name}: {line}"), flush=True)


@step
def prune(places: Places, image: Image, for_all: Mapping[str, Any], delete: bool = False, keep: str = "") -> None:
    """List old versions and unused keys in the image's targets, or remove them; `for_all` are options of all images."""
    from imagetool.build import cached_artifact, disk

    delete, keep = delete or for_all["delete"], keep or for_all["keep"]
    if keep and not re.fullmatch(r"0*[1-9][0-9]{0,8}", keep):
        raise BadInput(f"--keep {printable(keep, 40)}", "give the number of versions to keep, 1 or more")
    for place in image.publish:
        if place.path is not None and not (place.path / "oci-layout").exists():
            print(f"{image.name}: nothing was published to {place.place} yet")
            continue
        options = disk.registry(image)
        done = cached_artifact.prune(place, options, int(keep) if keep else None, delete=delete)
        for tag, digest in done.tags:
            how = "removed" if delete else "would remove"
            print(one_line(f"{image.name}: {how} {place.place}:{tag} ({digest.short})"))
        if not done.tags:
            print(f"{image.name}: nothing to remove from {place.place}")
        for line in done.remarks():
            print(one_line(f"{image.name}: {line}"))


@step
def explain(places: Places, image: Image, dodo: dict[str, Any]) -> None:
    """Print which inputs have changed since the last build, what they change, and which tasks will run."""
    from imagetool.tasks.explain import lines

    for line in lines(places, image, dodo):
        print(line)


@step
def graph(places: Places, dodo: dict[str, Any], only: str) -> None:
    """Draw the graph of tasks as SVG: of all images, or of one."""
    from imagetool.tasks import graph
    from rootdisk.durable import atomic_write

    names, edges = graph.tasks(dodo, only)
    if not names:
        raise RootdiskError(f"images.toml has no image {only}", "doit list shows the images")
    path = places.cache / "graph.svg"
    atomic_write(path, graph.drawn(names, edges).encode())
    print(path, flush=True)


@step
def report(places: Places, images: Sequence[Image]) -> None:
    """Write what the last build made: cache/report.md and cache/report.json."""
    from imagetool.tasks.report import Built, markdown
    from rootdisk.durable import atomic_write

    built = [Built.of(places, image) for image in images]
    write_receipt(places.cache / "report.json", {"images": [one._asdict() for one in built]})
    atomic_write(places.cache / "report.md", markdown(built).encode())
    print(places.cache / "report.md", flush=True)


def boot_files(places: Places, image: Image) -> BootFiles:
    """The files that boot an image, as its receipts say.

    Raises:
        Damaged: a receipt has changed since it was written.
    """
    receipt = load(places.receipt(image, "kernel"), KernelReceipt)
    return BootFiles.of(places.init(image.platform) / "init", places.of(image), receipt)


def _check_place(places: Places, image: Image) -> Path:
    """Name a new directory for a check; what checks that were killed have left goes."""
    from imagetool.tasks.clean import remove_rests

    remove_rests(places.of(image))
    return places.of(image) / f".check-{os.getpid()}"


def _say(name: str, what: str, started: float) -> None:
    print(f"{name}: {one_line(what)}, {time.monotonic() - started:.1f} s", flush=True)
