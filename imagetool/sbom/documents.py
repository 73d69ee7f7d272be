"""SPDX 2.3 and CycloneDX 1.6 as JSON. The same packages give the same bytes: no time, no random number."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import rootdisk
from imagetool.sbom.formats import Format
from imagetool.sbom.packages import Found, Package
from rootdisk.oci.documents import canonical_json

_NO_TIME = "1970-01-01T00:00:00Z"  # SPDX asks for one, and a build must not depend on when it was


def document(found: Found, name: str, form: Format) -> bytes:
    """Write the bill of materials of the thing called `name`."""
    return canonical_json(_spdx(found, name) if form == "spdx" else _cyclonedx(found, name)) + b"\n"


def _spdx(found: Found, name: str) -> dict[str, Any]:
    content = hashlib.sha256(canonical_json([name, *map(list, found.packages)])).hexdigest()
    packages = [{**_spdx_package(package, found.distribution), "SPDXID": _id(package)} for package in found.packages]
    whole: dict[str, Any] = {
        "SPDXID": "SPDXRef-Disk",
        "name": name,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "primaryPackagePurpose": "CONTAINER",
    }
    if found.unread:
        whole["comment"] = f"incomplete: packages in {', '.join(found.unread)} are not listed"
    relations = [("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Disk")]
    relations += [("SPDXRef-Disk", "CONTAINS", package["SPDXID"]) for package in packages]
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"https://rootdisk.invalid/sbom/{content}",
        "creationInfo": {"created": _NO_TIME, "creators": [f"Tool: imagetool-{rootdisk.__version__}"]},
        "packages": [whole, *packages],
        "relationships": [
            {"spdxElementId": one, "relationshipType": how, "relatedSpdxElement": other}
            for one, how, other in relations
        ],
    }


def _spdx_package(package: Package, distribution: str) -> dict[str, Any]:
    purl = package.purl(distribution)
    value: dict[str, Any] = {
        "name": package.name,
        "versionInfo": package.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "externalRefs": [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl},
        ],
    }
    if package.source and package.source != package.name:
        value["sourceInfo"] = f"built of the source package {package.source}"
    if package.license:
        value["licenseComments"] = f"declared as {package.license}"
    if package.layer:
        value["comment"] = f"layer {package.layer}"
    return value


def _id(package: Package) -> str:
    """A name that is unique in the document; SPDX allows letters, digits, `.` and `-`."""
    digest = hashlib.sha256(canonical_json(list(package))).hexdigest()[:16]
    return f"SPDXRef-{package.kind}-{re.sub(r'[^A-Za-z0-9.-]', '-', package.name)[:80]}-{digest}"


def _cyclonedx(found: Found, name: str) -> dict[str, Any]:
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "container", "bom-ref": "disk", "name": name},
            "tools": {"components": [{"type": "application", "name": "imagetool", "version": rootdisk.__version__}]},
        },
        "components": [_component(package, found.distribution) for package in found.packages],
        **({"compositions": [{"aggregate": "incomplete", "assemblies": ["disk"]}]} if found.unread else {}),
    }


def _component(package: Package, distribution: str) -> dict[str, Any]:
    value: dict[str, Any] = {
        "type": "library",
        "bom-ref": _id(package),
        "name": package.name,
        "version": package.version,
        "purl": package.purl(distribution),
    }
    if package.license:
        value["licenses"] = [{"license": {"name": package.license}}]
    properties = {"rootdisk:layer": package.layer, "rootdisk:source": package.source}
    listed = [{"name": key, "value": text} for key, text in properties.items() if text]
    return value | ({"properties": listed} if listed else {})
