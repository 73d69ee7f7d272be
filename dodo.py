"""The graph, from image to published artifact. `doit list` shows it, images.toml says of what; the work is in imagetool/.

    demo ─▶ resolve ─┐
    init ─▶ kernel ──┼─▶ disk ─▶ pack ─▶ publish ─▶ index ─▶ (build)
                     └─▶ explain   └─▶ check

Edges are receipts, small JSON files under cache/; big files are targets only, because doit would hash them.
"""

import multiprocessing
import signal
import sys
from importlib.metadata import version
from pathlib import Path

from doit.tools import config_changed

import imagetool
from imagetool.build import derivation
from imagetool.config import images as config
from imagetool.tasks import actions
from rootdisk.errors import RootdiskError
from rootdisk.system.stdio import settle

settle()
# doit records what is done when it ends; without a handler it would forget everything when stopped.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

ROOT = Path(__file__).resolve().parent
PLACES = actions.Places(ROOT / "cache")
DEMO = PLACES.cache / "demo" / "source"
DOIT_CONFIG = {
    "backend": "sqlite3",
    "dep_file": str(PLACES.cache / "doit.sqlite3"),
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
    IMAGES = config.load(ROOT / "images.toml")
    actions.make_cache(PLACES.cache)  # doit's own records lie there, even to list
    if multiprocessing.parent_process() is None and not LOOKS_ONLY & set(sys.argv[1:]):
        LOCK = actions.lock(PLACES.cache)  # until this process ends
except RootdiskError as err:
    sys.exit(f"doit: {err}")
GROUPS = {image.group: [one for one in IMAGES if one.group == image.group] for image in IMAGES if image.group}


def receipt(image, name):
    return str(PLACES.receipt(image, name))


def whole(image, name):
    """doit's `uptodate` of a receipt: it is what was written."""
    return actions.receipt_is_whole, [receipt(image, name)]


def source_state(image):
    """How to see that the source may have changed: what to watch, and doit's `uptodate`."""
    wanted = {"source": str(image.source), "platform": str(image.platform), "receipt": actions.SOURCE_RECEIPT}
    path = image.source.path
    if image.source.kind == "oci":
        return [str(path / "index.json")], [config_changed(wanted)]
    if path is not None and path.exists():  # an archive may be too large to be hashed again and again
        stat = path.stat()
        return [], [config_changed({**wanted, "size": stat.st_size, "mtime": stat.st_mtime_ns})]
    return [], [False]  # a tag may mean something else today: asking is cheap


def task_demo():
    """Make the demo's source image of Debian's packages."""
    from imagetool.demo.image import VERSION

    return {
        "actions": [(actions.demo, [DEMO])],
        "targets": [str(DEMO / "index.json")],
        "uptodate": [config_changed({"version": VERSION})],
    }


def task_init():
    """Make the guest's static init."""
    guest = Path(imagetool.__file__).parent / "guest"
    for platform in sorted({image.platform for image in IMAGES}, key=str):
        place = PLACES.init(platform)
        yield {
            "name": platform.architecture,
            "actions": [(actions.init, [PLACES, platform])],
            "file_dep": sorted(map(str, (*guest.glob("c/*.[ch]"), *guest.glob("built/*.json")))),
            "targets": [str(place / "init"), str(place / "init.json")],
            "uptodate": [(actions.init_is_whole, [PLACES, platform])],
        }


def task_kernel():
    """Get the kernel and make its initramfs."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.kernel, [PLACES, image])],
            "file_dep": [str(PLACES.init(image.platform) / "init.json")],
            "targets": [receipt(image, "kernel")],
            "uptodate": [
                config_changed({"kernel": image.kernel, "platform": str(image.platform)}),
                image.kernel in ("debian", "none"),  # a directory of one's own is looked through each time
                (actions.kernel_is_whole, [PLACES, image]),
            ],
        }


def task_resolve():
    """Ask which digest each source means today."""
    for image in IMAGES:
        watched, uptodate = source_state(image)
        yield {
            "name": image.name,
            "actions": [(actions.resolve, [PLACES, image])],
            "file_dep": watched,
            "targets": [receipt(image, "source")],
            "uptodate": [*uptodate, whole(image, "source")],
        }


def task_disk():
    """Build the root disk and compress it."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.disk, [PLACES, image])],
            "file_dep": [
                receipt(image, "source"),
                receipt(image, "kernel"),
                str(PLACES.init(image.platform) / "init.json"),
            ],
            "targets": [receipt(image, "disk")],
            "uptodate": [
                config_changed({**derivation.settings(image), "zstandard": version("zstandard")}),
                (actions.disk_is_there, [PLACES, image]),
            ],
        }


