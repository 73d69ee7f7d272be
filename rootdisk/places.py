"""Choose between registry and OCI layout: the only module that knows both."""

from __future__ import annotations

from rootdisk.errors import BadInput
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import RegistryOptions, Repository


def open_repository(reference: Reference, options: RegistryOptions | None = None) -> Repository:
    """Open the repository that holds `reference`. The caller closes it.

    Raises:
        BadInput: The reference names an archive or the Docker daemon, which hold source images only.
    """
    if reference.kind == "registry":
        from rootdisk.registry.repository import RegistryRepository

        return RegistryRepository(reference.registry, reference.repository, options or RegistryOptions())
    if reference.kind == "oci" and reference.path is not None:
        from rootdisk.oci.layout import LayoutRepository

        return LayoutRepository(reference.path)
    raise BadInput(
        f"{reference}: {reference.kind} holds source images only",
        "an artifact is in a registry or oci:DIR:TAG; to build one: imagetool build SOURCE oci:DIR:TAG",
    )


def open_mirrored(reference: Reference, options: RegistryOptions | None = None) -> Repository:
    """Open the repository from which to pull `reference`: at its mirrors first, as registries.conf says. The caller closes it.

    Raises:
        BadInput: As of `open_repository`; registries.conf is malformed, or blocks the registry.
    """
    if reference.kind == "registry":
        from rootdisk.registry.configuration import Place, load, places

        found = places(reference, load())
        if found.mirrors or found.origin != Place(reference.registry, reference.repository):
            from rootdisk.registry.mirrors import MirroredRepository

            return MirroredRepository(reference, found, options or RegistryOptions())
    return open_repository(reference, options)
