"""The graph, from image to published artifact. `doit list` shows it, images.toml says of what; the work is in imagetool/.

A project's dodo.py is one line: from imagetool.tasks.dodo import *

    resolve ─────────┐
    init ─▶ kernel ──┼─▶ disk ─▶ pack ─▶ publish ─▶ index ─▶ (build)
                     └─▶ explain   └─▶ check

Edges are receipts, small JSON files under cache/; big files are targets only, because doit would hash them. The project is
the directory of images.toml: the working directory, to which doit has changed, or that of ROOTDISK_IMAGES.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from doit import task_params
from doit.tools import config_changed

import imagetool
from imagetool.build import derivation
from imagetool.build.receipts import ArtifactReceipt, SourceReceipt
from imagetool.config import images as config
from imagetool.config.images import Image
from imagetool.guest.kernel import WANTED
from imagetool.receipts import Receipt
from imagetool.tasks import actions, records, uptodate
from imagetool.tasks.clean import Clean
from imagetool.tasks.places import Places, lock, make_cache
from rootdisk.errors import RootdiskError
from rootdisk.system.stdio import end_without_output, settle

settle()
end_without_output("doit")
# doit records what is done when it ends; without a handler it would forget everything when stopped. Handlers of a program that
# imports this module stay.
for number in (signal.SIGTERM, signal.SIGINT):
    if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
        signal.signal(number, lambda received, _: sys.exit(128 + received))

DESCRIBED = config.file_named().absolute()
ROOT = DESCRIBED.parent
PLACES = Places(ROOT / "cache")
RECORDS = PLACES.cache / "doit.sqlite3"  # doit's own
DOIT_CONFIG = {
    "backend": "sqlite3",
    "dep_file": str(RECORDS),
    "default_tasks": ["build"],
    "verbosity": 2,
}
FORCE = {
    "name": "force",
    "long": "force",
    "type": bool,
    "default": False,
    "help": "move a version that names another disk",
}
LOOKS_ONLY = {"list", "help", "info", "dumpdb", "tabcompletion"}

try:
    IMAGES = config.load(DESCRIBED)
    make_cache(PLACES.cache)  # doit's own records lie there, even to list
    IS_PART = multiprocessing.parent_process() is not None
    LOOKS = IS_PART or bool(LOOKS_ONLY & set(sys.argv[1:]))
    LOCK = -1 if LOOKS else lock(PLACES.cache)  # until this process ends
    if not IS_PART:
        records.check(RECORDS, replace=not LOOKS)
except RootdiskError as err:
    sys.exit(f"doit: {err}")
GROUPS = {image.group: [one for one in IMAGES if one.group == image.group] for image in IMAGES if image.group}


Task = dict[str, Any]


def _receipt(image: Image, name: str) -> str:
    return str(PLACES.receipt(image, name))


def _whole(image: Image, name: str, kind: type[Receipt]) -> tuple[Any, list[Any]]:
    """Return doit's `uptodate` for a receipt: the file is as it was written."""
    return uptodate.receipt_is_whole, [_receipt(image, name), kind]


def _published(path: Path, images: list[Image]) -> tuple[Any, list[Any]]:
    """Return `uptodate` of doit for published artifacts: every target still has them."""
    return uptodate.is_published, [path, images]


def _source_state(image: Image) -> tuple[list[str], list[Any]]:
    """Return what shows that a source may have changed: files to watch, and `uptodate` of doit."""
    wanted = {"source": str(image.source), "platform": str(image.platform), "receipt": SourceReceipt.FORMAT}
    path = image.source.path
    if image.source.kind == "oci" and path is not None:
        return [str(path / "index.json")], [config_changed(wanted)]
    if path is not None and path.exists():  # an archive may be too large to be hashed again and again
        stat = path.stat()
        return [], [config_changed({**wanted, "size": stat.st_size, "mtime": stat.st_mtime_ns})]
    return [], [False]  # a tag may mean something else today: asking is cheap


def task_init() -> Iterator[Task]:
    """Make the guest's static init."""
    guest = Path(imagetool.__file__).parent / "guest"
    for platform in sorted({image.platform for image in IMAGES}, key=str):
        place = PLACES.init(platform)
        yield {
            "name": platform.architecture,
            "actions": [(actions.init, [PLACES, platform])],
            "file_dep": sorted(map(str, (*guest.glob("c/*.[ch]"), *guest.glob("built/*.json")))),
            "targets": [str(place / "init"), str(place / "init.json")],
            "uptodate": [(uptodate.init_is_whole, [PLACES, platform])],
        }


def task_kernel() -> Iterator[Task]:
    """Get the kernel and make its initramfs."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.kernel, [PLACES, image])],
            "file_dep": [str(PLACES.init(image.platform) / "init.json")],
            "targets": [_receipt(image, "kernel")],
            "uptodate": [
                config_changed(
                    {
                        "kernel": image.kernel,
                        "platform": str(image.platform),
                        **({"verity": True} if image.verity else {}),
                        "vmlinux": image.vmlinux,
                        "modules": [*sorted(WANTED.items()), "unsigned"],
                    }
                ),
                image.kernel in ("debian", "none"),  # a directory of one's own is looked through each time
                (uptodate.kernel_is_whole, [PLACES, image]),
            ],
        }


def task_resolve() -> Iterator[Task]:
    """Ask which digest each source means today."""
    for image in IMAGES:
        watched, uptodate = _source_state(image)
        yield {
            "name": image.name,
            "actions": [(actions.resolve, [PLACES, image])],
            "file_dep": watched,
            "targets": [_receipt(image, "source")],
            "uptodate": [*uptodate, _whole(image, "source", SourceReceipt)],
        }


def task_disk() -> Iterator[Task]:
    """Build the root disk and compress it."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.disk, [PLACES, image])],
            "file_dep": [
                _receipt(image, "source"),
                _receipt(image, "kernel"),
                str(PLACES.init(image.platform) / "init.json"),
            ],
            "targets": [_receipt(image, "disk")],
            "uptodate": [
                config_changed({**derivation.settings(image), "zstandard": version("zstandard")}),
                (uptodate.disk_is_there, [PLACES, image]),
            ],
        }


