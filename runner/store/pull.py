"""Get artifacts: find them in the store or fetch them, and hold them there while they are in use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rootdisk.artifact.format import CONFIG_MAX_BYTES, ArtifactConfig, ArtifactManifest
from rootdisk.artifact.published import PublishedArtifact, open_artifact
from rootdisk.errors import BadInput, DigestMismatch, RootdiskError
from rootdisk.oci.documents import MANIFEST_MAX_BYTES, Descriptor, Digest, Platform
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.oci.repository import RegistryOptions, Repository
from runner.store.boot_blobs import boot_blobs, plain_blobs, starts_vmlinux
from runner.store.names import absolute, asked_for, known, name_of, note_asked, placed, remember
from runner.store.possession import served
from runner.store.store import Damaged, Store
from runner.store.trust import Gate, refuse_unless_kept

if TYPE_CHECKING:
    from rootdisk.cli.progress import Progress
    from runner.sandbox.state import Spec
    from runner.store.fetch import Counts
    from runner.store.filling import DiskSource

_TRIES = 10  # a concurrent prune may remove content just after it was fetched


class StoredArtifact(NamedTuple):
    """An artifact in the store. The byte counts are those of `Counts`; 0 if it was there already."""

    digest: Digest
    config: ArtifactConfig
    config_digest: Digest
    disk: Path
    kernel: Path | None
    initramfs: Path | None
    lease: tuple[int, ...]  # descriptors of locks: no part is removed before these are closed
    fetched: int = 0
    reused: int = 0
    holes: int = 0
    verity: Path | None = None  # the dm-verity tree
    vmlinux: Path | None = None  # the kernel as an ELF file
    source: DiskSource | None = None  # if the disk is not complete: where its chunks come from

    @classmethod
    def kept(cls, store: Store, spec: Spec, what: str = "") -> StoredArtifact:
        """Return the artifact of a kept sandbox, or of `what` else.

        Raises:
            RootdiskError: It was removed from the store, or is damaged.
        """
        what = what or f"sandbox {spec.name}"
        lease = store.lease(sorted(spec.uses))
        names = {"kernel": spec.kernel, "initramfs": spec.initramfs, "verity": spec.verity, "vmlinux": spec.vmlinux}
        boot = {role: store.root / "blobs" / name for role, name in names.items() if name is not None}
        try:
            refuse_unless_kept(store, parse_reference(spec.reference), Digest.parse(spec.artifact))
            _refuse_damaged(store, sorted(spec.uses), what)
            config = store.read_config(spec.config)
            disk = store.disk(config.disk_digest)
            if not all(path.exists() for path in boot.values()):
                raise FileNotFoundError
            source = None if disk.exists() else _kept_source(store, spec, config)
        except RootdiskError:
            _close(lease)
            raise
        except OSError as err:
            _close(lease)
            raise RootdiskError(
                f"{what}: its artifact is no longer in the store", f"runner pull {spec.reference}"
            ) from err
        digest, config_digest = Digest.parse(spec.artifact), Digest("sha256", spec.config)
        return cls.of(digest, config, config_digest, disk, boot, lease, source)

    @classmethod
    def of(
        cls,
        digest: Digest,
        config: ArtifactConfig,
        config_digest: Digest,
        disk: Path,
        boot: Mapping[str, Path],
        lease: tuple[int, ...],
        source: DiskSource | None,
    ) -> StoredArtifact:
        """Return an artifact; `boot` are the files that boot the disk, by their roles."""
        kernel, initramfs, verity, vmlinux = map(boot.get, ("kernel", "initramfs", "verity", "vmlinux"))
        return cls(
            digest, config, config_digest, disk, kernel, initramfs, lease,
            verity=verity, vmlinux=vmlinux, source=source,
        )  # fmt: skip

    @property
    def booted_kernel(self) -> Path | None:
        """The kernel that QEMU starts."""
        return self.vmlinux if self.vmlinux is not None and starts_vmlinux(self.config.platform) else self.kernel

    def release(self) -> None:
        """Close the locks of this process. The artifact may then be removed, unless another process holds it."""
        _close(self.lease)


def pull(
    store: Store,
    reference: Reference,
    options: RegistryOptions,
    platform: Platform,
    progress: Progress | None = None,
    *,
    ask: bool = True,
    repair: bool = False,
    fetch: bool = True,
    policy: Path | None = None,
    lazily: bool = False,
    meanwhile: Callable[[], None] = lambda: None,
) -> StoredArtifact:
    """Return the artifact that `reference` names, held in `store`. Fetch what is missing.

    With `ask` false a registry is asked only if the store does not know what it said the last time. What is marked as
    damaged is fetched again with `repair`, else a RootdiskError. With `fetch` false nothing is asked for or fetched: BadInput
    if it is not there. If `lazily`, everything but the disk is fetched, and an incomplete disk has a `source`;
    `meanwhile` is called while the last of it is on its way.

    The policy is asked before anything but manifests is fetched, and before what is in the store is used: the file `policy`,
    else that of this host.
    """
    gate = Gate.of(absolute(reference), policy)
    request = _Request(store, reference, options, platform, repair, lazily)
    if not fetch or (reference.kind == "registry" and (reference.digest or not ask)):
        local = request.find_known(gate, fetch=fetch)
        if local is not None:
            return local
    # What is new needs two documents and a kernel at once after its manifest.
    opening = options._replace(spare_connections=2 if known(store, reference, platform) is None else 0)
    with open_artifact(reference, platform, opening) as artifact:
        gate.check(store, artifact.repository, (*artifact.indexes, artifact.descriptor.digest))
        return request.fetch(artifact, progress, meanwhile)


class _Request(NamedTuple):
    """The arguments of `pull`, and its steps."""

    store: Store
    reference: Reference
    options: RegistryOptions
    platform: Platform
    repair: bool
    lazily: bool

    def find(self, raw: bytes) -> StoredArtifact | None:
        """Return the artifact of the manifest `raw`, held, if its parts are in the store; without the disk's, if `lazily`."""
        origin = Origin(self.reference, self.platform, self.options) if self.lazily else None
        return _present(self.store, raw, self.platform, self.reference, self.repair, origin)

    def find_known(self, gate: Gate, *, fetch: bool) -> StoredArtifact | None:
        """Return the artifact that the reference named at the last request, if its parts are in the store.

        Raises:
            BadInput: They are not, and `fetch` is false.
            RootdiskError: The policy does not accept it.
        """
        raw = known(self.store, self.reference, self.platform)
        local = self.find(raw) if raw is not None else None
        if local is None and not fetch:
            is_there = raw is not None or asked_for(self.store, self.reference, self.platform) is not None
            why = "is only partly in the store" if is_there else "is not in the store"
            raise BadInput(f"{self.reference} {why}", f"runner pull {self.reference}")
        if local is not None:
            try:
                gate.check_stored(self.store, local.digest, self.platform, self.options, fetch=fetch)
            except BaseException:
                local.release()
                raise
        return local

    def fetch(
        self, artifact: PublishedArtifact, progress: Progress | None, meanwhile: Callable[[], None]
    ) -> StoredArtifact:
        """Fetch the parts that the store does not have or that the repository has never served. Note the reference's name."""
        store, reference, options, platform = self.store, self.reference, self.options, self.platform
        digest, raw = artifact.descriptor.digest, artifact.raw
        if self.repair and store.damage(digest.hex):
            store.write_blob(digest, raw)
        served_digests = served(store, reference, options)
        is_new = digest.hex not in served_digests
        counts: Counts | None = None
        for _ in range(_TRIES):
            local = None if is_new else self.find(raw)
            if local is not None and local.source is not None:
                note_asked(store, reference, platform, options, digest, raw)
                return local  # the disk's server keeps the name, when the repository has shown that it has the disk
            if local is not None:
                remember(store, reference, platform, options, digest, raw)
                return local._replace(**counts._asdict()) if counts else local
            fetched = self.fetch_parts(artifact, served_digests, progress, meanwhile)
            if fetched is not None:
                counts, is_new = fetched, False
        raise RootdiskError(
            f"{reference}: another process keeps removing it from the store", "is runner prune running?"
        )

    def fetch_parts(
        self,
        artifact: PublishedArtifact,
        served_digests: Collection[str],
        progress: Progress | None,
        meanwhile: Callable[[], None],
    ) -> Counts | None:
        """Fetch config, chunk index and what boots the disk; also the disk, unless `lazily`.

        Return how much of the disk was fetched, or None if another process has just removed the config.
        """
        from runner.store.fetch import Counts, asked_early, boot_files, fetch_boot, index_beside
        from runner.store.fetch import fetch as fetch_all

        store, roles, repository = self.store, artifact.roles, artifact.repository
        again = roles.config.digest.hex not in served_digests
        # A repository that has served nothing has to send everything, whatever the config says.
        early = roles.vmlinux if self.lazily and not served_digests and starts_vmlinux(self.platform) else None
        # A server that fills this disk fetches them too. Which disk it is only the config says.
        is_joining = any((store.root / "lazy").glob("*.socket"))
        beside = () if self.lazily or is_joining else plain_blobs(roles)
        with (
            asked_early(repository, early) as vmlinux,
            boot_files(store, repository, [beside] if beside else (), served_digests),
        ):
            with index_beside(repository, roles) as raw_index:
                config = _fetch_config(store, repository, roles.config, again=again, repair=self.repair)
            if config is None:
                return None
            _check_platform(config, self.platform, self.reference)
            if self.lazily and not store.disk(config.disk_digest).exists():
                store.write_blob(artifact.descriptor.digest, artifact.raw)
                fetch_boot(store, repository, roles, config, raw_index[0], served_digests, vmlinux, meanwhile)
                return Counts(0, 0, 0)
            return fetch_all(
                store,
                repository,
                roles,
                config,
                raw_index[0],
                progress,
                lambda: served(store, self.reference, self.options),
                beside,
            )


