"""Open the place that holds an image or artifact: the only module that knows both registries and layouts."""

from __future__ import annotations

from rootdisk.errors import BadInput
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import RegistryOptions, Repository


def open_repository(reference: Reference, options: RegistryOptions | None = None) -> Repository:
    """The repository that holds `reference`. Archives are sources only, so they are BadInput here."""
    if reference.kind == "registry":
        from rootdisk.registry.repository import RegistryRepository

        return RegistryRepository(reference.registry, reference.repository, options or RegistryOptions())
    if reference.kind == "oci" and reference.path is not None:
        from rootdisk.oci.layout import LayoutRepository

        return LayoutRepository(reference.path)
    raise BadInput(f"{reference}: {reference.kind} holds source images only", "use a registry or oci:DIR:TAG")
