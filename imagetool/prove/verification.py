"""A published artifact, built again from what it says it was built of.

The source is fetched by its recorded digest; init, kernel, initramfs, certificates and files are taken out of the
artifact itself, each checked against its recorded digest. So what is proved is that nothing else went into the disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from imagetool.build import derivation
from imagetool.build.artifact import publish_artifact
from imagetool.config.images import Image, ProcessChange
from imagetool.ext4.geometry import DISK_MIN_BYTES
from imagetool.guest.boot_files import make_init
from imagetool.guest.programs import BootFiles, Guest
from imagetool.layout.additions import Owner
from imagetool.layout.own_files import OwnFile
from imagetool.look import inspection
from imagetool.look.difference import differences
from imagetool.progress import Report, silent
from imagetool.prove.provenance import check as check_provenance
from imagetool.sources.open import open_source
from rootdisk.artifact import zstd_frames
from rootdisk.artifact.format import (
    CPUS_MAX,
    DISK_MAX_BYTES,
    MEMORY_MAX_MIB,
    MEMORY_MIN_MIB,
    WORD_MAX,
    WORDS_MAX_COUNT,
    ArtifactConfig,
)
from rootdisk.artifact.published import PublishedArtifact, open_artifact
from rootdisk.cli.sizes import SIZE_MAX_BYTES
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.limits import LONG_PATH_MAX
from rootdisk.oci.documents import Descriptor, Digest, Platform
from rootdisk.oci.fields import Fields
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions, read_blob
from rootdisk.parsing.digests import HEX_SHA256
from rootdisk.parsing.ids import ID_MAX
from rootdisk.text import printable
from rootdisk.trust.keys import PublicKey

KERNEL_MAX_BYTES = 512 << 20
FILES_MAX_COUNT = 100_000  # of owners, files and removed paths each
TAG = "again"


class Verified(NamedTuple):
    """The artifact, what came of its inputs, every difference in words, and how its init is beside the one built here."""

    digest: Digest
    rebuilt: Digest
    differences: tuple[str, ...]
    init: str
    provenance: str  # what is attached of it, in words


def verify(
    what: Reference,
    source: str | None,
    platform: Platform,
    options: RegistryOptions,
    work: Path,
    report: Report = silent,
    key: PublicKey | None = None,
) -> Verified:
    """Build the artifact `what` again in the empty directory `work`, from `source` or from where it says.

    With `key`, provenance that it has signed has to be attached, and to say what the artifact says.

    BadInput: the source is another image, or this rootdisk makes other bytes of these inputs than the recorded one;
    RootdiskError: what the artifact says of itself is not true, or something cannot be fetched or built.
    """
    with open_artifact(what, platform, options) as published:
        inputs = dict(published.config.inputs)
        if derivation.derivation_key(inputs) != published.config.derivation_key:
            raise RootdiskError(f"{what}: its derivation key is not that of its inputs", "do not use it")
        provenance = check_provenance(published, key)
        recorded = Fields(inputs, "recorded inputs", "a newer rootdisk may know them")
        source_digest = Digest.parse(recorded.text("source"))
        image = _image(published, recorded, options, work)
        with open_source(
            _source(published, source_digest) if source is None else source, image.platform, options
        ) as opened_source:
            if opened_source.manifest_digest != source_digest:
                raise BadInput(
                    f"{source or published.config.source} is {opened_source.manifest_digest.short}, and the artifact was "
                    f"made of {source_digest.short}",
                    "give the image it was made of: --source",
                )
            boot = _boot_files(published, recorded, work)
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
        return Verified(
            published.descriptor.digest, made.digest, found, _beside_ours(image, boot.guest, work), provenance
        )


def _source(published: PublishedArtifact, digest: Digest) -> str:
    """Return the source that the artifact names, by digest."""
    recorded = published.config.source
    if not recorded:
        raise BadInput("the artifact's source was on its builder's machine", "say where it is: --source SOURCE")
    return str(parse_reference(recorded, foreign=True)._replace(tag="", digest=digest))


def _image(published: PublishedArtifact, inputs: Fields, options: RegistryOptions, work: Path) -> Image:
    """The description the artifact was built from, as its inputs have it; certificates and files are taken from its disk."""
    image = _description(published.config, inputs, options)
    certificates = inputs.inner("recipe").strings("tls", 2)
    disk = inspection.InspectedDisk.of(published)
    place = work / "files"
    place.mkdir()
    return replace(
        image,
        tls_ca=_certificate(disk, certificates, "ca", place),
        tls_client=_certificate(disk, certificates, "client", place),
        files=tuple(_with_content(disk, file, place / str(number)) for number, file in enumerate(image.files)),
    )


def _description(config: ArtifactConfig, inputs: Fields, options: RegistryOptions) -> Image:
    """Parse the inputs. BadInput names the one that is wrong."""
    recipe = inputs.inner("recipe")
    largest = recipe.integer("max_blob", 1, SIZE_MAX_BYTES) if "max_blob" in recipe.value else None
    return Image(
        name="verify",
        source=parse_reference(config.source, foreign=True) if config.source else Reference("oci", path=Path("source")),
        publish=(),
        platform=Platform.parse(inputs.text("platform")),
        plain_http=options.plain_http,
        ca_file=options.ca_file,
        size=recipe.integer("size", DISK_MIN_BYTES, DISK_MAX_BYTES),
        max_blob=largest,
        verity=bool(recipe.boolean("verity")),
        memory=recipe.integer("memory", MEMORY_MIN_MIB << 20, MEMORY_MAX_MIB << 20),
        cpus=recipe.integer("cpus", 1, CPUS_MAX),
        env=recipe.texts("env", WORDS_MAX_COUNT, limit=WORD_MAX),
        owners=tuple(map(_owner, recipe.objects("owners", FILES_MAX_COUNT))),
        process=_process(recipe.inner("process")),
        labels=recipe.strings("labels", WORDS_MAX_COUNT, limit=WORD_MAX),
        files=tuple(map(_own_file, recipe.objects("files", FILES_MAX_COUNT, []))),
        remove=recipe.texts("remove", FILES_MAX_COUNT, limit=LONG_PATH_MAX),
    )


def _process(changed: Fields) -> ProcessChange:
    """Parse the recorded changes of the process. Only changed values are recorded."""
    lists = {
        key: changed.texts(key, WORDS_MAX_COUNT, limit=WORD_MAX) if key in changed.value else None
        for key in ("entrypoint", "cmd")
    }
    texts = {key: changed.text(key) if key in changed.value else None for key in ("workdir", "user")}
    return ProcessChange(lists["entrypoint"], lists["cmd"], texts["workdir"], texts["user"], changed.boolean("pid1"))


def _owner(recorded: Fields) -> Owner:
    numbers = {
        key: None if recorded.value.get(key) is None else recorded.integer(key, 0, ID_MAX) for key in ("uid", "gid")
    }
    return Owner(
        recorded.text("path", limit=LONG_PATH_MAX), recorded.text("user"), recorded.text("group", ""),
        numbers["uid"], numbers["gid"], bool(recorded.boolean("create")),
    )  # fmt: skip


def _own_file(recorded: Fields) -> OwnFile:
    """A file whose content is still on the artifact's disk."""
    return OwnFile(
        recorded.text("path", limit=LONG_PATH_MAX),
        int(recorded.text("mode", limit=6, pattern="[0-7]+"), 8),
        recorded.text("owner", ""),
        digest=recorded.text("digest", "", pattern=f"sha256:{HEX_SHA256}"),
        target=recorded.text("target", "", limit=LONG_PATH_MAX),
    )