def task_pack():
    """Put the artifact together: config and manifest."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.pack, [PLACES, image])],
            "file_dep": [receipt(image, "disk"), receipt(image, "kernel")],
            "targets": [receipt(image, "artifact")],
            "uptodate": [whole(image, "artifact")],
        }


def task_publish():
    """Copy the artifact to its targets: OCI layouts or registries."""
    for image in IMAGES:
        targets = [str(target) for target in image.publish]
        layouts = [target.path / "index.json" for target in image.publish if target.path is not None]
        yield {
            "name": image.name,
            "actions": [(actions.publish, [PLACES, image])],
            "params": [FORCE],
            "file_dep": [receipt(image, "artifact")],
            "targets": [receipt(image, "published")],
            "uptodate": [
                config_changed({"targets": targets, "version": image.version, "plain_http": image.plain_http}),
                all(path.exists() for path in layouts),
                whole(image, "published"),
            ],
        }


def task_index():
    """Give one image's disks for several platforms one name."""
    for group, images in GROUPS.items():
        layouts = [target.path / "index.json" for target in images[0].publish if target.path is not None]
        yield {
            "name": group,
            "actions": [(actions.index, [PLACES, images])],
            "params": [FORCE],
            "file_dep": [receipt(image, "published") for image in images],
            "targets": [str(PLACES.index(images[0]))],
            "uptodate": [
                config_changed({"targets": list(map(str, images[0].publish)), "version": images[0].version}),
                all(path.exists() for path in layouts),
            ],
        }


def task_build():
    """Build and publish: everything, or one image with build:NAME."""
    for image in IMAGES:
        yield {"name": image.name, "actions": None, "task_dep": [f"publish:{image.name}"]}
    for group in GROUPS:
        yield {"name": group, "actions": None, "task_dep": [f"index:{group}"]}


def task_check():
    """Check the disk (e2fsck, our own reader) and boot it."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.check, [PLACES, image])],
            "file_dep": [
                receipt(image, "disk"),
                receipt(image, "published"),
                *([str(PLACES.index(image))] if image.group else []),
            ],
            "uptodate": [True],
        }


def task_reproduce():
    """Build again under another user, clock, locale, …, and compare every digest."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.reproduce, [PLACES, image, ROOT / "images.toml"])],
            "file_dep": [receipt(image, "artifact")],
            "uptodate": [False],
        }


def task_prune():
    """Say what may go from the targets: unused keys, versions past --keep N; --delete removes them."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.prune, [PLACES, image])],
            "params": [
                {"name": "delete", "long": "delete", "type": bool, "default": False, "help": "remove it"},
                {
                    "name": "keep",
                    "long": "keep",
                    "type": int,
                    "default": 0,
                    "help": "how many versions to keep; 0: all",
                },
            ],
            "uptodate": [False],
        }


def task_explain():
    """Say which input has changed since the last build, what that changes, and which tasks run for it."""
    for image in IMAGES:
        yield {
            "name": image.name,
            "actions": [(actions.explain, [PLACES, image, globals()])],
            "task_dep": [f"resolve:{image.name}", f"kernel:{image.name}"],
            "uptodate": [False],
        }


def task_report():
    """Write what the last build made: cache/report.md, cache/report.json."""
    return {"actions": [(actions.report, [PLACES, IMAGES])], "uptodate": [False]}


def task_graph():
    """Draw these tasks: cache/graph.svg; --only NAME those of one image."""
    return {
        "actions": [(actions.graph, [PLACES, globals()])],
        "params": [{"name": "only", "long": "only", "type": str, "default": "", "help": "an image's name"}],
        "uptodate": [False],
    }


def bench(rounds, only):
    from bench import __main__ as table

    table.measure(rounds, only.split(",") if only else table.PARTS, small=False, out=PLACES.cache / "bench")


def task_bench():
    """Measure against others, side by side; bench/README.md says how to read it."""
    return {
        "actions": [bench],
        "params": [
            {"name": "rounds", "long": "rounds", "type": int, "default": 5, "help": "measured runs of each row"},
            {"name": "only", "long": "only", "type": str, "default": "", "help": "some parts, with commas between"},
        ],
        "uptodate": [False],
    }
