"""Kernel modules without signatures, and without what only debuggers and tracers read: smaller, and quicker to load.

When it loads a module, the kernel parses its BTF (types, for BPF programs), sorts its ORC tables (for stack traces), and looks
up the symbol of each function that can be traced. That takes two thirds of the time, and most of it in large modules. Without
them, functions of modules cannot be traced, and a stack trace of the guest's kernel marks them with "?".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

_SIGNATURE_MARK = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(
    ">5B3xI"
)  # struct module_signature: algorithm, hash, kind, two lengths, length of the signature
_ELF64_LITTLE = b"\x7fELF\x02\x01"
_SECTIONS = struct.Struct("<Q4xHHHHHH")  # of the header, from e_shoff; then e_flags, e_ehsize … e_shstrndx
_SECTIONS_AT = 40
_HEADER_BYTES = 64
_SECTION = struct.Struct("<IIQQQQIIQQ")
_RELOCATION = struct.Struct("<QIIq")  # struct elf64_rela: r_offset, r_info's type and symbol, r_addend
_SYMBOL = struct.Struct("<I20x")  # struct elf64_sym: st_name
_ALIGN_MAX_BYTES = 1 << 16
_NAME_MAX_BYTES = 64  # a longer one is none of ours
_NO_BITS, _RELOCATIONS = 8, 4  # SHT_NOBITS: no bytes in the file; SHT_RELA
_TYPES = b".BTF"
_KFUNCS = (
    b".BTF_ids"  # functions that a module offers to BPF programs; many kernels refuse the module without its types
)
_DEBUGGERS = (b".orc_header", b".orc_unwind", b".orc_unwind_ip")
_TRACED = b"__mcount_loc"  # where the calls of __fentry__ are
_TRACER = b"__fentry__\0"
_CALL, _NOP = b"\xe8\0\0\0\0", b"\x0f\x1f\x44\0\0"  # of x86; the kernel replaces one by the other as well


class _Section(NamedTuple):
    """struct elf64_shdr, with its name."""

    name: bytes
    sh_name: int
    sh_type: int
    sh_flags: int
    sh_addr: int
    sh_offset: int
    sh_size: int
    sh_link: int
    sh_info: int
    sh_addralign: int
    sh_entsize: int


_NULL = _Section(b"", *[0] * 10)


def unsigned(module: bytes) -> bytes:
    """Return a decompressed module without the signature behind it (the kernel's scripts/sign-file.c)."""
    if not module.endswith(_SIGNATURE_MARK) or len(module) < len(_SIGNATURE_MARK) + _SIGNATURE.size:
        return module
    *_, length = _SIGNATURE.unpack_from(module, len(module) - len(_SIGNATURE_MARK) - _SIGNATURE.size)
    end = len(module) - len(_SIGNATURE_MARK) - _SIGNATURE.size - length
    return module[:end] if end > 0 else module


def slim(module: bytes) -> bytes:
    """Return `module` without BTF, ORC and the list of functions to trace. If it is not a kernel module, return it unchanged.

    A module that offers functions to BPF programs keeps its BTF.
    """
    content = bytearray(module)
    try:
        sections = _sections(module)
        for section in sections:
            if section.sh_type == _RELOCATIONS:
                _remove_calls(content, section, sections)
    except (struct.error, IndexError):  # damaged: the kernel says so
        return module
    if not sections:
        return module
    has_kfuncs = any(section.name == _KFUNCS for section in sections)
    dropped = (*_DEBUGGERS, _TRACED) if has_kfuncs else (*_DEBUGGERS, _TRACED, _TYPES)
    out = content[:_HEADER_BYTES]
    kept = []
    for section in sections:
        if section.name.removeprefix(b".rela") in dropped:
            kept.append(_NULL)  # symbols have the numbers of the others
            continue
        out += bytes(-len(out) % max(section.sh_addralign, 1))
        kept.append(section._replace(sh_offset=len(out)) if section.sh_type else section)
        if section.sh_type != _NO_BITS:
            out += content[section.sh_offset : section.sh_offset + section.sh_size]
    out += bytes(-len(out) % 8)
    struct.pack_into("<Q", out, _SECTIONS_AT, len(out))
    return bytes(out) + b"".join(_SECTION.pack(*section[1:]) for section in kept)


def _sections(module: bytes) -> list[_Section]:
    """Return the sections of an ELF file of 64 bits; none if it is something else, or damaged."""
    if not module.startswith(_ELF64_LITTLE) or len(module) < _HEADER_BYTES:
        return []
    offset, *_, size, count, strings = _SECTIONS.unpack_from(module, _SECTIONS_AT)
    if size != _SECTION.size or offset + count * size > len(module) or strings >= count:
        return []
    found = [_Section(b"", *_SECTION.unpack_from(module, offset + number * size)) for number in range(count)]
    if any(_is_wrong(one, len(module)) for one in found):
        return []
    if sum(one.sh_size for one in found if one.sh_type != _NO_BITS) > len(module):
        return []  # they overlap: what is made of them could be of any size
    return [one._replace(name=_text(module, found[strings], one.sh_name)) for one in found]


def _is_wrong(section: _Section, size: int) -> bool:
    is_outside = section.sh_type != _NO_BITS and section.sh_offset + section.sh_size > size
    return is_outside or section.sh_addralign > _ALIGN_MAX_BYTES


def _text(module: bytes, strings: _Section, at: int) -> bytes:
    start = strings.sh_offset + at
    return module[start : module.find(b"\0", start, start + _NAME_MAX_BYTES)]


def _remove_calls(content: bytearray, relocations: _Section, sections: list[_Section]) -> None:
    """Replace the calls of __fentry__ in a section of code, which nothing would do without the list of them."""
    code = sections[relocations.sh_info]
    for at, offset, name_at in _relocations(content, relocations, sections):
        start = code.sh_offset + offset - 1  # of the instruction
        if content.startswith(_TRACER, name_at) and content[start : start + 5] == _CALL:
            content[start : start + 5] = _NOP
            struct.pack_into("<II", content, at + 8, 0, 0)  # R_X86_64_NONE, of no symbol


def _relocations(content: bytearray, of: _Section, sections: list[_Section]) -> Iterator[tuple[int, int, int]]:
    """Yield of each relocation its place in the file, its offset in the section that it is for, and the place of its symbol's name."""
    symbols = sections[of.sh_link]
    strings = sections[symbols.sh_link]
    for at in range(of.sh_offset, of.sh_offset + of.sh_size - _RELOCATION.size + 1, _RELOCATION.size):
        offset, _, number, _ = _RELOCATION.unpack_from(content, at)
        (name,) = _SYMBOL.unpack_from(content, symbols.sh_offset + number * _SYMBOL.size)
        yield at, offset, strings.sh_offset + name
