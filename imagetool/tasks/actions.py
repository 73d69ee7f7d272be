"""What dodo's tasks call: receipts in, receipts out, and every expected failure as one line.

A receipt is a small JSON file under cache/NAME/: source.json, kernel.json, disk.json, artifact.json, published.json.
It says what was made of what, and it is the edge between two tasks. Disks lie in cache/disks/KEY/, by derivation key,
so going back to an earlier input builds nothing; cache/NAME/ has links to the current one.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from doit.exceptions import TaskFailed

from imagetool.build import derivation
from imagetool.config.images import Image
from imagetool.progress import Report, reported
from imagetool.receipts import Damaged, made_again, read_receipt, write_receipt
from rootdisk.artifact.format import key_tag
from rootdisk.durable import keep_others_out, open_file
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.system import process
from rootdisk.text import one_line, printable

if TYPE_CHECKING:
    from imagetool.packing.manifest import Artifact

P = ParamSpec("P")

SOURCE_RECEIPT = 2  # to raise when there is more in source.json
DISK = "disk"  # in cache/NAME: a link to the directory in cache/disks


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything made lies."""

    cache: Path

    def of(self, image: Image) -> Path:
        return self.cache / image.name

    def receipt(self, image: Image, name: str) -> Path:
        return self.of(image) / f"{name}.json"

    def index(self, image: Image) -> Path:
        """The receipt of the index over the platforms of the image's group."""
        return self.cache / image.group / "published.json"

    def init(self, platform: Platform) -> Path:
        """The directory of the guest's init: `init` and `init.json`."""
        return self.cache / "guest" / platform.architecture

    def disk(self, image: Image) -> Path:
        """The image's packed disk: a link to cache/disks/KEY."""
        return self.of(image) / DISK


def step(function: Callable[P, None]) -> Callable[P, TaskFailed | None]:
    """A function as a doit action: expected errors become the task's one line of failure."""

    @functools.wraps(function)
    def action(*args: P.args, **kwargs: P.kwargs) -> TaskFailed | None:
        try:
            function(*args, **kwargs)
        except RootdiskError as err:
            return TaskFailed(one_line(str(err)))
        except OSError as err:
            return TaskFailed(one_line(f"{err.filename or 'input/output'}: {err.strerror or err}"))
        return None

    return action


@step
def demo(layout: Path) -> None:
    """The demo's source image."""
    from imagetool.demo import image

    started = time.monotonic()
    print("demo: installing Debian's packages into a source image, about half a minute", flush=True)
    digest = image.make(layout)
    _say("demo", f"source image {digest.short}", started)


@step
def init(places: Places, platform: Platform) -> None:
    """The guest's init, for one platform."""
    from imagetool.guest.boot_files import make_init

    directory = places.init(platform)
    directory.mkdir(parents=True, exist_ok=True)
    write_receipt(directory / "init.json", make_init(platform, directory / "init"))


@step
def kernel(places: Places, image: Image) -> None:
    """Kernel and initramfs of an image; both null in the receipt where the artifact carries none."""
    from imagetool.guest.boot_files import make_kernel

    directory = places.of(image)
    directory.mkdir(parents=True, exist_ok=True)
    init = places.init(image.platform) / "init"
    receipt = make_kernel(image, init, directory, places.cache / "kernels")
    write_receipt(places.receipt(image, "kernel"), receipt)


@step
def resolve(places: Places, image: Image) -> None:
    """Which digest the source means today."""
    from imagetool.build import disk

    with disk.opened(image) as source:
        digest = str(source.manifest_digest)
        layers = [str(layer.diff_id or layer.descriptor.digest) for layer in source.layers]
    receipt = {"reference": str(image.source), "digest": digest, "platform": str(image.platform), "layers": layers}
    write_receipt(places.receipt(image, "source"), receipt)


@step
def disk(places: Places, image: Image) -> None:
    """The packed disk: as somebody has published it, as its key has been built here, or made now."""
    from imagetool.build.cached_artifact import find_built
    from imagetool.build.disk_cache import is_kept, kept_disk, read_disk

    started = time.monotonic()
    inputs = current_inputs(places, image)
    key = derivation.derivation_key(inputs)
    here = is_kept(places.cache, key)
    built = None if here else find_built(image, inputs)
    if built is not None:
        place, found = built
        published = {"place": str(place.place), "digest": str(found.digest)}
        _write_disk(places, image, {"key": key, "inputs": inputs, "published": published})
        _say(image.name, f"disk {key[:12]} has been built before: {place.place}@{found.digest}", started)
        return
    with reported() as report:
        folder, made = kept_disk(image, inputs, places.init(image.platform) / "init", places.cache, report=report)
    receipt = read_disk(folder)
    _link(folder, places.disk(image))
    _write_disk(places, image, receipt)
    compressed = sum(blob["size"] for blob in receipt["blobs"])
    what = f"{compressed / 1e6:.1f} MB compressed, {receipt['chunks']['reused']} chunks of earlier disks"
    _say(image.name, f"disk {key[:12]}, {what if made else 'is there already'}", started)