def _fetch_config(
    store: Store, repository: Repository, descriptor: Descriptor, *, again: bool, repair: bool
) -> ArtifactConfig | None:
    """Return the config. Fetch it if it is missing, if `again`, or if damaged and `repair`. None if it was just removed."""
    store.blob(repository, descriptor, CONFIG_MAX_BYTES, again=again)
    try:
        return store.read_config(descriptor.digest.hex)
    except FileNotFoundError:
        return None
    except Damaged:
        if not repair or again:
            raise
    return _fetch_config(store, repository, descriptor, again=True, repair=repair)


class Origin(NamedTuple):
    """The way to the chunks of an incomplete disk."""

    reference: Reference
    platform: Platform
    options: RegistryOptions

    def source(self, store: Store, manifest: bytes, config: ArtifactConfig) -> DiskSource:
        """Return the source of a disk. FileNotFoundError if its chunk index is not in the store."""
        from runner.store.filling import DiskSource

        return DiskSource.stored(store, manifest, config, absolute(self.reference), self.platform, self.options)


def _kept_source(store: Store, spec: Spec, config: ArtifactConfig) -> DiskSource:
    """Return the source of the incomplete disk of a kept sandbox. FileNotFoundError if its chunk index is not there."""
    digest = Digest.parse(spec.artifact)
    reference = placed(store, parse_reference(spec.reference), digest)
    name = name_of(store, reference.place, digest)
    ca_file = Path(spec.registry_ca_file) if spec.registry_ca_file is not None else None
    options = RegistryOptions(plain_http=spec.plain_http, ca_file=ca_file) if name is None else name.options
    manifest = store.read_blob(digest.hex, MANIFEST_MAX_BYTES)
    return Origin(reference, config.platform, options).source(store, manifest, config)


