"""Modules in the initramfs: without the signatures behind them, unless the kernel may want these."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from imagetool.guest.initramfs import Module, build, unsigned
from imagetool.guest.kernel import Kernel

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
