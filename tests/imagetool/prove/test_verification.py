"""`imagetool verify`: the same bytes again, or what differs, and what cannot be verified."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from pathlib import Path

import pytest
import trustme

from imagetool.build.derivation import derivation_key
from imagetool.cli import main
from imagetool.signing.provenance import PREDICATE, statement
from imagetool.signing.sign import push_bundle, signed_statement
from imagetool.targets.open import open_target
from rootdisk.artifact.published import open_artifact
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from tests.support.artifacts import BARE, publish, with_boot
from tests.support.commands import run
from tests.support.copies import LAYERS, plant
from tests.support.layouts import write_layout
from tests.support.registry import needs_registry, run_registry
from tests.support.signing import make_keys

MORE = """
[image.app.tls]
ca = "ca.pem"
[image.app.owners]
"/etc" = { user = "guest", create = true }
[image.app.process]
cmd = ["sh"]
workdir = "/etc"
[image.app.labels]
team = "x"
[[image.app.files]]
path = "/opt/tree"
from = "tree"
[[image.app.files]]
path = "/opt/text"
text = "text"
owner = "guest"
"""


def build(project: Path) -> str:
    done = run("doit", "build", cwd=project, PYTHONPATH=str(project))
    assert done.returncode == 0, done.stdout + done.stderr
    return f"oci:{project}/cache/artifacts/app:1"


def verify(project: Path, artifact: str, *options: str) -> tuple[int, str, str]:
    done = run("imagetool", "verify", *options, artifact, ROOTDISK_CACHE=str(project / "own-cache"))
    assert "not to be seen" not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def from_layout(project: Path) -> tuple[str, str]:
    return ("--source", f"oci:{project}/layout:t")


def test_everything_an_image_may_have(copied: Path) -> None:
    (copied / "ca.pem").write_bytes(b"# a comment\n" + trustme.CA().cert_pem.bytes())
    (copied / "tree").mkdir()
    (copied / "tree/file").write_text("content")
    (copied / "tree/link").symlink_to("file")
    text = (copied / "images.toml").read_text().replace("[image.app.env]", 'remove = ["/etc/3"]\n[image.app.env]')
    (copied / "images.toml").write_text(text + MORE)
    artifact = build(copied)
    status, said, talk = verify(copied, artifact, *from_layout(copied))
    assert (status, said[:18]) == (0, "identical: sha256:"), said + talk
    assert talk == "init: as it is built here\n"
    status, said, _ = verify(copied, artifact, "--json", *from_layout(copied))
    value = json.loads(said)[0]
    assert (value["identical"], value["differences"], value["digest"]) == (True, [], value["rebuilt"])
    assert list((copied / "own-cache").glob("verify-*")) == []


@needs_registry
def test_the_recorded_source(copied: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """From a registry, by the recorded digest, though its tag has moved."""
    with run_registry(tmp_path_factory.mktemp("registry")) as registry:
        name = f"{registry.name}/app:1"
        assert run("imagetool", "copy", "--plain-http", f"oci:{copied}/layout:t", name).returncode == 0
        text = (copied / "images.toml").read_text().replace("oci:layout:t", name)
        (copied / "images.toml").write_text(text.replace("kernel", "plain_http = true\nkernel"))
        artifact = build(copied)
        write_layout(copied / "other", "t", LAYERS * 2)
        assert run("imagetool", "copy", "--plain-http", f"oci:{copied}/other:t", name).returncode == 0
        status, said, talk = verify(copied, artifact, "--plain-http")
        assert (status, said[:10]) == (0, "identical:"), talk
        status, said, talk = verify(copied, artifact, "--plain-http", "--source", name)
        assert (status, said) == (2, "")
        assert "give the image it was made of" in talk


def test_what_was_put_in_besides_is_found(copied: Path) -> None:
    """A builder that adds to the environment what no input says."""
    plant(copied, "imagetool/layout/additions.py", "values: dict[str, str] = {}", 'values = {"EVIL": "1"}')
    status, said, _ = verify(copied, build(copied), *from_layout(copied))
    assert status == 1
    lines = said.splitlines()
    assert any(line.startswith("file /.rootdisk/env: changed: size") for line in lines)
    assert re.match("not identical: sha256:.*, built again sha256:", lines[-1])


@pytest.mark.parametrize(
    ("module", "old", "new", "words"),
    [
        ("imagetool/build/derivation.py", "WRITER_VERSION = ", "WRITER_VERSION = 100 + ", "writer: 10"),
        ("rootdisk/artifact/zstd_frames.py", "zstandard.__version__,", '"0.1",', "compressor.zstandard: 0.1 -> "),
        ("rootdisk/artifact/zstd_frames.py", "LEVEL = 3", "LEVEL = 4", "compressor.level: 4 -> 3"),
    ],
)
def test_another_rootdisk_s_artifact_is_not_called_different(
    copied: Path, module: str, old: str, new: str, words: str
) -> None:
    plant(copied, module, old, new)
    status, said, talk = verify(copied, build(copied), *from_layout(copied))
    assert (status, said, talk.count("\n")) == (2, "", 1)
    assert words in talk
    assert "install rootdisk" in talk


def test_a_source_that_is_not_to_be_had(copied: Path) -> None:
    artifact = build(copied)
    status, _, talk = verify(copied, artifact)
    assert (status, talk.count("\n")) == (2, 1)
    assert "--source" in talk


RECIPE: dict[str, object] = {
    "size": 64 << 20, "memory": 512 << 20, "cpus": 1, "env": [], "tls": {}, "owners": [], "process": {}, "labels": {},
}  # fmt: skip
INPUTS: dict[str, object] = {
    "platform": "linux/amd64",
    "recipe": RECIPE,
    "source": f"sha256:{'1' * 64}",
    "guest": {"init": "x"},
}
HOSTILE: dict[str, dict[str, object]] = {
    "no recipe": {"recipe": None},
    "no source": {"source": 5},
    "no platform": {"platform": ["linux"]},
    "a size as text": {"recipe": {**RECIPE, "size": "9" * 5000}},
    "no size": {"recipe": {**RECIPE, "size": True}},
    "a huge size": {"recipe": {**RECIPE, "size": 1 << 62}},
    "a huge memory": {"recipe": {**RECIPE, "memory": 1 << 62}},
    "no processors": {"recipe": {**RECIPE, "cpus": 0}},
    "a blob of nothing": {"recipe": {**RECIPE, "max_blob": 0}},
    "numbers as variables": {"recipe": {**RECIPE, "env": [1]}},
    "labels as a list": {"recipe": {**RECIPE, "labels": ["a"]}},
    "a command as text": {"recipe": {**RECIPE, "process": {"cmd": "sh"}}},
    "an owner past 32 bits": {"recipe": {**RECIPE, "owners": [{"path": "/", "user": "0", "uid": 1 << 32}]}},
    "an owner of nothing": {"recipe": {**RECIPE, "owners": [{}]}},
    "a long mode": {"recipe": {**RECIPE, "files": [{"path": "/a", "mode": "7" * 5000}]}},
    "a mode in decimal": {"recipe": {**RECIPE, "files": [{"path": "/a", "mode": "0999"}]}},
    "a digest of another kind": {"recipe": {**RECIPE, "files": [{"path": "/a", "mode": "0644", "digest": "x"}]}},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_inputs_of_a_stranger(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Every number is bounded and every field checked before something is fetched or built: one line, no traceback."""
    inputs = {**INPUTS, **HOSTILE[name]}
    publish(
        with_boot(BARE, inputs=inputs, derivation_key=derivation_key(inputs)), f"oci:{tmp_path}/a:1", RegistryOptions()
    )
    assert main(["verify", f"oci:{tmp_path}/a:1"]) == 2
    assert re.fullmatch(r"imagetool: (recorded inputs|\S+): .*\n", capsys.readouterr().err)


