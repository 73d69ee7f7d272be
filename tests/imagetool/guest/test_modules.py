"""Modules in the initramfs: without signatures and what debuggers read, unless the kernel may want the signatures."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from imagetool.guest.initramfs import Module, build
from imagetool.guest.kernel import Kernel
from imagetool.guest.modules import slim, unsigned

ELF = b"\x7fELF a module"
MARK = b"~Module signature appended~\n"


def signed(signature: bytes = b"s" * 300, length: int | None = None) -> bytes:
    return ELF + signature + struct.pack(">5B3xI", 0, 0, 2, 0, 0, len(signature) if length is None else length) + MARK


def test_the_signature_is_taken_off() -> None:
    assert unsigned(signed()) == ELF
    assert unsigned(ELF) == ELF
    for odd in (signed(length=1 << 31), MARK, b"short" + MARK):
        try:
            assert unsigned(odd) == odd
        except struct.error:
            pytest.fail("a short file ends in no error")


def test_the_initramfs_has_it_or_not() -> None:
    module = [Module("a.ko", signed(), "")]
    assert MARK in gzip.decompress(build(b"init", module))
    assert MARK not in gzip.decompress(build(b"init", module, signed=False))


def test_a_kernel_that_may_want_them(tmp_path: Path) -> None:
    kernel = Kernel("6.1", tmp_path / "vmlinuz-6.1", ())
    assert kernel.wants_signatures  # nobody knows
    config = tmp_path / "config-6.1"
    config.write_text(
        "CONFIG_MODULE_SIG=y\n# CONFIG_MODULE_SIG_FORCE is not set\nCONFIG_LOCK_DOWN_KERNEL_FORCE_NONE=y\n"
    )
    assert not kernel.wants_signatures
    for line in ("CONFIG_MODULE_SIG_FORCE=y", "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY=y"):
        config.write_text(f"CONFIG_MODULE_SIG=y\n{line}\n")
        assert kernel.wants_signatures


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object file as a module is: with calls of __fentry__, a list of them, and a section of BTF."""
    folder = tmp_path_factory.mktemp("traced")
    (folder / "a.c").write_text(
        'static const char btf[] __attribute__((section(".BTF"), used)) = "types";\n'
        "static int twice(int n) { return 2 * n; }\n"
        "int (*call)(int) = twice;\n"
        "int answer(void) { return call(20) + 2; }\n"
    )
    command = ["gcc", "-c", "-O1", "-fno-pic", "-pg", "-mfentry", "-mrecord-mcount", "-o", "a.o", "a.c"]
    if shutil.which("gcc") is None or subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip("no gcc for x86")
    return folder / "a.o"


def test_what_debuggers_read_is_gone_and_the_rest_still_links(traced: Path, tmp_path: Path) -> None:
    def seen(path: Path) -> str:
        command = ["objdump", "-d", "-r", "-h", str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    before, slimmed = seen(traced), tmp_path / "slim.o"
    slimmed.write_bytes(slim(traced.read_bytes()))
    after = seen(slimmed)
    for word in ("__mcount_loc", ".BTF", "call"):
        assert word in before
    assert "__mcount_loc" not in after
    assert ".BTF" not in after
    assert after.count("R_X86_64_NONE") == after.count("nopl   0x0(%rax,%rax,1)") == 2
    (tmp_path / "main.c").write_text("int answer(void); int main(void) { return answer(); }\n")
    subprocess.run(
        ["gcc", "-no-pie", "-o", "program", "main.c", "slim.o"], cwd=tmp_path, check=True, capture_output=True
    )
    assert subprocess.run([tmp_path / "program"], check=False).returncode == 42
    assert slim(slimmed.read_bytes()) == slimmed.read_bytes()


def test_a_module_that_offers_functions_to_bpf_programs_keeps_its_types(traced: Path, tmp_path: Path) -> None:
    """register_btf_kfunc_id_set() of many kernels fails without them: "missing module BTF, cannot register kfuncs"."""
    offers = tmp_path / "offers.o"
    ids = tmp_path / "ids"
    ids.write_bytes(bytes(8))
    subprocess.run(["objcopy", "--add-section", f".BTF_ids={ids}", str(traced), str(offers)], check=True)
    slimmed = slim(offers.read_bytes())
    assert b"types\0" in slimmed
    assert slim(slimmed) == slimmed
    assert len(slimmed) < offers.stat().st_size  # the rest is gone


def test_sections_that_overlap_are_not_written_again(traced: Path) -> None:
    """Each of them would be: a file of 64 KiB with 60,000 sections would take 4 GB."""
    whole = bytearray(traced.read_bytes())
    (table,) = struct.unpack_from("<Q", whole, 40)
    for at in (table + 64, table + 128):
        struct.pack_into("<QQ", whole, at + 24, 0, len(whole) - 100)
        struct.pack_into("<I", whole, at + 4, 1)
    assert slim(bytes(whole)) == whole


def test_a_damaged_module_is_for_the_kernel_to_refuse(traced: Path) -> None:
    whole = traced.read_bytes()
    for size in range(0, len(whole), 7):
        assert slim(whole[:size]) == whole[:size]
    for at in range(len(whole)):
        slim(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
