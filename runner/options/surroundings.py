"""Parse options for the environment of a guest's program: tmpfs, limits, host names, name servers. Pure."""

from __future__ import annotations

import argparse
import re
import socket

from rootdisk.errors import BadInput
from rootdisk.parsing.ids import id_or_none
from rootdisk.records import Record
from rootdisk.text import printable
from runner.options.values import size_bytes

_FLAGS = {
    "ro",
    "rw",
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "noatime",
    "relatime",
    "nodiratime",
    "strictatime",
}
_LIMITS = (
    *(
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
    ),
    *("sigpending", "stack"),
)
_PAGE = 4096
_UNLIMITED = (1 << 64) - 1  # RLIM_INFINITY
_FILES_MAX = 1 << 20  # the kernel's fs.nr_open
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_WORD = re.compile(r"[!-~]{1,253}")
GATEWAY = "10.0.2.2"


def records(options: argparse.Namespace) -> list[Record]:
    """Return the slot's records for these options; BadInput names the option that is wrong."""
    texts = [("tmpfs", _tmpfs(text)) for text in options.tmpfs]
    places = [value.partition("\t")[0] for _, value in texts]
    for place in places:
        if places.count(place) > 1:
            raise BadInput(f"--tmpfs: {printable(place)} twice", "give each place once")
    if options.shm_size is not None:
        texts.append(("shm-size", str(size_bytes(options.shm_size, "--shm-size", bare_least=_PAGE))))
    texts += [("ulimit", _limit(text)) for text in options.ulimit]
    texts += [("host", _host(text)) for text in options.add_host]
    texts += [("dns", _address(text, "--dns")) for text in options.dns]
    texts += [("dns-search", _matching(text, "--dns-search", _NAME)) for text in options.dns_search]
    texts += [("dns-option", _matching(text, "--dns-option", _WORD)) for text in options.dns_option]
    if options.pid1 and options.init:
        raise BadInput("--pid1 and --init", "use one of them")
    if options.pid1 or options.init:
        texts.append(("pid1", str(int(options.pid1))))
    return [(key, value.encode()) for key, value in texts]


def _tmpfs(text: str) -> str:
    """Convert PATH[:OPTIONS] to PATH, a tab and the options, with sizes in bytes."""
    shown = f"--tmpfs '{printable(text, 120)}'"
    path, _, words = text.partition(":")
    from runner.machine.virtiofsd import guest_path

    place = guest_path(path, shown, "a tmpfs")
    options = [_tmpfs_word(word, shown) for word in words.split(",") if word]
    return f"{place}\t{','.join(options)}"


def _tmpfs_word(word: str, shown: str) -> str:
    name, equals, value = word.partition("=")
    if word in _FLAGS:
        return word
    if name == "size" and re.fullmatch(r"[1-9][0-9]?%|100%", value):
        return word
    if name == "size" and equals:
        return f"size={size_bytes(value, shown + ': size', bare_least=_PAGE)}"
    if name == "mode" and re.fullmatch("[0-7]{1,4}", value):
        return word
    if name in ("uid", "gid") and equals and id_or_none(value) is not None:
        return word
    if name == "nr_inodes" and re.fullmatch("[0-9]{1,12}", value):
        return word
    raise BadInput(
        f"{shown}: {printable(word, 40)!r} is not an option",
        "size=64m, mode=1777, uid=, gid=, nr_inodes=, ro, exec, suid, dev",
    )


def _limit(text: str) -> str:
    shown = f"--ulimit '{printable(text, 80)}'"
    match = re.fullmatch(r"([a-z]+)=(-1|[0-9]{1,19})(?::(-1|[0-9]{1,19}))?", text)
    if match is None or match[1] not in _LIMITS:
        raise BadInput(
            shown, f"write NAME=SOFT or NAME=SOFT:HARD, -1 for no limit; NAME is one of {', '.join(_LIMITS)}"
        )
    soft, hard = (_UNLIMITED if number == "-1" else int(number) for number in (match[2], match[3] or match[2]))
    if soft > hard:
        raise BadInput(shown, "the soft limit is above the hard one")
    if match[1] == "nofile" and hard > _FILES_MAX:
        raise BadInput(shown, f"a guest has at most {_FILES_MAX:,} open files")
    return f"{match[1]}\t{soft}\t{hard}"


def _host(text: str) -> str:
    """Convert NAME:ADDRESS or NAME=ADDRESS to a line of /etc/hosts."""
    shown = f"--add-host '{printable(text, 120)}'"
    name, sign, address = text.partition("=") if "=" in text else text.partition(":")
    if not sign or not _NAME.fullmatch(name):
        raise BadInput(shown, "write NAME:ADDRESS, as db:10.0.0.5 or host.docker.internal:host-gateway")
    if address == "host-gateway":
        return f"{GATEWAY}\t{name}"
    return f"{_address(address.removeprefix('[').removesuffix(']'), shown)}\t{name}"


def _address(text: str, option: str) -> str:
    """Return an IPv4 or IPv6 address in its usual form; BadInput if it is not one."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text))
    except (OSError, ValueError) as err:
        raise BadInput(
            f"{option}: {printable(text, 60)!r} is not an address", "write it as 10.0.0.5 or 2001:db8::5"
        ) from err


def _matching(text: str, option: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(text):
        raise BadInput(f"{option} {printable(text, 60)!r}", "a name without spaces, as example.com; . for none")
    return text
