"""Proof that an image's artifact is decided by its inputs alone: it is built again where everything else is different.

A build is a process of its own, from nothing, as `python -m imagetool.prove.reproduction`; the circumstances are made around
it. Two are built, one as things are here and one with all circumstances changed at once. Where they differ, each
circumstance is changed alone to find the ones that matter.
"""

from __future__ import annotations

import json
import locale
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from imagetool.config.images import Image
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest
from rootdisk.oci.reference import Reference
from rootdisk.system import process
from rootdisk.system.folders import home
from rootdisk.text import error_text

UID = 12345
TAG = "again"
CLOCK_S = 20 * 3600  # no certificate of a registry runs out, and nothing looks as if it were of a killed process
PROBE_S = 20
SAME = "it is the same in both"


class Dimension(NamedTuple):
    """A circumstance of a build, changed: by the environment, by a command around it, or by the process itself."""

    name: str
    environment: Mapping[str, str] = MappingProxyType({})
    prefix: tuple[str, ...] = ()
    own: Mapping[str, Any] = MappingProxyType({})


def reproduce(image: Image, described: Path, built: Digest, place: Path, kernels: Path) -> Iterator[str]:
    """Build `image` of the file `described` twice in `place`, and say what came of it, line by line.

    RootdiskError if one of the two is not `built`, after the lines that say what differs and why; then both stay in
    `place`. Kernel packages are taken from `kernels`.
    """
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    dimensions, untried = _dimensions(described)
    started = time.monotonic()
    plain, here = _built(image, described, place / "plain", kernels, ())
    other, there = _built(image, described, place / "other", kernels, dimensions)
    # Ignore changes that a build does not see: another locale may be the same one under another name.
    untried += [(dimension.name, SAME) for dimension in dimensions if here[dimension.name] == there[dimension.name]]
    dimensions = [dimension for dimension in dimensions if here[dimension.name] != there[dimension.name]]
    yield f"built twice from nothing, {time.monotonic() - started:.1f} s; the second with another " + ", ".join(
        dimension.name for dimension in dimensions
    )
    for name, reason in untried:
        yield f"not tried: another {name}: {reason}"
    if plain == other == built:
        shutil.rmtree(place)
        yield f"every digest is the same: {built}"
        return
    if plain != other:
        yield from _compared(image, place / "plain", place / "other")
        for dimension in dimensions:
            alone, _ = _built(image, described, place / "alone", kernels, (dimension,))
            if alone != plain:
                yield f"it depends on: {dimension.name}"
            shutil.rmtree(place / "alone")
        raise RootdiskError(f"{image.name}: the same inputs gave {plain} and {other}", f"look into {place}")
    raise RootdiskError(
        f"{image.name}: doit build made {built}, and from nothing it is {plain}",
        f"compare them: imagetool explain {image.publish[0].place}:{image.version} oci:{place}/plain/layout:{TAG}",
    )


def _dimensions(described: Path) -> tuple[list[Dimension], list[tuple[str, str]]]:
    """Return what can be changed on this machine, and of the rest why not."""
    tried = [
        Dimension("user name", {"USER": "somebody", "LOGNAME": "somebody", "HOME": "/nonexistent"}),
        Dimension("time zone", {"TZ": "<+14>-14"}),  # a name would need the package tzdata, and mean UTC without it
        Dimension("locale", {"LC_ALL": _locale(), "LANG": _locale()}),
        Dimension("umask", own={"umask": 0o077}),
        Dimension("working directory", own={"directory": "/"}),
        Dimension("hash seed", {"PYTHONHASHSEED": "4242"}),
        Dimension("number of threads", own={"threads": 7}),
        Dimension("order of directories", own={"reversed": True}),
    ]
    untried = []
    for name, environment, prefixes in (
        ("uid", {}, _other_uid()),
        (
            "clock",
            {"SOURCE_DATE_EPOCH": "1"},
            [("faketime", "--exclude-monotonic", "-f", f"+{CLOCK_S}s")],
        ),
    ):
        reason = ""
        for prefix in prefixes:
            reason = _refused(prefix, described)
            if not reason:
                tried.append(Dimension(name, environment, prefix))
                break
        else:
            untried.append((name, reason))
    return tried, untried


def _other_uid() -> list[tuple[str, ...]]:
    ways: list[tuple[str, ...]] = [("unshare", "--user", f"--map-user={UID}", f"--map-group={UID}")]
    if os.geteuid() == 0:  # containers often have no user namespaces
        ways.append(("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"))
    return ways


def _refused(prefix: Sequence[str], described: Path) -> str:
    """Return why nothing can be run by `prefix`; "" if the file `described` can be read there."""
    try:
        done = process.run([*prefix, "cat", str(described)], timeout_s=PROBE_S)
    except FileNotFoundError:
        return f"{prefix[0]} is not installed"
    except OSError as err:
        return f"{prefix[0]}: {err}"
    if done.status:
        return (done.complaint.strip().splitlines() or [f"{prefix[0]} fails"])[-1]
    return ""


