"""An image's config: what docker and containerd take is taken, what they refuse is refused with one line that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imagetool.sources.image_config import ImageConfig
from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import Descriptor, Digest

DIGEST = str(Digest.of(b""))
PROCESS = {
    "Env": ["A=b"],
    "Cmd": ["x"],
    "Entrypoint": ["y"],
    "User": "u",
    "WorkingDir": "/",
    "Labels": {"a": "b"},
    "Volumes": {"/v": {}},
    "ExposedPorts": {"80/tcp": {}},
    "StopSignal": "TERM",
}


def config(**process: Any) -> dict[str, Any]:
    rootfs = {"type": "layers", "diff_ids": [DIGEST]}
    return {"architecture": "amd64", "os": "linux", "config": {**PROCESS, **process}, "rootfs": rootfs}


def parsed(value: object) -> ImageConfig:
    return ImageConfig.parse(json.dumps(value).encode())


WRONG: tuple[Any, ...] = ("", "x", 0, 5, 1.5, False, True, [], {}, [1], {"a": 1})


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_other_types_are_refused_as_by_go(value: object) -> None:
    """Also those that Python takes for nothing: [], "", 0 and false. The message names the field."""
    if not isinstance(value, dict):
        with pytest.raises(BadInput, match=r"^image config: config is not an object$"):
            parsed({**config(), "config": value})
    for key, usual in PROCESS.items():
        if type(value) is type(usual) and value in ([], {}, "", "x"):
            continue  # a right one
        if key in ("Cmd", "Entrypoint") and isinstance(value, str):
            assert key != "Cmd" or parsed(config(Cmd=value)).cmd == ((value,) if value else ())
            continue
        if isinstance(usual, dict) and isinstance(value, dict) and key != "Labels":
            continue  # a set: Go's values are empty objects
        with pytest.raises(BadInput, match=f"^image config: {key} is not "):
            parsed(config(**{key: value}))
    if not isinstance(value, list):
        with pytest.raises(BadInput, match=r"no rootfs\.diff_ids"):
            parsed({**config(), "rootfs": {"diff_ids": value}})
    if not isinstance(value, str) or value == "x":
        with pytest.raises(Unsupported, match="rootfs of type"):
            parsed({**config(), "rootfs": {"type": value, "diff_ids": []}})


def test_null_is_as_if_it_were_not_there() -> None:
    assert parsed({**config(), "config": None}).cmd == ()
    empty = parsed(config(**dict.fromkeys(PROCESS)))
    assert (empty.env, empty.cmd, empty.entrypoint, empty.user, empty.workdir) == ((), (), (), "", "/")
    assert (empty.labels, empty.volumes, empty.ports, empty.stop_signal) == ({}, (), (), "SIGTERM")
    assert parsed({**config(), "rootfs": {"type": None, "diff_ids": [DIGEST]}}).diff_ids == (Digest.of(b""),)


def test_a_key_that_stands_there_twice() -> None:
    """As Go reads it, so as docker runs it: the last value counts, objects are merged. A remark says so; --strict refuses."""
    text = json.dumps(config())
    twice = text.replace('"Cmd": ["x"]', '"Cmd": ["first", "one"], "Cmd": ["last"]')
    twice = twice.replace('"config": {', '"config": {"User": "before", "Labels": {"kept": "1", "a": "0"}}, "config": {')
    assert twice.count('"Cmd"') == twice.count('"config"') == 2
    read = ImageConfig.parse(twice.encode())
    assert (read.cmd, read.user, read.labels) == (("last",), "u", {"a": "b", "kept": "1"})
    assert [remark.text for remark in read.remarks] == [
        "image config: Cmd stands there twice: the last one counts",
        "image config: config stands there twice: the last one counts",
    ]


def test_many_keys_twice_cost_no_more_than_others() -> None:
    """Each object is merged into what is there, which is not copied; and the remarks about one config are few."""
    inner = "".join(f'"config": {{"Labels": {{"k{n}": ""}}}},' for n in range(50_000))
    names = "".join(f'"n{n}": 1, "n{n}": 2,' for n in range(100))
    read = ImageConfig.parse(f'{{{inner}{names} "rootfs": {{"diff_ids": []}}}}'.encode())
    assert (len(read.labels), len(read.remarks)) == (50_000, 20)


@pytest.mark.parametrize("digest", [None, 5, [], {}, True])
def test_a_digest_of_another_type_is_named(digest: object) -> None:
    with pytest.raises(BadInput, match=r"^layer 3: digest: (missing|not a string)$"):
        Descriptor.parse({"mediaType": "a/b", "size": 1, "digest": digest}, "layer 3")
    with pytest.raises(
        BadInput, match=r"^image config: diff_ids is not a list of strings$|not a sha256 or sha512 digest: ''"
    ):
        parsed({**config(), "rootfs": {"diff_ids": [digest]}})
