"""The schema is the one list of images.toml's keys: what each decides is what the derivation key is made of, and explained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme

from imagetool.build import derivation
from imagetool.config import images, schema, values
from imagetool.guest.programs import Guest
from imagetool.look import explanation
from rootdisk.oci.documents import Digest

PROPERTIES: Mapping[str, Any] = schema.definitions()["image"]["properties"]
PLAIN = 'source = "x.y/a:1"\nplatform = "amd64"\n'
# A value of each key that is not its default.
CHANGED = {
    "source": 'source = "x.y/b:1"\nplatform = "amd64"\n',
    "platform": 'source = "x.y/a:1"\nplatform = "arm64"\n',
    "platforms": 'source = "x.y/a:1"\nplatforms = ["arm64"]\n',
    "version": PLAIN + 'version = "2"',
    "publish": PLAIN + 'publish = "x.y/z"',
    "plain_http": PLAIN + "plain_http = true",
    "ca_file": PLAIN + 'ca_file = "ca.pem"',
    "size": PLAIN + 'size = "1g"',
    "max_blob": PLAIN + 'max_blob = "100m"',
    "kernel": PLAIN + 'kernel = "none"',
    "verity": PLAIN + "verity = true",
    "vmlinux": PLAIN + "vmlinux = true",
    "boot_trace": PLAIN + 'boot_trace = "boot.trace"',
    "memory": PLAIN + 'memory = "1g"',
    "cpus": PLAIN + "cpus = 2",
    "env_files": PLAIN + 'env_files = ["e.env"]',
    "env": PLAIN + 'env = {A = "1"}',
    "labels": PLAIN + 'labels = {a = "b"}',
    "tls": PLAIN + 'tls = {ca = "ca.pem"}',
    "files": PLAIN + 'files = [{path = "/a", text = "b"}]',
    "remove": PLAIN + 'remove = ["/a"]',
    "allow_secret": PLAIN + 'env = {A = "1"}\nallow_secret = {A = "of the tests"}',
    "strict": PLAIN + "strict = true",
    "check": PLAIN + "check = true",
    "probe": PLAIN + 'probe = ["true"]',
    "owners": PLAIN + 'owners = {"/a" = "1"}',
    "sign": PLAIN + 'sign = {key = "sign.key"}',
    "policy": PLAIN + 'policy = "policy.json"',
    "source_policy": PLAIN + "source_policy = true",
    "sbom": PLAIN + "sbom = true",
    "network": PLAIN + 'network = {allow = ["a.test"]}',
    "process": PLAIN + 'process = {cmd = ["x"]}',
}


def inputs(text: str, folder: Path) -> dict[str, Any]:
    """All inputs of the image; of its source and kernel what a build would find."""
    (folder / "ca.pem").write_bytes(trustme.CA().cert_pem.bytes())
    (folder / "e.env").write_text("A=1\n")
    (folder / "boot.trace").write_text("/etc/passwd\n")
    (image,) = images.parse(f"[image.a]\n{text}\n", folder / "images.toml")
    init = Digest.of(b"init")
    kernel = None if image.kernel == "none" else Digest.of(b"kernel")
    guest = Guest(init, kernel, init, Digest.of(b"vmlinux") if image.vmlinux else None)
    return derivation.inputs(image, Digest.of(str(image.source).encode()), guest, {"level": "3"})


def test_every_key_has_a_sample() -> None:
    assert set(CHANGED) == set(PROPERTIES)


@pytest.mark.parametrize("key", PROPERTIES)
def test_a_key_decides_the_input_that_the_schema_names(key: str, tmp_path: Path) -> None:
    """And no other; or none at all."""
    told = PROPERTIES[key]["x-input"]
    before = PLAIN + 'env = {A = "1"}' if key == "allow_secret" else PLAIN
    changes = derivation.explain(inputs(before, tmp_path), inputs(CHANGED[key], tmp_path))
    names = [change.name for change in changes]
    if told is None:
        assert names == []
        assert "x-effect" not in PROPERTIES[key]
    else:
        assert names
        assert all(f"{name}.".startswith(f"{told}.") for name in names)
        effect = PROPERTIES[key]["x-effect"]
        assert all(line.endswith(f"({effect})") for line in explanation.lines(changes, ""))


def test_every_input_is_explained(tmp_path: Path) -> None:
    """Also those that no key decides."""
    text = PLAIN + "\n".join(
        CHANGED[key].removeprefix(PLAIN)
        for key in PROPERTIES
        if CHANGED[key].startswith(PLAIN) and key not in ("allow_secret", "probe", "kernel")
    )
    explained = {*schema.effects(), *explanation.OTHER_EFFECTS}
    found = inputs(text.replace("env = {A", "env = {B").replace('"/a" = "1"', '"/" = "1"'), tmp_path)
    top = {name for name in found if name not in ("recipe", "guest")}
    names = {*top, *(f"recipe.{name}" for name in found["recipe"]), *(f"guest.{name}" for name in found["guest"])}
    assert names | {"guest.kernel"} == explained


def test_patterns_are_the_parser_s() -> None:
    """A name of an image, and a mode: one grammar in the schema and in the parser."""
    whole = json.loads(schema.PATH.read_bytes())
    names = whole["properties"]["image"]["propertyNames"]["pattern"]
    assert names == f"^{images._NAME.pattern}".replace(r"\Z", "$")
    assert whole["definitions"]["file"]["properties"]["mode"]["pattern"] == f"^{values.MODE}$"