def task_pack() -> Iterator[Task]:
    """Put the artifact together: config and manifest."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.pack, [PLACES, image])],
            "file_dep": [_receipt(image, "disk"), _receipt(image, "kernel")],
            "targets": [_receipt(image, "artifact")],
            "uptodate": [_whole(image, "artifact", ArtifactReceipt)],
        }


def task_publish() -> Iterator[Task]:
    """Copy the artifact to its targets: OCI layouts or registries."""
    for image in IMAGES:
        targets = [str(target) for target in image.publish]
        yield {
            "name": image.name,
            "actions": [(actions.publish, [PLACES, image])],
            "params": [FORCE],
            "file_dep": [_receipt(image, "artifact")],
            "targets": [_receipt(image, "published")],
            "uptodate": [
                config_changed(
                    {
                        "targets": targets,
                        "version": image.version,
                        "plain_http": image.plain_http,
                        **({"sign": list(map(str, image.sign))} if image.sign else {}),
                        **({"sbom": image.sbom} if image.sbom else {}),
                    }
                ),
                _published(PLACES.receipt(image, "published"), [image]),
            ],
        }


def task_index() -> Iterator[Task]:
    """Give one image's disks for several platforms one name."""
    for group, images in GROUPS.items():
        yield {
            "name": group,
            "actions": [(actions.index, [PLACES, images])],
            "params": [FORCE],
            "file_dep": [_receipt(image, "published") for image in images],
            "targets": [str(PLACES.index(images[0]))],
            "uptodate": [
                config_changed(
                    {
                        "targets": list(map(str, images[0].publish)),
                        "version": images[0].version,
                        **({"sign": list(map(str, images[0].sign))} if images[0].sign else {}),
                    }
                ),
                _published(PLACES.index(images[0]), images),
            ],
        }


def task_build() -> Iterator[Task]:
    """Build and publish: everything, or one image with build:NAME."""
    names = ", ".join([image.name for image in IMAGES] + list(GROUPS)) or "images.toml has none"
    yield {
        "name": None,
        "doc": f"Build and publish: everything, or one image with build:NAME ({names}).",
        "clean": [Clean(PLACES, IMAGES, everything=True)],
    }
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": None,
            "task_dep": [f"publish:{image.name}"],
            "clean": [Clean(PLACES, [image], everything=False)],
        }
    for group, images in GROUPS.items():
        yield {
            "name": group,
            "actions": None,
            "task_dep": [f"index:{group}"],
            "clean": [Clean(PLACES, images, everything=False)],
        }


def task_check() -> Iterator[Task]:
    """Check what was published: fetch it, e2fsck, our own reader, what it runs, and a boot or its probe."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.check, [PLACES, image])],
            "file_dep": [
                _receipt(image, "disk"),
                _receipt(image, "published"),
                *([str(PLACES.index(image))] if image.group else []),
            ],
            "uptodate": [False],
        }


def task_trace() -> Iterator[Task]:
    """Boot what was published and write which files it reads, in order: NAME.trace, for boot_trace of images.toml."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.trace, [PLACES, image, DESCRIBED.parent / f"{image.name}.trace"])],
            "file_dep": [_receipt(image, "published")],
            "uptodate": [False],
        }


def task_reproduce() -> Iterator[Task]:
    """Build again under another user, clock, locale, …, and compare every digest."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.reproduce, [PLACES, image, DESCRIBED])],
            "file_dep": [_receipt(image, "artifact")],
            "uptodate": [False],
        }


PRUNE: list[dict[str, Any]] = [
    {"name": "delete", "long": "delete", "type": bool, "default": False, "help": "remove it"},
    {"name": "keep", "long": "keep", "type": str, "default": "", "help": "keep the N versions published last"},
]


@task_params(PRUNE)  # type: ignore[untyped-decorator]
def task_prune(**for_all: Any) -> Iterator[Task]:
    """List what may go from the targets: unused keys, versions past --keep N; --delete removes it."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.prune, [PLACES, image, for_all])],
            "params": PRUNE,
            "uptodate": [False],
        }


def task_explain() -> Iterator[Task]:
    """Say which input has changed since the last build, what that changes, and which tasks run for it."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.explain, [PLACES, image, _namespace()])],
            "task_dep": [f"resolve:{image.name}", f"kernel:{image.name}"],
            "uptodate": [False],
        }


def task_report() -> Task:
    """Write what the last build made: cache/report.md, cache/report.json."""
    return {"actions": [(actions.report, [PLACES, IMAGES])], "uptodate": [False]}


def task_graph() -> Task:
    """Draw these tasks: cache/graph.svg; --only NAME those of one image."""
    return {
        "actions": [(actions.graph, [PLACES, _namespace()])],
        "params": [{"name": "only", "long": "only", "type": str, "default": "", "help": "an image's name"}],
        "uptodate": [False],
    }


def _namespace() -> dict[str, Any]:
    """The namespace of the dodo.py that has imported all this, with tasks of its own perhaps; else this module's."""
    for module in list(sys.modules.values()):
        if module.__name__ != __name__ and getattr(module, "task_graph", None) is task_graph:
            return vars(module)
    return globals()


__all__ = ["DOIT_CONFIG", "IMAGES", "LOCK", "PLACES", "ROOT", *(name for name in globals() if name.startswith("task_"))]
