"""`imagetool export`: what is written, the same twice, and nothing half-written. tests/end_to_end/test_export.py boots it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from ruamel.yaml import YAML

from imagetool.cli import main
from imagetool.export import containerdisk
from imagetool.export.boot import Boot, firecracker, qemu_script, virtual_machine_instance
from imagetool.export.nomad import is_possible, nomad_job
from imagetool.packing.manifest import Blob
from rootdisk.artifact.compressed import Content
from rootdisk.artifact.format import VMLINUX_TYPE
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.repository import RegistryOptions
from tests.support.artifacts import Sample, noise, publish, sample, with_boot
from tests.support.nomad import driver_command, read_job, task_of
from tests.support.schemas import complaint

CONSOLE = gzip.compress(b"an init that knows rootdisk.console=", mtime=0)
VMLINUX = b"\x7fELF" * 100
BOOT = Boot(Platform("linux", "amd64"), b"kernel", b"initramfs", "console=ttyS0 quiet", 256, 2)


def made(initramfs: bytes = CONSOLE, **changes: Any) -> Sample:
    disk = sample([*noise(5, 100_000), bytes(1 << 20), *noise(3, 70_000, seed=1), bytes(50_000)])
    elf = Blob.of_bytes(VMLINUX_TYPE, zstandard.compress(VMLINUX))
    content = Content(Digest.of(VMLINUX), len(VMLINUX))
    return with_boot(disk, elf, initramfs=initramfs, cmdline="console=ttyS0 quiet", vmlinux=content, **changes)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOTDISK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ROOTDISK_STORE_TRUSTED", "1")


@pytest.fixture
def artifact(tmp_path: Path) -> str:
    reference = f"oci:{tmp_path}/disks:1"
    publish(made(), reference, RegistryOptions())
    return reference


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_directory_has_the_disk_and_what_boots_it(artifact: str, tmp_path: Path) -> None:
    assert main(["export", artifact, "--to", f"dir:{tmp_path}/a"]) == 0
    assert (tmp_path / "a/disk.raw").read_bytes() == made().disk
    assert (tmp_path / "a/initramfs").read_bytes() == CONSOLE
    assert (tmp_path / "a/vmlinux").read_bytes() == VMLINUX
    value = json.loads((tmp_path / "a/firecracker.json").read_text())
    assert value["boot-source"]["kernel_image_path"] == "vmlinux"
    assert (tmp_path / "a/cmdline").read_text() == "console=ttyS0 quiet rootdisk.console=poweroff\n"
    assert os.access(tmp_path / "a/qemu.sh", os.X_OK)
    assert main(["export", artifact, "--to", f"dir:{tmp_path}/b"]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (tmp_path / "a/disk.raw").stat().st_blocks * 512 < len(made().disk) - (1 << 19)  # the hole is one


def test_a_qcow2_directory_has_the_same_disk(artifact: str, tmp_path: Path) -> None:
    assert main(["export", artifact, "--to", f"dir:{tmp_path}/a", "--disk-format", "qcow2"]) == 0
    command = ["qemu-img", "convert", "-O", "raw", str(tmp_path / "a/disk.qcow2"), str(tmp_path / "raw")]
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "raw").read_bytes()[: len(made().disk)] == made().disk
    assert not (tmp_path / "a/firecracker.json").exists()  # it reads raw disks only


def test_a_qcow2_directory_has_nomad_s_job(artifact: str, tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert main(["export", artifact, "--to", f"dir:{folder}", "--disk-format", "qcow2"]) == 0
    text = (tmp_path / "a/nomad.hcl").read_text()
    assert text == (tmp_path / "b/nomad.hcl").read_text()
    task = task_of(read_job(text))
    sums = {item["source"].rpartition("/")[2]: item["options"][0]["checksum"] for item in task["artifact"]}
    assert sums == {name: f"sha256:{contents(tmp_path / 'a')[name]}" for name in ("disk.qcow2", "initramfs", "vmlinuz")}
    assert task["resources"] == [{"cores": 1, "memory": 256}]
    with pytest.raises(ValueError, match="image"):  # the checker itself
        read_job(text.replace("image_path", "image"))
    assert main(["export", artifact, "--to", f"dir:{tmp_path}/a", "--force"]) == 0
    assert not (tmp_path / "a/nomad.hcl").exists()  # QEMU would guess that a raw disk is one, and restrict it


def test_nomad_s_command_line() -> None:
    digests = {name: Digest.of(name.encode()) for name in ("disk.qcow2", "vmlinuz", "initramfs")}
    boot = BOOT._replace(cmdline='a="b c" \\x $HOME')
    command = driver_command(task_of(read_job(nomad_job(boot, digests))), "tcg")
    assert command[command.index("-append") + 1] == boot.kernel_args
    assert is_possible(boot, "disk.qcow2")
    # Nomad replaces these, however they are written; and its driver is for one processor.
    assert not is_possible(boot._replace(cmdline="a=${node.unique.id}"), "disk.qcow2")
    assert not is_possible(boot._replace(platform=Platform("linux", "arm64")), "disk.qcow2")


def test_what_is_there_is_replaced_only_on_demand(
    artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"dir:{tmp_path}/a"
    assert main(["export", artifact, "--to", place]) == 0
    before = contents(tmp_path / "a")
    assert main(["export", artifact, "--to", place]) == 2
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "a/disk.raw").write_bytes(b"booted since")
    assert main(["export", artifact, "--to", place, "--force"]) == 0
    assert contents(tmp_path / "a") == before
    (tmp_path / "a/thesis.tex").touch()
    assert main(["export", artifact, "--to", place, "--force"]) == 2
    assert "has other files than an export: thesis.tex" in capsys.readouterr().err
    assert (tmp_path / "a/thesis.tex").exists()
    (tmp_path / "link").symlink_to("a")
    assert main(["export", artifact, "--to", f"dir:{tmp_path}/link", "--force"]) == 2


def test_a_damaged_disk_leaves_nothing(artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blob = tmp_path / "disks/blobs/sha256" / made().blob.digest.hex
    data = bytearray(blob.read_bytes())
    data[300_000] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    for place in (f"dir:{tmp_path}/a", f"containerdisk:oci-archive:{tmp_path}/a.tar:1"):
        assert main(["export", artifact, "--to", place]) == 1
        error = capsys.readouterr().err
        assert "not the bytes of the index" in error or "damaged" in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "disks"]


@pytest.mark.parametrize("place", ["dir:", "tar:a", "a", "containerdisk:oci:x@sha256:" + "0" * 64])
def test_places_that_are_none(artifact: str, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", artifact, "--to", place]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_artifact_that_needs_the_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n, initramfs in enumerate((gzip.compress(b"an older init"), b"something else")):
        publish(made(initramfs), f"oci:{tmp_path}/disks:old{n}", RegistryOptions())
        assert main(["export", f"oci:{tmp_path}/disks:old{n}", "--to", f"dir:{tmp_path}/a"]) == 2
        assert "the artifact's init needs the runner" in capsys.readouterr().err
    publish(sample(noise(1, 4096)), f"oci:{tmp_path}/disks:none", RegistryOptions())
    assert main(["export", f"oci:{tmp_path}/disks:none", "--to", f"dir:{tmp_path}/a"]) == 2
    assert "has no kernel" in capsys.readouterr().err


def opened(raw: bytes) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(raw))


def image(layout: Path) -> tuple[dict[str, Any], list[tarfile.TarFile]]:
    """The only image of a layout: its config and its layers."""

    def blob(digest: str) -> bytes:
        return (layout / "blobs" / digest.replace(":", "/")).read_bytes()

    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(blob(index["manifests"][0]["digest"]))
    config = json.loads(blob(manifest["config"]["digest"]))
    layers = []
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        raw = zstandard.ZstdDecompressor().stream_reader(blob(layer["digest"])).read()
        assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == diff_id
        layers.append(opened(raw))
    return config, layers


def check_container_disk(layers: list[tarfile.TarFile], room: Path) -> None:
    """The rules of KubeVirt and CDI for a container disk. AssertionError: one is broken."""
    members = {member.name: (member, tar) for tar in layers for member in tar}
    disks = [name for name, (member, _) in members.items() if name.startswith("disk/") and not member.isdir()]
    assert len(disks) == 1, "the importer takes the only file in /disk"
    member, tar = members[disks[0]]
    assert member.isfile()
    assert (member.uid, member.gid) == (107, 107)
    assert member.mode & 0o444
    assert not Path(disks[0]).name.startswith(".")
    file = tar.extractfile(member)
    assert file is not None
    (room / "imported").write_bytes(file.read())
    done = subprocess.run(
        ["qemu-img", "info", "--output=json", str(room / "imported")], capture_output=True, timeout=60
    )
    info = json.loads(done.stdout)
    assert info["format"] in ("qcow2", "raw")
    assert "backing-filename" not in info
    assert "data-file" not in info.get("format-specific", {}).get("data", {})


def test_a_container_disk(artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", artifact, "--to", f"containerdisk:oci:{tmp_path}/vm:1"]) == 0
    printed = capsys.readouterr().out
    config, layers = image(tmp_path / "vm")
    assert (config["os"], config["architecture"]) == ("linux", Platform.host().architecture)
    assert "created" not in config
    check_container_disk(layers, tmp_path)
    boot = {member.name: layers[1].extractfile(member) for member in layers[1] if member.isfile()}
    assert set(boot) == {"boot/vmlinuz", "boot/initramfs"}  # as the VirtualMachineInstance says
    assert '"/boot/vmlinuz"' in printed
    assert '"/boot/initramfs"' in printed
    digest = json.loads((tmp_path / "vm/index.json").read_bytes())["manifests"][0]["digest"]
    assert printed.count(f'"registry.example/vm@{digest}"') == 2
    command = ["qemu-img", "convert", "-O", "raw", str(tmp_path / "imported"), str(tmp_path / "raw")]
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "raw").read_bytes()[: len(made().disk)] == made().disk
    # The same twice, and in another place.
    assert main(["export", artifact, "--to", f"containerdisk:oci:{tmp_path}/vm:1"]) == 0
    assert main(["export", artifact, "--to", f"containerdisk:oci-archive:{tmp_path}/vm.tar:1"]) == 0
    with tarfile.open(tmp_path / "vm.tar") as tar:
        index = tar.extractfile("index.json")
        assert index is not None
        assert json.load(index)["manifests"][0]["digest"] == digest


@pytest.mark.parametrize("fault", ["owner", "second", "hidden", "backing"])
def test_the_rules_can_be_broken(fault: str, tmp_path: Path) -> None:
    disk = tmp_path / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M"], check=True, timeout=60)
    if fault == "backing":
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(disk), f"{disk}.2", "1M"]
        subprocess.run(command, check=True, timeout=60)
        disk = Path(f"{disk}.2")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in [f"disk/{'.' * (fault == 'hidden')}a.qcow2", *["disk/b.qcow2"] * (fault == "second")]:
            member = tarfile.TarInfo(name)
            member.size, member.mode = disk.stat().st_size, 0o440
            member.uid = member.gid = 0 if fault == "owner" else 107
            tar.addfile(member, io.BytesIO(disk.read_bytes()))
    with pytest.raises(AssertionError):
        check_container_disk([opened(out.getvalue())], tmp_path)


def test_a_tag_that_is_taken(artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"containerdisk:oci:{tmp_path}/vm:1"
    publish(made(memory_mib=999), f"oci:{tmp_path}/disks:2", RegistryOptions())
    assert main(["export", artifact, "--to", place]) == 0
    publish(with_boot(sample(noise(1, 8192)), initramfs=CONSOLE), f"oci:{tmp_path}/disks:3", RegistryOptions())
    assert main(["export", f"oci:{tmp_path}/disks:3", "--to", place]) == 2
    assert "already" in capsys.readouterr().err
    assert main(["export", f"oci:{tmp_path}/disks:3", "--to", place, "--force"]) == 0


def test_the_script_is_for_any_shell_and_any_command_line(tmp_path: Path) -> None:
    boot = BOOT._replace(cmdline="a='b c' $(touch pwned) `touch pwned` \"x\"")
    (tmp_path / "qemu.sh").write_text(qemu_script(boot, "disk.raw", "raw"))
    qemu = tmp_path / "qemu-system-x86_64"
    qemu.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\n')
    qemu.chmod(0o755)
    done = subprocess.run(
        ["sh", str(tmp_path / "qemu.sh"), "-more"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert words[words.index("-append") + 1] == boot.kernel_args
    assert words[-1] == "-more"
    assert not (tmp_path / "pwned").exists()


# Of Firecracker's API specification (FullVmConfiguration, BootSource, Drive, MachineConfiguration, EntropyDevice). Unknown keys are
# errors there.
FIRECRACKER: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["boot-source", "drives"],
    "properties": {
        "boot-source": {
            "type": "object",
            "additionalProperties": False,
            "required": ["kernel_image_path"],
            "properties": {name: {"type": "string"} for name in ("kernel_image_path", "initrd_path", "boot_args")},
        },
        "drives": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["drive_id", "is_root_device"],
                "properties": {
                    "drive_id": {"type": "string", "pattern": "^[0-9A-Za-z_]+$"},
                    "path_on_host": {"type": "string"},
                    "is_root_device": {"type": "boolean"},
                    "is_read_only": {"type": "boolean"},
                },
            },
        },
        "machine-config": {
            "type": "object",
            "additionalProperties": False,
            "required": ["vcpu_count", "mem_size_mib"],
            "properties": {
                "vcpu_count": {"type": "integer", "minimum": 1, "maximum": 32},
                "mem_size_mib": {"type": "integer", "minimum": 1},
                "smt": {"type": "boolean"},
            },
        },
        "entropy": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"rate_limiter": {"type": "object"}},
        },
    },
}


@pytest.mark.parametrize("cpus", [1, 32, 255])
def test_firecracker_s_fields(cpus: int) -> None:
    value = json.loads(firecracker(BOOT._replace(cpus=cpus), "vmlinux"))
    assert complaint(value, FIRECRACKER) == ""
    for part in ("boot-source", "machine-config", "entropy"):
        assert "memory" in complaint({**value, part: {**value[part], "memory": 1}}, FIRECRACKER)


def test_firecracker_s_file() -> None:
    value = json.loads(firecracker(BOOT, "vmlinux"))
    assert value["boot-source"]["boot_args"] == "console=ttyS0 quiet rootdisk.console=reboot rootdisk.network=none"
    assert value["machine-config"] == {"vcpu_count": 2, "mem_size_mib": 256}


def test_the_virtual_machine_instance_is_yaml() -> None:
    value = YAML(typ="safe").load(virtual_machine_instance(BOOT, "web", "registry.test/web@sha256:" + "0" * 64))
    assert value["spec"]["domain"]["memory"] == {"guest": "256Mi"}
    assert value["spec"]["domain"]["firmware"]["kernelBoot"]["kernelArgs"].endswith("rootdisk.network=none")
    assert value["spec"]["domain"]["devices"]["disks"] == [{"name": "root", "disk": {"bus": "virtio"}}]


def test_names_are_dns_labels() -> None:
    from rootdisk.oci.reference import parse_reference

    for text, name in (("registry.test/team/web_disk:1", "web-disk"), ("oci:./Ärger:1", "rger"), ("oci:...:1", "disk")):
        assert containerdisk._name(parse_reference(text)) == name