def _present(
    store: Store, raw: bytes, platform: Platform, reference: Reference, repair: bool, origin: Origin | None = None
) -> StoredArtifact | None:
    """Return the artifact of the manifest `raw`, held, if all parts are in the store. With `repair`, none may be damaged.

    With `origin` the disk may be incomplete, if its chunk index is there.
    """
    roles = ArtifactManifest.parse(raw)
    manifest = Digest.of(raw)
    digests = [manifest.hex, roles.config.digest.hex]
    lease = store.lease(digests)
    try:
        _refuse_damaged(store, digests, str(reference))
        config = store.read_config(roles.config.digest.hex)
        _check_platform(config, platform, reference)
        contents = {blob.role: blob.content for blob in boot_blobs(roles, config)}
        digests = [config.disk_digest.hex, *(content.digest.hex for content in contents.values())]
        lease += store.lease(digests)
        boot = {role: store.blob_path(content.digest) for role, content in contents.items()}
        if "vmlinux" in boot and not boot["vmlinux"].exists():  # an older runner has not fetched it
            del boot["vmlinux"]
        disk = store.disk(config.disk_digest)
        is_whole = origin is None or disk.exists()
        is_unneeded = not is_whole and "vmlinux" in boot and starts_vmlinux(config.platform)
        if is_unneeded and "kernel" in boot and not boot["kernel"].exists():
            del boot["kernel"]  # the disk's server fetches it
        source = None if is_whole or origin is None else origin.source(store, raw, config)
        for path in (disk if is_whole else store.index(config.disk_digest), *boot.values()):
            os.utime(path)  # record the last use, for prune
        _refuse_damaged(store, digests, str(reference))
        if is_whole:
            _check_size(disk, config.disk_size)
        _check_size(store.blob_path(roles.config.digest), roles.config.size)
        for role, path in boot.items():
            _check_size(path, contents[role].size)
    except FileNotFoundError:
        _close(lease)
        return None
    except Damaged:
        _close(lease)
        if not repair:
            raise
        return None
    except BaseException:
        _close(lease)
        raise
    return StoredArtifact.of(manifest, config, roles.config.digest, disk, boot, lease, source)


def _refuse_damaged(store: Store, digests: Iterable[str], what: str) -> None:
    for digest in digests:
        if why := store.damage(digest):
            raise Damaged(digest, why, what)


def _check_size(path: Path, size: int) -> None:
    """Compare the size of a file with that in the artifact. The store may have the file from another artifact."""
    if path.stat().st_size != size:
        raise DigestMismatch(
            f"{path.name[:12]} has {path.stat().st_size} bytes in the store, but {size} in the artifact",
            "artifact or store is damaged: runner verify",
        )


def _check_platform(config: ArtifactConfig, platform: Platform, reference: Reference) -> None:
    if config.platform != platform:
        raise RootdiskError(
            f"{reference}: no {platform} variant (only {config.platform})", f"use --platform {config.platform}"
        )


def _close(lease: Iterable[int]) -> None:
    for fd in lease:
        with contextlib.suppress(OSError):
            os.close(fd)