def _write_disk(places: Places, image: Image, receipt: Mapping[str, Any]) -> None:
    """With the source's layers, so that `explain` can say which of them is another."""
    layers = read_receipt(places.receipt(image, "source"))["layers"]
    write_receipt(places.receipt(image, "disk"), {**receipt, "source_layers": layers})


def _make_disk_again(places: Places, image: Image, inputs: Mapping[str, Any], report: Report) -> None:
    from imagetool.build.disk_cache import kept_disk, remove_damaged

    remove_damaged(places.cache)
    kept_disk(image, inputs, places.init(image.platform) / "init", places.cache, report=report)


def disk_is_there(task: object, values: object, places: Places, image: Image) -> bool:
    """Whether what the last run of `disk` has left is still complete. doit gives the first two."""
    from imagetool.build.disk_cache import check_disk

    path = places.receipt(image, "disk")
    if not _is_whole(path, lambda: read_receipt(path)):
        return False
    try:
        receipt = read_receipt(path)
        return "published" in receipt or check_disk(places.disk(image))["key"] == receipt["key"]
    except (RootdiskError, KeyError):
        return False


def init_is_whole(task: object, values: object, places: Places, platform: Platform) -> bool:
    """Whether the guest's init is as it was made."""
    from imagetool.guest.boot_files import check_init

    return _is_whole(places.init(platform) / "init.json", lambda: check_init(places.init(platform)))


def kernel_is_whole(task: object, values: object, places: Places, image: Image) -> bool:
    """Whether kernel and initramfs are as they were made."""
    from imagetool.guest.boot_files import check_kernel

    receipt = places.receipt(image, "kernel")
    return _is_whole(receipt, lambda: check_kernel(places.of(image), read_receipt(receipt)))


def receipt_is_whole(task: object, values: object, path: str) -> bool:
    """Whether a receipt is as it was written."""
    return _is_whole(Path(path), lambda: read_receipt(Path(path)))


def _is_whole(receipt: Path, check: Callable[[], object]) -> bool:
    try:
        check()
    except Damaged as err:
        if receipt.exists():
            made_again(err)
        return False
    except RootdiskError:
        return False
    return True


@step
def pack(places: Places, image: Image) -> None:
    """The artifact's config and manifest, of a disk and a kernel."""
    receipt = read_receipt(places.receipt(image, "disk"))
    if "published" in receipt:
        made = {"digest": receipt["published"]["digest"], "key": key_tag(receipt["key"])}
    else:
        artifact = _artifact(places, image)
        size = sum(blob.descriptor.size for blob in artifact.blobs)
        made = {"digest": str(artifact.descriptor.digest), "size": size, "key": artifact.key_tag}
    write_receipt(places.receipt(image, "artifact"), made)


@step
def publish(places: Places, image: Image, force: bool = False) -> None:
    """The artifact, in every target."""
    from imagetool.build import cached_artifact, publish

    started = time.monotonic()
    receipt = read_receipt(places.receipt(image, "disk"))
    digest = Digest.parse(read_receipt(places.receipt(image, "artifact"))["digest"])
    with reported() as report:
        if "published" in receipt:
            place, key = parse_reference(receipt["published"]["place"]), receipt["key"]
            cached_artifact.publish_built(image, place, digest, key, force=force, report=report)
        else:
            artifact = _artifact(places, image)
            try:
                publish.publish(artifact, image, image.publish, image.version, force=force, report=report)
            except Damaged:
                _make_disk_again(places, image, receipt["inputs"], report)
                artifact = _artifact(places, image)
                publish.publish(artifact, image, image.publish, image.version, force=force, report=report)
    name = f"@{digest}" if image.group else f":{image.version}"
    targets = [f"{target.place}{name}" for target in image.publish]
    write_receipt(places.receipt(image, "published"), {"digest": str(digest), "targets": targets})
    for target in targets:
        _say(image.name, f"published {target}", started)


@step
def index(places: Places, images: Sequence[Image], force: bool = False) -> None:
    """The index over one image's platforms, in every target."""
    from imagetool.build.publish import publish_index

    started = time.monotonic()
    digests = [Digest.parse(read_receipt(places.receipt(image, "published"))["digest"]) for image in images]
    made = publish_index(images, digests, force=force)
    first = images[0]
    targets = [f"{target.place}:{first.version}" for target in first.publish]
    places.index(first).parent.mkdir(parents=True, exist_ok=True)
    write_receipt(places.index(first), {"digest": str(made), "targets": targets})
    for target in targets:
        _say(first.group, f"published {target} for {', '.join(str(image.platform) for image in images)}", started)


def _artifact(places: Places, image: Image) -> Artifact:
    from imagetool.build.publish import assembled

    return assembled(image, places.disk(image), places.of(image))


