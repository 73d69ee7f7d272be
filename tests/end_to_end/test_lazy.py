"""`runner boot --pull lazy`: sandboxes that run while their disk is being fetched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagetool.look.map.survey import opened
from rootdisk.artifact.published import open_artifact
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.store.store import Store
from tests.support.commands import Runner, run
from tests.support.faults import ALWAYS, Fault, FaultProxy, run_faults
from tests.support.krun import FakeKrun, needs_compiler
from tests.support.nbd import server_of
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.sandboxes import command, machines, rows
from tests.support.stores import templates
from tests.support.waiting import until

pytestmark = [pytest.mark.vm, needs_registry]

# Reads every file of the image, and says what is in them.
ALL = "find /usr /etc -xdev -type f -print0 | sort -z | xargs -0 cat 2>/dev/null | sha256sum"
SLOW_S = 0.06  # for each 32 KiB of an answer


@pytest.fixture(scope="session")
def published(registry: RunningRegistry, demo: str) -> RunningRegistry:
    done = run("imagetool", "copy", "--plain-http", demo, f"{registry.name}/demo:1")
    assert done.returncode == 0, done.stderr
    return registry


@pytest.fixture
def slow(published: RunningRegistry) -> Iterator[FaultProxy]:
    with run_faults(published.name) as proxy:
        proxy.pause_s = SLOW_S
        yield proxy


@pytest.fixture
def lazy_runner(empty_runner: Runner) -> Iterator[Runner]:
    yield empty_runner
    with contextlib.suppress(OSError):
        for pid in server_of(Store(empty_runner.store)):
            os.kill(pid, signal.SIGTERM)


def blob_bytes(proxy: FaultProxy) -> int:
    return proxy.bytes_of("/blobs/")


@pytest.mark.nightly  # a slow registry, and four boots
def test_a_sandbox_before_its_disk(lazy_runner: Runner, slow: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts, is seen, goes on when the server is killed, and when the disk is complete; others share all that."""
    monkeypatch.setenv("ROOTDISK_TEMPLATES", "1")
    runner, store, name = lazy_runner, Store(lazy_runner.store), f"{slow.name}/demo:1"
    options = ("--pull", "lazy", "--plain-http", "--disk-size", "12g")
    done = runner("boot", "-d", "--name", "one", *options, "--entrypoint", "/bin/sleep", name, "1000")
    assert done.returncode == 0, done.stderr
    assert not list((runner.store / "disks").glob("*.raw"))
    row = rows(runner)["one"]
    assert 0 < row["fill"]["filled_bytes"] < row["fill"]["data_bytes"]
    assert row["fill"]["reads_waited"]
    assert "% of its disk" in runner("ps").stdout
    assert json.loads(runner("inspect", "one").stdout)["fill"]["fetched_bytes"]
    (machine,) = machines(runner, "one")
    words = Path(f"/proc/{machine}/cmdline").read_bytes()
    assert b"driver=nbd" in words
    assert str(runner.store).encode() not in words

    reading = command(runner, "exec", "one", "sh", "-c", f"df -k / | tail -1; {ALL}")
    slow.pause_s = 10 * SLOW_S
    until(lambda: templates(runner.store), 300)
    slow.pause_s = SLOW_S
    other = runner.boot(name, "cat /etc/hostname; grep -c rootdisk.template=1 /proc/cmdline", *options, "--name", "two")
    assert other.stdout == "two\n1\n", other.stderr
    assert rows(runner)["one"]["fill"]["filled_bytes"] < row["fill"]["data_bytes"]
    for _ in range(2):
        (server,) = server_of(store)
        os.kill(server, signal.SIGKILL)
        until(lambda server=server: server_of(store) not in ([], [server]))  # type: ignore[misc]
    slow.pause_s = 0
    output, errors = reading.communicate(timeout=300)
    assert reading.returncode == 0, errors
    size, digest = output.decode().splitlines()
    assert int(size.split()[1]) > 11 << 20

    pulled = runner("pull", "--plain-http", name)
    assert pulled.returncode == 0, pulled.stderr
    assert len(list((runner.store / "disks").glob("*.raw"))) == 1
    assert runner("verify").stdout.endswith(", 0 damaged\n")
    assert runner("exec", "one", "sh", "-c", ALL).stdout.split() == digest.split()
    assert "of its disk" not in runner("ps").stdout
    assert runner("stop", "-t", "1", "one").returncode == 0
    until(lambda: not server_of(store))
    asked = len(slow.seen)
    assert runner("start", "one").returncode == 0
    assert runner("exec", "one", "sh", "-c", ALL).stdout.split() == digest.split()
    assert len(slow.seen) == asked
    assert runner("rm", "-f", "one").returncode == 0
    assert os.listdir(runner.store / "lazy") == []


@needs_compiler
def test_what_needs_a_complete_disk(lazy_runner: Runner, slow: FaultProxy, tmp_path: Path) -> None:
    slow.pause_s = 0
    krun = str(FakeKrun.build(tmp_path).path)
    for options, refused, instead in (
        (("--clone", "copy"), "--clone copy copies", "omit --clone"),
        (("--clone", "reflink"), "--clone reflink copies", "omit --clone"),
        (("--backend", "krun", "--accel", "kvm"), "libkrun reads", "--backend qemu"),
    ):
        boot = ("boot", "--plain-http", "--pull", "lazy", *options, f"{slow.name}/demo:1")
        done = lazy_runner(*boot, ROOTDISK_LIBKRUN=krun)
        assert done.stderr == f"runner: {refused} complete disks only: use --pull missing, or {instead}\n"
        assert done.returncode == 125
    assert not server_of(Store(lazy_runner.store))


