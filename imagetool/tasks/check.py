"""Check an artifact, before or after it is published: fetch it as a host does, then e2fsck, our reader, its process, a boot."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from imagetool.build.artifact import MadeArtifact
from imagetool.build.disk import registry
from imagetool.build.publish import push
from imagetool.config.images import Image
from imagetool.ext4.reader import Node, Reader
from imagetool.targets.open import open_target
from rootdisk.artifact.format import Process
from rootdisk.artifact.published import open_artifact
from rootdisk.durable import atomic_write
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Digest
from rootdisk.oci.reference import Reference
from rootdisk.system import process
from rootdisk.text import one_line, printable

BOOT_S = 120
FILE_MAX_BYTES = 1 << 20
DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def check_artifact(image: Image, places: Sequence[Reference], digest: Digest, work: Path) -> str:
    """Check the artifact `digest` in every place. Return in words what was checked.

    The artifact is fetched completely from each place, as by a host that has nothing yet. e2fsck must find nothing, our own
    reader reads every byte, the program must be on the disk, and the disk must boot. With `probe`, that command must exit
    with 0. An artifact without a kernel is not booted. `work` is a new directory, which is removed at the end.

    Raises:
        RootdiskError: something is wrong with it, or it cannot be fetched.
    """
    try:
        for number, place in enumerate(places):
            reference, store = place._replace(tag="", digest=digest), work / f"store-{number}"
            disk = fetched(image, reference, store)
            if number == 0:  # the others have the same digest, so the same bytes
                done = _check_disk(image, reference, disk, store)
            shutil.rmtree(store)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return done + (f", in {len(places)} places" if len(places) > 1 else "")


def _check_disk(image: Image, reference: Reference, disk: Path, store: Path) -> str:
    check_with_e2fsck(disk)
    files = read_through(disk)
    with open_artifact(reference, image.platform, registry(image)) as artifact, Reader.open(disk) as reader:
        check_process(reader, artifact.config.process)
    if artifact.roles.kernel is None:
        return f'e2fsck and our reader ({files} files) found nothing wrong; not booted, as kernel = "none"'
    boot(image, reference, store)
    return f"e2fsck, our reader ({files} files) and {'the probe' if image.probe else 'a boot'} found nothing wrong"


def traced(image: Image, reference: Reference, work: Path, out: Path) -> int:
    """Boot the artifact in the new directory `work`, and write the trace of the boot to `out`. Return the number of paths.

    Raises:
        RootdiskError: it does not boot.
    """
    from imagetool.look.map import survey
    from imagetool.look.trace import TRACE_S, paths_read, record, text_of

    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        reads = record([*_runner("boot", image), str(reference)], work, TRACE_S)
        with survey.opened(str(reference), image.platform, registry(image)) as disk:
            reader = disk.contents.reader
            paths = paths_read(reader, survey.read_trace(reads, reader.blocks * reader.block_size))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    atomic_write(out, os.fsencode(text_of(paths)))
    return len(paths)


def check_before(image: Image, made: MadeArtifact, work: Path) -> str:
    """Check an artifact before it is published; `work` as for `check_artifact`.

    Raises:
        RootdiskError: something is wrong with it.
    """
    if made.kept is None:
        assert made.found is not None
        return check_artifact(image, [made.found.place], made.digest, work)
    layout = work.with_name(f"{work.name}-layout")
    try:
        with contextlib.closing(open_target(Reference("oci", path=layout))) as target:
            push(made.kept[1], target, ("",))
        return check_artifact(image, [Reference("oci", path=layout)], made.digest, work)
    finally:
        shutil.rmtree(layout, ignore_errors=True)


def check_with_e2fsck(path: Path) -> None:
    """Run e2fsck on the raw disk at `path`; RootdiskError with what it says, if it says anything."""
    e2fsck = shutil.which("e2fsck", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if e2fsck is None:
        raise RootdiskError("e2fsck is not installed", "apt-get install e2fsprogs")
    done = process.run([e2fsck, "-fn", str(path)])
    if done.status:
        raise RootdiskError(f"e2fsck found errors in {path}: {done.text[-500:].strip()}")
    # e2fsck exits with 0 if it only complains about wrong counts or checksums.
    talk = [line for line in done.text.splitlines() if line and not line.startswith(("Pass ", f"{path}: "))]
    if talk:
        raise RootdiskError(f"e2fsck complains about {path}: {' '.join(talk)[:500]}")


def read_through(path: Path) -> int:
    """Read every inode, attribute and byte of the raw disk at `path`. Return the number of names. BadInput names what is damaged."""
    count = 0
    with Reader.open(path) as reader:
        for _, node in reader.walk():
            count += 1
            reader.read_through(node)
    return count


def check_process(reader: Reader, runs: Process) -> None:
    """Check that the program of the image, its working directory, user and group are on the disk.

    Raises:
        RootdiskError: one of them is not on the disk.
    """
    workdir = runs.workdir or "/"
    node = _lookup(reader, workdir)
    if node is None or node.type != stat.S_IFDIR:
        raise RootdiskError(f"the working directory {printable(workdir)} is not on the disk", "create it in the image")
    user, _, group = runs.user.partition(":")
    for name, file in ((user, "/etc/passwd"), (group, "/etc/group")):
        if name and not name.isdecimal() and name.encode() not in _accounts(reader, file):
            raise RootdiskError(f"the user or group {printable(name)} is not in the disk's {file}", "create it: owners")
    command = [*runs.entrypoint, *runs.cmd]
    if not command:
        return
    program = command[0]
    places = [""] if "/" in program else [f"{place}/" for place in _path(reader) if place]
    for place in places:
        node = _lookup(reader, os.path.join(workdir, f"{place}{program}"))
        if node is not None and node.type == stat.S_IFREG and node.mode & 0o111:
            return
    raise RootdiskError(f"the program {printable(program)} is not on the disk", "correct the image or its process")


def _lookup(reader: Reader, path: str) -> Node | None:
    with contextlib.suppress(BadInput):
        return reader.lookup(os.fsencode(path), follow=True)
    return None


def _accounts(reader: Reader, file: str) -> set[bytes]:
    return {line.partition(b":")[0] for line in _small_file(reader, file).splitlines()}


def _path(reader: Reader) -> list[str]:
    """Return the directories of PATH in the disk's environment."""
    variables = dict(item.partition(b"=")[::2] for item in _small_file(reader, "/.rootdisk/env").split(b"\0"))
    return os.fsdecode(variables.get(b"PATH") or DEFAULT_PATH).split(":")


