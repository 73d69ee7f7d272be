"""`doit explain`: tell what has changed since the last build, and which tasks will run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imagetool.build import derivation
from imagetool.build.receipts import BuiltReceipt, KernelReceipt, PublishedReceipt, SourceReceipt
from imagetool.config.images import Image
from imagetool.guest.programs import BootFiles
from imagetool.look import explanation
from imagetool.receipts import Damaged, load
from imagetool.tasks.places import Places
from rootdisk.artifact import zstd_frames
from rootdisk.errors import RootdiskError
from rootdisk.text import one_line

STEPS = ("init", "kernel", "resolve", "disk", "pack", "publish")


def lines(places: Places, image: Image, dodo: dict[str, Any]) -> Iterator[str]:
    """Yield which inputs have changed since the last build, what they change, and which tasks will run; `dodo` as in `tasks`."""
    receipt = places.receipt(image, "disk")
    try:
        built = load(receipt, BuiltReceipt) if receipt.exists() else None
        how = f"{image.name}: not built yet"
    except Damaged as err:
        built, how = None, f"{image.name}: built again: {err.message}"
    settings: list[str] = []
    if built is None:
        yield how
    else:
        source = load(places.receipt(image, "source"), SourceReceipt)
        layers = explanation.compared_layers(built.source_layers, source.layers)
        differences = derivation.explain(built.inputs, _inputs(places, image, source))
        changes = list(explanation.lines(differences, layers))
        settings = _settings(differences)
        how = "changed since the last build" if changes else f"{built.key[:12]} is current"
        changes += _targets(places, image)
        yield f"{image.name}: {how}"
        yield from (f"  {one_line(line)}" for line in changes)
    yield from (f"  {line}" for line in tasks(dodo, image.name, image.platform.architecture, settings))


def _settings(differences: Sequence[derivation.Change]) -> list[str]:
    """Return the keys of images.toml by which the disk has changed."""
    names = (change.name.removeprefix("recipe.") for change in differences if change.name.startswith("recipe."))
    return sorted({name.partition(".")[0] for name in names})


def _targets(places: Places, image: Image) -> Iterator[str]:
    """Yield the changes of the places where the disk is published, and of its version."""
    receipt = places.index(image) if image.group else places.receipt(image, "published")
    try:
        before = load(receipt, PublishedReceipt).targets
    except RootdiskError:  # not published yet, or again
        return
    now = tuple(f"{target.place}:{image.version}" for target in image.publish)
    gone, new = ([name for name in names if name not in others] for names, others in ((before, now), (now, before)))
    for old, name in itertools.zip_longest(gone, new, fillvalue=""):
        if old and name:
            yield f"published as {name}, before as {old}"
        else:
            yield f"published as {name} too" if name else f"not published as {old} any more"


def _inputs(places: Places, image: Image, source: SourceReceipt) -> dict[str, Any]:
    """Return the inputs of the derivation key, from the receipts and images.toml as they are now."""
    kernel = load(places.receipt(image, "kernel"), KernelReceipt)
    boot = BootFiles.of(places.init(image.platform) / "init", places.of(image), kernel)
    return derivation.inputs(image, source.digest, boot.guest, zstd_frames.versions())


def tasks(dodo: dict[str, Any], image: str, architecture: str, settings: Sequence[str]) -> Iterator[str]:
    """Tell for each task that leads to the published image whether it will run, and why.

    `dodo` is the namespace of dodo.py; `settings` are the keys of images.toml by which the disk has changed.
    """
    from doit.globals import Globals
    from doit.loader import load_tasks

    found = {task.name: task for task in load_tasks(dodo)}
    before = ""
    for step in STEPS:
        task = found[f"{step}:{architecture if step == 'init' else image}"]
        status = Globals.dep_manager.get_status(task, found, get_log=True)
        why = list(_reasons(step, status.reasons, settings if step == "disk" else ()))
        if why:
            yield f"{step}: runs, as {', '.join(why)}"
            before = before or (step if step != "resolve" else "")  # which has just run
        elif before:
            yield f"{step}: runs if {before} makes something else"
        else:
            yield f"{step}: does not run: nothing it needs has changed"


def _reasons(step: str, reasons: Mapping[str, Any], settings: Sequence[str]) -> Iterator[str]:
    from doit.tools import config_changed

    plain = {
        "resolve": "a tag may mean something else today",
        "kernel": "the directory may have changed",
    }.get(step, "what it made is not there")
    for check, *_ in reasons.get("uptodate_false", ()):
        if isinstance(check, config_changed):
            yield "its settings have changed" + (f" ({', '.join(settings)})" if settings else "")
        else:
            yield plain
    for kind, words in (
        ("missing_target", "is missing"),
        ("changed_file_dep", "has changed"),
        ("missing_file_dep", "is not there yet"),
        ("added_file_dep", "is new to it"),
    ):
        if names := sorted(Path(name).name for name in reasons.get(kind, ())):
            yield f"{', '.join(names)} {words}"
    if reasons.get("has_no_dependencies"):
        yield "it always does"