@step
def check(places: Places, image: Image) -> None:
    """The published disk, fetched as a host does: e2fsck, which must find nothing, our own reader, and a boot."""
    from imagetool.build import publish

    path = publish.fetched(image)
    e2fsck = shutil.which("e2fsck", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if e2fsck is None:
        raise RootdiskError("e2fsck is not installed", "apt-get install e2fsprogs")
    done = process.run([e2fsck, "-fn", str(path)])
    if done.status:
        raise RootdiskError(f"e2fsck found errors in {path}: {done.text[-500:].strip()}")
    # e2fsck ends with 0 when it only complains of wrong counts or checksums.
    talk = [line for line in done.text.splitlines() if line and not line.startswith(("Pass ", f"{path}: "))]
    if talk:
        raise RootdiskError(f"e2fsck complains of {path}: {' '.join(talk)[:500]}")
    files = publish.read_through(path)
    publish.boot(image)
    print(f"{image.name}: e2fsck, our reader ({files} files) and a boot found nothing wrong", flush=True)


@step
def reproduce(places: Places, image: Image, described: Path) -> None:
    """Two builds from nothing, as different in their circumstances as can be, give the artifact of the last build."""
    from imagetool.prove.reproduction import reproduce

    digest = Digest.parse(read_receipt(places.receipt(image, "artifact"))["digest"])
    for line in reproduce(image, described, digest, places.of(image) / "reproduce", places.cache / "kernels"):
        print(one_line(f"{image.name}: {line}"), flush=True)


@step
def prune(places: Places, image: Image, delete: bool = False, keep: int = 0) -> None:
    """Old versions and unused keys in the image's targets; `keep` 0 keeps all versions."""
    from imagetool.build import cached_artifact, disk

    for place in image.publish:
        old = cached_artifact.prune(place, disk.registry(image), keep or None, delete=delete)
        for tag, digest in old:
            how = "removed" if delete else "would remove"
            print(one_line(f"{image.name}: {how} {place.place}:{tag} ({digest.short})"))
        if not old:
            print(f"{image.name}: nothing to remove from {place.place}")


@step
def explain(places: Places, image: Image, dodo: dict[str, Any]) -> None:
    """Which input has changed since the last build, what that changes, and which tasks run for it."""
    from imagetool.look import explanation

    receipt = places.receipt(image, "disk")
    if receipt.exists():
        built = read_receipt(receipt)
        new = read_receipt(places.receipt(image, "source"))["layers"]
        layers = explanation.compared_layers(built["source_layers"], new) if "source_layers" in built else ""
        changes = list(explanation.lines(derivation.explain(built["inputs"], current_inputs(places, image)), layers))
        how = "changed since the last build" if changes else f"{built['key'][:12]} is current"
        print("\n".join([f"{image.name}: {how}", *(f"  {line}" for line in changes)]))
    else:
        print(f"{image.name}: not built yet")
    for line in explanation.tasks(dodo, image.name, image.platform.architecture):
        print(f"  {line}")


@step
def graph(places: Places, dodo: dict[str, Any], only: str) -> None:
    """The graph of tasks as SVG: of all images, or of one."""
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
    """What the last build made, as cache/report.md and cache/report.json."""
    from imagetool.tasks.report import markdown, of_receipts
    from rootdisk.durable import atomic_write

    built = []
    for image in images:
        paths = {name: places.receipt(image, name) for name in ("source", "disk", "published")}
        receipts = {name: read_receipt(path) for name, path in paths.items() if path.exists()}
        built.append(of_receipts(image.name, str(image.platform), receipts))
    write_receipt(places.cache / "report.json", {"images": [one._asdict() for one in built]})
    atomic_write(places.cache / "report.md", markdown(built).encode())
    print(places.cache / "report.md", flush=True)


def current_inputs(places: Places, image: Image) -> dict[str, Any]:
    """The derivation key's inputs as the receipts and images.toml have them now."""
    from imagetool.guest.boot_files import guest_of
    from rootdisk.artifact import zstd_frames

    source = Digest.parse(read_receipt(places.receipt(image, "source"))["digest"])
    guest = guest_of(places.init(image.platform) / "init", read_receipt(places.receipt(image, "kernel")))
    return derivation.inputs(image, source, guest, zstd_frames.versions())


def make_cache(cache: Path) -> None:
    """Make the directory of everything made, to which other users cannot write. RootdiskError if that is not possible."""
    keep_others_out()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise RootdiskError(f"cannot write to {cache}: {err.strerror}", "mend its owner and mode") from err


def lock(cache: Path) -> int:
    """Wait for the run that has the cache, and have it until this process ends; the descriptor that holds the lock.

    doit itself does not lock, and two runs would lose each other's records. RootdiskError: the cache cannot be written.
    """
    path = cache / ".lock"
    try:
        fd = open_file(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as err:
        raise RootdiskError(f"cannot write to {cache}: {err.strerror}", "mend its owner and mode") from err
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).strip() or b"?"
        print(f"doit: waiting for process {printable(holder)}, which builds here", file=sys.stderr, flush=True)
        fcntl.flock(fd, fcntl.LOCK_EX)
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def _link(target: Path, link: Path) -> None:
    """A relative link, so that the project's directory may move; in one step."""
    link.parent.mkdir(parents=True, exist_ok=True)
    partial = link.with_name(f".{link.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, link.parent))
    partial.replace(link)


def _say(name: str, what: str, started: float) -> None:
    print(f"{name}: {one_line(what)}, {time.monotonic() - started:.1f} s", flush=True)