def _small_file(reader: Reader, path: str) -> bytes:
    node = _lookup(reader, path)
    if node is None or node.type != stat.S_IFREG or node.size > FILE_MAX_BYTES:
        return b""
    return b"".join(reader.content(node))


def fetched(image: Image, reference: Reference, store: Path) -> Path:
    """Fetch the artifact into the runner's `store` and return its raw disk; RootdiskError if it cannot be fetched."""
    done = process.run([*_runner("pull", image), "--json", str(reference)], env=_environment(store))
    if done.status:
        raise RootdiskError(one_line(done.complaint.strip().removeprefix("runner: ")))
    (result,) = json.loads(done.text)
    return Path(result["disk"])


def boot(image: Image, reference: Reference, store: Path) -> None:
    """Boot the artifact as a sandbox that runs the image's `probe`, or prints `rootdisk` without one; RootdiskError if it fails."""
    program, *words = image.probe or ("/.rootdisk/init", "--version")
    command = [*_runner("boot", image), "--network", "none", "--timeout", str(BOOT_S)]
    done = process.run([*command, "--entrypoint", program, str(reference), *words], env=_environment(store))
    output = printable((done.complaint or done.text)[-500:].strip(), 500)
    if done.status and image.probe:
        raise RootdiskError(f"{image.name}: the probe ended with {done.status}: {output}")
    if done.status or (not image.probe and "rootdisk" not in done.text):
        raise RootdiskError(f"{image.name} does not boot: {output}")


def _environment(store: Path) -> dict[str, str]:
    return {**os.environ, "ROOTDISK_STORE": str(store.absolute())}


def _runner(command: str, image: Image) -> list[str]:
    """Return a command line of the runner for the image's registries and platform: the tools meet only on the command line."""
    words = [sys.executable, "-m", "runner", command, "--platform", str(image.platform)]
    words += ["--plain-http"] if image.plain_http else []
    return words + (["--ca-file", str(image.ca_file)] if image.ca_file else [])
