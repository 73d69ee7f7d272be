"""A published artifact, built again from what it says it was built of.

The source is fetched by its recorded digest; init, kernel, initramfs, certificates and files are taken out of the
artifact itself, each checked against its recorded digest. So what is proved is that nothing else went into the disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from imagetool.build import derivation
from imagetool.build.artifact import publish_artifact
from imagetool.config.images import Image, ProcessChange
from imagetool.guest.boot_files import make_init
from imagetool.guest.programs import BootFiles, Guest
from imagetool.layout.additions import Owner
from imagetool.layout.own_files import OwnFile
from imagetool.look import inspection
from imagetool.look.difference import differences
from imagetool.progress import Report, silent
from imagetool.sources.open import open_source
from rootdisk.artifact import zstd_frames
from rootdisk.artifact.published import PublishedArtifact, open_artifact
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Descriptor, Digest, Platform
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions, read_blob

KERNEL_MAX_BYTES = 512 << 20
TAG = "again"


class Verified(NamedTuple):
    """The artifact, what came of its inputs, every difference in words, and how its init is beside the one built here."""

    digest: Digest
    rebuilt: Digest
    differences: tuple[str, ...]
    init: str


def verify(
    what: Reference,
    source: str | None,
    platform: Platform,
    options: RegistryOptions,
    work: Path,
    report: Report = silent,
) -> Verified:
    """Build the artifact `what` again in the empty directory `work`, from `source` or from where it says.

    BadInput: the source is another image, or this rootdisk makes other bytes of these inputs than the recorded one;
    RootdiskError: what the artifact says of itself is not true, or something cannot be fetched or built.
    """
    with open_artifact(what, platform, options) as published:
        inputs = dict(published.config.inputs)
        if derivation.derivation_key(inputs) != published.config.derivation_key:
            raise RootdiskError(f"{what}: its derivation key is not that of its inputs", "do not use it")
        image = _image(published, inputs, options, work)
        with open_source(source or _source(published), image.platform, options) as opened_source:
            if str(opened_source.manifest_digest) != inputs["source"]:
                raise BadInput(
                    f"{source or published.config.source} is {opened_source.manifest_digest.short}, and the artifact was "
                    f"made of {inputs['source'][:19]}",
                    "give the image it was made of: --source",
                )
            boot = _boot_files(published, inputs, work)
            ours = derivation.inputs(image, opened_source.manifest_digest, boot.guest, zstd_frames.versions())
            if changes := derivation.explain(inputs, ours):
                raise BadInput(
                    f"{what}: this rootdisk is not the one that made it: {'; '.join(map(str, changes))}",
                    f"install rootdisk {published.config.writer.get('rootdisk', '')} and verify with it",
                )
            again = Reference("oci", path=work / "layout", tag=TAG)
            made = publish_artifact(
                image, opened_source, boot, work / "cache", (again._replace(tag=""),), TAG, report=report
            )
        with open_artifact(again, platform, options) as rebuilt:
            found = tuple(differences(published, rebuilt))
        return Verified(published.descriptor.digest, made.digest, found, _beside_ours(image, boot.guest, work))


def _source(published: PublishedArtifact) -> str:
    """Return the source that the artifact names, by digest."""
    recorded = published.config.source
    if not recorded:
        raise BadInput("the artifact's source was on its builder's machine", "say where it is: --source SOURCE")
    return str(parse_reference(recorded)._replace(tag="", digest=Digest.parse(published.config.inputs["source"])))


def _image(published: PublishedArtifact, inputs: Mapping[str, Any], options: RegistryOptions, work: Path) -> Image:
    """The description the artifact was built from, as its inputs have it."""
    config = published.config
    found = inspection.InspectedDisk.of(published)
    place = work / "files"
    place.mkdir()
    try:
        made = inputs["recipe"]
        process = made["process"]
        entrypoint, cmd = (tuple(process[key]) if key in process else None for key in ("entrypoint", "cmd"))
        return Image(
            name="verify",
            source=parse_reference(config.source) if config.source else Reference("oci", path=Path("source")),
            publish=(),
            platform=Platform.parse(inputs["platform"]),
            plain_http=options.plain_http,
            ca_file=options.ca_file,
            size=int(made["size"]),
            max_blob=made.get("max_blob"),
            verity=bool(made.get("verity")),
            memory=int(made["memory"]),
            cpus=int(made["cpus"]),
            env=tuple(made["env"]),
            tls_ca=_certificate(found, made["tls"], "ca", place),
            tls_client=_certificate(found, made["tls"], "client", place),
            owners=tuple(Owner(**owner) for owner in made["owners"]),
            process=ProcessChange(entrypoint, cmd, process.get("workdir"), process.get("user"), process.get("pid1")),
            labels=made["labels"],
            files=tuple(_own_file(found, n, file, place) for n, file in enumerate(made.get("files", ()))),
            remove=tuple(made.get("remove", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise BadInput(f"recorded inputs: {type(err).__name__} at {err}", "a newer rootdisk may know them") from err


def _certificate(found: inspection.InspectedDisk, recorded: Mapping[str, str], name: str, place: Path) -> bytes | None:
    if name not in recorded:
        return None
    return _taken(found, f"/.rootdisk/tls/{name}.pem", recorded[name], place / name).read_bytes()


def _own_file(found: inspection.InspectedDisk, number: int, recorded: Mapping[str, Any], place: Path) -> OwnFile:
    file = OwnFile(
        recorded["path"],
        int(recorded["mode"], 8),
        recorded.get("owner", ""),
        digest=recorded.get("digest", ""),
        target=recorded.get("target", ""),
    )
    if not file.digest:
        return file
    content = _taken(found, file.path, file.digest, place / str(number))
    return file._replace(content=content, size=content.stat().st_size)


def _taken(found: inspection.InspectedDisk, path: str, digest: str, out: Path) -> Path:
    """Write the file at `path` on the artifact's disk to `out`, and return `out`. RootdiskError if it does not have `digest`."""
    reader = found.reader
    with out.open("wb") as file:
        for data in inspection.content(reader, reader.lookup(path.encode(), follow=True)):
            file.write(data)
    with out.open("rb") as file:
        got = Digest("sha256", hashlib.file_digest(file, "sha256").hexdigest())
    if str(got) != digest:
        raise RootdiskError(
            f"{path} on the disk is {got.short}, and {digest[7:19]} was put there",
            "it cannot be taken from the artifact",
        )
    return out


def _boot_files(published: PublishedArtifact, inputs: Mapping[str, Any], work: Path) -> BootFiles:
    """Init, kernel and initramfs of the artifact, as files in `work`."""
    recorded = inputs["guest"]
    _taken(inspection.InspectedDisk.of(published), "/.rootdisk/init", recorded["init"], work / "init")

    def blob(descriptor: Descriptor | None, file: str) -> Path | None:
        """Write a blob of the artifact to a file; None if there is no such blob."""
        if descriptor is None:
            return None
        (work / file).write_bytes(read_blob(published.repository, descriptor, KERNEL_MAX_BYTES))
        return work / file

    kernel, initramfs = published.roles.kernel, published.roles.initramfs
    guest = Guest(Digest.parse(recorded["init"]), *(role.digest if role else None for role in (kernel, initramfs)))
    return BootFiles(guest, work / "init", blob(kernel, "vmlinuz"), blob(initramfs, "initramfs"))


def _beside_ours(image: Image, guest: Guest, work: Path) -> str:
    try:
        ours = make_init(image.platform, work / "own-init").digest
    except RootdiskError as err:
        return f"taken from the artifact; none can be built here: {err.message}"
    return "as it is built here" if ours == guest.init else "taken from the artifact; the one built here is another"
