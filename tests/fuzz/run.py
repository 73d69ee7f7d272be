"""A target's inputs in a process of their own: `python -m tests.fuzz.run TARGET DIRECTORY [--seconds N | --count N]`.

By atheris, which sees which lines an input reaches, if it is installed and --seconds are given; else by tests/fuzz/mutation.py.
What is found is in DIRECTORY/faults.json; DIRECTORY/now is what is tried at the moment (harness.py looks at it).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import mmap
import random
import struct
import sys
import time
from pathlib import Path

from rootdisk.errors import RootdiskError

NOW = struct.Struct("<QQQ")  # inputs so far, those that were refused, bytes of the present one
INPUT_MAX_BYTES = 1 << 20
FAULTS_MAX = 20


class Now:
    """What is tried at the moment, for who looks on, and what was found, each place of ours once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / "now"
        path.write_bytes(bytes(NOW.size + INPUT_MAX_BYTES))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.count = self.refused = 0
        self.faults: dict[tuple[str, str], dict[str, str]] = {}

    def attempt(self, data: bytes) -> None:
        from tests.fuzz.bounds import Fault, attempt

        self.count += 1
        self._map[NOW.size : NOW.size + len(data)] = data
        NOW.pack_into(self._map, 0, self.count, self.refused, len(data))
        found = attempt(self.read, data)
        self.refused += found is False
        if isinstance(found, Fault) and (found.kind, found.place) not in self.faults and len(self.faults) < FAULTS_MAX:
            self.faults[found.kind, found.place] = {**found._asdict(), "input": data.hex()}
            (self._folder / "faults.json").write_text(json.dumps(list(self.faults.values())))

    def begin(self, name: str, more: list[bytes]) -> list[bytes]:
        """The target's seeds, tried once, and those that are kept."""
        from tests.fuzz import bounds, corpus, table

        target = table.load(name)
        self.read, self.words, self.max_bytes = target.read, target.words, target.max_bytes
        seeds = list(target.seeds())
        first, *_ = seeds
        try:
            target.read(first)  # what it makes once and what it loads is not the input's
        except RootdiskError:
            pass
        bounds.limit()
        for data in (*seeds, *corpus.kept(name).values()):
            self.attempt(data)
        return [*seeds, *corpus.kept(name).values(), *more]

    def end(self) -> None:
        NOW.pack_into(self._map, 0, self.count, self.refused, 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--count", type=int, default=0, help="changed inputs, always the same ones")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    reached = options.folder / "reached"
    more = [path.read_bytes() for path in sorted(reached.iterdir())] if reached.is_dir() else []
    now = Now(options.folder)
    if options.seconds and importlib.util.find_spec("atheris") is not None:
        _guided(now, options, more)
    else:
        seeds = now.begin(options.target, more)
        end = time.monotonic() + options.seconds
        chance = random.Random(options.seed)
        done = 0
        while done < options.count or time.monotonic() < end:
            from tests.fuzz.mutation import mutated

            now.attempt(mutated(chance, seeds, now.words, now.max_bytes))
            done += 1
    now.end()


def _guided(now: Now, options: argparse.Namespace, more: list[bytes]) -> None:
    """By atheris; it ends the process itself."""
    import atheris

    with atheris.instrument_imports(
        include=["rootdisk", "runner", "imagetool", "tarfile"], enable_loader_override=False
    ):
        seeds = now.begin(options.target, more)
    atheris.enabled_hooks.add("str")
    folder = options.folder / "seeds"
    folder.mkdir(exist_ok=True)
    for number, data in enumerate(seeds):
        (folder / f"{number:05}").write_bytes(data[: now.max_bytes])
    reached = options.folder / "reached"
    reached.mkdir(exist_ok=True)
    words = options.folder / "words"
    words.write_text("".join('"{}"\n'.format("".join(f"\\x{byte:02x}" for byte in word)) for word in now.words if word))
    arguments = [
        sys.argv[0],
        f"-max_total_time={options.seconds:.0f}",
        f"-max_len={now.max_bytes}",
        "-timeout=3600",  # harness.py's and bounds.py's are in force
        "-rss_limit_mb=0",
        "-handle_xfsz=0",  # a file that is too large is an error like others
        f"-seed={options.seed % (1 << 31) + 1}",
        *([f"-dict={words}"] if now.words else []),
        f"-artifact_prefix={options.folder}/",
        "-verbosity=0",
        str(reached),
        str(folder),
    ]

    def one(data: bytes) -> None:
        now.attempt(data)
        now.end()

    atheris.Setup(arguments, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