def test_provenance_is_checked(copied: Path, tmp_path: Path) -> None:
    """Of the key, of this artifact, and saying what the artifact says. No value of a variable is in it."""
    keys, others = make_keys(tmp_path / "keys"), make_keys(tmp_path / "others")
    text = (copied / "images.toml").read_text() + f'[image.app.sign]\nkey = "{keys.private}"\nprovenance = true\n'
    (copied / "images.toml").write_text(text)
    artifact = build(copied)
    blobs = [path.read_bytes() for path in (copied / "cache/artifacts/app/blobs/sha256").iterdir()]
    payloads = [
        base64.b64decode(json.loads(data)["dsseEnvelope"]["payload"]) for data in blobs if b'"dsseEnvelope"' in data
    ]
    assert [payload for payload in payloads if b"slsa.dev/provenance" in payload]
    assert not any(b"not to be seen" in payload for payload in payloads)
    status, said, talk = verify(copied, artifact, "--key", str(keys.public), *from_layout(copied))
    assert (status, said[:10]) == (0, "identical:"), talk
    assert "provenance: signed by " in talk
    status, said, talk = verify(copied, artifact, "--key", str(others.public), *from_layout(copied))
    assert (status, said) == (2, "")
    assert "no provenance is signed by that key" in talk

    # By the same key, what is not true of this artifact: another source, and another artifact's statement.
    with open_artifact(parse_reference(artifact), Platform.host()) as published:
        true = statement(published.config, published.descriptor.digest, "", {})
        definition = true.predicate["buildDefinition"]
        (source, *rest) = definition["resolvedDependencies"]
        lie = {**definition, "resolvedDependencies": [{**source, "digest": {"sha256": "0" * 64}}, *rest]}
        signed = signed_statement(true._replace(predicate={**true.predicate, "buildDefinition": lie}), keys.signer)
        foreign = signed_statement(true._replace(digest=Digest.of(b"x")), others.signer)
        with contextlib.closing(open_target(parse_reference(artifact))) as target:
            push_bundle(target, published.descriptor, foreign, PREDICATE)
    status, _, talk = verify(copied, artifact, "--key", str(others.public), *from_layout(copied))
    assert status == 2
    assert "no provenance is signed by that key" in talk
    with (
        open_artifact(parse_reference(artifact), Platform.host()) as published,
        contextlib.closing(open_target(parse_reference(artifact))) as target,
    ):
        push_bundle(target, published.descriptor, signed, PREDICATE)
    status, said, talk = verify(copied, artifact, "--key", str(keys.public), *from_layout(copied))
    assert (status, said) == (1, ""), talk
    assert "its provenance has another resolvedDependencies than the artifact" in talk
    assert talk.count("\n") == 1
