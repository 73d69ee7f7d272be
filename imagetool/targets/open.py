"""Choose the kind of target for a reference: the only module that knows all kinds."""

from __future__ import annotations

from imagetool.targets.target import Target
from rootdisk.errors import BadInput
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import RegistryOptions


def open_target(reference: Reference, options: RegistryOptions | None = None) -> Target:
    """Open the place that `reference` names for writing. A missing layout directory is created.

    Raises:
        BadInput: It is not a place to write to.
    """
    if reference.kind == "registry":
        from imagetool.targets.registry import RegistryTarget

        return RegistryTarget(reference.registry, reference.repository, options or RegistryOptions())
    if reference.kind == "oci" and reference.path is not None:
        from imagetool.targets.layout import LayoutTarget

        return LayoutTarget(reference.path, record_time=True)
    if reference.kind == "oci-archive" and reference.path is not None:
        from imagetool.targets.archive import ArchiveTarget

        return ArchiveTarget(reference.path)
    raise BadInput(f"{reference}: cannot be written to", "write to a registry, oci:DIR:TAG or oci-archive:FILE:TAG")