def _locale() -> str:
    """Return a locale other than this process's, if possible one whose rules differ from those of C."""
    try:
        names = process.run(["locale", "-a"], timeout_s=PROBE_S).text.split()
    except OSError:
        names = []
    variables = (os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    here = _plain(next(filter(None, variables), "C"))
    others = [name for name in names if _plain(name) not in (here, "c", "posix")]
    others.sort(key=lambda name: _plain(name).startswith("c."))
    return next(iter(others), "C.UTF-8" if here in ("c", "posix") else "POSIX")


def _plain(locale_name: str) -> str:
    """The name for comparisons: C.UTF-8 and C.utf8 are one locale."""
    return locale_name.lower().replace("-", "")


def _built(
    image: Image, described: Path, out: Path, kernels: Path, dimensions: Sequence[Dimension]
) -> tuple[Digest, dict[str, Any]]:
    """Build `image` into the layout `out`/layout, in a process of its own under `dimensions`.

    Returns its digest, and what the process saw of each dimension.
    """
    out.mkdir()
    task: dict[str, Any] = {"described": str(described), "image": image.name, "out": str(out), "kernels": str(kernels)}
    task["now"] = time.time()
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path))),
    }
    # Another user's process has another home.
    if "DOCKER_CONFIG" not in environment and (user := home()) is not None:
        environment["DOCKER_CONFIG"] = str(user / ".docker")
    prefix: tuple[str, ...] = ()
    for dimension in dimensions:
        environment |= dimension.environment
        prefix += dimension.prefix
        task |= dimension.own
    if "setpriv" in prefix:
        os.chown(out, UID, UID)
    command = [*prefix, sys.executable, "-m", "imagetool.prove.reproduction", json.dumps(task)]
    done = process.run(command, env=environment)
    if done.status:
        said = done.complaint.strip().splitlines() or ["it says nothing"]
        raise RootdiskError(f"{image.name}: cannot be built again: {said[-1].removeprefix('imagetool: ')}")
    digest, seen = done.text.splitlines()
    return Digest.parse(digest), json.loads(seen)


def _compared(image: Image, plain: Path, other: Path) -> Iterator[str]:
    from imagetool.build.disk import registry
    from imagetool.look.difference import differences
    from rootdisk.artifact.published import open_artifact

    names = (Reference("oci", path=place / "layout", tag=TAG) for place in (plain, other))
    first, second = (open_artifact(name, image.platform, registry(image)) for name in names)
    with first as a, second as b:
        yield from differences(a, b)


def _change_own(task: Mapping[str, Any]) -> None:
    """Change what only the process itself can."""
    if "umask" in task:
        os.umask(task["umask"])
    if "directory" in task:
        os.chdir(task["directory"])
    if "reversed" in task:
        _reverse_directories()


def seen(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return what this process sees of each dimension."""
    from imagetool.packing.pack import worker_count

    os.umask(umask := os.umask(0o077))
    before = locale.setlocale(locale.LC_ALL)
    try:
        language = _plain(locale.setlocale(locale.LC_ALL, ""))
    except locale.Error:  # it is not installed
        language = "c"
    locale.setlocale(locale.LC_ALL, before)
    return {
        "user name": [os.environ.get(name) for name in ("USER", "LOGNAME", "HOME")],
        "time zone": time.localtime(task["now"]).tm_gmtoff,
        "locale": language,
        "umask": umask,
        "working directory": os.getcwd(),
        "hash seed": hash("rootdisk"),
        "number of threads": worker_count(task.get("threads")),
        "order of directories": os.listdir(Path(__file__).parent),
        "uid": os.getuid(),
        "clock": abs(time.time() - task["now"]) < CLOCK_S / 2,
    }


def build_again(task: Mapping[str, Any]) -> Digest:
    """Build from nothing, init and initramfs too; this is what the process does."""
    from imagetool.build import disk
    from imagetool.build.artifact import publish_artifact
    from imagetool.config import images
    from imagetool.guest.boot_files import make_init, make_kernel
    from imagetool.guest.programs import BootFiles

    out = Path(task["out"])
    (found,) = [image for image in images.load(Path(task["described"])) if image.name == task["image"]]
    image = replace(found, group="")  # alone, whatever other platforms it is built for
    make_init(image.platform, out / "init")
    boot = BootFiles.of(out / "init", out, make_kernel(image, out / "init", out, Path(task["kernels"])))
    targets = (Reference("oci", path=out / "layout"),)
    threads = task.get("threads")
    with disk.open_image(image) as source:
        return publish_artifact(image, source, boot, out / "cache", targets, TAG, threads=threads).digest


def _reverse_directories() -> None:
    """Names of directories come in another order, which is any file system's right."""
    scandir, listdir = os.scandir, os.listdir

    class Reversed:
        """os.scandir's iterator, which is a context manager too."""

        def __init__(self, path: Any = ".") -> None:
            with scandir(path) as found:
                self._found = iter(sorted(found, key=lambda entry: entry.name, reverse=True))

        def __iter__(self) -> Any:
            return self._found

        def __next__(self) -> Any:
            return next(self._found)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def close(self) -> None:
            """End the iteration."""
            self._found = iter(())

    os.scandir = Reversed  # type: ignore[assignment]
    os.listdir = lambda path=".": sorted(listdir(path), reverse=True)  # type: ignore[assignment]


def main() -> int:
    """Run the task in the first argument and print its result."""
    try:
        task = json.loads(sys.argv[1])
        _change_own(task)
        print(build_again(task))
        print(json.dumps(seen(task)))
    except (RootdiskError, OSError) as err:
        print(f"imagetool: {error_text(str(err))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