@pytest.mark.nightly  # a boot each
@pytest.mark.parametrize(
    ("options", "script", "said"),
    [
        (("--read-only",), "touch /tmp/f && ls /tmp", "f\n"),
        (("-v", "{folder}:/v"), "cat /v/f", "hello\n"),
        (("--allow", "example.org"), "cat /etc/hostname", "here\n"),
        (("--disk-size", "9g"), "df -k / | tail -1 | awk '{print ($2 > 9000000)}'", "1\n"),
        (("--keep", "--memory", "128m", "--record-reads", "{folder}/reads"), "cat /etc/hostname", "here\n"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_options_on_a_disk_that_is_being_fetched(
    lazy_runner: Runner, slow: FaultProxy, tmp_path: Path, options: tuple[str, ...], script: str, said: str
) -> None:
    slow.pause_s = 0.005
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/f").write_text("hello\n")
    given = [word.format(folder=tmp_path / "shared") for word in options]
    name = f"{slow.name}/demo:1"
    done = lazy_runner.boot(name, script, "--pull", "lazy", "--plain-http", "--name", "here", "-u", "root", *given)
    assert done.stdout == said, done.stderr
    assert done.returncode == 0
    if (reads := tmp_path / "shared/reads").exists():
        assert "0 512" not in reads.read_text().splitlines()  # QEMU waits for no read of its own


@pytest.mark.nightly  # a build and a boot
def test_dm_verity_on_a_disk_that_is_being_fetched(
    lazy_runner: Runner, registry: RunningRegistry, source: str, tmp_path: Path
) -> None:
    """The tree is fetched before the start, so the guest checks each block that it reads."""
    done = run("imagetool", "build", "-q", "--verity", "--size", "512MiB", source, f"oci:{tmp_path}/out:1", timeout=600)
    assert done.returncode == 0, done.stderr
    done = run("imagetool", "copy", "--plain-http", f"oci:{tmp_path}/out:1", f"{registry.name}/verity:1")
    assert done.returncode == 0, done.stderr
    with run_faults(registry.name) as proxy:
        proxy.pause_s = 0.005
        options = ("--pull", "lazy", "--plain-http", "--read-only")
        done = lazy_runner.boot(f"{proxy.name}/verity:1", "ls /dev/dm-*; md5sum </etc/os-release", *options)
        assert done.stdout.startswith("/dev/dm-0"), done.stderr
        proxy.pause_s = 0
        until(lambda: not server_of(Store(lazy_runner.store)))


def place_of(name: str, path: str, offset: int) -> tuple[str, int]:
    """Which blob of a disk has the chunk with a byte of a file, and where it begins there."""
    options = RegistryOptions(plain_http=True)
    with open_artifact(parse_reference(name), Platform.host(), options) as artifact:
        blobs = artifact.roles.disk
    with opened(name, Platform.host(), options) as disk:
        reader = disk.contents.reader
        block = offset // reader.block_size
        extents = reader.extents(reader.lookup(os.fsencode(path)))
        extent = next(each for each in extents if each.logical <= block < each.logical + each.count)
        at = (extent.physical + block - extent.logical) * reader.block_size
        assert disk.index is not None
        start = next(chunk.blob_offset for chunk in disk.index.chunks if chunk.offset <= at < chunk.end)
    for blob in blobs:
        if start < blob.size:
            return str(blob.digest), start
        start -= blob.size
    raise AssertionError(start)


@pytest.mark.nightly  # a minute and a boot each
@pytest.mark.parametrize(
    ("program", "file", "offset"),
    [
        ("/usr/bin/apt-get", "/usr/lib/x86_64-linux-gnu/libapt-pkg.so.6.0.0", 0),  # its loader exits with 127
        ("/usr/bin/python3", "/usr/bin/python3.11", 3_000_000),  # it gets SIGBUS
        ("/usr/bin/perl", "/usr/bin/perl", 0),  # it cannot be executed
    ],
    ids=("library", "in the middle", "start"),
)
def test_a_program_that_cannot_be_read(
    lazy_runner: Runner, slow: FaultProxy, program: str, file: str, offset: int
) -> None:
    """The chunk is wrong at the registry for ever: status 125, and the error names it."""
    slow.pause_s, name = 0, f"{slow.name}/demo:1"
    slow.wrong_in, start = place_of(name, file, offset)
    slow.wrong_at = start + 100
    options = ("--plain-http", "--pull", "lazy", "--entrypoint", program)
    done = lazy_runner("boot", *options, name, "--", "--version", timeout=300)
    assert done.returncode == 125, (done.stdout, done.stderr)
    assert done.stderr.splitlines()[-1].startswith("runner: reads of the disk failed, because chunk "), done.stderr
    assert "not the bytes of the index" in done.stderr.splitlines()[-1]


@pytest.mark.nightly
def test_a_registry_that_stays_away(lazy_runner: Runner, slow: FaultProxy) -> None:
    """The guest's reads wait, then fail; the sandbox ends with the reason."""
    name = f"{slow.name}/demo:1"
    process = command(lazy_runner, "boot", "--plain-http", "--pull", "lazy", "--name", "gone", name)
    until(lambda: server_of(Store(lazy_runner.store)))
    slow.add(Fault("status", "/blobs/", ALWAYS, status=503))
    until(lambda: "waits for its disk" in lazy_runner("ps").stdout, 180)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 125
    assert b"reads of the disk wait, for 60 s at most" in errors
    assert b"503" in errors
    assert b"chunk" in errors
