"""A project's files: images.toml, receipts, environments."""

from __future__ import annotations

import os
import tomllib
from contextlib import suppress
from functools import cache
from pathlib import Path

from imagetool.config import images
from imagetool.config.toml_lines import position_of
from imagetool.layout.additions import environment, process_record
from imagetool.receipts import CHECK, read_receipt, write_receipt
from rootdisk.artifact.format import Process
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.fields import parse_value
from tests.fuzz.target import Target, folder


@cache
def _project() -> Path:
    """A directory with a file of each kind that images.toml may name, and no git."""
    place = folder() / "project"
    (place / "more").mkdir(parents=True)
    (place / "variables").write_bytes(b"# \nA=1\nB=\xff\n")
    (place / "more/file").write_text("text")
    os.environ["PATH"] = str(place)
    os.chdir(place)
    return place


def images_toml(data: bytes) -> None:
    place = _project() / "images.toml"
    place.write_bytes(data)
    try:
        tomllib.loads(data.decode())
    except (ValueError, RecursionError):
        pass
    else:
        position_of(data.decode(), ("image", "a", "files", 1, "path"))
    for image in images.load(place):
        assert image.name
        process_record(image.process.apply(Process(("a",), ("b",))))
        environment(image.env)


def receipt(data: bytes) -> None:
    """What was made of what, in the cache; with the right digest of its own, if it is one."""
    path = folder() / "receipt.json"
    path.write_bytes(data)
    with suppress(RootdiskError):
        read_receipt(path)
    value = parse_value(data, "test", 1 << 20)
    if not isinstance(value, dict):
        raise BadInput("no receipt")
    write_receipt(path, value)
    assert read_receipt(path) == {key: item for key, item in value.items() if key != CHECK}


def variables(data: bytes) -> None:
    """An image's own environment."""
    texts = tuple(data.decode("utf-8", "surrogateescape").split("\n"))
    assert environment(texts).endswith(b"\0")
    process_record(Process(texts, texts, texts[0], texts[-1]))


def receipts() -> list[bytes]:
    path = folder() / "receipt.json"
    write_receipt(path, {"digest": "sha256:0", "layers": [1, None, {"a": 1.5}]})
    return [path.read_bytes(), b'{"digest": "x"}', b"[]", b"1", b""]


SMALL = b"""[image.app]
source = "registry.example/team/app:v1"
publish = ["registry.example/disks/app", "oci:out"]
version = "{source_tag}-1"
size = "1GiB"
"""
LARGE = b"""[defaults]
platforms = ["linux/amd64", "arm64"]
env_files = ["variables"]
[defaults.env]
A = "1"
[image.a]
source = "oci:x:y"
memory = "64MiB"
cpus = 2
remove = ["/etc/motd"]
max_blob = "1MiB"
kernel = "none"
files = [{path = "/etc/x", text = "t", mode = "0644", owner = "root:root"}, {path = "/m", from = "more"}]
[image.a.owners]
"/sandbox" = {user = "guest", uid = 7, create = true}
"/a" = "1:2"
[image.a.process]
cmd = ["a", "b"]
user = "x"
workdir = "/"
[image.a.labels]
a = "b"
[[image.a.more]]
"""
WORDS = (
    b"[image.b]\n", b"[[image.a.files]]\n", b"[defaults.tls]\n", b'ca = "variables"\n', b'source = "tar:x"\n', b'version = "{git}"\n', b'"""', b"'''", b"{}",
    b"= 1979-05-27\n", b"= nan\n", b"= [\n", b"]\n", b"\\u0000", b"\\ud800", b'"\xc2\xb2"', b"true", b"{secret = true}", b"files = ", b"env = ", b"owners = ",
    b'user = "', b"ca_file = ", b"plain_http = ", b'platform = "', b"\r\n",
)  # fmt: skip
TARGETS = {
    "receipt": Target(receipt, receipts, (b"[" * 2000, b"{", b"NaN", b"1e999", b'"\\ud800"', b"\xff", b'"receipt"'), few=100),
    "images-toml": Target(images_toml, lambda: [SMALL, LARGE.replace(b"[[image.a.more]]\n", b""), LARGE, b""], WORDS),
    "environment": Target(variables, lambda: [b"A=1\nB=2\nA=3", b"A=\xff\xfe", b"=x", b"A"], (b"\0", b"=", b"\n", b"\xed\xa0\x80")),
}  # fmt: skip
