"""A guest from power-on to its program's first instruction, beside the same kernel with the smallest init there can be.

Both are one program, bench/small.c: there the init, here the image's program. It says on the console how long the kernel's
clock has run when it starts, so what came before the kernel (QEMU, its firmware, the unpacking) can be told apart.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import IO, NamedTuple
from unittest import mock

from bench import layout
from bench.measure import Measured, Run
from bench.rows import Row
from bench.transfer import artifact_of
from bench.work import Bench, clean
from imagetool.guest import initramfs
from rootdisk.artifact.format import ArtifactConfig
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.disk import grow, slot
from runner.disk.clone import METHODS, clone
from runner.machine import accelerator as accel
from runner.machine import qemu
from runner.machine.model import Machine
from runner.machine.tsc import Counter
from runner.store.pull import StoredArtifact, pull
from runner.store.store import Store

GIB = 1 << 30
DEADLINE_S = 100


class Boot(NamedTuple):
    """Seconds from QEMU's start to the program's, QEMU's own processor time, and how long the kernel's clock had run."""

    wall_s: float
    cpu_s: float
    kernel_s: float


def rows(bench: Bench) -> list[Row]:
    """Rows of a boot and its phases, and of copies of a disk by each method."""
    room = bench.work / "guest"
    room.mkdir()
    try:
        local = _artifact(bench, room / "plain")
        smallest = _initramfs(room / "plain")
        boots = [(_boot(local, smallest, room), _boot(local, None, room)) for _ in range(bench.rounds + 1)][
            -max(bench.rounds, 1) :
        ]  # the first warms the page cache
        theirs, ours = ([pair[side] for pair in boots] for side in (0, 1))
        assert local.initramfs is not None
        by_image, by_elf = _kernels(local, room, bench.rounds)
        sizes = (
            f"yes, one program; init {_size(bench.kit / 'guest')}, initramfs {local.initramfs.stat().st_size:,} bytes"
        )
        return [
            Row(
                "guest, power-on to its program", "smallest init", {"wall": 1.10},
                _measured((b.wall_s for b in ours), (b.cpu_s for b in ours)),
                _measured((b.wall_s for b in theirs), (b.cpu_s for b in theirs)), sizes,
            ),
            Row("guest: QEMU, firmware, unpacking", "", {}, _measured(b.wall_s - b.kernel_s for b in theirs)),
            Row("guest: kernel", "", {}, _measured(boot.kernel_s for boot in theirs)),
            Row("guest: init", "", {}, _measured(a.kernel_s - b.kernel_s for a, b in zip(ours, theirs, strict=True))),
            Row("guest, power-on by its vmlinux", "bzImage", {"wall": 0.88}, by_elf, by_image),
            _verity(bench, local, room),
            *_clones(bench, local, room),
        ]  # fmt: skip
    finally:
        clean(room)


def _kernels(local: StoredArtifact, room: Path, rounds: int) -> tuple[Measured, Measured]:
    """Boot the artifact with its bzImage and with its vmlinux, in turn."""
    boots = [
        [_boot(local._replace(vmlinux=vmlinux), None, room) for vmlinux in (None, local.vmlinux)]
        for _ in range(max(rounds, 1))
    ]
    by_image, by_elf = (
        _measured((pair[side].wall_s for pair in boots), (pair[side].cpu_s for pair in boots)) for side in (0, 1)
    )
    return by_image, by_elf


def _verity(bench: Bench, local: StoredArtifact, room: Path) -> Row:
    """Return the row of a read-only boot through dm-verity, beside one of the artifact without a tree."""
    checked = _artifact(bench, room / "verity", "--verity")
    boots = [
        [_boot(artifact, None, room, is_read_only=True) for artifact in (checked, local)]
        for _ in range(max(bench.rounds, 1))
    ]
    ours, theirs = (
        _measured((pair[side].wall_s for pair in boots), (pair[side].cpu_s for pair in boots)) for side in (0, 1)
    )
    return Row("guest, --read-only with dm-verity", "--read-only", {"wall": 1.05}, ours, theirs)


def _measured(seconds: Iterable[float], cpu: Iterable[float] = ()) -> Measured:
    return Measured(tuple(Run(0, a, b, 0, 0) for a, b in zip_longest(seconds, cpu, fillvalue=0.0)), 0)


def _size(folder: Path) -> str:
    return f"{next(folder.glob('*/init')).stat().st_size:,}"


def reference(bench: Bench, room: Path, *options: str) -> str:
    """Make an artifact of an image with the program and little else; it waits if it is called with an argument."""
    compiler = shutil.which("musl-gcc") or "gcc"
    source = Path(__file__).with_name("small.c")
    subprocess.run([compiler, "-static", "-Os", "-s", "-o", str(room / "small"), str(source)], check=True)

    def write(out: IO[bytes]) -> None:
        with tarfile.open(fileobj=out, mode="w|") as tar:
            for name in ("dev", "etc", "proc", "run", "sys", "tmp"):
                folder = tarfile.TarInfo(name)
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(folder)
            info = tar.gettarinfo(room / "small", "small")
            with (room / "small").open("rb") as file:
                tar.addfile(info, file)

    layout.make(room / "image", [write], {"Entrypoint": ["/small"]})
    return f"oci:{artifact_of(bench, room / 'image', room / 'artifact', *options)}:1"


def _artifact(bench: Bench, room: Path, *options: str) -> StoredArtifact:
    """The artifact of `reference`, in a store of its own."""
    room.mkdir()
    made = reference(bench, room, *options)
    with mock.patch.dict(os.environ, ROOTDISK_STORE=str(room / "store")):
        return pull(Store.open(), parse_reference(made), RegistryOptions(), Platform.host())


def _initramfs(room: Path) -> Path:
    path = room / "smallest"
    path.write_bytes(initramfs.build((room / "small").read_bytes(), []))
    return path


def _boot(local: StoredArtifact, smallest: Path | None, room: Path, *, is_read_only: bool = False) -> Boot:
    """Boot the artifact, or its kernel with the initramfs `smallest`. If it is read only, use its dm-verity tree."""
    config, kind = local.config, qemu.kind(local.config.platform, room / "qemu.json")
    with tempfile.TemporaryDirectory(dir=room) as name:
        folder = Path(name)
        records = [("network", b"none"), *([("read-only", b"1")] if is_read_only else [])]
        filled = slot.pack(records, config.slot().length)
        disk = clone(local.disk, config.disk_size, folder, None, slot.clusters(config.slot(), filled))
        accelerator = accel.choose(None, config.platform).name
        machine = Machine(
            config.platform, accelerator, config.memory_mib, config.cpus, local.booted_kernel, smallest or local.initramfs,
            _cmdline(config, accelerator, filled.digest, is_read_only), filled.digest, disk.path, disk.form, config.disk_size,
            local.disk, False, "none", kind=kind, verity=local.verity if is_read_only else None,
        )  # fmt: skip
        start = time.monotonic()
        vm = qemu.start(machine, folder)
        try:
            vm.console.settimeout(DEADLINE_S)
            said = b""
            while b"\n" not in said.partition(b"up ")[2]:
                data = vm.console.recv(4096)
                if not data:
                    raise RuntimeError(f"the guest ended: {said[-500:].decode(errors='replace')}")
                said += data
            wall_s, cpu_s = time.monotonic() - start, _cpu_s(vm.process.pid)
            return Boot(wall_s, cpu_s, float(said.partition(b"up ")[2].split()[0]))
        finally:
            vm.kill()


def _cpu_s(pid: int) -> float:
    """Processor time that a process and its threads have had; proc(5), utime and stime."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _cmdline(config: ArtifactConfig, accelerator: str, digest: str, is_read_only: bool) -> str:
    words = [config.cmdline, f"rootdisk.slot={digest}"]
    if config.verity is not None and is_read_only:
        words.append(f"rootdisk.verity={config.verity.words(config.slot().offset, config.slot().length)}")
    if accelerator == "tcg" and config.platform.architecture == "amd64" and (khz := Counter().khz()):
        words.append(f"tsc_early_khz={khz}")
    return " ".join(words)


def _clones(bench: Bench, local: StoredArtifact, room: Path) -> Iterator[Row]:
    """Copies of the artifact's disk, and larger ones."""
    for method in METHODS:
        goals = {} if method == "copy" else {"wall": 0.01}
        try:
            yield Row(f"clone by {method}, 8 GiB", "", goals, _cloned(bench, local, room, method, None))
        except BadInput as err:
            yield Row(f"clone by {method}, 8 GiB", "", goals, missing=err.message)
    for size in (64, 1024):
        ours = _cloned(bench, local, room, "overlay", size * GIB)
        yield Row(f"clone by overlay, grown to {size} GiB", "", {}, ours)


def _cloned(bench: Bench, local: StoredArtifact, room: Path, method: str, size: int | None) -> Measured:
    extent = local.config.slot()
    found = []
    for _ in range(max(bench.rounds, 1)):
        with tempfile.TemporaryDirectory(dir=room) as name:
            start = time.monotonic()
            patches = grow.patches(local.disk, size) if size else {}
            patches.update(slot.clusters(extent, slot.pack([], extent.length)))
            clone(local.disk, size or local.config.disk_size, Path(name), method, patches)
            found.append(time.monotonic() - start)
    return _measured(found)
