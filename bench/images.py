"""The source images, made reproducibly and kept: an OCI layout each, named by what decides its content.

app     three layers of Debian's packages: base system; Python, pandas and SymPy; an application of 1 % of the bytes
many    files of 0 to 8 KiB in three layers, by count
big     files of 32 MiB, half random and half text, by size
"""

from __future__ import annotations

import io
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from bench import layout
from bench.older import debian_older, replaced
from imagetool.demo import debian
from imagetool.demo.layers import Clock, app_layer, base_layer, next_layer
from rootdisk.oci.documents import Platform

APP_PACKAGES = "python3-pandas python3-sympy"
OLDER_PACKAGES = ("perl-base", "libsystemd0", "tzdata", "liblzma5")
APP_FILES = 150  # of about 30 KB, so that the top layer is 1 % of the bytes
OWNER = 1000
MTIME = 1_700_000_000
CONFIG = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/true"]}
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Images:
    """Images by name, made when first asked for."""

    folder: Path

    def app(self) -> Path:
        return self._made("app-1", self._make_app)

    def app_changed(self) -> Path:
        """The same with another top layer."""
        return self.app_version(2)

    def app_version(self, number: int) -> Path:
        """The same with the top layer of a version; 1 is the image itself."""
        base = self.app()
        return self._made(f"app-{number}", lambda place: layout.make(place, [_application(number)], CONFIG, base))

    def app_older(self) -> Path:
        """The same with a few packages of the base at the oldest version that there is. Missing where none is to be had."""
        app = self.app()
        return self._made("app-older", lambda place: self._make_older(place, app))

    def files(self, version: int, count: int) -> Path:
        """`count` files of 40 KB and one of 1 MB in one layer; version 2 has a few others, 3 another large one."""
        return self._made(
            f"files-{count}-{version}", lambda place: layout.make(place, [_files(version, count)], CONFIG)
        )

    def many(self, count: int) -> Path:
        return self._made(f"many-{count}", lambda place: layout.make(place, _many(count), CONFIG))

    def big(self, size: int) -> Path:
        return self._made(f"big-{size}", lambda place: layout.make(place, [_big(size)], CONFIG))

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        place = self.folder / name
        if not (place / "index.json").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            print(f"making the image {name}", flush=True)
            make(place)
        return place

    def _make_older(self, place: Path, app: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".older-", dir=self.folder) as name:
            packages = debian_older(Path(name), OLDER_PACKAGES)
            base, *others = [partial(layout.copied, app, number) for number in range(3)]
            layout.make(place, [lambda out: replaced(base, packages, Path(name), out), *others], CONFIG)

    def _make_app(self, place: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".app-", dir=self.folder) as name:
            work = Path(name)
            work.chmod(0o755)  # mmdebstrap's user namespace reads it
            start = time.time()
            made = debian.install(work, Platform.host().architecture, APP_PACKAGES)
            with made.base.open("rb") as base, made.python.open("rb") as whole:
                clock = Clock.of(whole, start)

                def system(out: IO[bytes]) -> None:
                    base.seek(0)
                    base_layer(base, out, clock)

                def packages(out: IO[bytes]) -> None:
                    base.seek(0)
                    whole.seek(0)
                    next_layer(base, whole, out, clock)

                layout.make(place, [system, packages, _application(1)], CONFIG)


def _application(version: int) -> layout.Writer:
    """A layer of source files and data below /sandbox, every one of them other in another version."""
    source = random.Random(version)
    text = b"def function(argument):\n    return argument + 1\n"
    files = {
        f"sandbox/app/part-{number % 12}/file-{number}.py": source.randbytes(source.randrange(30_000)) + text * 300
        for number in range(APP_FILES)
    }
    return lambda out: app_layer(files, OWNER, out, MTIME)


def _files(version: int, count: int) -> layout.Writer:
    def files() -> Iterator[tuple[str, bytes]]:
        for number in range(count):
            source = random.Random(number if version != 2 or number % (count // 25) else -number - 1)
            yield f"data/{number % 40}/file-{number}", source.randbytes(20_000) + b"some words of text " * 1000
        for number in range(10 if version == 2 else 0):
            yield f"data/new/{number}", random.Random(10**6 + number).randbytes(40_000)
        yield "data/large", random.Random(version == 3).randbytes(MIB)

    return lambda out: _write(out, files())


def _many(count: int) -> list[layout.Writer]:
    text = bytes(random.Random(1).choices(b"etaoinshrdlu \n{}();=", k=1 << 16))

    def layer(first: int) -> layout.Writer:
        def files() -> Iterator[tuple[str, bytes]]:
            source = random.Random(first)
            for number in range(first, count, 3):
                start = source.randrange(1 << 15)
                name = f"sandbox/{number % 97:02}/{number // 97 % 89:02}/file-{number}.txt"
                yield name, text[start : start + source.randrange(8192)]

        return lambda out: _write(out, files())

    return [layer(first) for first in range(3)]


def _big(size: int) -> layout.Writer:
    part = min(size, 32 * MIB)

    def files() -> Iterator[tuple[str, bytes]]:
        source = random.Random(2)
        for number in range(size // part):
            line = b"%08d the quick brown fox jumps over\n" % number * 64
            yield f"big/{number:04}.bin", b"".join(source.randbytes(2048) + line[:2048] for _ in range(part >> 12))

    return lambda out: _write(out, files())


def _write(out: IO[bytes], files: Iterator[tuple[str, bytes]]) -> None:
    """Files and the directories above them, as a layer's tar."""
    made: set[str] = set()
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=MIB) as tar:
        for name, data in files:
            parts = name.split("/")
            for above in ("/".join(parts[:n]) for n in range(1, len(parts))):
                if above not in made:
                    made.add(above)
                    folder = tarfile.TarInfo(above)
                    folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o755, MTIME
                    tar.addfile(folder)
            file = tarfile.TarInfo(name)
            file.size, file.mtime = len(data), MTIME
            tar.addfile(file, io.BytesIO(data))
