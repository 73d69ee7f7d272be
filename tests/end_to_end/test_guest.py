"""What a guest finds, and what its user is told when it does not come up."""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from imagetool.guest.initramfs import Module, build
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.disk import slot
from runner.disk.clone import clone
from runner.machine import accelerator, qemu
from runner.machine.model import Machine, Vm
from runner.machine.tsc import Counter
from runner.sandbox.keeper.ending import Silent
from runner.sandbox.keeper.loop import Keeper
from runner.sandbox.output.logs import Log
from runner.store.pull import pull
from runner.store.store import Store
from tests.support.commands import ROOT, Runner, run
from tests.support.mounts import needs_root

pytestmark = pytest.mark.vm


def with_initramfs(demo: str, place: Path, initramfs: bytes) -> str:
    """The demo's artifact with another initramfs, as an OCI layout in `place`."""
    shutil.copytree(demo.removeprefix("oci:").removesuffix(":1"), place)

    def put(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (place / "blobs/sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    index = json.loads((place / "index.json").read_bytes())
    entry = next(m for m in index["manifests"] if m["annotations"]["org.opencontainers.image.ref.name"] == "1")
    manifest = json.loads((place / "blobs/sha256" / entry["digest"].removeprefix("sha256:")).read_bytes())
    for layer in manifest["layers"]:
        if layer["mediaType"].endswith("initramfs.v1"):
            layer.update(put(initramfs))
    entry.update(put(json.dumps(manifest).encode()))
    (place / "index.json").write_text(json.dumps({**index, "manifests": [entry]}))
    return f"oci:{place}:1"


ELF_OF_ARM = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, 183, 1) + bytes(40)


@pytest.mark.parametrize(
    ("init", "words"),
    [(ELF_OF_ARM, "for another architecture"), (b"#!/no/such/interpreter\n", "no init")],
    ids=["another processor's", "unusable"],
)
def test_a_boot_that_fails_says_why(demo: str, runner: Runner, tmp_path: Path, init: bytes, words: str) -> None:
    artifact = with_initramfs(demo, tmp_path / "broken", build(init, []))
    done = runner("boot", artifact)
    assert done.returncode == 125
    assert words in done.stderr.splitlines()[0]
    assert "Kernel panic" in done.stderr
    assert not list((runner.store / "sandboxes").iterdir())


def test_a_kernel_without_the_disk_s_driver(demo: str, runner: Runner, tmp_path: Path) -> None:
    """The init says itself what is missing."""
    init = run("imagetool", "cat", demo, "/.rootdisk/init", binary=True).stdout
    artifact = with_initramfs(demo, tmp_path / "bare", build(init, [Module("none.ko", b"no module", "")]))
    done = runner("boot", artifact, timeout=300)
    assert done.returncode == 125
    assert "no such disk" in done.stderr


def test_too_little_memory(demo: str, runner: Runner) -> None:
    done = runner("boot", "-m", "64m", demo)
    assert done.returncode == 125
    assert "--memory" in done.stderr
    assert runner.boot(demo, "exec python3 -c 'x = bytearray(1 << 30)'", "-m", "128m").returncode in (1, 137)


def test_a_slot_of_other_bytes_is_refused_by_the_guest(
    demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a guest has left in its slot, or who changes the overlay: the init takes the bytes that the runner named only."""
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))
    local = pull(Store.open(), parse_reference(demo), RegistryOptions(), Platform.host())
    extent = local.config.slot()
    ours = slot.pack([("entrypoint", b"/bin/true"), ("network", b"none")], extent.length)
    other = slot.pack([("entrypoint", b"/bin/sh"), ("network", b"none")], extent.length)
    disk = clone(local.disk, local.config.disk_size, tmp_path, None, slot.clusters(extent, other))
    words = f"{local.config.cmdline} rootdisk.slot={ours.digest}"
    if khz := Counter().khz():
        words += f" tsc_early_khz={khz}"
    vm = qemu.start(
        Machine(
            Platform.host(), "tcg", 512, 1, local.kernel, local.initramfs, words, "", disk.path, disk.form,
            local.config.disk_size, local.disk, False, "none",
        ),
        tmp_path,
    )  # fmt: skip
    said = b""
    try:
        while b"the runner wrote" not in said:
            ready, _, _ = select.select([vm.channel, vm.console], [], [], 100)
            data = b"".join(sock.recv(1 << 16) for sock in ready)
            assert data, said  # it has ended, or says nothing
            said += data
    finally:
        vm.kill()
    assert b"the slot holds other bytes than the runner wrote" in said


def test_a_sandbox_has_what_it_was_given(demo: str, runner: Runner) -> None:
    """No network, so much memory, so many processors: whatever its root does. Its host name is found without the domain too."""
    script = "python3 -c 'import socket; print(socket.gethostbyname(\"box\"), socket.getfqdn())'; ls /sys/class/net; nproc; grep MemTotal /proc/meminfo; python3 -c 'import socket; socket.create_connection((\"10.0.2.2\", 80), 5)'"
    done = runner.boot(
        demo, script, "--network", "none", "-m", "256m", "--cpus", "2", "-u", "0", "--hostname", "box.example.com"
    )
    names, (cpus, memory) = done.stdout.splitlines()[:-2], done.stdout.splitlines()[-2:]
    assert names == ["127.0.1.1 box.example.com", "lo"]
    assert cpus == "2"
    assert int(memory.split()[1]) < 256 << 10
    assert done.returncode == 1
    assert "unreachable" in done.stderr


@pytest.mark.nightly
def test_host_keys_and_machine_id_are_a_sandbox_s_own(project: Path, source: str, tmp_path: Path) -> None:
    (project / "images.toml").write_text(
        f"""
[image.keys]
source = "{source}"
[[image.keys.files]]
path = "/etc/ssh/ssh_host_rsa_key"
text = "known to all who have the image"
[[image.keys.files]]
path = "/usr/bin/ssh-keygen"
mode = "0755"
text = '''#!/bin/sh
echo "of $(cat /etc/machine-id)" > /etc/ssh/ssh_host_rsa_key
'''
"""
    )
    done = run("doit", "build", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    runner, artifact = Runner(tmp_path / "store"), f"oci:{project}/cache/artifacts/keys:1"
    script = "cat /etc/machine-id /etc/ssh/ssh_host_rsa_key"
    first, second = (runner.boot(artifact, script, "--name", name, "--keep") for name in "ab")
    machine, key = first.stdout.splitlines()
    assert key == f"of {machine}"
    assert len(machine) == 32
    assert machine not in second.stdout
    again = runner("start", "--attach", "a")
    assert again.stdout == first.stdout


@needs_root
@pytest.mark.parametrize("address", ["127.0.0.53", "::1"])
def test_names_are_found_where_the_host_has_a_stub(demo: str, runner: Runner, tmp_path: Path, address: str) -> None:
    """The host's resolver listens on its loopback only, as systemd-resolved's stub does; or has IPv6 only."""
    try:
        server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((address, 53))
    except OSError:
        pytest.skip("something listens there already")
    asked = []

    def answer() -> None:
        data, whom = server.recvfrom(512)
        asked.append(data)
        server.sendto(data[:2] + b"\x81\x80" + data[4:], whom)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    resolver = tmp_path / "resolv.conf"
    resolver.write_text(f"nameserver {address}\nsearch a.example\noptions ndots:2\n")
    query = "b'\\x12\\x34\\x01\\x00\\x00\\x01' + bytes(6) + b'\\x05thing\\x07example\\x00\\x00\\x01\\x00\\x01'"
    program = (
        "import socket; text = open('/etc/resolv.conf').read(); name = text.split()[1]\n"
        "assert text.splitlines()[1:] == ['search a.example', 'options ndots:2'], text\n"
        "s = socket.socket(10 if ':' in name else 2, 2); s.settimeout(20)\n"
        f"s.sendto({query}, (name, 53)); print(s.recv(512)[:2].hex())"
    )
    boot = [sys.executable, "-m", "runner", "boot", "--entrypoint", "python3", demo, "--", "-c", program]
    script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    with server:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, str(resolver), *boot],
            env={**os.environ, "ROOTDISK_STORE": str(runner.store), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout == "1234\n", done.stderr
        thread.join(5)
    assert b"thing\x07example" in asked[0]


def test_a_machine_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    """As a KVM that is there and runs no guest: QEMU spins, and neither console nor channel ever says a word."""
    process = subprocess.Popen(["sleep", "60"])
    channel, guest_channel = socket.socketpair()
    console, guest_console = socket.socketpair()
    client, other = socket.socketpair()
    vm = Vm(process, channel, console)
    with socket.socket(socket.AF_UNIX) as listener, guest_channel, guest_console, client, other:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        keeper = Keeper(vm, listener, client, Log(tmp_path / "console"), None, timeout_s=None, silent_s=0.3)
        start = time.monotonic()
        with pytest.raises(Silent):
            keeper.run()
        assert time.monotonic() - start < 10
        guest_console.sendall(b"Linux version\n")  # with a word it is waited for
        keeper = Keeper(vm, listener, client, Log(tmp_path / "console"), None, timeout_s=0.5, silent_s=0.3)
        assert keeper.run() == 124
    vm.kill()
    assert process.poll() is not None


def test_what_was_found_out_of_kvm_is_kept(tmp_path: Path) -> None:
    device, cpuinfo, verdicts = tmp_path / "kvm", tmp_path / "cpuinfo", tmp_path / "kvm.json"
    device.touch()
    cpuinfo.write_text("flags : fpu vmx\n")
    host = Platform.host()

    def choose(kernel: str = "aa") -> tuple[str, bool]:
        chosen = accelerator.choose(None, host, verdicts, Path(kernel), device, cpuinfo)
        return chosen.name, chosen.known

    assert choose() == ("kvm", False)
    accelerator.remember(verdicts, Path("aa"), False)
    assert choose() == ("tcg", True)
    assert choose("another kernel") == ("kvm", False)
    accelerator.remember(verdicts, Path("aa"), True)
    assert choose() == ("kvm", True)
    cpuinfo.write_text("flags : fpu\n")
    if os.uname().machine == "x86_64":
        assert choose() == ("tcg", True)
    device.unlink()
    assert choose() == ("tcg", True)