def _certificate(disk: inspection.InspectedDisk, recorded: Mapping[str, str], name: str, place: Path) -> bytes | None:
    if name not in recorded:
        return None
    return _taken(disk, f"/.rootdisk/tls/{name}.pem", recorded[name], place / name).read_bytes()


def _with_content(disk: inspection.InspectedDisk, file: OwnFile, out: Path) -> OwnFile:
    if not file.digest:
        return file
    content = _taken(disk, file.path, file.digest, out)
    return file._replace(content=content, size=content.stat().st_size)


def _taken(disk: inspection.InspectedDisk, path: str, digest: str, out: Path) -> Path:
    """Write the file at `path` on the artifact's disk to `out`, and return `out`. RootdiskError if it does not have `digest`."""
    reader, wanted = disk.reader, Digest.parse(digest)
    with out.open("wb") as file:
        for data in reader.content(reader.lookup(path.encode(), follow=True)):
            file.write(data)
    with out.open("rb") as file:
        got = Digest("sha256", hashlib.file_digest(file, "sha256").hexdigest())
    if got != wanted:
        raise RootdiskError(
            f"{printable(path)} on the disk is {got.short}, and {wanted.short} was put there",
            "it cannot be taken from the artifact",
        )
    return out


def _boot_files(published: PublishedArtifact, inputs: Fields, work: Path) -> BootFiles:
    """Init, kernel and initramfs of the artifact, as files in `work`."""
    init = inputs.inner("guest").text("init")
    _taken(inspection.InspectedDisk.of(published), "/.rootdisk/init", init, work / "init")

    def blob(descriptor: Descriptor | None, file: str) -> Path | None:
        """Write a blob of the artifact to a file; None if the artifact does not have it."""
        if descriptor is None:
            return None
        (work / file).write_bytes(read_blob(published.repository, descriptor, KERNEL_MAX_BYTES))
        return work / file

    roles = published.roles
    guest = Guest(Digest.parse(init), *(role.digest if role else None for role in (roles.kernel, roles.initramfs)))
    boot = BootFiles(guest, work / "init", blob(roles.kernel, "vmlinuz"), blob(roles.initramfs, "initramfs"))
    return _with_vmlinux(boot, work / "vmlinux") if roles.vmlinux and boot.kernel else boot


def _with_vmlinux(boot: BootFiles, out: Path) -> BootFiles:
    """Take the vmlinux out of the kernel again: nothing else may be published as such."""
    from imagetool.guest.vmlinux import extract

    assert boot.kernel is not None
    vmlinux = extract(boot.kernel.read_bytes())
    out.write_bytes(vmlinux)
    return boot._replace(guest=boot.guest._replace(vmlinux=Digest.of(vmlinux)), vmlinux=out)


def _beside_ours(image: Image, guest: Guest, work: Path) -> str:
    try:
        ours = make_init(image.platform, work / "own-init").digest
    except RootdiskError as err:
        return f"taken from the artifact; none can be built here: {err.message}"
    return "as it is built here" if ours == guest.init else "taken from the artifact; the one built here is another"
