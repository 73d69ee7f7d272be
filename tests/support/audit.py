"""What a command changes on the host, seen by strace: every file opened for writing, and every name made, moved or removed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.commands import ROOT

_CALLS = (
    "open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,symlink,symlinkat,link,linkat,rename,renameat,renameat2,"
    "unlink,unlinkat,rmdir,truncate,chmod,fchmodat,chown,lchown,fchownat,utimensat,setxattr,lsetxattr,mount,bind"
)
_LINE = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+= (-?\d+)(?:<(.*?)>)?", re.DOTALL)
_PLACE = re.compile(r'(?:(?:AT_FDCWD|\d+)<((?:[^<>\\]|\\.)*)>, )?"((?:[^"\\]|\\.)*)"(\.\.\.)?')
_WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND")
# Devices and kernel interfaces that hold no user's file.
_ALWAYS = (
    "/dev/null",
    "/dev/zero",
    "/dev/tty",
    "/dev/pts/",
    "/dev/kvm",
    "/dev/net/tun",
    "/dev/shm/",
    "/proc/",
    "pipe:",
    "socket:",
)


def changes(command: list[str], log: Path, cwd: Path, timeout: float = 300, **env: str) -> tuple[int, str, set[str]]:
    """Run `python COMMAND` in `cwd` under strace: exit status, standard error, absolute paths it changed or tried to.

    Successful calls only, but for attempts to write that fail for want of a right: those count as well.
    """
    done = subprocess.run(
        [
            "strace",
            "-f",
            "-y",
            "-qq",
            "-s",
            "4096",
            "--seccomp-bpf",
            "-e",
            f"trace={_CALLS}",
            "-e",
            "signal=none",
            "-o",
            str(log),
            sys.executable,
            *command,
        ],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=timeout,
    )
    return done.returncode, done.stderr.decode(errors="replace"), _changed(log.read_text(errors="replace"), cwd)


def beyond(paths: set[str], *allowed: Path) -> list[str]:
    """Those of `paths` that lie in none of the directories `allowed`."""
    roots = tuple(f"{root.resolve()}/" for root in allowed)
    return sorted(path for path in paths if not f"{path}/".startswith((*roots, *_ALWAYS)))


def _changed(log: str, cwd: Path) -> set[str]:
    found: set[str] = set()
    for line in _whole_lines(log):
        if not (match := _LINE.match(line)):
            continue
        call, arguments, result, opened = match.groups()
        if int(result) < 0 and not re.search(r"= -1 (EACCES|EPERM|EROFS)", line):
            continue
        places = [
            os.path.normpath(os.path.join(_text(base) if base else str(cwd), _text(name)))
            for base, name, _ in _PLACE.findall(arguments)
        ]
        if call.startswith(("open", "creat")):
            if call == "creat" or _WRITES.search(arguments):
                # The real path, links followed; of a file without a name (O_TMPFILE) its directory.
                found.add(
                    places[0] if "O_TMPFILE" in arguments or not opened else _text(opened).removesuffix("(deleted)")
                )
        elif call in ("symlink", "symlinkat"):
            found.add(places[-1])  # the first one is the link's text
        elif call == "bind":
            found.update(place for place in places if "sun_path" in arguments and not place.endswith("/@"))
        else:
            # What stands in a real directory: links on the way to a name count as where they lead.
            found.update(
                os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place)) for place in places
            )
    return found


def _whole_lines(log: str) -> list[str]:
    """Calls that another process's lines interrupt, put together again."""
    begun: dict[str, str] = {}
    whole = []
    for line in log.splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.lstrip()
        if rest.endswith("<unfinished ...>"):
            begun[pid] = rest.removesuffix("<unfinished ...>")
        elif resumed := re.match(r"<\.\.\. \w+ resumed>", rest):
            whole.append(f"{pid} {begun.pop(pid, '')}{rest[resumed.end() :]}")
        else:
            whole.append(f"{pid} {rest}")
    return whole


def _text(shown: str) -> str:
    """strace's way of writing a path, undone."""
    return os.fsdecode(re.sub(rb"\\(x[0-9a-f]{2}|[0-7]{1,3}|.)", _byte, shown.encode("utf-8", "surrogateescape")))


def _byte(match: re.Match[bytes]) -> bytes:
    text = match[1]
    if text[:1] == b"x":
        return bytes([int(text[1:], 16)])
    if text[:1].isdigit():
        return bytes([int(text, 8) & 0xFF])
    return {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f"}.get(text, text)
